//! Which pools and addresses a pod asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cairn_api::LabelSelector;
use cairn_ipam::choice::{ChoiceError, Home, Wishes, choose};
use cairn_ipam::{AddressRequest, Choice, Family, PodPool};

fn pool(name: &str, cidr: &str) -> PodPool {
    let cidr = cidr.parse().expect("a network");
    PodPool { name: name.into(), cidr, namespaces: None, unusable: None }
}

/// A pool for namespaces with the label `team`.
fn team_pool(name: &str, cidr: &str, team: &str) -> PodPool {
    let match_labels = labels(team);
    let selector = LabelSelector { match_labels, ..LabelSelector::default() };
    PodPool { namespaces: Some(selector), ..pool(name, cidr) }
}

fn labels(team: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("team".to_owned(), team.to_owned())])
}

fn from(family: Family, pools: &[&str]) -> AddressRequest {
    let pools = pools.iter().map(|name| (*name).to_owned()).collect();
    AddressRequest { family, choice: Choice::Pools(pools) }
}

fn fixed(address: &str) -> AddressRequest {
    let address = address.parse().expect("an address");
    AddressRequest { family: Family::of(address), choice: Choice::Address(address) }
}

const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// The choice of a pod in the namespace `ns` of `team`.
fn chosen(
    pools: &[PodPool],
    team: &str,
    of_namespace: Option<&str>,
    wishes: Wishes<'_>,
) -> Result<Vec<AddressRequest>, ChoiceError> {
    let labels = labels(team);
    choose(
        pools,
        &BOTH,
        Home::Namespace { name: "ns", labels: &labels, pools: of_namespace },
        wishes,
    )
}

fn pools_of(text: &str) -> Wishes<'_> {
    Wishes { pools: Some(text), ..Wishes::default() }
}

fn ips(text: &str) -> Wishes<'_> {
    Wishes { addresses: Some(text), ..Wishes::default() }
}

fn dual() -> Vec<PodPool> {
    vec![
        pool("b", "10.1.0.0/16"),
        pool("a", "10.0.0.0/16"),
        pool("six", "fd00::/48"),
        team_pool("red", "10.9.0.0/16", "red"),
    ]
}

#[test]
fn without_a_wish_every_family_comes_from_the_general_pools_in_the_order_of_names() {
    let expected = vec![from(Family::V4, &["a", "b"]), from(Family::V6, &["six"])];
    assert_eq!(chosen(&dual(), "blue", None, Wishes::default()), Ok(expected.clone()));
    assert_eq!(choose(&dual(), &BOTH, Home::None, Wishes::default()), Ok(expected));
    let v4 = [pool("a", "10.0.0.0/16")];
    let expected = vec![from(Family::V4, &["a"])];
    assert_eq!(chosen(&v4, "blue", None, Wishes::default()), Ok(expected));
}

#[test]
fn a_namespace_that_a_pool_selects_is_served_by_such_pools_only() {
    let expected = vec![from(Family::V4, &["red"]), from(Family::V6, &["six"])];
    assert_eq!(chosen(&dual(), "red", None, Wishes::default()), Ok(expected.clone()));
    // While the pool is unusable the general ones serve again.
    let mut pools = dual();
    pools[3].unusable = Some("it is disabled".into());
    let general = vec![from(Family::V4, &["a", "b"]), from(Family::V6, &["six"])];
    assert_eq!(chosen(&pools, "red", None, Wishes::default()), Ok(general));
    // And it does not serve what has no namespace.
    let only = [team_pool("red", "10.9.0.0/16", "red")];
    let refused = choose(&only, &[Family::V4], Home::None, Wishes::default());
    assert!(matches!(refused, Err(ChoiceError::NoPool { .. })), "{refused:?}");
}

#[test]
fn an_annotation_names_pools_in_its_order_and_the_families_that_the_pod_gets() {
    for text in ["b,a", " b , a ", r#"["b","a"]"#, "b,a,b"] {
        let expected = vec![from(Family::V4, &["b", "a"])];
        assert_eq!(chosen(&dual(), "blue", None, pools_of(text)), Ok(expected), "{text}");
    }
    let expected = vec![from(Family::V4, &["b"]), from(Family::V6, &["six"])];
    assert_eq!(chosen(&dual(), "blue", None, pools_of("six,b")), Ok(expected));
    // The namespace's serves pods without one of their own.
    let expected = vec![from(Family::V4, &["b"])];
    assert_eq!(chosen(&dual(), "blue", Some("b"), Wishes::default()), Ok(expected));
    let expected = vec![from(Family::V6, &["six"])];
    assert_eq!(chosen(&dual(), "blue", Some("b"), pools_of("six")), Ok(expected));
}

#[test]
fn a_pool_that_cannot_serve_is_a_refusal_and_never_another_pool() {
    let mut pools = dual();
    pools.push(PodPool { unusable: Some("it is disabled".into()), ..pool("off", "10.2.0.0/16") });
    let refusals = [
        ("blue", "nowhere", "does not exist"),
        ("blue", "a,nowhere", "does not exist"),
        ("blue", "off", "cannot serve (it is disabled)"),
        ("blue", "red", "does not select the namespace ns"),
        ("red", "a", "does not serve the namespace ns, which has IPv4 pools of its own"),
        ("blue", "", "empty item"),
        ("blue", "a,", "empty item"),
        ("blue", "[]", "names nothing"),
        ("blue", "[1]", "no list of strings"),
        ("blue", "a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a", "17 items, 16 are allowed"),
    ];
    for (team, text, words) in refusals {
        for refused in [
            chosen(&pools, team, None, pools_of(text)),
            chosen(&pools, team, Some(text), Wishes::default()),
        ] {
            let error = refused.expect_err(text);
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert!(!error.may_end_soon(), "{error}");
        }
    }
}

