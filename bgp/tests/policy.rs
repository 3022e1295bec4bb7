//! Policies: what matches, what is changed, who decided.

use std::sync::Arc;

use cairn_bgp::policy::{
    Action, Changes, Decision, Match, Policy, PrefixList, PrefixRange, Prepend, RouteSort,
    RouteView, Rule, RuleRef, Verdict, evaluate_all,
};
use cairn_bgp::prefix::{Ipv4Prefix, Ipv6Prefix, Prefix};
use cairn_bgp::wire::{Community, LargeCommunity, Origin, PathAttributes};
use proptest::prelude::*;

#[test]
fn conditions() {
    let large = LargeCommunity { global: 65001, local1: 1, local2: 2 };
    let plain = PathAttributes::originated(Origin::Igp);
    let attributes = plain
        .edit()
        .prepend(65010, 1)
        .prepend(65001, 2)
        .add_communities(&[Community(7), Community::NO_EXPORT])
        .add_large_communities(&[large])
        .build();
    let list = |entry| Some([entry].into_iter().collect::<PrefixList>());
    let all = Match::default();
    #[rustfmt::skip]
    let rows = [
        ("nothing asked", all.clone(), true),
        ("prefix", Match { prefixes: list(range("10.1.0.0/16", None, None)), ..all.clone() }, true),
        ("other prefix", Match { prefixes: list(range("10.2.0.0/16", None, None)), ..all.clone() }, false),
        ("an empty list holds nothing", Match { prefixes: Some(PrefixList::default()), ..all.clone() }, false),
        ("sort", Match { sorts: vec![RouteSort::Originated, RouteSort::Ebgp], ..all.clone() }, true),
        ("other sort", Match { sorts: vec![RouteSort::Ibgp], ..all.clone() }, false),
        ("any community", Match { communities: vec![Community(1), Community(7)], ..all.clone() }, true),
        ("other community", Match { communities: vec![Community(1)], ..all.clone() }, false),
        ("large community", Match { large_communities: vec![large], ..all.clone() }, true),
        ("other large community", Match { large_communities: vec![LargeCommunity { local2: 3, ..large }], ..all.clone() }, false),
        ("neighbour AS", Match { neighbour_as: vec![65001], ..all.clone() }, true),
        ("neighbour AS is not the origin", Match { neighbour_as: vec![65010], ..all.clone() }, false),
        ("origin AS", Match { origin_as: vec![65010], ..all.clone() }, true),
        ("origin AS is not the neighbour", Match { origin_as: vec![65001], ..all.clone() }, false),
        ("path length", Match { as_path_len_max: Some(3), ..all.clone() }, true),
        ("path too long", Match { as_path_len_max: Some(2), ..all.clone() }, false),
        ("all together", Match { sorts: vec![RouteSort::Ebgp], origin_as: vec![1], ..all.clone() }, false),
    ];
    for (name, matches, holds) in rows {
        assert_eq!(matches.holds(&route("10.1.0.0/16", &attributes)), holds, "{name}");
    }
    let originated = Match { neighbour_as: vec![0], ..all };
    assert!(!originated.holds(&route("10.1.0.0/16", &plain)), "an empty path has no neighbour");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let only = |prefix| Match {
        prefixes: Some([range(prefix, None, Some(32))].into_iter().collect()),
        ..Match::default()
    };
    let rule = |matches, action| Rule { matches, action, set: Changes::default() };
    let first = policy(
        "first",
        vec![rule(only("10.1.0.0/16"), Action::Reject), rule(only("10.0.0.0/8"), Action::Accept)],
    );
    let second = policy("second", vec![rule(only("192.168.0.0/16"), Action::Accept)]);
    let policies = [first, second];
    let attributes = PathAttributes::originated(Origin::Igp);
    for (prefix, action, by) in [
        ("10.1.2.0/24", Action::Reject, Some(("first", 0))),
        ("10.2.0.0/16", Action::Accept, Some(("first", 1))),
        ("192.168.1.0/24", Action::Accept, Some(("second", 0))),
        ("172.16.0.0/12", Action::Reject, None),
    ] {
        let decision = evaluate_all(&policies, Action::Reject, &route(prefix, &attributes));
        let by = by.map(|(policy, rule)| RuleRef { policy: policy.into(), rule });
        assert_eq!(decision, Decision { action, attributes: None, by }, "{prefix}");
    }
    let decision = evaluate_all(&[], Action::Accept, &route("10.0.0.0/8", &attributes));
    assert_eq!(decision, Decision { action: Action::Accept, attributes: None, by: None });
    assert_eq!(RuleRef { policy: "tor-in".into(), rule: 2 }.to_string(), "tor-in rule 2");
}

