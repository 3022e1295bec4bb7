//! From API objects to the speaker's types: parsed once, here, and nowhere else.
//!
//! Both the agent (objects of the API) and `cairn speaker` (documents of a file) come through these
//! functions, so that one language means one thing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cairn_api::{
    AddressFamily, BGPAdvertisementSpec, BGPConfigurationSpec, BGPPeerSpec, BGPPolicySpec, NextHop,
    Origin, PolicyRule, PrefixMatch,
};
use cairn_bgp::config::{ExportScope, NextHopMode, Origination, PeerConfig};
use cairn_bgp::policy::{Action, Changes, Match, Policy, PrefixList, PrefixRange, RouteSort, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use ipnet::IpNet;

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

/// A BGPPolicy as the speaker evaluates it.
///
/// # Errors
/// A prefix that is none, or a range of lengths that is empty.
pub fn policy(name: &str, spec: &BGPPolicySpec) -> Result<Policy, FieldError> {
    let rules = spec
        .rules
        .iter()
        .enumerate()
        .map(|(index, rule)| policy_rule(index, rule))
        .collect::<Result<_, _>>()?;
    Ok(Policy { name: format!("bgppolicy/{name}").into(), rules })
}

fn policy_rule(index: usize, rule: &PolicyRule) -> Result<Rule, FieldError> {
    let mut matches = Match::default();
    if let Some(wanted) = &rule.match_ {
        if !wanted.prefixes.is_empty() {
            let ranges = wanted
                .prefixes
                .iter()
                .enumerate()
                .map(|(at, entry)| {
                    prefix_range(&format!("spec.rules[{index}].match.prefixes[{at}]"), entry)
                })
                .collect::<Result<PrefixList, _>>()?;
            matches.prefixes = Some(ranges);
        }
        matches.sorts = wanted.origins.iter().map(|origin| route_sort(*origin)).collect();
    }
    let action = match rule.action {
        cairn_api::Action::Accept => Action::Accept,
        cairn_api::Action::Reject => Action::Reject,
    };
    Ok(Rule { matches, action, set: Changes::default() })
}

fn prefix_range(field: &str, entry: &PrefixMatch) -> Result<PrefixRange, FieldError> {
    let prefix = network(&format!("{field}.prefix"), &entry.prefix)?;
    let bits = prefix.family().bits();
    let ge = entry.ge.unwrap_or(prefix.len());
    let le = entry.le.unwrap_or(if entry.ge.is_some() { bits } else { prefix.len() });
    if ge < prefix.len() || le < ge || le > bits {
        return Err(FieldError::new(
            field,
            format!("it must hold that {} <= ge <= le <= {bits}", prefix.len()),
        ));
    }
    Ok(PrefixRange { prefix, len_min: ge, len_max: le })
}

fn route_sort(origin: Origin) -> RouteSort {
    match origin {
        Origin::Local => RouteSort::Originated,
        Origin::Internal => RouteSort::Ibgp,
        Origin::External => RouteSort::Ebgp,
    }
}

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
    defaults: DefaultPolicies<'_>,
) -> Result<PeerConfig, FieldError> {
    let address = address_of_peer(spec)?;
    asn("spec.asn", spec.asn)?;
    let timers = spec.timers.unwrap_or(configuration.timers);
    hold_time("spec.timers.holdTimeSecs", timers.hold_time_secs)?;
    let graceful = spec.graceful_restart.unwrap_or(configuration.graceful_restart);
    let source_address = match &spec.source_address {
        None => None,
        Some(text) => {
            let source = self::address("spec.sourceAddress", text)?;
            if source.is_ipv4() != address.is_ipv4() {
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
        address,
        port: port("spec.port", spec.port)?,
        asn: spec.asn,
        local_asn: None,
        source_address,
        passive: spec.passive,
        multihop: spec.multihop,
        families: families(&spec.families)?,
        hold_time_secs: timers.hold_time_secs,
        connect_retry_secs: timers.connect_retry_secs.max(1),
        graceful_restart_secs: graceful.enabled.then_some(graceful.restart_time_secs),
        password: None,
        ttl_security: spec.ttl_security,
        route_reflector_client: false,
        next_hop: match spec.next_hop {
            NextHop::Auto => NextHopMode::Auto,
            NextHop::SelfAddress => NextHopMode::SelfAddress,
            NextHop::Unchanged => NextHopMode::Unchanged,
        },
        export_scope: ExportScope::All,
        enforce_first_as: true,
        prefixes_max: spec.prefixes_max,
        import: chosen_policies(
            "spec.importPolicies",
            &spec.import_policies,
            policies,
            defaults.import,
        )?,
        export: chosen_policies(
            "spec.exportPolicies",
            &spec.export_policies,
            policies,
            defaults.export,
        )?,
    })
}

fn address_of_peer(spec: &BGPPeerSpec) -> Result<IpAddr, FieldError> {
    let address = address("spec.address", &spec.address)?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(FieldError::new(
            "spec.address",
            format!("{address} is no address of a router"),
        ));
    }
    Ok(address)
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
        .map(|(at, text)| community(&format!("spec.communities[{at}]"), text))
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

fn community(field: &str, text: &str) -> Result<u32, FieldError> {
    text.split_once(':')
        .and_then(|(high, low)| Some((high.parse::<u16>().ok()?, low.parse::<u16>().ok()?)))
        .map(|(high, low)| u32::from(high) << 16 | u32::from(low))
        .ok_or_else(|| {
            FieldError::new(
                field,
                format!("\"{text}\" is no community: write two numbers up to 65535 as 65000:1"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> BGPPeerSpec {
        serde_saphyr::from_str(yaml).expect("the text is a BGPPeer spec")
    }

    fn parse(yaml: &str) -> Result<PeerConfig, FieldError> {
        let none = DefaultPolicies { import: &[], export: &[] };
        peer(&spec(yaml), &BGPConfigurationSpec::default(), &Policies::new(), none)
    }

    #[test]
    fn a_peer_takes_its_defaults_from_the_configuration() {
        let peer = parse("{address: 192.0.2.1, asn: 65001}").expect("a usable peer");
        assert_eq!((peer.port, peer.hold_time_secs, peer.multihop), (179, 90, 1));
        assert_eq!(peer.graceful_restart_secs, Some(120));
        assert!(peer.families.contains(Family::Ipv6Unicast));
    }

    #[test]
    fn every_unusable_field_is_named() {
        for (yaml, field) in [
            ("{address: tor1, asn: 65001}", "spec.address"),
            ("{address: 0.0.0.0, asn: 65001}", "spec.address"),
            ("{address: 192.0.2.1, asn: 0}", "spec.asn"),
            ("{address: 192.0.2.1, asn: 23456}", "spec.asn"),
            ("{address: 192.0.2.1, asn: 1, port: 0}", "spec.port"),
            ("{address: 192.0.2.1, asn: 1, multihop: 0}", "spec.multihop"),
            ("{address: 192.0.2.1, asn: 1, families: []}", "spec.families"),
            ("{address: 192.0.2.1, asn: 1, sourceAddress: '::1'}", "spec.sourceAddress"),
            ("{address: 192.0.2.1, asn: 1, importPolicies: [x]}", "spec.importPolicies"),
            ("{address: 192.0.2.1, asn: 1, timers: {holdTimeSecs: 2}}", "spec.timers.holdTimeSecs"),
        ] {
            assert_eq!(parse(yaml).expect_err(yaml).field, field, "{yaml}");
        }
    }

    #[test]
    fn prefix_lengths_of_a_rule_are_ordered() {
        let range = |yaml: &str| {
            prefix_range("f", &serde_saphyr::from_str(yaml).expect("a prefix match"))
                .map(|r| (r.len_min, r.len_max))
        };
        assert_eq!(range("{prefix: 10.0.0.0/8}"), Ok((8, 8)));
        assert_eq!(range("{prefix: 10.0.0.0/8, ge: 16}"), Ok((16, 32)));
        assert_eq!(range("{prefix: 10.0.0.0/8, le: 24}"), Ok((8, 24)));
        assert!(range("{prefix: 10.0.0.0/8, ge: 7}").is_err());
        assert!(range("{prefix: 10.0.0.0/8, ge: 25, le: 24}").is_err());
        assert!(range("{prefix: 10.0.0.0/8, le: 33}").is_err());
    }

    #[test]
    fn communities_are_two_numbers() {
        assert_eq!(community("f", "65000:1"), Ok(65000 << 16 | 1));
        for text in ["65536:1", "1", "a:b", "1:2:3"] {
            assert!(community("f", text).is_err(), "{text}");
        }
    }
}
