//! From API objects to the speaker's types: parsed once, here, and nowhere else.
//!
//! Both the agent (objects of the API) and `cairn speaker` (documents of a file) come through these
//! functions, so that one language means one thing.

mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use cairn_api::{
    AddressFamily, BGPAdvertisementSpec, BGPConfigurationSpec, BGPPeerSpec, NextHop,
    PrefixesMaxAction, SecretKeyRef,
};
use cairn_bgp::config::{
    AddPath, Bfd, GracefulRestart, LongLived, Multipath, NextHopMode, Origination, Password,
    PeerConfig, PeerRange, PrefixLimit, PrefixLimitAction, SENT_PATHS_MAX,
};
use cairn_bgp::policy::Policy;
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::wire::Community;
use ipnet::IpNet;

pub use policy::policy;

/// A field that cannot be used: which one, and what to put there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field from the object's root, for example `spec.address`.
    pub field: String,
    /// What is wrong and what is expected.
    pub problem: String,
}

impl FieldError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> FieldError {
        FieldError { field: field.into(), problem: problem.into() }
    }
}

/// The policies by the name of their object.
pub type Policies = BTreeMap<String, Arc<Policy>>;

/// The keys and values of Secrets, by the name of the Secret.
pub type Passwords = BTreeMap<String, BTreeMap<String, Password>>;

fn network(field: &str, text: &str) -> Result<Prefix, FieldError> {
    text.parse::<IpNet>().map(Prefix::from).map_err(|_| {
        FieldError::new(
            field,
            format!("\"{text}\" is no network: write one such as 10.244.0.0/16 or fd00::/64"),
        )
    })
}

fn address(field: &str, text: &str) -> Result<IpAddr, FieldError> {
    text.parse().map_err(|_| {
        FieldError::new(
            field,
            format!("\"{text}\" is no IP address: write one such as 192.0.2.1 or 2001:db8::1"),
        )
    })
}

/// What a peer's policies are when its object names none.
#[derive(Clone, Copy, Debug)]
pub struct DefaultPolicies<'a> {
    /// Asked about what comes in.
    pub import: &'a [Arc<Policy>],
    /// Asked about what goes out.
    pub export: &'a [Arc<Policy>],
}

/// A BGPPeer as the speaker's value.
///
/// # Errors
/// An address that is none, an AS or a hold time that cannot be, a policy that does not exist.
pub fn peer(
    spec: &BGPPeerSpec,
    configuration: &BGPConfigurationSpec,
    policies: &Policies,
    passwords: &Passwords,
    defaults: DefaultPolicies<'_>,
) -> Result<PeerConfig, FieldError> {
    asn("spec.asn", spec.asn)?;
    let located = place(spec)?;
    let local_asn = spec.local_asn.map(|local| asn("spec.localASN", local)).transpose()?;
    let timers = spec.timers.unwrap_or(configuration.timers);
    hold_time("spec.timers.holdTimeSecs", timers.hold_time_secs)?;
    let graceful = spec.graceful_restart.unwrap_or(configuration.graceful_restart);
    let source_address = match &spec.source_address {
        None => None,
        Some(text) => {
            let source = self::address("spec.sourceAddress", text)?;
            if located.interface.is_some() {
                return Err(FieldError::new(
                    "spec.sourceAddress",
                    "is the link-local address of the interface that the peer is on: leave it out",
                ));
            }
            if source.is_ipv4() != located.address.is_ipv4() {
                return Err(FieldError::new(
                    "spec.sourceAddress",
                    "must be of the same family as spec.address",
                ));
            }
            Some(source)
        }
    };
    if spec.multihop == 0 {
        return Err(FieldError::new(
            "spec.multihop",
            "is 1 for a directly connected peer, or more",
        ));
    }
    Ok(PeerConfig {
        port: port("spec.port", spec.port)?,
        local_asn,
        source_address,
        passive: spec.passive,
        multihop: spec.multihop,
        families: families(&spec.families)?,
        hold_time_secs: timers.hold_time_secs,
        send_hold_time_secs: timers.send_hold_time_secs,
        connect_retry_secs: timers.connect_retry_secs.max(1),
        graceful_restart: graceful_restart(graceful),
        bfd: spec.bfd.filter(|bfd| bfd.enabled).map(bfd).transpose()?,
        password: password(spec, passwords)?,
        ttl_security: spec.ttl_security,
        route_reflector_client: spec.route_reflector_client,
        next_hop: match spec.next_hop {
            NextHop::Auto => NextHopMode::Auto,
            NextHop::SelfAddress => NextHopMode::SelfAddress,
            NextHop::Unchanged => NextHopMode::Unchanged,
        },
        next_hop_ipv6: spec.next_hop_ipv6.as_deref().map(next_hop_ipv6).transpose()?,
        extended_next_hop: spec.extended_next_hop.unwrap_or(located.extended_next_hop),
        add_path: spec.add_path.map(add_path).transpose()?.unwrap_or_default(),
        enforce_first_as: spec.enforce_first_as,
        own_as_max: spec.own_as_max,
        as_path_len_max: spec.as_path_len_max,
        remove_private_as: spec.remove_private_as,
        discard_attributes: discard_attributes(&spec.discard_attributes)?,
        prefix_limit: prefix_limit(spec),
        graceful_shutdown: spec.graceful_shutdown || configuration.graceful_shutdown,
        import: import_policies(spec, policies, defaults.import)?,
        export: chosen_policies(
            "spec.exportPolicies",
            &spec.export_policies,
            policies,
            defaults.export,
        )?,
        ..located
    })
}

