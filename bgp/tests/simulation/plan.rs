//! What the speakers are configured to do, as the model sees it, and the product's configuration made
//! from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use cairn_bgp::config::{
    ExportScope, GracefulRestart, Multipath, NextHopMode, Origination, PeerConfig, PrefixLimit,
    SpeakerConfig,
};
use cairn_bgp::policy::{
    Action, Changes, CommunityChange, Match, MedChange, Policy, PrefixList, PrefixRange, Prepend,
    Rule,
};
use cairn_bgp::prefix::{Families, Prefix};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::Community;

/// All speakers.
pub type Plan = Vec<SpeakerPlan>;

#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerPlan {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    pub paths_max: u16,
    pub originate: BTreeMap<Prefix, Vec<u32>>,
    /// Peers by the host that they are on.
    pub peers: BTreeMap<usize, PeerPlan>,
    pub drain: Drain,
}

/// How far a host is taken out of use, as an agent does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    #[default]
    InUse,
    /// All is announced to be used last (RFC 8326).
    Leaving,
    /// Nothing is announced but what other hosts of its AS hear of each other by it.
    Withdrawn,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PeerPlan {
    pub passive: bool,
    pub client: bool,
    pub next_hop: NextHopMode,
    pub scope: ExportScope,
    pub families: Families,
    pub hold_time_secs: u16,
    pub graceful_restart: Option<GracefulRestart>,
    /// Only while faults go on: the model does not know it.
    pub prefix_limit: Option<PrefixLimit>,
    pub import: Vec<RulePlan>,
    pub export: Vec<RulePlan>,
}

/// One rule; what no rule names is accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct RulePlan {
    pub when: When,
    pub then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    Always,
    Prefix(Prefix),
    Community(u32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    Reject,
    Accept(Set),
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Set {
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    pub add: Option<u32>,
    pub remove: Option<u32>,
    pub prepend: Option<(u32, u8)>,
}

/// The address of a host.
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host as u8 + 1)
}

/// Next hops of what a host sends.
pub fn local_addresses(host: usize) -> LocalAddresses {
    LocalAddresses {
        ipv4: Some(address(host)),
        ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host as u16 + 1)),
        link: None,
    }
}

pub fn host_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(v4) => usize::from(v4.octets()[3]) - 1,
        IpAddr::V6(v6) => usize::from(v6.segments()[7]) - 1,
    }
}

impl SpeakerPlan {
    /// What it originates.
    pub fn announces(&self, prefix: Prefix) -> Option<&Vec<u32>> {
        self.originate.get(&prefix).filter(|_| self.drain != Drain::Withdrawn)
    }

    /// What it passes on to one of its peers, which is of the AS `asn`.
    pub fn scope(&self, asn: u32, peer: &PeerPlan) -> ExportScope {
        let reflects = asn == self.asn && self.peers.values().any(|peer| peer.client);
        match self.drain {
            Drain::Withdrawn if !reflects => ExportScope::OriginatedOnly,
            _ => peer.scope,
        }
    }

    /// What the product is told.
    pub fn config(&self, plan: &Plan) -> SpeakerConfig {
        let peers = self.peers.iter().map(|(host, peer)| {
            let config = PeerConfig {
                passive: peer.passive,
                route_reflector_client: peer.client,
                next_hop: peer.next_hop,
                export_scope: self.scope(plan[*host].asn, peer),
                graceful_shutdown: self.drain != Drain::InUse,
                families: peer.families,
                hold_time_secs: peer.hold_time_secs,
                send_hold_time_secs: 30,
                graceful_restart: peer.graceful_restart.clone(),
                prefix_limit: peer.prefix_limit,
                import: vec![policy("in", &peer.import)],
                export: vec![policy("out", &peer.export)],
                ..PeerConfig::new(address(*host).into(), plan[*host].asn)
            };
            (peer_name(*host), config)
        });
        SpeakerConfig {
            origins: Default::default(),
            ranges: Default::default(),
            asn: self.asn,
            router_id: self.router_id,
            cluster_id: None,
            listen: Vec::new(),
            peers: peers.collect(),
            originate: self
                .originate
                .keys()
                .filter_map(|prefix| Some((*prefix, origination(self.announces(*prefix)?))))
                .collect(),
            selection_deferral_secs: DEFERRAL_SECS,
            multipath: Multipath { paths_max: self.paths_max, same_as_path: false },
        }
    }
}

pub fn peer_name(host: usize) -> Arc<str> {
    format!("p{host}").into()
}

fn origination(communities: &[u32]) -> Origination {
    Origination { source: "simulation".into(), communities: communities.to_vec(), local_pref: None }
}

fn policy(name: &str, rules: &[RulePlan]) -> Arc<Policy> {
    let pass = RulePlan { when: When::Always, then: Then::Accept(Set::default()) };
    let rules = rules.iter().chain([&pass]).map(|rule| {
        let mut matches = Match::default();
        match rule.when {
            When::Always => {}
            When::Prefix(prefix) => {
                matches.prefixes =
                    Some(PrefixList::from_iter([PrefixRange::new(prefix, None, None)]));
            }
            When::Community(community) => matches.communities = vec![Community(community)],
        }
        let (action, set) = match rule.then {
            Then::Reject => (Action::Reject, Changes::default()),
            Then::Accept(set) => {
                let changes = Changes {
                    local_pref: set.local_pref,
                    med: set.med.map(MedChange::Set),
                    communities: CommunityChange {
                        replace: None,
                        remove: set.remove.map(Community).into_iter().collect(),
                        add: set.add.map(Community).into_iter().collect(),
                    },
                    prepend: set.prepend.map(|(asn, times)| Prepend { asn, times }),
                    ..Changes::default()
                };
                (Action::Accept, changes)
            }
        };
        Rule { matches, action, set }
    });
    Arc::new(Policy { name: name.into(), rules: rules.collect() })
}

/// Longer than any restart here takes.
pub const DEFERRAL_SECS: u16 = 60;
