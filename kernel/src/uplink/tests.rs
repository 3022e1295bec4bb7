//! The table alone: the kernel is what a test says.

use super::*;
use crate::error::Refusal;
use crate::nexthop::Object;
use crate::route::Target;
use crate::{Errno, ROUTE_PROTOCOL};

const HOPS: u32 = UPLINK_OBJECTS.start;
const GROUPS: u32 = HOPS + 0x8000;

fn net(number: u8) -> IpNet {
    format!("10.0.{number}.0/24").parse().unwrap()
}

/// The next hop 192.0.2.HOST on a link.
fn via(host: u8, link: u32) -> NextHop {
    NextHop::via([192, 0, 2, host].into(), link)
}

fn way(hops: &[NextHop]) -> Vec<NextHop> {
    match Target::Unicast(hops.to_vec()).normalized() {
        Target::Unicast(hops) => hops,
        other => panic!("{other:?}"),
    }
}

/// A kernel that does what it is told, on links that are up.
struct Bed {
    table: UplinkObjects,
    down: Vec<u32>,
    now: Instant,
}

impl Bed {
    fn new() -> Bed {
        let mut table = UplinkObjects::new(ObjectUse::Objects);
        table.allow_sweep();
        Bed { table, down: Vec::new(), now: Instant::now() }
    }

    /// As `converge`, without a kernel.
    fn prepare(&mut self) -> Moved {
        let Bed { table, down, now } = self;
        let missing = || Refusal { index: 0, errno: Errno::NETDOWN, text: None };
        table.want_hops();
        for (id, way) in table.hops.wanted().clone() {
            match down.iter().any(|link| leaves_by(&way, *link)) {
                true => table.hops.fail(id, *now, missing()),
                false => drop(table.hops.tell(id, Some(way))),
            }
        }
        table.want_groups();
        for (id, way) in table.groups.wanted().clone() {
            table.groups.tell(id, Some(way));
        }
        (table.needs_read, table.dirty) = (false, false);
        table.publish();
        table.take_moved()
    }

    /// What of the kernel is to go when routes name `used`.
    fn stale(&mut self, used: &[u32]) -> Vec<u32> {
        let used: BTreeSet<u32> = used.iter().copied().collect();
        self.table.keep(&used);
        let needed = self.table.with_members(used);
        let stale = self.table.groups.stale().chain(self.table.hops.stale()).map(|id| id.0);
        stale.filter(|id| !needed.contains(id)).collect()
    }

    /// The link loses its carrier, as the kernel and its notifications have it.
    fn lose_carrier(&mut self, link: u32) {
        self.down.push(link);
        self.table.observe(&KernelEvent::RoutesLost { ifindex: Some(link) });
        assert!(self.table.needs_read, "groups may be smaller now");
    }

    fn regain_carrier(&mut self, link: u32) {
        self.down.retain(|down| *down != link);
        let (name, state) = ("uplink".into(), LinkState::Running);
        self.table.observe(&KernelEvent::Link { index: link, name, state });
        assert!(self.table.dirty);
    }
}

#[test]
fn a_way_gets_a_number_once_its_object_is_there_and_equal_ways_share_it() {
    let mut bed = Bed::new();
    let single = way(&[via(2, 1)]);
    let both = way(&[via(3, 2), via(2, 1)]);
    assert_eq!(bed.table.lead(net(0), &single), Lead::Pending);
    assert_eq!(bed.table.lead(net(1), &both), Lead::Pending);
    assert_eq!(bed.prepare(), Moved::These(vec![net(0), net(1)]));
    assert_eq!(bed.table.lead(net(0), &single), Lead::Object(HOPS));
    assert_eq!(bed.table.lead(net(1), &both), Lead::Object(GROUPS));
    assert_eq!(bed.table.lead(net(2), &single), Lead::Object(HOPS));
    let group = Way::Group(vec![(HOPS, 1), (HOPS + 1, 1)]);
    assert!(bed.table.groups.holds(ObjectId(GROUPS), &group));
    // Shares make another group, of the same members.
    let unequal = way(&[via(3, 2), via(2, 1), via(2, 1)]);
    assert_eq!(bed.table.lead(net(3), &unequal), Lead::Pending);
    assert_eq!(bed.prepare(), Moved::These(vec![net(3)]));
    assert_eq!(bed.table.lead(net(3), &unequal), Lead::Object(GROUPS + 1));
    let group = Way::Group(vec![(HOPS, 2), (HOPS + 1, 1)]);
    assert!(bed.table.groups.holds(ObjectId(GROUPS + 1), &group));
    assert_eq!(bed.prepare(), Moved::Nothing);
}

