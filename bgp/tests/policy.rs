//! Policies: what matches, what is changed, who decided.

use std::sync::Arc;

use cairn_bgp::policy::{
    Action, AsPathPattern, AsPathPatternError, AsPathText, Changes, CommunityChange,
    ExtendedCommunity, Match, MedChange, Policy, PrefixList, PrefixRange, Prepend, RouteSort,
    RouteView, Rule, RuleRef, decide, decide_import,
};
use cairn_bgp::prefix::{Ipv4Prefix, Ipv6Prefix, Prefix};
use cairn_bgp::wire::{Community, LargeCommunity, NextHop, Origin, PathAttributes};
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
        .add_values(&[extended("rt:65000:1")])
        .build();
    let pattern = |text| Some(AsPathPattern::new(text).expect("an expression"));
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
        ("path long enough", Match { as_path_len_min: Some(3), ..all.clone() }, true),
        ("path too short", Match { as_path_len_min: Some(4), ..all.clone() }, false),
        ("path expression", Match { as_path: pattern("^65001_.*_65010$"), ..all.clone() }, true),
        ("other path expression", Match { as_path: pattern("^65010_"), ..all.clone() }, false),
        ("extended community", Match { extended_communities: vec![extended("rt:65000:1")], ..all.clone() }, true),
        ("other extended community", Match { extended_communities: vec![extended("ro:65000:1")], ..all.clone() }, false),
        ("peer", Match { peers: vec!["p1".into(), "p2".into()], ..all.clone() }, true),
        ("other peer", Match { peers: vec!["p1".into()], ..all.clone() }, false),
        ("next hop", Match { next_hops: list(PrefixRange::within("192.0.2.0/24".parse().unwrap())), ..all.clone() }, true),
        ("other next hop", Match { next_hops: list(PrefixRange::within("192.0.3.0/24".parse().unwrap())), ..all.clone() }, false),
        ("all together", Match { sorts: vec![RouteSort::Ebgp], origin_as: vec![1], ..all.clone() }, false),
    ];
    for (name, matches, holds) in rows {
        assert_eq!(
            matches.holds(&route("10.1.0.0/16", &attributes, &AsPathText::default())),
            holds,
            "{name}"
        );
    }
    let originated = Match { neighbour_as: vec![0], ..all };
    assert!(
        !originated.holds(&route("10.1.0.0/16", &plain, &AsPathText::default())),
        "an empty path has no neighbour"
    );
    let anywhere = PrefixRange::within("0.0.0.0/0".parse().unwrap());
    let text = AsPathText::default();
    let view = RouteView { peer: None, next_hop: None, ..route("10.1.0.0/16", &plain, &text) };
    let from_somewhere = Match { next_hops: list(anywhere), ..Match::default() };
    assert!(!from_somewhere.holds(&view), "what originates here has no next hop");
    let of_peer = Match { peers: vec!["".into()], ..Match::default() };
    assert!(!of_peer.holds(&view), "and no peer");
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
        let decision =
            decide(&policies, Action::Reject, &route(prefix, &attributes, &AsPathText::default()));
        let by = by.map(|(policy, rule)| RuleRef { policy: policy.into(), rule });
        let said = decision.by.map(|by| by.to_ref());
        assert_eq!((decision.action, said), (action, by), "{prefix}");
    }
    let decision =
        decide(&[], Action::Accept, &route("10.0.0.0/8", &attributes, &AsPathText::default()));
    assert!(decision.action == Action::Accept && decision.by.is_none());
    assert_eq!(RuleRef { policy: "tor-in".into(), rule: 2 }.to_string(), "tor-in rule 2");
}