/// The range of addresses that a BGPPeer stands for; `None` where it has an address.
pub fn range(spec: &BGPPeerSpec) -> Option<IpNet> {
    spec.address.as_ref()?.parse().ok()
}

/// The peers of a range, each of which is as `template`.
pub fn peer_range(spec: &BGPPeerSpec, addresses: IpNet, template: PeerConfig) -> PeerRange {
    PeerRange { addresses: Prefix::from(addresses), peers_max: spec.peers_max, template }
}

/// Graceful restart as it is offered; `None` when it is not.
pub fn graceful_restart(spec: cairn_api::GracefulRestart) -> Option<GracefulRestart> {
    let stale_time_secs = spec.long_lived_stale_time_secs;
    spec.enabled.then_some(GracefulRestart {
        restart_time_secs: spec.restart_time_secs,
        notification: spec.notification,
        long_lived: (stale_time_secs > 0).then_some(LongLived { stale_time_secs, within: None }),
    })
}

/// Which paths of equal cost share a kernel route.
pub fn multipath(spec: cairn_api::Multipath) -> Multipath {
    Multipath { paths_max: spec.paths_max.max(1), same_as_path: spec.same_as_path }
}

fn add_path(spec: cairn_api::AddPath) -> Result<AddPath, FieldError> {
    if spec.send_max > SENT_PATHS_MAX {
        let text = format!("{} is not from 0 to {SENT_PATHS_MAX} paths", spec.send_max);
        return Err(FieldError::new("spec.addPath.sendMax", text));
    }
    Ok(AddPath { receive: spec.receive, send_max: spec.send_max })
}

/// BFD with a peer.
///
/// # Errors
/// A number is out of range.
pub fn bfd(spec: cairn_api::Bfd) -> Result<Bfd, FieldError> {
    let (least, most) = (cairn_bfd::config::INTERVAL_MS_MIN, cairn_bfd::config::INTERVAL_MS_MAX);
    if !(least..=most).contains(&spec.interval_ms) {
        return Err(FieldError::new(
            "spec.bfd.intervalMs",
            format!("{} is not from {least} to {most} milliseconds", spec.interval_ms),
        ));
    }
    if spec.multiplier == 0 {
        return Err(FieldError::new("spec.bfd.multiplier", "is at least 1; usual is 3"));
    }
    Ok(Bfd { interval_ms: spec.interval_ms, multiplier: spec.multiplier })
}

