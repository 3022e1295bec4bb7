//! Which routes go to an update group, and in what form.
//!
//! ```text
//! best path ─► may it go there (scope, reflection, communities) ─► MED and private AS numbers out
//!   ─► policy ─► what every session of the group's sort changes (GroupKey::path) ─► wire
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::config::{ExportScope, NextHopMode, SENT_PATHS_MAX};
use crate::policy::{
    self, Action, AsPathText, DecidingRule, Decision, NextHopChange, Policy, RouteSort, RouteView,
    Rule, RuleRef,
};
use crate::prefix::{Family, Prefix};
use crate::wire::{AttributesBuilder, Community, MessageFormat, PathAttributes, SessionSort};

use super::attributes::{CommunityScope, Interner, RouteAttributes};
use super::peer::{Peer, PeerId, PeerSession, Peers};
use super::table::Candidate;

/// What decides the content of messages to a peer, but for the octets of its next hop: peers with
/// equal keys share an update group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupKey {
    pub(crate) sort: SessionSort,
    pub(crate) client: bool,
    pub(crate) prepend: Vec<u32>,
    pub(crate) next_hop: NextHopMode,
    pub(crate) scope: ExportScope,
    pub(crate) format: MessageFormat,
    /// Own next hops of IPv4 routes are IPv6 addresses (RFC 8950).
    pub(crate) ipv4_via_ipv6: bool,
    pub(crate) private_as: PrivateAs,
    pub(crate) graceful_shutdown: bool,
    pub(crate) knows_long_lived: bool,
    /// Paths to one prefix, told with identifiers (RFC 7911); 0 where the best one is told without.
    pub(crate) paths_max: u8,
    pub(crate) export: Vec<Arc<Policy>>,
}

/// What becomes of private AS numbers (RFC 6996) in AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrivateAs {
    Kept,
    Removed,
    /// The peer's own number stays, or the peer could not see that a route is its own.
    RemovedBut(u32),
}

/// What export has to look up.
pub(crate) struct ExportContext<'a> {
    pub(crate) peers: &'a mut Peers,
    pub(crate) interner: &'a mut Interner,
    pub(crate) cluster_id: Ipv4Addr,
    /// Learned routes wait for the end of the start's deferral (RFC 4724 section 4.1).
    pub(crate) deferring: bool,
    /// After a restart: peers that restarted, too, and have not sent all their routes, in the order of
    /// [`Family::ALL`].
    pub(crate) lacking: [Vec<PeerId>; 2],
}

impl ExportContext<'_> {
    /// Whether routes that a member of a group kept over our restart may yet come from other peers: then
    /// it does not hear End-of-RIB, at which it would drop them.
    pub(crate) fn may_miss(&self, group: &GroupKey, member: PeerId, family: Family) -> bool {
        let [ipv4, ipv6] = &self.lacking;
        let lacking = match family {
            Family::Ipv4Unicast => ipv4,
            Family::Ipv6Unicast => ipv6,
        };
        let mut sources = lacking.iter().filter(|id| **id != member);
        group.scope != ExportScope::OriginatedOnly
            && sources.any(|id| group.takes_from(self.peers.peer(*id)))
    }
}

/// The form in which a route goes to a group, before what every session of its sort changes.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) attributes: Arc<RouteAttributes>,
    /// Its next hop is our own address on each session.
    pub(crate) own_next_hop: bool,
}

/// What a route has become for one group: those of one UPDATE follow each other with equal
/// attributes. Good as long as nothing else changes.
#[derive(Debug)]
pub(crate) struct Memo {
    /// Policy says the same of all prefixes.
    settles: bool,
    last: Option<MemoEntry>,
}

#[derive(Debug)]
struct MemoEntry {
    source: PeerId,
    /// Held, so that its address is nobody else's.
    used: Arc<RouteAttributes>,
    stripped: Option<PathAttributes>,
    /// Of what policy sees.
    as_path_text: AsPathText,
    /// By the rule that decided: its address, 0 for none.
    exported: Option<(usize, Exported)>,
    /// What all prefixes come to.
    settled: Option<Option<Exported>>,
}

