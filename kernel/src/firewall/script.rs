//! The table as text for `nft -f -`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{COMMENT, Firewall, Outer, TABLE, TunnelRule};
use crate::route::Family;

/// The script that puts the whole table in the place of what is there, in one transaction.
pub fn script(firewall: &Firewall) -> String {
    let mut text = format!(
        "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\tcomment \
         \"{COMMENT}\"\n"
    );
    for set in sets(firewall) {
        set.declare(&mut text);
    }
    text.push_str(&chains(firewall));
    text.push_str("}\n");
    text
}

/// The script that leads from the table of `old` to that of `new` when only elements of its sets
/// differ, empty when nothing does; `None` when the whole table must be written. Counters stay.
pub fn update(old: &Firewall, new: &Firewall) -> Option<String> {
    if chains(old) != chains(new) {
        return None;
    }
    let mut deleted = String::new();
    let mut added = String::new();
    for (old, new) in sets(old).iter().zip(&sets(new)) {
        change(&mut deleted, "delete", &new.name, old.elements.difference(&new.elements));
        change(&mut added, "add", &new.name, new.elements.difference(&old.elements));
    }
    // An element that goes may overlap one that comes.
    Some(deleted + &added)
}

/// A set of the table.
struct Set {
    name: String,
    kind: &'static str,
    elements: BTreeSet<String>,
}

impl Set {
    fn declare(&self, text: &mut String) {
        let Set { name, kind, elements } = self;
        let _ = write!(text, "\n\tset {name} {{\n\t\ttype {kind}\n");
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", list(elements));
        }
        text.push_str("\t}\n");
    }
}

fn change<'a>(
    text: &mut String,
    verb: &str,
    set: &str,
    elements: impl Iterator<Item = &'a String>,
) {
    let elements = list(elements);
    if !elements.is_empty() {
        let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {elements} }}");
    }
}

