use proptest::prelude::*;

use super::*;

const ASN: u32 = 64512;

fn members(count: usize) -> Vec<Member> {
    let member = |n: usize| Member {
        name: format!("node-{n}"),
        zone: Some(format!("zone-{}", n % 4)),
        ..Member::default()
    };
    (0..count).map(member).collect()
}

fn set(names: &[&str]) -> Reflectors {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn auto(count: usize, now: &Reflectors) -> Reflectors {
    wanted(Topology::Auto, ASN, &members(count), now)
}

fn chosen(members: &[Member], now: &Reflectors) -> Reflectors {
    wanted(Topology::RouteReflectors, ASN, members, now)
}

fn zones(members: &[Member], of: &Reflectors) -> BTreeSet<Option<String>> {
    let of = members.iter().filter(|member| of.contains(&member.name));
    of.map(|member| member.zone.clone()).collect()
}

#[test]
fn the_number_of_nodes_decides_and_does_not_flap() {
    let mesh = Reflectors::new();
    assert_eq!(auto(64, &mesh), mesh);
    let three = auto(65, &mesh);
    assert_eq!(three.len(), 3);
    assert_eq!(auto(48, &three).len(), 3, "it stays until few are left");
    assert_eq!(auto(47, &three), mesh);
    assert_eq!(auto(64, &mesh), mesh, "and does not come back before many are");
    assert_eq!(wanted(Topology::FullMesh, ASN, &members(500), &three), mesh);
    assert_eq!(wanted(Topology::Disabled, ASN, &members(500), &three), three);
    assert_eq!(wanted(Topology::RouteReflectors, ASN, &members(2), &mesh).len(), 2);
    assert_eq!(wanted(Topology::RouteReflectors, ASN, &[], &mesh), mesh);
}

#[test]
fn a_node_that_is_drained_hands_over_unless_all_are() {
    let mut members = members(5);
    let three = chosen(&members, &Reflectors::new());
    for member in members.iter_mut().filter(|member| three.contains(&member.name)) {
        member.leaves = true;
    }
    let two = chosen(&members, &three);
    assert!(two.len() == 2 && two.is_disjoint(&three), "{two:?}");
    members.iter_mut().for_each(|member| member.leaves = true);
    assert_eq!(chosen(&members, &three), three, "nobody takes their place");
    assert_eq!(chosen(&members, &set(&["node-1"])), set(&["node-1"]), "nor is called back");
    members[0].wish = Wish::First;
    members[0].leaves = true;
    members[4].leaves = false;
    assert_eq!(chosen(&members, &three), set(&["node-4"]));
}

#[test]
fn people_say_which_nodes_are_and_which_are_not() {
    let mut members = members(20);
    let three = chosen(&members, &Reflectors::new());
    let first = three.first().expect("three").clone();
    let index = |members: &[Member], name: &str| {
        members.iter().position(|member| member.name == name).expect("it is there")
    };
    let unwanted = index(&members, &first);
    members[unwanted].wish = Wish::of_label(Some("false"));
    let others = chosen(&members, &three);
    assert!(!others.contains(&first));
    assert_eq!(others.intersection(&three).count(), 2, "the others stay");

    let wished = members.iter().position(|m| !others.contains(&m.name) && m.wish == Wish::Any);
    let wished = wished.expect("a node");
    members[wished].wish = Wish::of_label(Some("true"));
    let with = chosen(&members, &others);
    assert!(with.contains(&members[wished].name));
    assert_eq!(with.intersection(&others).count(), 2);
    for member in &mut members {
        member.wish = Wish::Never;
    }
    assert!(chosen(&members, &with).is_empty());
    assert_eq!(Wish::of_label(Some("maybe")), Wish::Any);
}

#[test]
fn a_silent_node_is_replaced_while_there_is_another() {
    let mut members = members(4);
    let three = chosen(&members, &Reflectors::new());
    let silent = three.first().expect("three").clone();
    members.iter_mut().filter(|m| m.name == silent).for_each(|m| m.silent = true);
    let after = chosen(&members, &three);
    assert!(!after.contains(&silent) && after.len() == 3);
    members.retain(|member| three.contains(&member.name));
    assert_eq!(chosen(&members, &three), three, "better than two");
}

/// As when the whole cluster comes back from a loss of power, or is about to be switched off.
#[test]
fn of_nodes_that_are_all_silent_or_drained_those_reflect_that_did() {
    let mut members = members(12);
    let now = set(&["node-0", "node-4", "node-8"]);
    assert_eq!(zones(&members, &now).len(), 1, "a new choice would spread");
    members.iter_mut().for_each(|member| member.silent = true);
    assert_eq!(chosen(&members, &now), now, "nobody better is there");
    assert_eq!(chosen(&members, &Reflectors::new()).len(), 3, "any, before each with each");
    members.iter_mut().for_each(|member| member.leaves = true);
    assert_eq!(chosen(&members, &now), now);

    // One is heard, although it is being drained: it is called back, as who reflects is silent.
    members[5].silent = false;
    let back = chosen(&members, &now);
    assert!(back.contains("node-5") && back.len() == 3, "{back:?}");
    assert_eq!(back.intersection(&now).count(), 2, "the silent ones stay beside it: {back:?}");
    // One that is in use takes their place, alone if need be: others would be of no use.
    members[7].silent = false;
    members[7].leaves = false;
    assert_eq!(chosen(&members, &back), set(&["node-7"]));
    members.iter_mut().for_each(|member| member.leaves = false);
    let three = chosen(&members, &set(&["node-7"]));
    assert!(three.contains("node-7") && three.contains("node-5"), "{three:?}");
}

/// Plays a record through what becomes of its nodes.
struct Record {
    members: Vec<Member>,
    record: Option<AsTopology>,
    now: i64,
}

impl Record {
    fn step(&mut self, wanted: &Reflectors, progress: Progress) -> Option<Reflectors> {
        self.now += 1;
        let record = self.record.as_ref();
        self.record = step(ASN, record, wanted, &self.members, &progress, self.now);
        self.record.as_ref()?.previous.as_ref().map(reflectors_of)
    }
}

fn open() -> Progress {
    Progress { silent: vec!["node-1".into()], ..Progress::default() }
}

#[test]
fn a_change_over_keeps_the_shape_before_until_nobody_loses_a_route() {
    let mut record = Record { members: members(5), record: None, now: 0 };
    let (mesh, first) = (Reflectors::new(), set(&["node-0", "node-1", "node-2"]));
    assert_eq!(record.step(&mesh, open()), None);
    assert_eq!(record.record, None, "nodes mesh without a record");
    assert_eq!(record.step(&first, open()), Some(mesh.clone()));
    let revision = |record: &Record| record.record.as_ref().expect("a record").revision;
    let began = revision(&record);
    let losing = Progress { losing: vec!["node-4".into()], waited: true, ..Progress::default() };
    assert_eq!(record.step(&first, losing), Some(mesh.clone()), "however long it takes");
    assert_eq!(record.step(&first, open()), Some(mesh.clone()));
    assert_eq!(record.step(&first, Progress { waited: true, ..open() }), None);
    assert_eq!(revision(&record), began, "what nodes have said still counts");

    // A reflector that lives is replaced: its sessions are not to end first.
    let second = set(&["node-0", "node-1", "node-3"]);
    assert_eq!(record.step(&second, open()), Some(first.clone()));
    assert!(revision(&record) > began);
    // And another one in the midst of it.
    let third = set(&["node-0", "node-3", "node-4"]);
    let all = set(&["node-0", "node-1", "node-2", "node-3"]);
    assert_eq!(record.step(&third, open()), Some(all));
    assert_eq!(record.step(&third, Progress::default()), None);

    // In the place of one whose node is gone: the new one is a client of the others until it has its sessions.
    record.members.retain(|member| member.name != "node-4");
    let left = set(&["node-0", "node-3"]);
    assert_eq!(record.step(&set(&["node-0", "node-1", "node-3"]), open()), Some(left));

    // Back to the mesh, and back again before that is done.
    let reflectors = set(&["node-0", "node-1", "node-3"]);
    assert_eq!(record.step(&mesh, open()), Some(reflectors.clone()));
    assert_eq!(record.step(&reflectors, open()), Some(mesh.clone()));
    // All are gone: the nodes mesh by themselves.
    record.step(&reflectors, Progress::default());
    record.members = members(30).split_off(20);
    assert_eq!(record.step(&set(&["node-20"]), open()), Some(mesh));
}

proptest! {
    #[test]
    fn who_comes_and_goes_moves_nobody_else(
        events in proptest::collection::vec((0..40usize, any::<bool>()), 1..60),
        start in 1..30usize,
    ) {
        let mut members = members(start);
        let mut now = chosen(&members, &Reflectors::new());
        for (n, comes) in events {
            let name = format!("node-{n}");
            members.retain(|member| member.name != name);
            if comes {
                let zone = Some(format!("zone-{}", n % 4));
                members.push(Member { name: name.clone(), zone, ..Member::default() });
            }
            let turn = n % members.len().max(1);
            members.rotate_left(turn);
            let after = chosen(&members, &now);
            prop_assert_eq!(after.len(), members.len().min(REFLECTORS));
            let alive = |name: &&String| members.iter().any(|member| member.name == **name);
            prop_assert!(now.iter().filter(alive).all(|name| after.contains(name)));
            now = after;
        }
    }

    #[test]
    fn reflectors_stand_in_as_many_zones_as_there_are(count in 1..80usize, asn in 1..1000u32) {
        let members = members(count);
        let three = wanted(Topology::RouteReflectors, asn, &members, &Reflectors::new());
        prop_assert_eq!(zones(&members, &three).len(), count.min(REFLECTORS));
    }
}