/// Why a route goes to a peer, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportVerdict {
    /// No policy decided, and routes pass to this peer by default.
    AnnouncedByDefault,
    /// A policy rule let it pass.
    Announced {
        /// The rule.
        by: RuleRef,
        /// The rule changed its attributes or its next hop.
        changed: bool,
    },
    /// A policy rule stopped it.
    Rejected {
        /// The rule.
        by: RuleRef,
    },
    /// No policy let it pass, and nothing goes to eBGP peers by default (RFC 8212).
    RejectedByDefault,
    /// There is no session, or it does not carry the family.
    NoSession,
    /// No usable route.
    NoRoute,
    /// The route came from this very peer.
    FromThisPeer,
    /// The start's deferral is not over (RFC 4724 section 4.1).
    Deferring,
    /// Only what this speaker originates goes to this peer.
    LearnedHere,
    /// An iBGP route goes to iBGP peers only from or to a client (RFC 4456 section 6).
    NotReflected,
    /// NO_ADVERTISE (RFC 1997).
    NoAdvertise,
    /// NO_EXPORT or NO_EXPORT_SUBCONFED, and the peer is in another AS (RFC 1997).
    NoExport,
    /// It is stale for long, and the peer does not know what that is (RFC 9494 section 4.3).
    LongLivedStale,
    /// Its attributes do not fit into a message of this session (RFC 8654 section 4).
    TooLarge,
    /// Its next hop is of another family, and the session does not carry such next hops (RFC 8950
    /// section 4).
    NextHopFamily,
}

impl GroupKey {
    pub(crate) fn new(peer: &Peer, session: &PeerSession, family: Family) -> GroupKey {
        let config = &peer.config;
        let ebgp = config.sort == SessionSort::Ebgp;
        GroupKey {
            sort: config.sort,
            client: config.route_reflector_client,
            // An iBGP peer's messages do not depend on these two.
            prepend: if ebgp { config.prepend.clone() } else { Vec::new() },
            private_as: match ebgp && config.remove_private_as {
                false => PrivateAs::Kept,
                true if is_private(config.asn) => PrivateAs::RemovedBut(config.asn),
                true => PrivateAs::Removed,
            },
            next_hop: config.next_hop,
            scope: config.export_scope,
            format: session.format,
            ipv4_via_ipv6: session.ipv4_via_ipv6,
            graceful_shutdown: config.graceful_shutdown,
            paths_max: match session.add_path.send.contains(family) {
                true => config.sent_paths_max.clamp(1, SENT_PATHS_MAX),
                false => 0,
            },
            knows_long_lived: session.knows_long_lived,
            export: config.export.clone(),
        }
    }

    /// The form in which the best route to `prefix` goes to the group; `None` when it may not.
    pub(crate) fn export(
        &self,
        context: &mut ExportContext<'_>,
        prefix: Prefix,
        best: &Candidate,
        memo: &mut Memo,
    ) -> Option<Exported> {
        let used = best.used.as_ref()?;
        let settles = memo.settles;
        let entry = memo.entry(best.source, used, || self.strip(context.peers, best.source, used));
        if let Some(settled) = &entry.settled {
            return settled.clone();
        }
        let exported = self.export_anew(context, prefix, best, used, entry);
        entry.settled = settles.then(|| exported.clone());
        exported
    }

