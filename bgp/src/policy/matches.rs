//! What a rule applies to.

use std::sync::Arc;

use crate::prefix::Prefix;
use crate::wire::{Community, LargeCommunity, NextHop, PathAttributes};

use super::as_path::{AsPathPattern, AsPathText};
use super::community::ExtendedCommunity;
use super::list::PrefixList;

/// Conditions; an empty one always holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// The prefix is in the list.
    pub prefixes: Option<PrefixList>,
    /// The route is of one of these sorts.
    pub sorts: Vec<RouteSort>,
    /// The route came from one of these peers; one that this speaker originates came from none.
    pub peers: Vec<Arc<str>>,
    /// The next hop is in one of these networks; a route that this speaker originates has none.
    pub next_hops: Option<PrefixList>,
    /// The route carries one of these communities.
    pub communities: Vec<Community>,
    /// The route carries one of these extended communities.
    pub extended_communities: Vec<ExtendedCommunity>,
    /// The route carries one of these large communities.
    pub large_communities: Vec<LargeCommunity>,
    /// The first AS of AS_PATH is one of these.
    pub neighbour_as: Vec<u32>,
    /// The last AS of AS_PATH is one of these.
    pub origin_as: Vec<u32>,
    /// AS_PATH is at least so long.
    pub as_path_len_min: Option<u32>,
    /// AS_PATH is at most so long.
    pub as_path_len_max: Option<u32>,
    /// AS_PATH matches this expression.
    pub as_path: Option<AsPathPattern>,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteSort {
    /// From this speaker itself.
    Originated,
    /// From a peer in another AS.
    Ebgp,
    /// From a peer in the same AS.
    Ibgp,
}

/// A route as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct RouteView<'a> {
    /// The prefix.
    pub prefix: Prefix,
    /// Where the route comes from.
    pub sort: RouteSort,
    /// The name of the peer that it comes from; `None` for a route that this speaker originates.
    pub peer: Option<&'a str>,
    /// Its next hop; `None` for a route that this speaker originates.
    pub next_hop: Option<NextHop>,
    /// Its attributes.
    pub attributes: &'a PathAttributes,
    /// Of no other attributes than these.
    pub as_path_text: &'a AsPathText,
}

impl Match {
    /// Whether all conditions hold.
    pub fn holds(&self, route: &RouteView<'_>) -> bool {
        let attributes = route.attributes;
        // The cheap conditions come first: most rules fail on one of them.
        one_of(&self.sorts, |sort| *sort == route.sort)
            && one_of(&self.peers, |name| route.peer.is_some_and(|peer| is_called(peer, name)))
            && self.prefixes.as_ref().is_none_or(|prefixes| prefixes.matches(route.prefix))
            && self.next_hops.as_ref().is_none_or(|networks| {
                route
                    .next_hop
                    .is_some_and(|next_hop| networks.matches(Prefix::host(next_hop.address)))
            })
            && one_of(&self.neighbour_as, |asn| attributes.neighbour_as() == Some(*asn))
            && one_of(&self.origin_as, |asn| attributes.origin_as() == Some(*asn))
            && self.as_path_len_min.is_none_or(|min| attributes.as_path_len() >= min)
            && self.as_path_len_max.is_none_or(|max| attributes.as_path_len() <= max)
            && any(&self.communities, || attributes.communities())
            && any(&self.extended_communities, || {
                attributes.extended_communities().map(ExtendedCommunity)
            })
            && any(&self.large_communities, || attributes.large_communities())
            && self
                .as_path
                .as_ref()
                .is_none_or(|pattern| pattern.matches(attributes.as_path(), route.as_path_text))
    }

    /// Whether the prefix is named, not only covered.
    pub(crate) fn names(&self, prefix: Prefix) -> bool {
        self.prefixes.as_ref().is_some_and(|prefixes| prefixes.names(prefix))
    }
}

/// Whether a peer has this name, or is one of the range that has it.
fn is_called(peer: &str, name: &str) -> bool {
    peer.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

/// Whether a condition with alternatives holds; without any it always does.
fn one_of<T>(alternatives: &[T], holds: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}

/// Whether one of the alternatives is among the values; without any alternative it always is.
fn any<T: PartialEq, I: Iterator<Item = T>>(alternatives: &[T], values: impl Fn() -> I) -> bool {
    alternatives.is_empty() || values().any(|value| alternatives.contains(&value))
}
