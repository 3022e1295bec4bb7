//! Policy: which routes pass, and how they are changed on the way.
//!
//! ```text
//! RouteView ──► policy 1: rule 0, rule 1, ... ──no match──► policy 2: ... ──no match──► default
//!                          └─ the first rule that matches decides and changes ─► Decision
//! ```
//!
//! Everything here is a function of its arguments. A [`Decision`] names the rule that made it, so that
//! a rejected route can be explained.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};
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
///
/// A lookup costs one hash per distinct length among the entries, however many entries there are.
#[derive(Clone, Default)]
pub struct PrefixList {
    /// Per length of the entries' prefixes, in each family: those prefixes, and the lengths that match
    /// under them.
    by_length:
        BTreeMap<(Family, u8), HashMap<Prefix, Vec<LengthRange>, foldhash::fast::FixedState>>,
}

/// Shortest and longest length that match.
type LengthRange = (u8, u8);

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
    /// What `prefix` covers with lengths from `ge` to `le`. Without both that is the prefix itself;
    /// `ge` alone means up to the family's bits, `le` alone from the prefix's own length on.
    pub fn new(prefix: Prefix, ge: Option<u8>, le: Option<u8>) -> PrefixRange {
        let bits = prefix.family().bits();
        let (len_min, len_max) = match (ge, le) {
            (None, None) => (prefix.len(), prefix.len()),
            (ge, le) => (ge.unwrap_or(prefix.len()), le.unwrap_or(bits)),
        };
        // Nothing below the prefix's own length is covered by it.
        PrefixRange { prefix, len_min: len_min.max(prefix.len()), len_max: len_max.min(bits) }
    }
}

impl PrefixList {
    /// Whether an entry matches.
    pub fn matches(&self, prefix: Prefix) -> bool {
        let family = prefix.family();
        self.by_length.range((family, 0)..=(family, prefix.len())).any(|((_, len), entries)| {
            let ranges = covering(prefix, *len).and_then(|covering| entries.get(&covering));
            let within = |(min, max): &LengthRange| (*min..=*max).contains(&prefix.len());
            ranges.is_some_and(|ranges| ranges.iter().any(within))
        })
    }

    /// Whether an entry's own prefix is `prefix`: what names a default route and does not only cover
    /// it.
    pub fn names(&self, prefix: Prefix) -> bool {
        let entries = self.by_length.get(&(prefix.family(), prefix.len()));
        entries.is_some_and(|entries| entries.contains_key(&prefix)) && self.matches(prefix)
    }

    /// The entries in ascending order, each once.
    pub fn entries(&self) -> Vec<PrefixRange> {
        let all = self.by_length.values().flatten().flat_map(|(prefix, ranges)| {
            let entry = |&(len_min, len_max)| PrefixRange { prefix: *prefix, len_min, len_max };
            ranges.iter().map(entry)
        });
        let mut entries = all.collect::<Vec<_>>();
        entries.sort_unstable();
        entries
    }
}

/// The prefix of length `len` that holds `prefix`.
fn covering(prefix: Prefix, len: u8) -> Option<Prefix> {
    match prefix {
        Prefix::V4(p) => Ipv4Prefix::new(p.addr(), len).map(Prefix::V4),
        Prefix::V6(p) => Ipv6Prefix::new(p.addr(), len).map(Prefix::V6),
    }
}

impl FromIterator<PrefixRange> for PrefixList {
    fn from_iter<T: IntoIterator<Item = PrefixRange>>(entries: T) -> PrefixList {
        let mut list = PrefixList::default();
        for PrefixRange { prefix, len_min, len_max } in entries {
            let entries = list.by_length.entry((prefix.family(), prefix.len())).or_default();
            let ranges = entries.entry(prefix).or_default();
            if !ranges.contains(&(len_min, len_max)) {
                ranges.push((len_min, len_max));
            }
        }
        list
    }
}

impl PartialEq for PrefixList {
    /// The order of the entries means nothing.
    fn eq(&self, other: &PrefixList) -> bool {
        self.entries() == other.entries()
    }
}

impl fmt::Debug for PrefixList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

impl fmt::Display for PrefixRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PrefixRange { prefix, len_min, len_max } = self;
        write!(f, "{prefix}")?;
        if (*len_min, *len_max) != (prefix.len(), prefix.len()) {
            write!(f, " ge {len_min} le {len_max}")?;
        }
        Ok(())
    }
}

impl Match {
    /// Whether all conditions hold.
    pub fn holds(&self, route: &RouteView<'_>) -> bool {
        let attributes = route.attributes;
        // The cheap conditions come first: most rules fail on one of them.
        one_of(&self.sorts, |sort| *sort == route.sort)
            && self.prefixes.as_ref().is_none_or(|prefixes| prefixes.matches(route.prefix))
            && one_of(&self.neighbour_as, |asn| attributes.neighbour_as() == Some(*asn))
            && one_of(&self.origin_as, |asn| attributes.origin_as() == Some(*asn))
            && self.as_path_len_max.is_none_or(|max| attributes.as_path_len() <= max)
            && (self.communities.is_empty()
                || attributes.communities().any(|c| self.communities.contains(&c)))
            && (self.large_communities.is_empty()
                || attributes.large_communities().any(|c| self.large_communities.contains(&c)))
    }
}

/// Whether a condition with alternatives holds; without any it always does.
fn one_of<T>(alternatives: &[T], holds: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}

impl Changes {
    /// The changed attributes; `None` when they stay as they are.
    pub fn apply(&self, attributes: &PathAttributes) -> Option<PathAttributes> {
        if *self == Changes::default() {
            return None;
        }
        let mut builder = attributes.edit();
        if self.local_pref.is_some() {
            builder.local_pref(self.local_pref);
        }
        if self.med.is_some() {
            builder.med(self.med);
        }
        builder.remove_communities(&self.remove_communities);
        builder.add_communities(&self.add_communities);
        builder.add_large_communities(&self.add_large_communities);
        if let Some(Prepend { asn, times }) = self.prepend {
            builder.prepend(asn, times);
        }
        Some(builder.build()).filter(|changed| changed != attributes)
    }
}

impl Policy {
    /// The first rule that matches decides.
    pub fn evaluate(&self, route: &RouteView<'_>) -> Verdict {
        let found = self.rules.iter().enumerate().find(|(_, rule)| rule.matches.holds(route));
        match found {
            None => Verdict::NoMatch,
            Some((index, Rule { action: Action::Reject, .. })) => Verdict::Reject { rule: index },
            Some((index, Rule { action: Action::Accept, set, .. })) => {
                Verdict::Accept { rule: index, attributes: set.apply(route.attributes) }
            }
        }
    }
}

/// Asks `policies` one after the other until one decides; `default` when none does.
pub fn evaluate_all(policies: &[Arc<Policy>], default: Action, route: &RouteView<'_>) -> Decision {
    for policy in policies {
        let by = |rule| Some(RuleRef { policy: Arc::clone(&policy.name), rule });
        match policy.evaluate(route) {
            Verdict::Accept { rule, attributes } => {
                return Decision { action: Action::Accept, attributes, by: by(rule) };
            }
            Verdict::Reject { rule } => {
                return Decision { action: Action::Reject, attributes: None, by: by(rule) };
            }
            Verdict::NoMatch => {}
        }
    }
    Decision { action: default, attributes: None, by: None }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}