    fn export_anew(
        &self,
        context: &mut ExportContext<'_>,
        prefix: Prefix,
        best: &Candidate,
        used: &Arc<RouteAttributes>,
        entry: &mut MemoEntry,
    ) -> Option<Exported> {
        let ExportContext { peers, interner, .. } = context;
        self.permit(peers, context.deferring, best).ok()?;
        let path = entry.path(used);
        let decision = self.decide(peers, prefix, best, path, &entry.as_path_text).ok()?;
        let rule = decision.by.map_or(0, |by| std::ptr::from_ref::<Rule>(by.rule).addr());
        if let Some((_, exported)) = entry.exported.as_ref().filter(|(by, _)| *by == rule) {
            return Some(exported.clone());
        }
        let changed = decision.by.and_then(|by| by.rule.set.apply(entry.path(used)));
        let attributes = match changed.or_else(|| entry.stripped.clone()) {
            None => Arc::clone(used),
            Some(path) => interner.intern(Arc::new(RouteAttributes::new(used.next_hop, path))),
        };
        let own_next_hop = self.shows_own_next_hop(best.source, used, decision.by);
        let exported = Exported { attributes, own_next_hop };
        entry.exported = Some((rule, exported.clone()));
        Some(exported)
    }

    /// What a member of the group is told about the best route to `prefix`: why, and the attributes
    /// on the wire.
    pub(crate) fn explain(
        &self,
        peers: &Peers,
        cluster_id: Ipv4Addr,
        deferring: bool,
        prefix: Prefix,
        best: &Candidate,
    ) -> Result<(ExportVerdict, Exported), ExportVerdict> {
        let used = best.used.as_ref().ok_or(ExportVerdict::NoRoute)?;
        self.permit(peers, deferring, best)?;
        let stripped = self.strip(peers, best.source, used);
        let path = stripped.as_ref().unwrap_or(&used.path);
        let decision = self.decide(peers, prefix, best, path, &AsPathText::default())?;
        let changed = decision.by.and_then(|by| by.rule.set.apply(path));
        let verdict = match decision.by {
            None => ExportVerdict::AnnouncedByDefault,
            Some(by) => {
                let changed = changed.is_some() || by.rule.set.next_hop.is_some();
                ExportVerdict::Announced { by: by.to_ref(), changed }
            }
        };
        let attributes = match changed.or(stripped) {
            None => Arc::clone(used),
            Some(path) => Arc::new(RouteAttributes::new(used.next_hop, path)),
        };
        let path = self.path(peers, cluster_id, &attributes, best.source).build();
        let attributes = Arc::new(RouteAttributes::new(used.next_hop, path));
        let own_next_hop = self.shows_own_next_hop(best.source, used, decision.by);
        Ok((verdict, Exported { attributes, own_next_hop }))
    }

    /// Whether the route may go to the group at all, whatever policy says.
    fn permit(
        &self,
        peers: &Peers,
        deferring: bool,
        best: &Candidate,
    ) -> Result<(), ExportVerdict> {
        let source = peers.peer(best.source);
        let sort = sort_of(source);
        if sort != RouteSort::Originated {
            if deferring {
                return Err(ExportVerdict::Deferring);
            }
            if self.scope == ExportScope::OriginatedOnly {
                return Err(ExportVerdict::LearnedHere);
            }
        }
        if !self.takes_from(source) {
            return Err(ExportVerdict::NotReflected);
        }
        let long_lived = best.used.as_ref().is_some_and(|used| used.is_long_lived_stale());
        if long_lived && !self.knows_long_lived {
            return Err(ExportVerdict::LongLivedStale);
        }
        match best.used.as_ref().map_or(CommunityScope::Everywhere, |used| used.scope()) {
            CommunityScope::Nowhere => Err(ExportVerdict::NoAdvertise),
            CommunityScope::OwnAs if self.sort == SessionSort::Ebgp => Err(ExportVerdict::NoExport),
            CommunityScope::OwnAs | CommunityScope::Everywhere => Ok(()),
        }
    }

    /// Whether routes from `source` may go to the group's sort of session: an iBGP route goes to iBGP peers
    /// only by reflection (RFC 4456 section 6).
    fn takes_from(&self, source: Option<&Peer>) -> bool {
        let from_client = source.is_some_and(|peer| peer.config.route_reflector_client);
        let both_ibgp = sort_of(source) == RouteSort::Ibgp && self.sort == SessionSort::Ibgp;
        !both_ibgp || from_client || self.client
    }

