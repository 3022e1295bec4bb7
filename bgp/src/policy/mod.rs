//! Policy: which routes pass, and how they are changed on the way.
//!
//! ```text
//! RouteView ──► policy 1: rule 0, rule 1, ... ──no match──► policy 2: ... ──no match──► default
//!                          └─ the first rule that matches decides ─► Decision ─► Changes::apply
//! ```
//!
//! Everything here is a function of its arguments. A [`Decision`] names the rule that made it, so that
//! a rejected route can be explained; deciding allocates nothing, and what a rule changes is worked
//! out once for all routes with the same attributes.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod as_path;
mod changes;
mod community;
mod list;
mod matches;

use std::fmt;
use std::sync::Arc;

pub use as_path::{AS_PATH_PATTERN_OCTETS_MAX, AsPathPattern, AsPathPatternError, AsPathText};
pub use changes::{Changes, CommunityChange, MedChange, NextHopChange, Prepend};
pub use community::{CommunityError, ExtendedCommunity};
pub use list::{PrefixList, PrefixRange};
pub use matches::{Match, RouteSort, RouteView};

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

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The route passes.
    Accept,
    /// The route does not pass.
    Reject,
}

/// What a list of policies says about a route, and which rule said it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision<'p> {
    /// Whether the route passes.
    pub action: Action,
    /// Which rule decided; `None` for the default.
    pub by: Option<DecidingRule<'p>>,
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecidingRule<'p> {
    /// Its policy.
    pub policy: &'p Policy,
    /// Index into [`Policy::rules`].
    pub index: usize,
    /// The rule itself.
    pub rule: &'p Rule,
}

/// A rule of a policy, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// [`Policy::name`].
    pub policy: Arc<str>,
    /// Index into [`Policy::rules`].
    pub rule: usize,
}

/// Whether what they decide depends on the prefix, besides that default routes have to be named.
pub(crate) fn look_at_prefixes(policies: &[Arc<Policy>]) -> bool {
    policies.iter().flat_map(|policy| &policy.rules).any(|rule| rule.matches.prefixes.is_some())
}

/// Asks `policies` one after the other until a rule decides; `default` when none does.
pub fn decide<'p>(
    policies: &'p [Arc<Policy>],
    default: Action,
    route: &RouteView<'_>,
) -> Decision<'p> {
    decide_where(policies, default, route, |_| true)
}

/// As [`decide`], for what comes in: a rule that accepts applies to a default route only when its
/// prefix match names it, so that a rule for everything never takes over all of a host's traffic.
pub fn decide_import<'p>(
    policies: &'p [Arc<Policy>],
    default: Action,
    route: &RouteView<'_>,
) -> Decision<'p> {
    let is_default_route = route.prefix.len() == 0;
    decide_where(policies, default, route, |rule| {
        !is_default_route || rule.action == Action::Reject || rule.matches.names(route.prefix)
    })
}

fn decide_where<'p>(
    policies: &'p [Arc<Policy>],
    default: Action,
    route: &RouteView<'_>,
    applies: impl Fn(&Rule) -> bool,
) -> Decision<'p> {
    for policy in policies {
        for (index, rule) in policy.rules.iter().enumerate() {
            if rule.matches.holds(route) && applies(rule) {
                let by = Some(DecidingRule { policy, index, rule });
                return Decision { action: rule.action, by };
            }
        }
    }
    Decision { action: default, by: None }
}

impl DecidingRule<'_> {
    /// The rule by name.
    pub fn to_ref(&self) -> RuleRef {
        RuleRef { policy: Arc::clone(&self.policy.name), rule: self.index }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}
