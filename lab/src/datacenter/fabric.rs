//! What passes the spine and the racks' routers, counted there by nftables, and what they drop.
//!
//! Routers that know no pods drop pod addresses: what pods send gets through in a tunnel or not at all.
//! The switch of a rack is a bridge in its router, whose packets are counted apart from routed ones.

use std::io::Write;
use std::ops::{Add, Sub};
use std::process::{Command, Stdio};

use cairn_kernel::{NetNs, VXLAN_PORT_DEFAULT};
use serde::Deserialize;

use super::build::{BRIDGE, DataCenter};
use super::layout::{Layout, POOLS, Role};
use crate::error::Error;

/// Packets that passed, or were dropped, since the lab was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// From or to a pod's address, outside of a tunnel.
    pub plain: u64,
    /// Outer packets of VXLAN.
    pub vxlan: u64,
    /// Outer packets of IP-in-IP.
    pub ipip: u64,
    /// Parts of packets.
    pub fragments: u64,
}

/// What the fabric has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Routed by the spine.
    pub spine: Passed,
    /// Routed by racks' routers, also what the spine then routes.
    pub tors: Passed,
    /// Switched between neighbours in racks.
    pub racks: Passed,
}

/// Makes all routers of `centre` count, and drop what they must not know.
///
/// # Errors
/// [`Error::Nft`] when nftables cannot be had or refuses.
pub fn guard(centre: &DataCenter) -> Result<(), Error> {
    for (name, machine) in centre.machines().filter(|(_, machine)| machine.role != Role::Node) {
        let text = script(&centre.layout, machine.role);
        nft(name, &machine.netns, &["-f", "-"], &text)?;
    }
    Ok(())
}

/// Reads all counters.
///
/// # Errors
/// As [`guard`].
pub fn traffic(centre: &DataCenter) -> Result<Traffic, Error> {
    let mut traffic = Traffic::default();
    for (name, machine) in centre.machines() {
        let text = match machine.role {
            Role::Node => continue,
            _ => nft(name, &machine.netns, &["-j", "list", "counters"], "")?,
        };
        let [routed, switched] = counters(&text).map_err(|why| Error::Nft {
            machine: name.into(),
            why: format!("its counters are not understood: {why}"),
        })?;
        match machine.role {
            Role::Spine => traffic.spine = traffic.spine + routed,
            _ => traffic.tors = traffic.tors + routed,
        }
        traffic.racks = traffic.racks + switched;
    }
    Ok(traffic)
}

/// The table of a router for what it routes and, in a rack, that of its switch.
fn script(layout: &Layout, role: Role) -> String {
    let drop_routed = !layout.fabric_knows_pods();
    let drop_switched = drop_routed && !layout.encap.is_cross_subnet();
    let routed = table(ROUTED, drop_routed);
    match role {
        Role::Tor => routed + &table(SWITCHED, drop_switched),
        _ => routed,
    }
}

fn table(family: &str, drop_pods: bool) -> String {
    // Packets from and to a pod are counted once.
    let verdict = if drop_pods { "drop" } else { "accept" };
    let mut text = format!("table {family} {TABLE} {{\n");
    for counter in [PLAIN, VXLAN, IPIP, FRAGMENTS] {
        text.push_str(&format!("  counter {counter} {{ }}\n"));
    }
    text.push_str("  chain forward {\n    type filter hook forward priority 0; policy accept;\n");
    if family == ROUTED {
        // Where br_netfilter is loaded, what a bridge switches comes here too.
        text.push_str(&format!("    iifname {BRIDGE} oifname {BRIDGE} accept\n"));
    }
    text.push_str(&format!("    ip frag-off & 0x3fff != 0 counter name {FRAGMENTS}\n"));
    text.push_str(&format!("    exthdr frag exists counter name {FRAGMENTS}\n"));
    text.push_str(&format!("    udp dport {VXLAN_PORT_DEFAULT} counter name {VXLAN}\n"));
    text.push_str(&format!("    ip protocol {PROTOCOL_IPIP} counter name {IPIP}\n"));
    for (_, cidr, _) in POOLS {
        let ip = if cidr.contains(':') { "ip6" } else { "ip" };
        for end in ["saddr", "daddr"] {
            text.push_str(&format!("    {ip} {end} {cidr} counter name {PLAIN} {verdict}\n"));
        }
    }
    text.push_str("  }\n}\n");
    text
}