#[test]
fn changes_apply_to_what_is_accepted() {
    let large = LargeCommunity { global: 1, local1: 2, local2: 3 };
    let set = Changes {
        local_pref: Some(200),
        med: Some(5),
        remove_communities: vec![Community(1)],
        add_communities: vec![Community(2)],
        add_large_communities: vec![large],
        prepend: Some(Prepend { asn: 65000, times: 2 }),
    };
    let rule = |action| Rule { matches: Match::default(), action, set: set.clone() };
    let start = PathAttributes::originated(Origin::Igp);
    let attributes = start.edit().prepend(65001, 1).add_communities(&[Community(1)]).build();
    let route = route("10.0.0.0/8", &attributes);
    let Verdict::Accept { rule: 0, attributes: Some(changed) } =
        policy("p", vec![rule(Action::Accept)]).evaluate(&route)
    else {
        panic!("not accepted with changes");
    };
    assert_eq!((changed.local_pref(), changed.med()), (Some(200), Some(5)));
    assert_eq!(changed.communities().collect::<Vec<_>>(), [Community(2)]);
    assert_eq!(changed.large_communities().collect::<Vec<_>>(), [large]);
    assert_eq!(changed.as_path().to_string(), "65000 65000 65001");
    let rejected = policy("p", vec![rule(Action::Reject)]).evaluate(&route);
    assert_eq!(rejected, Verdict::Reject { rule: 0 });
    // A change that changes nothing keeps the attributes shared.
    let same = Changes { remove_communities: vec![Community(9)], ..Changes::default() };
    assert_eq!(same.apply(&attributes), None);
}

#[test]
fn bounds_of_ranges() {
    let matches = |range: PrefixRange, prefix: &str| {
        [range].into_iter().collect::<PrefixList>().matches(prefix.parse().unwrap())
    };
    assert!(matches(range("10.0.0.0/8", None, None), "10.0.0.0/8"));
    assert!(!matches(range("10.0.0.0/8", None, None), "10.1.0.0/16"));
    assert!(matches(range("10.0.0.0/8", Some(16), None), "10.1.0.0/32"), "up to the family's bits");
    assert!(!matches(range("10.0.0.0/8", Some(16), None), "10.0.0.0/8"));
    assert!(matches(range("10.0.0.0/8", None, Some(24)), "10.0.0.0/8"));
    assert!(!matches(range("10.0.0.0/8", None, Some(24)), "10.0.0.0/25"));
    assert!(!matches(range("10.0.0.0/8", Some(0), Some(24)), "0.0.0.0/0"));
    assert!(!matches(range("0.0.0.0/0", None, Some(32)), "::/0"), "families do not mix");
    let default = "0.0.0.0/0".parse().unwrap();
    let list = [range("0.0.0.0/0", Some(8), Some(24))].into_iter().collect::<PrefixList>();
    assert!(!list.names(default) && !list.matches(default));
    assert!([range("0.0.0.0/0", None, None)].into_iter().collect::<PrefixList>().names(default));
    assert_eq!(range("10.0.0.0/8", Some(16), Some(24)).to_string(), "10.0.0.0/8 ge 16 le 24");
}

proptest! {
    /// The hashed lookup and a walk over all entries agree.
    #[test]
    fn prefix_lists(
        entries in proptest::collection::vec((prefix(), any::<Option<u8>>(), any::<Option<u8>>()), 0..40),
        prefixes in proptest::collection::vec(prefix(), 1..40),
    ) {
        let entries: Vec<_> =
            entries.into_iter().map(|(p, ge, le)| PrefixRange::new(p, ge, le)).collect();
        let list: PrefixList = entries.iter().copied().collect();
        for prefix in prefixes.into_iter().chain(entries.iter().map(|e| e.prefix)) {
            let naive = entries.iter().any(|entry| {
                entry.prefix.contains(prefix)
                    && (entry.len_min..=entry.len_max).contains(&prefix.len())
            });
            prop_assert_eq!(list.matches(prefix), naive, "{} in {:?}", prefix, list);
        }
        let backwards: PrefixList = entries.iter().rev().copied().collect();
        prop_assert_eq!(list, backwards);
    }
}

fn policy(name: &str, rules: Vec<Rule>) -> Arc<Policy> {
    Arc::new(Policy { name: name.into(), rules })
}

fn range(prefix: &str, ge: Option<u8>, le: Option<u8>) -> PrefixRange {
    PrefixRange::new(prefix.parse().unwrap(), ge, le)
}

fn route<'a>(prefix: &str, attributes: &'a PathAttributes) -> RouteView<'a> {
    let sort = RouteSort::Ebgp;
    RouteView { prefix: prefix.parse().unwrap(), sort, next_hop: None, attributes }
}

/// Few distinct addresses, so that entries and prefixes meet.
fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (0_u32..8, 0_u8..=32)
            .prop_map(|(high, len)| Prefix::V4(Ipv4Prefix::new(high << 29, len).unwrap())),
        (0_u128..8, 0_u8..=128)
            .prop_map(|(high, len)| Prefix::V6(Ipv6Prefix::new(high << 125, len).unwrap())),
    ]
}
