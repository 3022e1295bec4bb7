//! Which routes go to an update group, and in what form.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::config::{ExportScope, NextHopMode};
use crate::policy::{self, Action, Policy, RouteSort, RouteView};
use crate::prefix::Prefix;
use crate::wire::{MessageFormat, PathAttributes, SessionSort};

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
    pub(crate) export: Vec<Arc<Policy>>,
}

/// What export has to look up.
pub(crate) struct ExportContext<'a> {
    pub(crate) peers: &'a mut Peers,
    pub(crate) interner: &'a mut Interner,
    pub(crate) router_id: Ipv4Addr,
    /// Learned routes wait for the end of the start's deferral (RFC 4724 section 4.1).
    pub(crate) deferring: bool,
}

/// The last route judged, for [`GroupKey::export_cached`]: good as long as nothing else changes.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// Where its attributes lie and who gave it.
    last: Option<(usize, PeerId)>,
    result: Option<Arc<RouteAttributes>>,
}

impl GroupKey {
    pub(crate) fn new(peer: &Peer, session: &PeerSession) -> GroupKey {
        let config = &peer.config;
        GroupKey {
            sort: config.sort,
            client: config.route_reflector_client,
            // An iBGP peer's messages do not depend on it.
            prepend: match config.sort {
                SessionSort::Ebgp => config.prepend.clone(),
                SessionSort::Ibgp => Vec::new(),
            },
            next_hop: config.next_hop,
            scope: config.export_scope,
            format: session.format,
            ipv4_via_ipv6: session.ipv4_via_ipv6,
            export: config.export.clone(),
        }
    }

    /// The attributes that the group shows for the best route to `prefix`, before what every session
    /// of its sort changes; `None` when the route may not go there.
    pub(crate) fn export(
        &self,
        context: &mut ExportContext<'_>,
        prefix: Prefix,
        best: &Candidate,
    ) -> Option<Arc<RouteAttributes>> {
        let used = best.used.as_ref()?;
        let source = context.peers.peer(best.source);
        let sort = source.map_or(RouteSort::Originated, |peer| peer.config.route_sort());
        if sort != RouteSort::Originated
            && (context.deferring || self.scope == ExportScope::OriginatedOnly)
        {
            return None;
        }
        // RFC 4456 section 6: an iBGP route goes to iBGP peers only by reflection.
        let from_client = source.is_some_and(|peer| peer.config.route_reflector_client);
        if sort == RouteSort::Ibgp && self.sort == SessionSort::Ibgp && !from_client && !self.client
        {
            return None;
        }
        match used.scope() {
            CommunityScope::Nowhere => return None,
            CommunityScope::OwnAs if self.sort == SessionSort::Ebgp => return None,
            CommunityScope::OwnAs | CommunityScope::Everywhere => {}
        }
        // RFC 4271 section 5.1.4: a received MED stays in this AS; one set by policy goes out.
        let strips_med = self.sort == SessionSort::Ebgp
            && sort != RouteSort::Originated
            && used.path.med().is_some();
        let stripped = strips_med.then(|| used.path.edit().med(None).build());
        let default = match self.sort {
            SessionSort::Ebgp => Action::Reject,
            SessionSort::Ibgp => Action::Accept,
        };
        let decision = match (self.export.is_empty(), default) {
            (true, Action::Accept) => None,
            (true, Action::Reject) => return None,
            (false, default) => {
                let view = RouteView {
                    prefix,
                    sort,
                    next_hop: source.is_some().then_some(used.next_hop),
                    attributes: stripped.as_ref().unwrap_or(&used.path),
                };
                let decision = policy::evaluate_all(&self.export, default, &view);
                if decision.action == Action::Reject {
                    return None;
                }
                decision.attributes
            }
        };
        match decision.or(stripped) {
            None => Some(Arc::clone(used)),
            Some(path) => {
                let changed = RouteAttributes::new(used.next_hop, path);
                Some(context.interner.intern(Arc::new(changed)))
            }
        }
    }

    /// As [`GroupKey::export`]. Where no policy looks at prefixes, routes that follow each other with
    /// equal attributes, as those of one UPDATE do, are judged once.
    pub(crate) fn export_cached(
        &self,
        context: &mut ExportContext<'_>,
        prefix: Prefix,
        best: &Candidate,
        exported: &mut Exported,
    ) -> Option<Arc<RouteAttributes>> {
        let identity = (Arc::as_ptr(best.used.as_ref()?).addr(), best.source);
        if exported.last == Some(identity) {
            return exported.result.clone();
        }
        let result = self.export(context, prefix, best);
        if !self.export.iter().any(|policy| looks_at_prefixes(policy)) {
            *exported = Exported { last: Some(identity), result: result.clone() };
        }
        result
    }

    /// The path attributes on the wire: what every session of the group's sort changes.
    pub(crate) fn path(
        &self,
        peers: &Peers,
        router_id: Ipv4Addr,
        attributes: &RouteAttributes,
        source: PeerId,
    ) -> PathAttributes {
        let mut builder = attributes.path.edit();
        match self.sort {
            SessionSort::Ebgp => {
                builder.local_pref(None).remove_internal();
                // The outermost one is put in front last.
                for asn in self.prepend.iter().rev() {
                    builder.prepend(*asn, 1);
                }
            }
            SessionSort::Ibgp => {
                builder.local_pref(Some(attributes.local_pref()));
                let source = peers.peer(source);
                if let Some(peer) = source.filter(|p| p.config.sort == SessionSort::Ibgp) {
                    // RFC 4456 section 8.
                    if attributes.originator_id().is_none() {
                        builder.originator_id(Some(peer.router_id));
                    }
                    builder.prepend_cluster(router_id);
                }
            }
        }
        builder.build()
    }

    /// Whether the next hop of a route from `source` is our own address on each session.
    pub(crate) fn shows_own_next_hop(&self, source: PeerId) -> bool {
        match (self.next_hop, self.sort) {
            _ if source == PeerId::LOCAL => true,
            (NextHopMode::SelfAddress, _) | (NextHopMode::Auto, SessionSort::Ebgp) => true,
            (NextHopMode::Auto, SessionSort::Ibgp) | (NextHopMode::Unchanged, _) => false,
        }
    }
}

/// Whether what a policy says may differ between prefixes of routes that are alike otherwise.
fn looks_at_prefixes(policy: &Policy) -> bool {
    policy.rules.iter().any(|rule| rule.matches.prefixes.is_some())
}