/// What a list of counters says: routed and switched packets.
fn counters(text: &str) -> Result<[Passed; 2], serde_json::Error> {
    let listing: Listing = serde_json::from_str(text)?;
    let mut passed = [Passed::default(); 2];
    for counter in listing.nftables.into_iter().filter_map(|item| item.counter) {
        let passed = match counter.family.as_str() {
            ROUTED => &mut passed[0],
            _ => &mut passed[1],
        };
        match counter.name.as_str() {
            PLAIN => passed.plain = counter.packets,
            VXLAN => passed.vxlan = counter.packets,
            IPIP => passed.ipip = counter.packets,
            FRAGMENTS => passed.fragments = counter.packets,
            _ => {}
        }
    }
    Ok(passed)
}

/// Runs nft inside a machine and returns what it prints.
fn nft(machine: &str, netns: &NetNs, arguments: &[&str], input: &str) -> Result<String, Error> {
    let refused = |why: String| Error::Nft { machine: machine.into(), why };
    let run = || -> std::io::Result<_> {
        let mut command = Command::new("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output =
        netns.run(run).map_err(Error::kernel(format!("a process in {machine}")))?.map_err(
            |error| refused(format!("nft (Debian's package nftables) does not run: {error}")),
        )?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The part of `nft -j list counters` that is read.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    family: String,
    name: String,
    packets: u64,
}

impl Passed {
    fn map2(self, other: Passed, of: impl Fn(u64, u64) -> u64) -> Passed {
        Passed {
            plain: of(self.plain, other.plain),
            vxlan: of(self.vxlan, other.vxlan),
            ipip: of(self.ipip, other.ipip),
            fragments: of(self.fragments, other.fragments),
        }
    }
}

impl Add for Passed {
    type Output = Passed;

    fn add(self, other: Passed) -> Passed {
        self.map2(other, u64::saturating_add)
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    fn sub(self, other: Traffic) -> Traffic {
        Traffic {
            spine: self.spine - other.spine,
            tors: self.tors - other.tors,
            racks: self.racks - other.racks,
        }
    }
}

impl Sub for Passed {
    type Output = Passed;

    fn sub(self, other: Passed) -> Passed {
        self.map2(other, u64::saturating_sub)
    }
}

const TABLE: &str = "cairn-lab";
/// Tables of nftables: what is routed, and what a bridge switches.
const ROUTED: &str = "inet";
const SWITCHED: &str = "bridge";
const PLAIN: &str = "plain";
const VXLAN: &str = "vxlan";
const IPIP: &str = "ipip";
const FRAGMENTS: &str = "fragments";
/// `IPPROTO_IPIP`, which has several names.
const PROTOCOL_IPIP: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Encap, Families};

    #[test]
    fn pods_are_dropped_where_no_router_knows_them() {
        let layout = Layout::new("lab", 3, AsnPlan::Single, Families::Dual);
        let drops = |encap, role| {
            let text = script(&layout.clone().with_encap(encap), role);
            text.split("table ").map(|table| table.matches(" drop\n").count()).collect::<Vec<_>>()
        };
        // Nothing, then the table of routed packets, then that of the switch; four rules each.
        assert_eq!(drops(Encap::None, Role::Tor), [0, 0, 0]);
        assert_eq!(drops(Encap::Vxlan, Role::Tor), [0, 4, 4]);
        assert_eq!(drops(Encap::IpipCrossSubnet, Role::Tor), [0, 4, 0]);
        assert_eq!(drops(Encap::IpipCrossSubnet, Role::Spine), [0, 4]);
    }

    #[test]
    fn counters_of_routed_and_switched_packets_are_read_apart() -> Result<(), serde_json::Error> {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "plain", "table": "cairn-lab", "handle": 1, "packets": 3, "bytes": 9}},
            {"counter": {"family": "bridge", "name": "plain", "table": "cairn-lab", "handle": 1, "packets": 5, "bytes": 9}},
            {"counter": {"family": "bridge", "name": "ipip", "table": "cairn-lab", "handle": 2, "packets": 7, "bytes": 9}}]}"#;
        let [routed, switched] = counters(text)?;
        assert_eq!(routed, Passed { plain: 3, ..Passed::default() });
        assert_eq!(switched, Passed { plain: 5, ipip: 7, ..Passed::default() });
        assert_eq!(switched - routed, Passed { plain: 2, ipip: 7, ..Passed::default() });
        Ok(())
    }
}