fn prefix_limit(spec: &BGPPeerSpec) -> Option<PrefixLimit> {
    let restart_after_secs = Some(spec.restart_after_secs).filter(|secs| *secs > 0);
    let action = match spec.prefixes_max_action {
        PrefixesMaxAction::Warn => PrefixLimitAction::Warn,
        PrefixesMaxAction::Drop => PrefixLimitAction::Drop,
        PrefixesMaxAction::Stop => PrefixLimitAction::Stop { restart_after_secs },
    };
    spec.prefixes_max.map(|prefixes_max| PrefixLimit { prefixes_max, action })
}

fn password(spec: &BGPPeerSpec, passwords: &Passwords) -> Result<Option<Password>, FieldError> {
    let Some(SecretKeyRef { name, key }) = &spec.password_secret_ref else { return Ok(None) };
    let error = |problem| Err(FieldError::new("spec.passwordSecretRef", problem));
    let Some(secret) = passwords.get(name) else {
        return error(format!("there is no Secret \"{name}\" to read: create it or mend its name"));
    };
    match secret.get(key) {
        None => error(format!(
            "Secret \"{name}\" has no text under the key \"{key}\": add it, or name another key"
        )),
        Some(Password(text)) if text.is_empty() || text.len() > PASSWORD_OCTETS_MAX => {
            error(format!(
                "\"{key}\" of Secret \"{name}\" is {} octets long: a TCP MD5 password has 1 to \
             {PASSWORD_OCTETS_MAX}",
                text.len()
            ))
        }
        Some(password) => Ok(Some(password.clone())),
    }
}

fn next_hop_ipv6(text: &str) -> Result<Ipv6Addr, FieldError> {
    match text.parse::<Ipv6Addr>() {
        Ok(address)
            if !(address.is_unspecified()
                || address.is_multicast()
                || address.is_loopback()
                || address.is_unicast_link_local()) =>
        {
            Ok(address)
        }
        _ => Err(FieldError::new(
            "spec.nextHopIPv6",
            format!("\"{text}\" is no global IPv6 address: write one such as 2001:db8::1"),
        )),
    }
}

fn discard_attributes(types: &[u8]) -> Result<BTreeSet<u8>, FieldError> {
    // Without these three no route is left, and the other two hold the routes.
    match types.iter().find(|code| matches!(code, 0..=3 | 14 | 15)) {
        Some(code) => Err(FieldError::new(
            "spec.discardAttributes",
            format!("attribute {code} cannot be left out: a route needs it"),
        )),
        None => Ok(types.iter().copied().collect()),
    }
}

/// A peer at its address, at the first one of a range, or on its interface; all else is as by default.
fn place(spec: &BGPPeerSpec) -> Result<PeerConfig, FieldError> {
    if let Some(addresses) = range(spec) {
        let first = addresses.network();
        if matches!(first, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            let text =
                "is link-local and says nothing without its link: write spec.interface instead";
            return Err(FieldError::new("spec.address", format!("{addresses} {text}")));
        }
        if spec.bfd.is_some_and(|bfd| bfd.enabled) {
            return Err(FieldError::new(
                "spec.bfd",
                "is not for a range of addresses: name each peer",
            ));
        }
        return Ok(PeerConfig::new(first, spec.asn));
    }
    match (&spec.address, &spec.interface) {
        (Some(text), None) => Ok(PeerConfig::new(address_of_peer(text)?, spec.asn)),
        (None, Some(name)) => {
            on_interface(spec, name)?;
            Ok(PeerConfig::on_interface(name.as_str(), spec.asn))
        }
        (Some(_), Some(_)) => Err(FieldError::new(
            "spec.interface",
            "stands beside spec.address: a peer is named by one of both",
        )),
        (None, None) => Err(FieldError::new(
            "spec.address",
            "is missing: write the peer's address, or spec.interface for a peer without one",
        )),
    }
}

fn address_of_peer(text: &str) -> Result<IpAddr, FieldError> {
    let address = address("spec.address", text)?;
    let problem = match address {
        _ if address.is_unspecified() || address.is_multicast() => "is no address of a router",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            "is link-local and says nothing without its link: write spec.interface instead"
        }
        _ => return Ok(address),
    };
    Err(FieldError::new("spec.address", format!("{address} {problem}")))
}