/// A rule for everything never takes over all of a host's traffic.
#[test]
fn a_default_route_comes_in_only_by_a_rule_that_names_it() {
    let rule = |prefixes: &[PrefixRange], action| Rule {
        matches: Match {
            prefixes: (!prefixes.is_empty()).then(|| prefixes.iter().copied().collect()),
            ..Match::default()
        },
        action,
        set: Changes::default(),
    };
    let default = range("0.0.0.0/0", None, None);
    let any_length = range("0.0.0.0/0", None, Some(32));
    let elsewhere = range("10.0.0.0/8", None, Some(32));
    let (accept, reject) = (Action::Accept, Action::Reject);
    let attributes = PathAttributes::originated(Origin::Igp);
    for (name, rules, by) in [
        ("accept everything", vec![rule(&[], accept)], None),
        ("elsewhere", vec![rule(&[elsewhere], accept)], None),
        ("named", vec![rule(&[default], accept)], Some(0)),
        ("named as the beginning of a range", vec![rule(&[any_length], accept)], Some(0)),
        ("named later", vec![rule(&[], accept), rule(&[default], accept)], Some(1)),
        ("rejected with all", vec![rule(&[], reject), rule(&[default], accept)], Some(0)),
        (
            "named in a range that leaves it out",
            vec![rule(&[range("0.0.0.0/0", Some(1), None)], accept)],
            None,
        ),
    ] {
        let policies = [policy("p", rules)];
        let decision = decide_import(
            &policies,
            Action::Reject,
            &route("0.0.0.0/0", &attributes, &AsPathText::default()),
        );
        assert_eq!(decision.by.map(|by| by.index), by, "{name}");
    }
    let all = [policy("p", vec![rule(&[], accept)])];
    let text = AsPathText::default();
    let view = route("10.0.0.0/8", &attributes, &text);
    assert!(decide_import(&all, Action::Reject, &view).by.is_some(), "all but default routes");
    let view = route("0.0.0.0/0", &attributes, &text);
    assert!(
        decide(&all, Action::Reject, &view).by.is_some(),
        "going out it is a prefix like others"
    );
}

#[test]
fn what_a_rule_sets() {
    let start = PathAttributes::originated(Origin::Igp);
    let (one, two) = (Community(1), Community(2));
    let large = |local2| LargeCommunity { global: 1, local1: 2, local2 };
    let (rt, ro) = (extended("rt:65000:1"), extended("ro:65000:1"));
    let attributes = start
        .edit()
        .prepend(65001, 1)
        .med(Some(9))
        .add_communities(&[one, two])
        .add_values(&[rt])
        .add_large_communities(&[large(1)])
        .build();
    let all = Changes::default();
    let change = |replace: Option<Vec<Community>>, remove, add| Changes {
        communities: CommunityChange { replace, remove, add },
        ..Changes::default()
    };
    let edit = |f: &dyn Fn(&mut cairn_bgp::wire::AttributesBuilder<'_>)| {
        let mut builder = attributes.edit();
        f(&mut builder);
        Some(builder.build())
    };
    #[rustfmt::skip]
    let rows = [
        ("nothing", all.clone(), None),
        ("local pref", Changes { local_pref: Some(200), ..all.clone() }, edit(&|b| { b.local_pref(Some(200)); })),
        ("MED", Changes { med: Some(MedChange::Set(5)), ..all.clone() }, edit(&|b| { b.med(Some(5)); })),
        ("no MED", Changes { med: Some(MedChange::Remove), ..all.clone() }, edit(&|b| { b.med(None); })),
        ("the same MED", Changes { med: Some(MedChange::Set(9)), ..all.clone() }, None),
        ("a community more", change(None, vec![], vec![Community(3)]), edit(&|b| { b.add_communities(&[Community(3)]); })),
        ("a known community", change(None, vec![], vec![two]), None),
        ("a community less", change(None, vec![one], vec![]), edit(&|b| { b.remove_communities(&[one]); })),
        ("an unknown community less", change(None, vec![Community(9)], vec![]), None),
        ("others in their place", change(Some(vec![Community(7)]), vec![], vec![]), edit(&|b| { b.remove_communities(&[one, two]).add_communities(&[Community(7)]); })),
        ("none in their place", change(Some(vec![]), vec![], vec![]), edit(&|b| { b.remove_communities(&[one, two]); })),
        ("replaced, removed, added", change(Some(vec![one, two]), vec![two], vec![Community(3)]), edit(&|b| { b.remove_communities(&[two]).add_communities(&[Community(3)]); })),
        ("extended", Changes { extended_communities: CommunityChange { replace: None, remove: vec![rt], add: vec![ro] }, ..all.clone() }, edit(&|b| { b.replace_values(&[ro]); })),
        ("large", Changes { large_communities: CommunityChange::add([large(2)]), ..all.clone() }, edit(&|b| { b.add_large_communities(&[large(2)]); })),
        ("prepend", Changes { prepend: Some(Prepend { asn: 65000, times: 2 }), ..all }, edit(&|b| { b.prepend(65000, 2); })),
    ];
    for (name, set, expected) in rows {
        assert_eq!(set.apply(&attributes), expected, "{name}");
    }
    let gone = change(Some(vec![]), vec![], vec![]).apply(&attributes).expect("a change");
    assert_eq!(gone.value(8), None, "an attribute without a value is none");
}