#[test]
fn a_fixed_address_replaces_the_choice_of_its_family_only() {
    let expected = vec![fixed("10.1.0.7"), from(Family::V6, &["six"])];
    assert_eq!(chosen(&dual(), "blue", None, ips("10.1.0.7")), Ok(expected));
    let expected = vec![fixed("10.1.0.7"), fixed("fd00::7")];
    for text in ["10.1.0.7,fd00::7", "fd00::7, 10.1.0.7", r#"["10.1.0.7","fd00::7"]"#] {
        assert_eq!(chosen(&dual(), "blue", None, ips(text)), Ok(expected.clone()), "{text}");
    }
    let both = Wishes { pools: Some("b"), addresses: Some("10.1.0.7"), ..Wishes::default() };
    assert_eq!(chosen(&dual(), "blue", None, both), Ok(vec![fixed("10.1.0.7")]));
}

#[test]
fn what_the_runtime_asks_for_is_as_good_as_the_annotation_and_must_not_contradict_it() {
    let asked: Vec<IpAddr> = ["fd00::7", "10.1.0.7"].map(|text| text.parse().expect(text)).into();
    let of = |addresses, asked| Wishes { addresses, asked, ..Wishes::default() };
    let expected = Ok(vec![fixed("10.1.0.7"), fixed("fd00::7")]);
    assert_eq!(chosen(&dual(), "blue", None, of(None, &asked)), expected);
    assert_eq!(chosen(&dual(), "blue", None, of(Some("10.1.0.7,fd00::7"), &asked)), expected);
    for text in ["10.1.0.7", "10.1.0.8,fd00::7"] {
        let refused = chosen(&dual(), "blue", None, of(Some(text), &asked));
        assert_eq!(refused, Err(ChoiceError::Contradiction), "{text}");
    }
    let outside = ["192.0.2.1".parse().expect("an address")];
    let error = chosen(&dual(), "blue", None, of(None, &outside)).expect_err("no pool has it");
    assert_eq!(
        error.to_string(),
        "the pod asks for 192.0.2.1, which lies in no IPPool: ask for one that does"
    );
}

#[test]
fn a_fixed_address_outside_the_pools_that_serve_the_pod_is_refused() {
    let mut pools = dual();
    pools.push(PodPool { unusable: Some("it is disabled".into()), ..pool("off", "10.2.0.0/16") });
    let refusals = [
        ("192.0.2.1", "lies in no IPPool"),
        ("10.9.0.1", "IPPool red, which does not serve the namespace ns"),
        ("10.2.0.1", "IPPool off, which cannot serve (it is disabled)"),
        ("10.0.0.1,10.0.0.2", "more than one IPv4 address"),
        ("10.0.0.1/32", "is no IP address"),
        ("", "empty item"),
    ];
    for (text, words) in refusals {
        let error = chosen(&pools, "blue", None, ips(text)).expect_err(text);
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    let both = Wishes { pools: Some("a"), addresses: Some("10.1.0.7"), ..Wishes::default() };
    let error = chosen(&pools, "blue", None, both).expect_err("another pool is named");
    assert!(error.to_string().contains("does not name"), "{error}");
    let both = Wishes { pools: Some("a"), addresses: Some("fd00::7"), ..Wishes::default() };
    assert!(chosen(&pools, "blue", None, both).is_err(), "IPv6 is not among the named pools");
}

#[test]
fn a_family_whose_pools_are_all_unusable_fails_the_request_whole() {
    let mut pools = dual();
    pools[2].unusable = Some("others' addresses lie in it".into());
    let error = chosen(&pools, "blue", None, Wishes::default()).expect_err("no IPv6");
    assert!(error.to_string().contains("no IPv6 address: IPPool six cannot serve"), "{error}");
    // The owner of the blocks says that pods of this node get no IPv6 at all: disabled, or of
    // other nodes.
    let v4_only = choose(&pools, &[Family::V4], Home::None, Wishes::default());
    assert_eq!(v4_only, Ok(vec![from(Family::V4, &["a", "b"])]));
    // Who asks for IPv6 by name is refused all the same.
    assert!(choose(&pools, &[Family::V4], Home::None, pools_of("six")).is_err());
    assert!(choose(&pools, &[Family::V4], Home::None, ips("fd00::7")).is_err());
}

#[test]
fn what_is_not_known_yet_is_waited_for_and_not_guessed() {
    let unknown = choose(&dual(), &BOTH, Home::Unknown("ns"), Wishes::default());
    let error = unknown.expect_err("its labels may matter");
    assert!(error.may_end_soon() && error.to_string().contains("namespace ns"), "{error}");
    let error = choose(&[], &[], Home::None, Wishes::default()).expect_err("no pool");
    assert!(error.may_end_soon(), "{error}");
}