fn list<'a>(elements: impl IntoIterator<Item = &'a String>) -> String {
    elements.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Every set is there whether it is empty or not, so that the rules do not depend on it.
fn sets(firewall: &Firewall) -> Vec<Set> {
    let Firewall { pools, nat_pools, excluded, nodes, tunnel_pools, tunnel_nodes, .. } = firewall;
    let networks = |name, networks: &BTreeSet<IpNet>| {
        // nft refuses networks of one set that overlap.
        let merged = IpNet::aggregate(&networks.iter().map(IpNet::trunc).collect());
        both(name, ["ipv4_addr; flags interval", "ipv6_addr; flags interval"], |family| {
            merged.iter().filter(|net| Family::of(net.addr()) == family).map(text_of).collect()
        })
    };
    let addresses = |name, addresses: &BTreeSet<IpAddr>| {
        both(name, ["ipv4_addr", "ipv6_addr"], |family| {
            addresses
                .iter()
                .filter(|ip| Family::of(**ip) == family)
                .map(IpAddr::to_string)
                .collect()
        })
    };
    [
        networks("pools", pools),
        networks("nat_pools", nat_pools),
        networks("excluded", excluded),
        addresses("nodes", nodes),
        networks("tunnel_pools", tunnel_pools),
        addresses("tunnel_nodes", tunnel_nodes),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn both(
    name: &str,
    kinds: [&'static str; 2],
    elements: impl Fn(Family) -> BTreeSet<String>,
) -> [Set; 2] {
    let [v4, v6] = kinds;
    [(Family::V4, v4), (Family::V6, v6)].map(|(family, kind)| Set {
        name: format!("{name}{}", digit(family)),
        kind,
        elements: elements(family),
    })
}

fn text_of(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        return network.addr().to_string();
    }
    network.to_string()
}

/// The chains and their rules, which name the sets and do not depend on what is in them.
fn chains(firewall: &Firewall) -> String {
    let prefix = firewall.pod_interfaces;
    // Tunnel devices have a dot after the prefix, which no pod's interface has.
    let from_pod = format!("iifname \"{prefix}*\" iifname != \"{prefix}.*\"");
    let mut prerouting = vec![format!("{from_pod} jump from_pod")];
    let mut output = Vec::new();
    let mut input = Vec::new();
    let mut forward = Vec::new();
    let mut postrouting = Vec::new();
    for tunnel in &firewall.tunnels {
        let (ip, six) = (keyword(Family::of(tunnel.local)), digit(Family::of(tunnel.local)));
        // Without the identifier of the network, as a fragment may not have it.
        let (any, ours) = match tunnel.protect {
            Outer::Vxlan { port, vni } => {
                let any = format!("udp dport {port}");
                // After the header of UDP come 32 bits of flags, then the identifier. A reply to
                // a flow that was masqueraded to this very port is not taken for a tunnel packet.
                let ours = format!("{any} @th,96,24 {vni:#x}");
                (any, ours)
            }
            Outer::Ipip => ("ip protocol 4".to_owned(), "ip protocol 4".to_owned()),
        };
        prerouting.push(format!("{ip} saddr @nodes{six} {ours} notrack"));
        output.push(format!("{ip} daddr @nodes{six} {ours} notrack"));
        input.push(format!("{ip} saddr != @nodes{six} {any} counter drop"));
        forward.push(format!("{from_pod} {ip} daddr != @pools{six} {any} counter drop"));
        postrouting.extend(from_node(tunnel));
    }
    for family in [Family::V4, Family::V6] {
        let (ip, six) = (keyword(family), digit(family));
        postrouting.push(format!(
            "{ip} saddr @tunnel_pools{six} {ip} daddr @tunnel_nodes{six} masquerade fully-random"
        ));
        postrouting.push(format!(
            "{ip} saddr @nat_pools{six} {ip} daddr != @pools{six} {ip} daddr != @nodes{six} {ip} \
             daddr != @excluded{six} masquerade fully-random"
        ));
    }
    let from_pod = [
        // A pod is no router: neither this node nor another pod's interface may take it for one.
        "icmpv6 type { nd-router-advert, nd-redirect } counter drop",
        // Duplicate address detection and multicast listener reports, which have no address yet.
        // Later kernels pass them as the next rule's exception, earlier ones do not.
        "ip6 saddr :: ip6 daddr ff02::/16 return",
        // What stays on the link: the node's end of an IPv4 pod has no route back to it.
        "ip6 saddr fe80::/64 return",
        // No route to the source leads back through the interface: strict reverse path filtering,
        // before connection tracking and whatever rp_filter is.
        "fib saddr . iif oif 0 counter drop",
    ]
    .map(str::to_owned);
    let mut text = String::new();
    chain(&mut text, "from_pod", None, &from_pod);
    chain(&mut text, "prerouting", Some("filter hook prerouting priority raw"), &prerouting);
    chain(&mut text, "output", Some("filter hook output priority raw"), &output);
    // Not in prerouting: the packet may belong to a masqueraded flow of a pod, and fragments are
    // whole only here.
    chain(&mut text, "input", Some("filter hook input priority filter"), &input);
    chain(&mut text, "forward", Some("filter hook forward priority filter"), &forward);
    // Behind kube-proxy's: what it marked it masquerades itself, and clears the mark, which
    // otherwise would stay on the packet that a tunnel makes of this one.
    chain(
        &mut text,
        "postrouting",
        Some("nat hook postrouting priority srcnat + 10"),
        &postrouting,
    );
    text
}

/// What the node itself sends through a tunnel from another address would be answered past it.
fn from_node(tunnel: &TunnelRule) -> impl Iterator<Item = String> {
    tunnel.addresses.iter().map(|address| {
        let ip = keyword(Family::of(*address));
        format!(
            "oifname \"{}\" {ip} saddr != {address} fib saddr type local masquerade fully-random",
            tunnel.device
        )
    })
}

fn chain(text: &mut String, name: &str, hook: Option<&str>, rules: &[String]) {
    let _ = write!(text, "\n\tchain {name} {{\n");
    if let Some(hook) = hook {
        let _ = writeln!(text, "\t\ttype {hook}; policy accept;");
    }
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn digit(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}