    /// What goes before policy is asked, so that policy can put something else there; `None` when
    /// nothing does.
    fn strip(
        &self,
        peers: &Peers,
        source: PeerId,
        used: &RouteAttributes,
    ) -> Option<PathAttributes> {
        if self.sort == SessionSort::Ibgp {
            return None;
        }
        // RFC 4271 section 5.1.4: a received MED stays in this AS; one set by policy goes out.
        let strips_med =
            sort_of(peers.peer(source)) != RouteSort::Originated && used.path.med().is_some();
        let strips_asns = used.path.as_path().asns().any(|asn| self.private_as.removes(asn));
        if !strips_med && !strips_asns {
            return None;
        }
        let mut builder = used.path.edit();
        if strips_med {
            builder.med(None);
        }
        if strips_asns {
            builder.retain_asns(|asn| !self.private_as.removes(asn));
        }
        Some(builder.build())
    }

    fn decide<'k>(
        &'k self,
        peers: &Peers,
        prefix: Prefix,
        best: &Candidate,
        path: &PathAttributes,
        as_path_text: &AsPathText,
    ) -> Result<Decision<'k>, ExportVerdict> {
        let default = match self.sort {
            SessionSort::Ebgp => Action::Reject,
            SessionSort::Ibgp => Action::Accept,
        };
        let source = peers.peer(best.source);
        let next_hop = best.used.as_ref().filter(|_| source.is_some()).map(|used| used.next_hop);
        let view = RouteView {
            prefix,
            sort: sort_of(source),
            peer: source.map(|peer| &*peer.config.name),
            next_hop,
            attributes: path,
            as_path_text,
        };
        let decision = policy::decide(&self.export, default, &view);
        match (decision.action, decision.by) {
            (Action::Accept, _) => Ok(decision),
            (Action::Reject, Some(by)) => Err(ExportVerdict::Rejected { by: by.to_ref() }),
            (Action::Reject, None) => Err(ExportVerdict::RejectedByDefault),
        }
    }

    /// The path attributes on the wire, to be built or written: what every session of the group's sort
    /// changes.
    #[inline]
    pub(crate) fn path<'a>(
        &self,
        peers: &Peers,
        cluster_id: Ipv4Addr,
        attributes: &'a RouteAttributes,
        source: PeerId,
    ) -> AttributesBuilder<'a> {
        let mut builder = attributes.path.edit();
        if self.graceful_shutdown {
            builder.add_communities(&[Community::GRACEFUL_SHUTDOWN]);
        }
        match self.sort {
            SessionSort::Ebgp => {
                builder.local_pref(None).remove_internal();
                // The outermost one is put in front last.
                for asn in self.prepend.iter().rev() {
                    builder.prepend(*asn, 1);
                }
            }
            SessionSort::Ibgp => {
                // RFC 8326 section 4.1: lowest preference, for those that do not know the community.
                let local_pref = if self.graceful_shutdown { 0 } else { attributes.local_pref() };
                builder.local_pref(Some(local_pref));
                reflect(&mut builder, peers.peer(source), cluster_id, attributes);
            }
        }
        builder
    }

    /// Whether the next hop of a route from `source` is our own address on each session.
    fn shows_own_next_hop(
        &self,
        source: PeerId,
        used: &RouteAttributes,
        by: Option<DecidingRule<'_>>,
    ) -> bool {
        match (by.and_then(|by| by.rule.set.next_hop), self.next_hop, self.sort) {
            _ if source == PeerId::LOCAL => true,
            // RFC 2545 section 3: it says nothing to who is not on that link.
            _ if used.next_hop.is_link_local() => true,
            (Some(change), _, _) => change == NextHopChange::SelfAddress,
            (None, NextHopMode::SelfAddress, _) => true,
            (None, NextHopMode::Auto, sort) => sort == SessionSort::Ebgp,
            (None, NextHopMode::Unchanged, _) => false,
        }
    }
}