#[test]
fn what_no_route_names_goes_with_the_members_that_nothing_else_has() {
    let mut bed = Bed::new();
    let (single, both) = (way(&[via(2, 1)]), way(&[via(2, 1), via(3, 2)]));
    bed.table.lead(net(0), &single);
    bed.table.lead(net(1), &both);
    assert_eq!(bed.stale(&[]), [0; 0], "nothing is there");
    bed.prepare();
    assert_eq!(bed.stale(&[]), [0; 0], "routes are about to name it");
    bed.table.lead(net(0), &single);
    bed.table.lead(net(1), &both);
    assert_eq!(bed.stale(&[HOPS, GROUPS]), [0; 0]);
    assert_eq!(bed.stale(&[GROUPS]), [0; 0], "a member of the group");
    assert_eq!(bed.stale(&[HOPS]), [GROUPS, HOPS + 1]);
    assert_eq!(bed.table.lead(net(0), &single), Lead::Pending, "it begins anew");
    bed.prepare();
    assert_eq!(bed.table.lead(net(0), &single), Lead::Object(HOPS), "what is there is taken");
    // A route that nobody wants and that cannot be removed yet.
    assert_eq!(bed.stale(&[HOPS, GROUPS]), [0; 0]);
    assert_eq!(bed.stale(&[GROUPS]), [0; 0], "its members as well");
    assert_eq!(bed.stale(&[]), [GROUPS, HOPS, HOPS + 1]);
}

#[test]
fn a_prefix_that_goes_elsewhere_before_its_object_is_there_leaves_nothing() {
    let mut bed = Bed::new();
    bed.down = vec![1];
    for number in 0..3 {
        bed.table.lead(net(number), &way(&[via(2 + number, 1)]));
    }
    bed.prepare();
    bed.table.lead(net(0), &way(&[via(9, 2)]));
    bed.table.forget(net(1));
    assert!(bed.table.unclean);
    bed.prepare();
    bed.stale(&[]);
    let wanted: Vec<&Way> = bed.table.hops.wanted().values().collect();
    assert_eq!(wanted, [&Way::Hop(via(4, 1)), &Way::Hop(via(9, 2))]);
}

#[test]
fn without_carrier_groups_are_smaller_and_single_next_hops_wait() {
    let mut bed = Bed::new();
    let (single, both) = (way(&[via(2, 1)]), way(&[via(2, 1), via(3, 2)]));
    let calm = way(&[via(3, 2)]);
    let prefixes = [(net(0), &single), (net(1), &both), (net(2), &calm)];
    let leads = |bed: &mut Bed| prefixes.map(|(prefix, way)| bed.table.lead(prefix, way));
    leads(&mut bed);
    bed.prepare();
    let whole = leads(&mut bed);
    assert_eq!(whole, [HOPS, GROUPS, HOPS + 1].map(Lead::Object));

    bed.lose_carrier(1);
    assert_eq!(bed.prepare(), Moved::All);
    assert_eq!(leads(&mut bed), [Lead::NoCarrier, whole[1], whole[2]]);
    assert!(bed.table.groups.holds(ObjectId(GROUPS), &Way::Group(vec![(HOPS + 1, 1)])));
    assert_eq!(bed.table.edits(), 0, "that was the kernel");
    let retry = bed.table.next_deadline().expect("it is tried again");
    assert!(retry > bed.now, "later");
    let problems = bed.table.problems();
    assert!(problems[0].starts_with("the kernel refuses the next-hop object 1128398848: "));

    bed.lose_carrier(2);
    assert_eq!(bed.prepare(), Moved::All);
    assert_eq!(leads(&mut bed), [Lead::NoCarrier; 3]);
    assert_eq!(bed.stale(&[]), [0; 0]);

    bed.regain_carrier(1);
    assert_eq!(bed.prepare(), Moved::These(vec![net(0), net(1), net(2)]));
    assert_eq!(leads(&mut bed), [whole[0], whole[1], Lead::NoCarrier]);
    bed.regain_carrier(2);
    assert_eq!(bed.prepare(), Moved::These(vec![net(2)]));
    assert_eq!(leads(&mut bed), whole);
    assert_eq!(bed.table.problems(), Vec::<String>::new());
}

#[test]
fn what_the_kernel_refuses_for_another_reason_is_named_by_the_routes_themselves() {
    let mut bed = Bed::new();
    let (bad, both) = (way(&[via(2, 1)]), way(&[via(2, 1), via(3, 2)]));
    bed.table.lead(net(0), &bad);
    bed.table.lead(net(1), &both);
    bed.table.want_hops();
    let refusal = || Refusal { index: 0, errno: Errno::INVAL, text: None };
    bed.table.hops.fail(ObjectId(HOPS), bed.now, refusal());
    bed.table.publish();
    assert_eq!(bed.table.lead(net(0), &bad), Lead::Plain);
    assert_eq!(bed.table.lead(net(1), &both), Lead::Plain);
    // The next try succeeds.
    bed.table.retry_failures();
    assert!(bed.table.is_dirty());
    bed.table.take_moved();
    assert_eq!(bed.prepare(), Moved::These(vec![net(0), net(1)]));
    assert_eq!(bed.table.lead(net(0), &bad), Lead::Object(HOPS));
    assert_eq!(bed.table.lead(net(1), &both), Lead::Object(GROUPS));
}

