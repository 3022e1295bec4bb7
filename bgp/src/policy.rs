//! Policy: which routes pass, and how they are changed on the way.

use std::sync::Arc;

use crate::prefix::Prefix;
use crate::wire::{Community, LargeCommunity, NextHop, PathAttributes};

/// An ordered list of rules under a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The name, for `cairn why`: for example `bgppolicy/tor-in`.
    pub name: Arc<str>,
    /// The rules; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// One rule: all its conditions have to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// When the rule applies.
    pub matches: Match,
    /// What it decides.
    pub action: Action,
    /// What it changes in a route that it accepts.
    pub set: Changes,
}

/// Conditions; an empty one always holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// The prefix is in the list.
    pub prefixes: Option<PrefixList>,
    /// The route is of one of these sorts.
    pub sorts: Vec<RouteSort>,
    /// The route carries one of these communities.
    pub communities: Vec<Community>,
    /// The route carries one of these large communities.
    pub large_communities: Vec<LargeCommunity>,
    /// The first AS of AS_PATH is one of these.
    pub neighbour_as: Vec<u32>,
    /// The last AS of AS_PATH is one of these.
    pub origin_as: Vec<u32>,
    /// AS_PATH is at most so long.
    pub as_path_len_max: Option<u32>,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The route passes.
    Accept,
    /// The route does not pass.
    Reject,
}

/// Changes to the attributes of a route; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// New LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// New MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities to remove, before those to add.
    pub remove_communities: Vec<Community>,
    /// Communities to add.
    pub add_communities: Vec<Community>,
    /// Large communities to add.
    pub add_large_communities: Vec<LargeCommunity>,
    /// AS number to put in front of AS_PATH, and how often.
    pub prepend: Option<Prepend>,
}

/// An AS number to put in front of AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepend {
    /// The AS number.
    pub asn: u32,
    /// How often.
    pub times: u8,
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

/// A set of prefixes with ranges of lengths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrefixList(Vec<PrefixRange>);

/// One entry of a [`PrefixList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixRange {
    /// The prefix that covers what matches.
    pub prefix: Prefix,
    /// The shortest length that matches.
    pub len_min: u8,
    /// The longest length that matches.
    pub len_max: u8,
}

/// A route as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct RouteView<'a> {
    /// The prefix.
    pub prefix: Prefix,
    /// Where the route comes from.
    pub sort: RouteSort,
    /// Its next hop; `None` for a route that this speaker originates.
    pub next_hop: Option<NextHop>,
    /// Its attributes.
    pub attributes: &'a PathAttributes,
}

/// What one policy says about a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The rule of this index lets the route pass.
    Accept {
        /// Index into [`Policy::rules`].
        rule: usize,
        /// The changed attributes; `None` when they stay as they are.
        attributes: Option<PathAttributes>,
    },
    /// The rule of this index stops the route.
    Reject {
        /// Index into [`Policy::rules`].
        rule: usize,
    },
    /// No rule matches.
    NoMatch,
}

/// What a list of policies says about a route, and which rule said it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Whether the route passes.
    pub action: Action,
    /// The changed attributes; `None` when they stay as they are.
    pub attributes: Option<PathAttributes>,
    /// Which rule decided; `None` for the default.
    pub by: Option<RuleRef>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// [`Policy::name`].
    pub policy: Arc<str>,
    /// Index into [`Policy::rules`].
    pub rule: usize,
}

impl PrefixRange {
    /// What `prefix` covers with lengths from `len_min` to `len_max`. Bounds left out mean the
    /// prefix itself when both are, else the prefix's length and the family's bits.
    pub fn new(prefix: Prefix, len_min: Option<u8>, len_max: Option<u8>) -> PrefixRange {
        todo!("{prefix} {len_min:?} {len_max:?}")
    }
}

impl PrefixList {
    /// Whether an entry matches.
    pub fn matches(&self, prefix: Prefix) -> bool {
        todo!("{prefix} {:?}", self.0)
    }
}

impl FromIterator<PrefixRange> for PrefixList {
    fn from_iter<T: IntoIterator<Item = PrefixRange>>(entries: T) -> PrefixList {
        PrefixList(entries.into_iter().collect())
    }
}

impl Policy {
    /// The first rule that matches decides.
    pub fn evaluate(&self, route: &RouteView<'_>) -> Verdict {
        todo!("{route:?}")
    }
}

/// Asks `policies` one after the other until one decides; `default` when none does.
pub fn evaluate_all(policies: &[Arc<Policy>], default: Action, route: &RouteView<'_>) -> Decision {
    todo!("{policies:?} {default:?} {route:?}")
}