/// RFC 4456 section 8: marks on what goes from an iBGP peer to another one.
fn reflect(
    builder: &mut AttributesBuilder<'_>,
    source: Option<&Peer>,
    cluster_id: Ipv4Addr,
    attributes: &RouteAttributes,
) {
    let Some(peer) = source.filter(|peer| peer.config.sort == SessionSort::Ibgp) else { return };
    if attributes.originator_id().is_none() {
        builder.originator_id(Some(peer.router_id));
    }
    builder.prepend_cluster(cluster_id);
}

fn sort_of(source: Option<&Peer>) -> RouteSort {
    source.map_or(RouteSort::Originated, |peer| peer.config.route_sort())
}

/// RFC 6996 section 5.
fn is_private(asn: u32) -> bool {
    matches!(asn, 64_512..=65_534 | 4_200_000_000..=4_294_967_294)
}

impl PrivateAs {
    fn removes(self, asn: u32) -> bool {
        match self {
            PrivateAs::Kept => false,
            PrivateAs::Removed => is_private(asn),
            PrivateAs::RemovedBut(peer) => asn != peer && is_private(asn),
        }
    }
}

impl Memo {
    pub(crate) fn new(group: &GroupKey) -> Memo {
        Memo { settles: !policy::look_at_prefixes(&group.export), last: None }
    }

    fn entry(
        &mut self,
        source: PeerId,
        used: &Arc<RouteAttributes>,
        strip: impl FnOnce() -> Option<PathAttributes>,
    ) -> &mut MemoEntry {
        let is_same = |entry: &MemoEntry| entry.source == source && Arc::ptr_eq(&entry.used, used);
        if !self.last.as_ref().is_some_and(is_same) {
            self.last = None;
        }
        self.last.get_or_insert_with(|| {
            let (used, stripped) = (Arc::clone(used), strip());
            let as_path_text = AsPathText::default();
            MemoEntry { source, used, stripped, as_path_text, exported: None, settled: None }
        })
    }
}

impl MemoEntry {
    fn path<'a>(&'a self, used: &'a RouteAttributes) -> &'a PathAttributes {
        self.stripped.as_ref().unwrap_or(&used.path)
    }
}

impl ExportVerdict {
    /// Whether the peer is told the route.
    pub fn is_announced(&self) -> bool {
        matches!(self, ExportVerdict::AnnouncedByDefault | ExportVerdict::Announced { .. })
    }
}

impl fmt::Display for ExportVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExportVerdict::Announced { by, changed: false } => {
                return write!(f, "announced by {by}");
            }
            ExportVerdict::Announced { by, changed: true } => {
                return write!(f, "announced and changed by {by}");
            }
            ExportVerdict::Rejected { by } => return write!(f, "not announced: {by} rejects it"),
            ExportVerdict::AnnouncedByDefault => "announced: no export policy",
            ExportVerdict::RejectedByDefault => {
                "not announced: no export policy of this eBGP peer accepts it (RFC 8212)"
            }
            ExportVerdict::NoSession => "not announced: no session carries this family to the peer",
            ExportVerdict::NoRoute => "not announced: there is no usable route",
            ExportVerdict::FromThisPeer => "not announced: the best route came from this peer",
            ExportVerdict::Deferring => {
                "not announced yet: after the start the routes of all peers are awaited (RFC 4724)"
            }
            ExportVerdict::LearnedHere => {
                "not announced: only routes that originate here go to this peer"
            }
            ExportVerdict::NotReflected => {
                "not announced: an internal route goes to internal peers only from or to a route \
                 reflector client"
            }
            ExportVerdict::NoAdvertise => "not announced: it carries NO_ADVERTISE",
            ExportVerdict::NoExport => "not announced: it carries NO_EXPORT",
            ExportVerdict::LongLivedStale => {
                "not announced: it is stale for long (LLGR_STALE), and the peer does not offer \
                 long-lived graceful restart"
            }
            ExportVerdict::TooLarge => {
                "not announced: its attributes do not fit into a message of this session"
            }
            ExportVerdict::NextHopFamily => {
                "not announced: its next hop is of the other family, and the peer has not agreed to \
                 extended next hops: let nextHop be Self"
            }
        })
    }
}