#[test]
fn after_a_restart_objects_keep_their_numbers_whatever_these_are() {
    let mut bed = Bed::new();
    let (single, both) = (way(&[via(2, 1)]), way(&[via(2, 1), via(3, 2)]));
    let present = [(7, via(3, 2)), (9, via(2, 1)), (11, via(4, 1))];
    let present = present.map(|(id, hop)| (ObjectId(HOPS + id), Way::Hop(hop)));
    let group = Way::Group(vec![(HOPS + 9, 1), (HOPS + 7, 1)]);
    bed.table.hops.read(present.into());
    bed.table.groups.read([(ObjectId(GROUPS + 3), group)].into());
    bed.table.lead(net(0), &single);
    bed.table.lead(net(1), &both);
    bed.prepare();
    assert_eq!(bed.table.lead(net(0), &single), Lead::Object(HOPS + 9));
    assert_eq!(bed.table.lead(net(1), &both), Lead::Object(GROUPS + 3));
    assert_eq!(bed.stale(&[HOPS + 9, GROUPS + 3]), [HOPS + 11]);
}

#[test]
fn a_number_that_somebody_else_has_is_left_to_them() {
    let mut bed = Bed::new();
    bed.table.taken = [HOPS, GROUPS].into();
    let (single, both) = (way(&[via(2, 1)]), way(&[via(2, 1), via(3, 2)]));
    bed.table.lead(net(0), &single);
    bed.table.lead(net(1), &both);
    bed.prepare();
    assert_eq!(bed.table.lead(net(0), &single), Lead::Object(HOPS + 1));
    assert_eq!(bed.table.lead(net(1), &both), Lead::Object(GROUPS + 1));
    // Ours is deleted and theirs is in its place.
    let theirs = Object { id: HOPS + 1, protocol: ROUTE_PROTOCOL + 1, way: Way::Blackhole };
    assert!(bed.table.observe(&KernelEvent::Object { id: HOPS + 1, object: Some(theirs) }));
    assert_eq!(bed.table.edits(), 1);
    bed.table.taken.insert(HOPS + 1);
    assert_eq!(bed.prepare(), Moved::All);
    assert_eq!(bed.table.lead(net(0), &single), Lead::Object(HOPS + 3));
    let group = Way::Group(vec![(HOPS + 3, 1), (HOPS + 2, 1)]);
    assert!(bed.table.groups.holds(ObjectId(GROUPS + 1), &group));
}

#[test]
fn when_numbers_are_used_up_routes_name_their_next_hops() {
    let mut bed = Bed::new();
    bed.table.taken = hop_numbers().skip(1).collect();
    bed.table.lead(net(0), &way(&[via(2, 1)]));
    bed.table.lead(net(1), &way(&[via(3, 1)]));
    bed.prepare();
    assert_eq!(bed.table.lead(net(0), &way(&[via(2, 1)])), Lead::Object(HOPS));
    assert_eq!(bed.table.lead(net(1), &way(&[via(3, 1)])), Lead::Plain);
    assert_eq!(bed.table.problems(), [NUMBERS_USED_UP]);
    bed.table.taken.clear();
    bed.prepare();
    assert_eq!(bed.table.lead(net(1), &way(&[via(3, 1)])), Lead::Object(HOPS + 1));
    assert_eq!(bed.table.problems(), Vec::<String>::new());
}

#[test]
fn a_kernel_without_objects_is_never_asked() {
    let mut table = UplinkObjects::new(ObjectUse::Plain);
    table.allow_sweep();
    assert_eq!(table.lead(net(0), &way(&[via(2, 1)])), Lead::Plain);
    table.routes_changed();
    table.request_resync();
    table.observe(&KernelEvent::Overrun);
    assert!(!table.is_dirty());
    assert_eq!(table.take_moved(), Moved::Nothing);
}

#[test]
fn objects_read_as_ip_writes_them() {
    let mut bed = Bed::new();
    bed.table.lead(net(0), &way(&[via(2, 1), via(3, 2), via(3, 2)]));
    bed.prepare();
    let name = |index| if index == 1 { "up0".to_owned() } else { format!("link {index}") };
    let told = bed.table.inventory(name);
    let told: Vec<(&str, &str)> =
        told.iter().map(|((_, id), words)| (id.as_str(), words.as_str())).collect();
    assert_eq!(
        told,
        [
            ("1128398848", "via 192.0.2.2 dev up0"),
            ("1128398849", "via 192.0.2.3 dev link 2"),
            ("1128431616", "group 1128398848/1128398849,2"),
        ]
    );
}