#[test]
fn communities_as_people_write_them() {
    for (text, value) in [
        ("65000:1", 65000 << 16 | 1),
        ("0:0", 0),
        ("no-export", 0xffff_ff01),
        ("graceful-shutdown", 0xffff_0000),
        ("blackhole", 0xffff_029a),
    ] {
        assert_eq!(text.parse(), Ok(Community(value)), "{text}");
    }
    for text in ["65536:1", "1", "a:b", "1:2:3", "+1:2", "", ":", "NO_EXPORT"] {
        assert!(text.parse::<Community>().is_err(), "{text}");
    }
    assert_eq!("1:2:3".parse(), Ok(LargeCommunity { global: 1, local1: 2, local2: 3 }));
    for text in ["1:2", "1:2:3:4", "4294967296:1:1", "a:1:1", "1::1"] {
        assert!(text.parse::<LargeCommunity>().is_err(), "{text}");
    }
    for (text, value) in [
        ("rt:65000:1", 0x0002_fde8_0000_0001),
        ("rt:65000:4294967295", 0x0002_fde8_ffff_ffff),
        ("ro:4200000000:7", 0x0203_fa56_ea00_0007),
        ("rt:192.0.2.1:5", 0x0102_c000_0201_0005),
        ("4300000000000001", 0x4300_0000_0000_0001),
    ] {
        assert_eq!(text.parse(), Ok(ExtendedCommunity(value)), "{text}");
        assert_eq!(ExtendedCommunity(value).to_string(), text);
    }
    for text in [
        "rt:65000",
        "xx:1:1",
        "rt:4200000000:65536",
        "430000000000001",
        "rt:192.0.2.1:65536",
        "0x43:1",
    ] {
        assert!(text.parse::<ExtendedCommunity>().is_err(), "{text}");
    }
}

/// What operators know from their routers.
#[test]
fn expressions_over_as_paths() {
    let path = |asns: &[u32]| {
        let plain = PathAttributes::originated(Origin::Igp);
        let mut builder = plain.edit();
        for asn in asns.iter().rev() {
            builder.prepend(*asn, 1);
        }
        builder.build()
    };
    let long: Vec<u32> = (0..4000).map(|n| 65001 + n % 3).collect();
    #[rustfmt::skip]
    let rows: [(&str, &[u32], bool); 20] = [
        ("^$", &[], true),
        ("^$", &[65001], false),
        (".*", &[], true),
        ("_65001_", &[65001], true),
        ("_65001_", &[1, 65001, 2], true),
        ("_65001_", &[165001], false),
        ("_65001_", &[650010], false),
        ("^65001_", &[65001, 65002], true),
        ("^65001_", &[650012], false),
        ("^65001_", &[1, 65001], false),
        ("_65002$", &[65001, 65002], true),
        ("_65002$", &[65002, 65001], false),
        ("^65001( 65001)*$", &[65001, 65001, 65001], true),
        ("^(65001|65002)_65003$", &[65002, 65003], true),
        ("^[0-9]+$", &[65001], true),
        ("^[0-9]+$", &[65001, 2], false),
        ("^([0-9]+_){2,3}$", &[1, 2, 3], true),
        ("^([0-9]+_){2,3}$", &[1, 2, 3, 4], false),
        ("_4200000000_", &[4_200_000_000], true),
        ("^((65001|65002|65003)_?)*$", &long, true),
    ];
    for (text, asns, expected) in rows {
        let pattern = AsPathPattern::new(text).expect("an expression");
        assert_eq!(
            pattern.matches(path(asns).as_path(), &AsPathText::default()),
            expected,
            "{text} on {} ASes",
            asns.len()
        );
    }
    for (text, error) in [
        ("65001a", AsPathPatternError::Character('a')),
        ("(?i)1", AsPathPatternError::Character('i')),
        (&"1".repeat(257), AsPathPatternError::TooLong),
    ] {
        assert_eq!(AsPathPattern::new(text), Err(error), "{text}");
    }
    for text in ["(", "[", "*", "1{2,1}", "((((1{99}){99}){99}){99})"] {
        assert!(matches!(AsPathPattern::new(text), Err(AsPathPatternError::Syntax(_))), "{text}");
    }
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

fn route<'a>(
    prefix: &str,
    attributes: &'a PathAttributes,
    as_path_text: &'a AsPathText,
) -> RouteView<'a> {
    RouteView {
        prefix: prefix.parse().unwrap(),
        sort: RouteSort::Ebgp,
        peer: Some("p2"),
        next_hop: Some(NextHop::new("192.0.2.9".parse().unwrap())),
        attributes,
        as_path_text,
    }
}

fn extended(text: &str) -> ExtendedCommunity {
    text.parse().unwrap()
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