/// What a peer on an interface cannot have.
fn on_interface(spec: &BGPPeerSpec, name: &str) -> Result<(), FieldError> {
    let impossible = |c: char| c == '/' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > INTERFACE_OCTETS_MAX || name.contains(impossible) {
        return Err(FieldError::new(
            "spec.interface",
            format!("\"{name}\" is no name of a network interface: write one such as eth0"),
        ));
    }
    if spec.bfd.is_some_and(|bfd| bfd.enabled) {
        return Err(FieldError::new(
            "spec.bfd",
            "is not for a peer on an interface: a lost carrier ends its session at once without",
        ));
    }
    if spec.password_secret_ref.is_some() {
        return Err(FieldError::new(
            "spec.passwordSecretRef",
            "is not for a peer on an interface: the kernel knows TCP MD5 keys by addresses",
        ));
    }
    if spec.multihop != 1 {
        return Err(FieldError::new("spec.multihop", "is 1 of a peer on an interface"));
    }
    Ok(())
}

fn families(wanted: &[AddressFamily]) -> Result<Families, FieldError> {
    if wanted.is_empty() {
        return Err(FieldError::new("spec.families", "name at least one family, or leave it out"));
    }
    Ok(wanted
        .iter()
        .map(|family| match family {
            AddressFamily::IPv4Unicast => Family::Ipv4Unicast,
            AddressFamily::IPv6Unicast => Family::Ipv6Unicast,
        })
        .collect())
}

fn import_policies(
    spec: &BGPPeerSpec,
    policies: &Policies,
    default: &[Arc<Policy>],
) -> Result<Vec<Arc<Policy>>, FieldError> {
    let field = "spec.importPolicies";
    let chosen = chosen_policies(field, &spec.import_policies, policies, default)?;
    let sets_next_hop = |policy: &Policy| policy.rules.iter().any(|r| r.set.next_hop.is_some());
    match chosen.iter().find(|policy| sets_next_hop(policy)) {
        None => Ok(chosen),
        Some(policy) => Err(FieldError::new(
            field,
            format!(
                "{} sets nextHop, which is for what goes out: use it in exportPolicies, or leave \
                 nextHop out of it",
                policy.name
            ),
        )),
    }
}

fn chosen_policies(
    field: &str,
    names: &[String],
    policies: &Policies,
    default: &[Arc<Policy>],
) -> Result<Vec<Arc<Policy>>, FieldError> {
    if names.is_empty() {
        return Ok(default.to_vec());
    }
    names
        .iter()
        .map(|name| {
            policies.get(name).cloned().ok_or_else(|| {
                FieldError::new(
                    field,
                    format!("there is no usable BGPPolicy \"{name}\": create it or mend its name"),
                )
            })
        })
        .collect()
}

/// Checks an AS number: not 0 (RFC 7607), not AS_TRANS (RFC 6793), not 4294967295 (RFC 7300).
///
/// # Errors
/// The number is one of these.
pub fn asn(field: &str, asn: u32) -> Result<u32, FieldError> {
    match asn {
        0 | 23456 | u32::MAX => Err(FieldError::new(
            field,
            format!("{asn} is reserved: use an AS of your own, or a private one such as 64512"),
        )),
        asn => Ok(asn),
    }
}

/// Checks a hold time in seconds (RFC 4271 section 4.2).
///
/// # Errors
/// 1 and 2.
pub fn hold_time(field: &str, secs: u16) -> Result<u16, FieldError> {
    match secs {
        1 | 2 => Err(FieldError::new(
            field,
            format!("{secs} is too short: 0 for none, or at least 3 seconds"),
        )),
        secs => Ok(secs),
    }
}

/// Checks a TCP port.
///
/// # Errors
/// Port 0.
pub fn port(field: &str, port: u16) -> Result<u16, FieldError> {
    match port {
        0 => Err(FieldError::new(field, "0 is no port: BGP's own is 179")),
        port => Ok(port),
    }
}

/// What a BGPAdvertisement originates.
///
/// # Errors
/// A network or a community that is none.
pub fn originations(
    name: &str,
    spec: &BGPAdvertisementSpec,
) -> Result<Vec<(Prefix, Origination)>, FieldError> {
    let communities = spec
        .communities
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let field = format!("spec.communities[{at}]");
            policy::parsed(&field, text).map(|community: Community| community.0)
        })
        .collect::<Result<Vec<_>, _>>()?;
    spec.cidrs
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let prefix = network(&format!("spec.cidrs[{at}]"), text)?;
            let origination = Origination {
                source: format!("bgpadvertisement/{name}").into(),
                communities: communities.clone(),
                local_pref: spec.local_pref,
            };
            Ok((prefix, origination))
        })
        .collect()
}

/// IFNAMSIZ without the 0 at the end.
const INTERFACE_OCTETS_MAX: usize = 15;
/// `TCP_MD5SIG_MAXKEYLEN` of linux/tcp.h.
const PASSWORD_OCTETS_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> BGPPeerSpec {
        serde_saphyr::from_str(yaml).expect("the text is a BGPPeer spec")
    }

    fn parse(yaml: &str) -> Result<PeerConfig, FieldError> {
        let none = DefaultPolicies { import: &[], export: &[] };
        let passwords = Passwords::new();
        peer(&spec(yaml), &BGPConfigurationSpec::default(), &Policies::new(), &passwords, none)
    }

    #[test]
    fn an_address_may_be_a_range() {
        let text = "{address: 192.0.2.77/24, peersMax: 7, asn: 65001}";
        let peer = parse(text).expect("a usable template");
        let addresses = range(&spec(text)).expect("a range");
        let range = peer_range(&spec(text), addresses, peer);
        assert_eq!(range.addresses, "192.0.2.0/24".parse().expect("a prefix"));
        assert_eq!((range.peers_max, range.template.asn), (7, 65001));
        let one = "{address: 192.0.2.77, asn: 65001}";
        assert_eq!(super::range(&spec(one)), None);
        parse(one).expect("a peer");
        let error = parse("{address: 192.0.2.0/24, asn: 65001, bfd: {}}").expect_err("no BFD");
        assert_eq!(error.field, "spec.bfd");
        let source = "{address: 192.0.2.0/24, asn: 65001, sourceAddress: '2001:db8::1'}";
        assert_eq!(parse(source).expect_err("of another family").field, "spec.sourceAddress");
    }

    #[test]
    fn a_peer_may_be_on_an_interface() {
        let peer = parse("{interface: eth0, asn: 65001}").expect("a usable peer");
        assert_eq!(peer.interface.as_deref(), Some("eth0"));
        assert!(peer.is_unlocated() && peer.extended_next_hop);
        let without = "{interface: eth0, asn: 65001, extendedNextHop: false}";
        assert!(!parse(without).expect("a usable peer").extended_next_hop);
        let numbered = parse("{address: 192.0.2.1, asn: 65001}").expect("a usable peer");
        assert!(!numbered.extended_next_hop && !numbered.is_unlocated());
    }

    #[test]
    fn a_peer_takes_its_defaults_from_the_configuration() {
        let peer = parse("{address: 192.0.2.1, asn: 65001}").expect("a usable peer");
        assert_eq!((peer.port, peer.hold_time_secs, peer.multihop), (179, 90, 1));
        assert_eq!(peer.graceful_restart, Some(GracefulRestart::new(120)));
        assert!(peer.families.contains(Family::Ipv6Unicast));
        assert_eq!(peer.bfd, None);
    }

    #[test]
    fn bfd_is_on_where_it_is_named() {
        let bfd = |text: &str| {
            let peer = parse(&format!("{{address: 192.0.2.1, asn: 65001, bfd: {text}}}"));
            peer.expect("a usable peer").bfd.map(|bfd| (bfd.interval_ms, bfd.multiplier))
        };
        assert_eq!(bfd("{}"), Some((300, 3)));
        assert_eq!(bfd("{intervalMs: 50, multiplier: 5}"), Some((50, 5)));
        assert_eq!(bfd("{enabled: false}"), None);
    }

    #[test]
    fn every_unusable_field_is_named() {
        for (yaml, field) in [
            ("{address: tor1, asn: 65001}", "spec.address"),
            ("{address: 0.0.0.0, asn: 65001}", "spec.address"),
            ("{address: 'fe80::1', asn: 65001}", "spec.address"),
            ("{address: 'fe80::/64', asn: 65001}", "spec.address"),
            ("{address: 'febf::/16', asn: 65001}", "spec.address"),
            ("{asn: 65001}", "spec.address"),
            ("{address: 192.0.2.1, interface: eth0, asn: 65001}", "spec.interface"),
            ("{interface: eth/0, asn: 65001}", "spec.interface"),
            ("{interface: sixteen-octets-x, asn: 65001}", "spec.interface"),
            ("{interface: eth0, asn: 65001, bfd: {}}", "spec.bfd"),
            ("{interface: eth0, asn: 65001, multihop: 2}", "spec.multihop"),
            ("{interface: eth0, asn: 65001, sourceAddress: '::1'}", "spec.sourceAddress"),
            (
                "{interface: eth0, asn: 65001, passwordSecretRef: {name: x}}",
                "spec.passwordSecretRef",
            ),
            ("{address: 192.0.2.1, asn: 0}", "spec.asn"),
            ("{address: 192.0.2.1, asn: 23456}", "spec.asn"),
            ("{address: 192.0.2.1, asn: 1, port: 0}", "spec.port"),
            ("{address: 192.0.2.1, asn: 1, multihop: 0}", "spec.multihop"),
            ("{address: 192.0.2.1, asn: 1, families: []}", "spec.families"),
            ("{address: 192.0.2.1, asn: 1, sourceAddress: '::1'}", "spec.sourceAddress"),
            ("{address: 192.0.2.1, asn: 1, importPolicies: [x]}", "spec.importPolicies"),
            ("{address: 192.0.2.1, asn: 1, localASN: 0}", "spec.localASN"),
            ("{address: 192.0.2.1, asn: 1, nextHopIPv6: 'fe80::1'}", "spec.nextHopIPv6"),
            ("{address: 192.0.2.1, asn: 1, discardAttributes: [2]}", "spec.discardAttributes"),
            (
                "{address: 192.0.2.1, asn: 1, passwordSecretRef: {name: x}}",
                "spec.passwordSecretRef",
            ),
            ("{address: 192.0.2.1, asn: 1, timers: {holdTimeSecs: 2}}", "spec.timers.holdTimeSecs"),
            ("{address: 192.0.2.1, asn: 1, bfd: {intervalMs: 49}}", "spec.bfd.intervalMs"),
            ("{address: 192.0.2.1, asn: 1, bfd: {multiplier: 0}}", "spec.bfd.multiplier"),
        ] {
            assert_eq!(parse(yaml).expect_err(yaml).field, field, "{yaml}");
        }
    }

    #[test]
    fn a_next_hop_is_set_on_the_way_out_alone() {
        let text = "{rules: [{action: Accept, set: {nextHop: Self}}]}";
        let policy = policy("hop", &serde_saphyr::from_str(text).expect("a BGPPolicy spec"));
        let policies = [("hop".to_owned(), Arc::new(policy.expect("a usable policy")))].into();
        let parse = |yaml| {
            let none = DefaultPolicies { import: &[], export: &[] };
            let configuration = BGPConfigurationSpec::default();
            peer(&spec(yaml), &configuration, &policies, &Passwords::new(), none)
        };
        let out = parse("{address: 192.0.2.1, asn: 1, exportPolicies: [hop]}").expect("usable");
        assert_eq!(out.export.len(), 1);
        let error = parse("{address: 192.0.2.1, asn: 1, importPolicies: [hop]}").expect_err("in");
        assert_eq!(error.field, "spec.importPolicies");
    }
}
