//! The address book against a naive model, and the cases that have a name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use cairn_ipam::{
    AddressBook, AddressRequest, AssignError, AttachmentId, Choice, Demand, Family, OwnedBlock,
};
use ipnet::IpNet;
use proptest::prelude::*;

const COOLDOWN: Duration = Duration::from_secs(30);

fn id(n: u32) -> AttachmentId {
    AttachmentId { container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn block(cidr: &str, hand_out: bool) -> OwnedBlock {
    OwnedBlock {
        cidr: net(cidr),
        pool: "default".into(),
        hand_out,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    }
}

/// Asks for an address of each family from the pool of [`block`].
fn ask(families: &[Family]) -> Vec<AddressRequest> {
    families.iter().map(|family| from(*family, &["default"])).collect()
}

fn from(family: Family, pools: &[&str]) -> AddressRequest {
    let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    AddressRequest { family, choice: Choice::Pools(pools) }
}

fn fixed(address: &str) -> AddressRequest {
    let address = ip(address);
    AddressRequest { family: Family::of(address), choice: Choice::Address(address) }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_24_gives_256_addresses_and_then_one_clear_error() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.244.0.0/24", true)]);
    let mut seen = BTreeSet::new();
    for n in 0..256 {
        seen.extend(book.assign(&id(n), &ask(&[Family::V4]), secs(1)).expect("a free address"));
    }
    assert_eq!(seen.len(), 256);
    assert!(seen.contains(&ip("10.244.0.0")) && seen.contains(&ip("10.244.0.255")));
    assert_eq!(
        book.assign(&id(256), &ask(&[Family::V4]), secs(1)),
        Err(AssignError::Full {
            family: Family::V4,
            pools: vec!["default".into()],
            open: 1,
            closed: 0,
            addresses: 256,
            foreign: 0,
            reserved: 0,
        })
    );
    assert_eq!(book.refusals(Family::V4), 1);
}

#[test]
fn dual_stack_without_an_ipv6_block_fails_whole() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.244.0.0/26", true)]);
    assert_eq!(
        book.assign(&id(1), &ask(&[Family::V4, Family::V6]), secs(1)),
        Err(AssignError::NoBlock { family: Family::V6, pools: vec!["default".into()] })
    );
    let usage = book.usage();
    assert_eq!((usage[0].used, usage[0].free), (0, 64));
    assert_eq!(
        book.assign(&id(1), &ask(&[Family::V4]), secs(1)),
        Ok(vec![ip("10.244.0.0")]),
        "the refused request has not used up the first address"
    );
}

#[test]
fn freed_addresses_come_back_oldest_first_and_cooling_ones_last() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/30", true)]);
    for n in 0..4 {
        book.assign(&id(n), &ask(&[Family::V4]), secs(1)).expect("free");
    }
    book.release(&id(2), secs(10));
    book.release(&id(0), secs(11));
    assert_eq!(book.usage()[0].cooling, 2);
    assert_eq!(book.assign(&id(7), &ask(&[Family::V4]), secs(12)), Ok(vec![ip("10.0.0.2")]));
    assert_eq!(book.early_reuses(), 1, "the only free ones were cooling: given and counted");
    assert_eq!(book.assign(&id(8), &ask(&[Family::V4]), secs(60)), Ok(vec![ip("10.0.0.0")]));
    assert_eq!(book.early_reuses(), 1);
    // A second block has addresses that are not cooling: they come before one just freed.
    book.release(&id(8), secs(61));
    book.set_blocks(vec![block("10.0.0.0/30", true), block("10.0.1.0/30", true)]);
    assert_eq!(book.assign(&id(9), &ask(&[Family::V4]), secs(62)), Ok(vec![ip("10.0.1.0")]));
    assert_eq!(book.assign(&id(10), &ask(&[Family::V4]), secs(92)), Ok(vec![ip("10.0.0.0")]));
}

#[test]
fn after_a_start_what_is_not_live_counts_as_just_freed() {
    let mut book = AddressBook::new(COOLDOWN);
    book.adopt(id(1), vec![ip("10.0.0.2")]);
    let found = OwnedBlock { newly_claimed: false, ..block("10.0.0.0/29", true) };
    book.set_blocks(vec![found.clone()]);
    // The cursor starts behind the highest live address.
    assert_eq!(book.assign(&id(2), &ask(&[Family::V4]), secs(1_000)), Ok(vec![ip("10.0.0.3")]));
    book.set_blocks(vec![found, block("10.0.1.0/29", true)]);
    assert_eq!(
        book.assign(&id(3), &ask(&[Family::V4]), secs(1_001)),
        Ok(vec![ip("10.0.1.0")]),
        "an address of a block just claimed is colder than one that a pod may have just left"
    );
    assert_eq!(book.assign(&id(1), &ask(&[Family::V4]), secs(1_001)), Ok(vec![ip("10.0.0.2")]));
}

#[test]
fn an_ipv6_64_takes_no_memory_for_what_is_not_in_use() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("fd00:10:244::/64", true)]);
    for n in 0..200_000u32 {
        let now = Duration::from_millis(n.into());
        let given = book.assign(&id(n), &ask(&[Family::V6]), now).expect("free");
        assert!(net("fd00:10:244::/64").contains(&given[0]));
        book.release(&id(n), now);
    }
    let usage = book.usage();
    assert_eq!((usage[0].used, usage[0].free, usage[0].total), (0, 1 << 64, 1 << 64));
    // Beyond the bound the oldest freed address is used again.
    let given = book.assign(&id(0), &ask(&[Family::V6]), secs(400)).expect("free")[0];
    let IpAddr::V6(given) = given else { panic!("{given} is no IPv6 address") };
    assert!(u128::from(given) & u128::from(u64::MAX) < 65_536, "{given}");
}

#[test]
fn a_closed_block_gives_nothing_and_keeps_what_it_has() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/30", true)]);
    let first = book.assign(&id(1), &ask(&[Family::V4]), secs(1)).expect("free");
    book.set_blocks(vec![block("10.0.0.0/30", false)]);
    assert_eq!(
        book.assign(&id(2), &ask(&[Family::V4]), secs(1)),
        Err(AssignError::Closed { family: Family::V4, pools: vec!["default".into()], blocks: 1 })
    );
    assert_eq!(book.assign(&id(1), &ask(&[Family::V4]), secs(1)), Ok(first.clone()));
    book.set_blocks(vec![]);
    assert_eq!(book.held(&id(1)), first, "an allocation outlives its block");
    book.set_blocks(vec![block("10.0.0.0/30", true)]);
    let second = book.assign(&id(2), &ask(&[Family::V4]), secs(2)).expect("free");
    assert_ne!(first, second);
    assert_eq!(book.usage()[0].used, 2);
}

#[test]
fn a_foreign_address_is_skipped_counted_and_comes_back() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/31", true)]);
    // The kernel refuses the first address: the caller marks it and takes the next.
    let refused = book.assign(&id(1), &ask(&[Family::V4]), secs(1)).expect("free");
    book.mark_foreign(refused[0]);
    book.release(&id(1), secs(1));
    let given = book.assign(&id(1), &ask(&[Family::V4]), secs(1)).expect("free");
    assert_ne!(given, refused);
    let usage = &book.usage()[0];
    assert_eq!((usage.used, usage.free, &usage.foreign), (1, 0, &refused));
    assert!(matches!(
        book.assign(&id(2), &ask(&[Family::V4]), secs(1)),
        Err(AssignError::Full { foreign: 1, .. })
    ));
    book.clear_foreign(refused[0], secs(2));
    assert_eq!(book.assign(&id(2), &ask(&[Family::V4]), secs(3)), Ok(refused));
}

#[test]
fn an_address_that_two_interfaces_name_is_free_when_both_have_gone() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/32", true)]);
    assert!(book.adopt(id(1), vec![ip("10.0.0.0")]).is_empty());
    assert_eq!(book.adopt(id(2), vec![ip("10.0.0.0")]), [ip("10.0.0.0")]);
    assert_eq!(book.clashes(), [ip("10.0.0.0")]);
    book.release(&id(1), secs(1));
    assert!(book.assign(&id(3), &ask(&[Family::V4]), secs(2)).is_err());
    assert_eq!(book.holder(ip("10.0.0.0")), Some(&id(2)));
    book.release(&id(2), secs(3));
    assert!(book.assign(&id(3), &ask(&[Family::V4]), secs(4)).is_ok());
    assert!(book.clashes().is_empty());
}

#[test]
fn an_attachment_without_the_family_it_asks_for_is_refused_and_keeps_the_rest() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/30", true), block("fd00::/126", true)]);
    let held = book.assign(&id(1), &ask(&[Family::V4]), secs(1)).expect("free");
    assert_eq!(
        book.assign(&id(1), &ask(&[Family::V4, Family::V6]), secs(1)),
        Err(AssignError::HeldWithout { id: id(1), family: Family::V6 })
    );
    assert_eq!(book.held(&id(1)), held);
    assert_eq!(book.assign(&id(2), &ask(&[]), secs(1)), Err(AssignError::NoFamily));
}

#[test]
fn a_request_that_only_another_pools_block_could_serve_is_refused() {
    let mut book = AddressBook::new(COOLDOWN);
    let other = OwnedBlock { pool: "other".into(), ..block("10.0.1.0/30", true) };
    book.set_blocks(vec![block("10.0.0.0/31", true), other]);
    for n in 0..2 {
        book.assign(&id(n), &ask(&[Family::V4]), secs(1)).expect("free");
    }
    let error = book.assign(&id(2), &ask(&[Family::V4]), secs(1)).expect_err("the pool is full");
    assert!(error.to_string().contains("all 2 addresses of 1 IPv4 block(s) of IPPool default"));
    let demand = Demand::Pools(Family::V4, vec!["default".into()]);
    assert_eq!(error.demand(), Some(demand));
    assert_eq!(
        book.assign(&id(2), &[from(Family::V4, &["nowhere"])], secs(1)),
        Err(AssignError::NoBlock { family: Family::V4, pools: vec!["nowhere".into()] })
    );
}

#[test]
fn pools_serve_in_their_order_and_a_cooling_address_comes_after_all_of_them() {
    let mut book = AddressBook::new(COOLDOWN);
    let in_pool = |pool: &str, cidr| OwnedBlock { pool: pool.into(), ..block(cidr, true) };
    book.set_blocks(vec![in_pool("a", "10.0.1.0/32"), in_pool("b", "10.0.0.0/31")]);
    let mut give = |n, pools: &[&str], at| {
        if n == 9 {
            book.release(&id(1), at);
        }
        book.assign(&id(n), &[from(Family::V4, pools)], at).expect("free")[0]
    };
    assert_eq!(give(1, &["a", "b"], secs(1)), ip("10.0.1.0"));
    assert_eq!(give(2, &["a", "b"], secs(1)), ip("10.0.0.0"));
    assert_eq!(give(9, &["a", "b"], secs(2)), ip("10.0.0.1"), "a's only address is cooling");
    assert_eq!(give(4, &["a", "b"], secs(3)), ip("10.0.1.0"), "given before its time");
    assert_eq!(book.early_reuses(), 1);
}

#[test]
fn a_fixed_address_is_given_or_refused_with_the_reason() {
    let mut book = AddressBook::new(COOLDOWN);
    let closed = block("10.0.1.0/30", false);
    book.set_blocks(vec![block("10.0.0.0/29", true), closed, block("fd00::/126", true)]);
    book.set_reserved(vec![net("10.0.0.7/32")]);
    book.mark_foreign(ip("10.0.0.6"));
    let mut ask_for = |n, address: &str, at| book.assign(&id(n), &[fixed(address)], secs(at));
    assert_eq!(ask_for(1, "10.0.0.3", 1), Ok(vec![ip("10.0.0.3")]));
    assert_eq!(ask_for(1, "10.0.0.3", 1), Ok(vec![ip("10.0.0.3")]), "idempotent");
    let refusals = [
        ("10.0.0.3", AssignError::HeldBy { address: ip("10.0.0.3"), id: id(1) }, false),
        ("10.0.0.6", AssignError::HeldByOthers { address: ip("10.0.0.6") }, false),
        ("10.0.0.7", AssignError::Reserved { address: ip("10.0.0.7") }, false),
        (
            "10.0.1.1",
            AssignError::BlockClosed { address: ip("10.0.1.1"), block: net("10.0.1.0/30") },
            true,
        ),
        ("10.0.2.1", AssignError::NotOurs { address: ip("10.0.2.1") }, true),
    ];
    for (address, refusal, a_block_helps) in refusals {
        assert_eq!(refusal.demand().is_some(), a_block_helps, "{address}");
        assert_eq!(ask_for(2, address, 1), Err(refusal), "{address}");
    }
    let other = AssignError::HoldsOther { id: id(1), address: ip("10.0.0.4") };
    assert_eq!(ask_for(1, "10.0.0.4", 1), Err(other));
    // The other family's address does not leak when the fixed one is refused, in either order.
    for requests in [
        [from(Family::V6, &["default"]), fixed("10.0.0.3")],
        [fixed("10.0.0.3"), from(Family::V6, &["default"])],
    ] {
        assert!(book.assign(&id(3), &requests, secs(2)).is_err());
    }
    assert_eq!(book.usage()[2].used, 0);
    // Cooling is no obstacle, but counted; the next pod gets another address than the fixed one.
    book.release(&id(1), secs(10));
    assert_eq!(book.assign(&id(4), &[fixed("10.0.0.3")], secs(11)), Ok(vec![ip("10.0.0.3")]));
    assert_eq!(book.early_reuses(), 1);
    let rest: BTreeSet<IpAddr> = (10..15)
        .map(|n| book.assign(&id(n), &ask(&[Family::V4]), secs(12)).expect("free")[0])
        .collect();
    let expected = [0, 1, 2, 4, 5].map(|n| ip(&format!("10.0.0.{n}")));
    assert_eq!(rest, BTreeSet::from(expected));
    assert!(book.assign(&id(15), &ask(&[Family::V4]), secs(12)).is_err());
}

#[test]
fn a_fixed_address_that_comes_and_goes_takes_no_memory() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_blocks(vec![block("10.0.0.0/29", true)]);
    // The front of the queue stays, so that nothing behind it is dropped by handing out.
    book.assign(&id(0), &ask(&[Family::V4]), secs(1)).expect("free");
    book.release(&id(0), secs(1));
    for n in 1..200_000u64 {
        assert!(book.assign(&id(1), &[fixed("10.0.0.5")], secs(1)).is_ok());
        book.release(&id(1), secs(1));
        if n == 1_000 {
            // 200,000 entries of 48 bytes would show; the debug form lists each.
            assert!(format!("{book:?}").len() < 20_000);
        }
    }
    assert!(format!("{book:?}").len() < 20_000);
    assert_eq!(book.usage()[0].cooling, 2);
}

#[test]
fn reserved_addresses_are_skipped_counted_once_and_come_back() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_reserved(vec![net("10.0.0.0/30"), net("10.0.0.2/31"), net("10.0.0.6/32")]);
    book.set_blocks(vec![block("10.0.0.0/29", true)]);
    let counts = |book: &AddressBook| {
        let usage = &book.usage()[0];
        assert_eq!(usage.total, u128::from(usage.used) + usage.free + usage.reserved);
        (usage.used, usage.free, usage.reserved)
    };
    assert_eq!(counts(&book), (0, 3, 5));
    let given: Vec<IpAddr> = (0..3)
        .map(|n| book.assign(&id(n), &ask(&[Family::V4]), secs(1)).expect("free")[0])
        .collect();
    assert_eq!(given, [ip("10.0.0.4"), ip("10.0.0.5"), ip("10.0.0.7")]);
    let full = book.assign(&id(3), &ask(&[Family::V4]), secs(1));
    assert!(matches!(full, Err(AssignError::Full { addresses: 8, reserved: 5, .. })), "{full:?}");
    // One in use stays in use and is told; when it is freed nobody gets it.
    book.set_reserved(vec![net("10.0.0.4/31")]);
    assert_eq!(counts(&book), (3, 5, 0));
    assert_eq!(book.usage()[0].reserved_in_use, given[..2]);
    assert_eq!(book.assign(&id(0), &ask(&[Family::V4]), secs(1)), Ok(vec![given[0]]));
    book.release(&id(0), secs(10));
    assert_eq!(counts(&book), (2, 5, 1));
    let rest: BTreeSet<IpAddr> = (10..15)
        .map(|n| book.assign(&id(n), &ask(&[Family::V4]), secs(11)).expect("free")[0])
        .collect();
    let expected = [0, 1, 2, 3, 6].map(|n| ip(&format!("10.0.0.{n}")));
    assert_eq!(rest, BTreeSet::from(expected), "what was reserved before is free again");
    assert!(book.assign(&id(15), &ask(&[Family::V4]), secs(11)).is_err());
    // It is free when the reservation ends, and remembers when it was freed.
    book.set_reserved(Vec::new());
    assert_eq!(book.usage()[0].cooling, 1);
    assert_eq!(book.assign(&id(15), &ask(&[Family::V4]), secs(12)), Ok(vec![given[0]]));
    assert_eq!(book.early_reuses(), 1);
}

#[test]
fn a_reservation_of_half_an_ipv6_64_is_passed_in_one_step() {
    let mut book = AddressBook::new(COOLDOWN);
    book.set_reserved(vec![net("fd00::/65"), net("fd00::8000:0:0:0/128")]);
    book.set_blocks(vec![block("fd00::/64", true)]);
    let given = book.assign(&id(1), &ask(&[Family::V6]), secs(1));
    assert_eq!(given, Ok(vec![ip("fd00::8000:0:0:1")]));
    let usage = &book.usage()[0];
    assert_eq!(usage.reserved, (1 << 63) + 1);
    assert_eq!(usage.free, (1 << 63) - 2);
    book.set_reserved(vec![net("::/0")]);
    assert!(book.assign(&id(2), &ask(&[Family::V6]), secs(1)).is_err());
    assert_eq!(book.usage()[0].reserved_in_use, [ip("fd00::8000:0:0:1")]);
    book.set_reserved(Vec::new());
    assert!(book.assign(&id(2), &ask(&[Family::V6]), secs(1)).is_ok());
}

#[derive(Clone, Debug)]
enum Step {
    Blocks(Vec<(usize, bool, bool)>),
    Adopt(u32, u8, bool),
    Assign(u32, u8, u8),
    Fixed(u32, u8, bool),
    Reserve(Vec<usize>),
    Foreign(u8, bool),
    Clear(u8, bool),
    Release(u32),
    Sleep(u64),
}

const CIDRS: [&str; 6] =
    ["10.0.0.0/30", "10.0.0.4/31", "10.0.0.8/29", "fd00::/127", "fd00::4/126", "fd00::8/128"];

/// The pool of each.
const POOLS: [&str; 6] = ["a", "b", "a", "v6", "v6", "w6"];
const RESERVED: [&str; 6] =
    ["10.0.0.0/31", "10.0.0.1/32", "10.0.0.4/30", "10.0.0.10/32", "fd00::/126", "fd00::6/127"];

/// The pools asked for, by a random number.
fn pools(family: Family, choice: u8) -> &'static [&'static str] {
    match (family, choice % 4) {
        (Family::V4, 0) => &["a"],
        (Family::V4, 1) => &["b"],
        (Family::V4, 2) => &["a", "b"],
        (Family::V4, _) => &["b", "a"],
        (Family::V6, 0) => &["v6"],
        (Family::V6, 1) => &["w6"],
        (Family::V6, 2) => &["v6", "w6"],
        (Family::V6, _) => &["w6", "v6"],
    }
}

fn address(n: u8, v6: bool) -> IpAddr {
    if v6 { ip(&format!("fd00::{:x}", n % 12)) } else { ip(&format!("10.0.0.{}", n % 20)) }
}

fn families(mask: u8) -> Vec<Family> {
    match mask % 4 {
        0 => vec![Family::V4],
        1 => vec![Family::V6],
        2 => vec![Family::V4, Family::V6],
        _ => vec![Family::V6, Family::V4, Family::V6],
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop::collection::vec((0..CIDRS.len(), any::<bool>(), any::<bool>()), 0..7)
            .prop_map(Step::Blocks),
        2 => (0..30u32, any::<u8>(), any::<bool>()).prop_map(|(a, b, c)| Step::Adopt(a, b, c)),
        12 => (0..30u32, any::<u8>(), any::<u8>()).prop_map(|(a, b, c)| Step::Assign(a, b, c)),
        3 => (0..30u32, any::<u8>(), any::<bool>()).prop_map(|(a, b, c)| Step::Fixed(a, b, c)),
        2 => prop::collection::vec(0..RESERVED.len(), 0..4).prop_map(Step::Reserve),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Step::Foreign(a, b)),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Step::Clear(a, b)),
        8 => (0..30u32).prop_map(Step::Release),
        2 => (0..40u64).prop_map(Step::Sleep),
    ]
}

/// The simplest thing that can be right: who names what, scanned in full at every question.
#[derive(Default)]
struct Model {
    held: BTreeMap<AttachmentId, Vec<IpAddr>>,
    foreign: BTreeSet<IpAddr>,
    reserved: Vec<IpNet>,
    /// With pool and whether it is open.
    blocks: BTreeMap<IpNet, (&'static str, bool)>,
    freed: HashMap<IpAddr, Duration>,
}

impl Model {
    fn is_taken(&self, address: IpAddr) -> bool {
        self.foreign.contains(&address) || self.held.values().any(|held| held.contains(&address))
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|cidr| cidr.contains(&address))
    }

    fn free(&self, family: Family, pools: &[&str]) -> Vec<IpAddr> {
        let open = self.blocks.iter().filter(|(cidr, (pool, open))| {
            *open && pools.contains(pool) && Family::of_net(**cidr) == family
        });
        let all = open.flat_map(|(cidr, _)| hosts(*cidr));
        all.filter(|address| !self.is_taken(*address) && !self.is_reserved(*address)).collect()
    }
}

fn hosts(cidr: IpNet) -> Vec<IpAddr> {
    (0..20u8)
        .map(|n| address(n, cidr.addr().is_ipv6()))
        .filter(|a| cidr.contains(a))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_book_agrees_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut book = AddressBook::new(COOLDOWN);
        let mut model = Model::default();
        let mut now = secs(100);
        for step in steps {
            match step {
                Step::Blocks(choice) => {
                    let choice: BTreeMap<usize, (bool, bool)> =
                        choice.into_iter().map(|(n, open, new)| (n, (open, new))).collect();
                    model.blocks =
                        choice.iter().map(|(n, (open, _))| (net(CIDRS[*n]), (POOLS[*n], *open))).collect();
                    book.set_blocks(choice.iter().map(|(n, (open, new))| OwnedBlock {
                        newly_claimed: *new,
                        pool: POOLS[*n].into(),
                        ..block(CIDRS[*n], *open)
                    }).collect());
                }
                Step::Adopt(n, a, v6) => {
                    let address = address(a, v6);
                    let elsewhere = model.held.iter()
                        .any(|(other, held)| *other != id(n) && held.contains(&address));
                    let mine = model.held.entry(id(n)).or_default();
                    let new = !mine.contains(&address);
                    if new {
                        mine.push(address);
                    }
                    let clashing = book.adopt(id(n), vec![address]);
                    prop_assert_eq!(!clashing.is_empty(), new && elsewhere);
                }
                Step::Reserve(chosen) => {
                    model.reserved = chosen.iter().map(|n| net(RESERVED[*n])).collect();
                    book.set_reserved(model.reserved.clone());
                }
                Step::Fixed(n, a, v6) => {
                    let wanted = address(a, v6);
                    let answer = book.assign(&id(n), &[fixed(&wanted.to_string())], now);
                    let held = model.held.get(&id(n)).cloned().unwrap_or_default();
                    let cidr = model.blocks.iter().find(|(cidr, _)| cidr.contains(&wanted));
                    if held.contains(&wanted) {
                        prop_assert_eq!(answer, Ok(held));
                    } else if held.is_empty()
                        && cidr.is_some_and(|(_, (_, open))| *open)
                        && !model.is_taken(wanted)
                        && !model.is_reserved(wanted)
                    {
                        prop_assert_eq!(answer, Ok(vec![wanted]));
                        model.held.insert(id(n), vec![wanted]);
                    } else {
                        prop_assert!(answer.is_err());
                    }
                }
                Step::Assign(n, mask, pool) => {
                    let wanted = families(mask);
                    let requests: Vec<AddressRequest> =
                        wanted.iter().map(|f| from(*f, pools(*f, pool))).collect();
                    let answer = book.assign(&id(n), &requests, now);
                    let held = model.held.get(&id(n)).cloned().unwrap_or_default();
                    let covered = wanted.iter()
                        .all(|f| held.iter().any(|a| Family::of(*a) == *f));
                    if !held.is_empty() {
                        prop_assert_eq!(answer.is_ok(), covered);
                        if let Ok(same) = answer {
                            prop_assert_eq!(same, held, "idempotent");
                        }
                    } else if wanted.iter().all(|f| !model.free(*f, pools(*f, pool)).is_empty()) {
                        let given = answer.expect("every family has a free address");
                        let distinct: BTreeSet<Family> = wanted.iter().copied().collect();
                        prop_assert_eq!(given.len(), distinct.len());
                        for address in &given {
                            let family = Family::of(*address);
                            let free = model.free(family, pools(family, pool));
                            prop_assert!(free.contains(address), "{} is not free", address);
                            // An address within its cooldown only when none else is known free.
                            let cooling = |a: &IpAddr| {
                                model.freed.get(a).is_some_and(|at| *at + COOLDOWN > now)
                            };
                            let cidr = model.blocks.keys().find(|c| c.contains(address));
                            let cidr = *cidr.expect("an own block");
                            if cooling(address) {
                                for other in free.iter().filter(|a| cidr.contains(*a)) {
                                    prop_assert!(cooling(other), "{other} is colder");
                                    prop_assert!(
                                        model.freed[address] <= model.freed[other],
                                        "{address} before {other}"
                                    );
                                }
                            }
                        }
                        model.held.insert(id(n), given);
                    } else {
                        prop_assert!(answer.is_err());
                    }
                }
                Step::Foreign(a, v6) => {
                    book.mark_foreign(address(a, v6));
                    model.foreign.insert(address(a, v6));
                }
                Step::Clear(a, v6) => {
                    let address = address(a, v6);
                    book.clear_foreign(address, now);
                    let was = model.foreign.remove(&address);
                    if was && !model.is_taken(address) {
                        model.freed.insert(address, now);
                    }
                }
                Step::Release(n) => {
                    let freed = book.release(&id(n), now);
                    prop_assert_eq!(&freed, &model.held.remove(&id(n)).unwrap_or_default());
                    for address in freed {
                        if !model.is_taken(address) {
                            model.freed.insert(address, now);
                        }
                    }
                }
                Step::Sleep(n) => now += secs(n),
            }
            // A block that went and came back has forgotten when its addresses were freed.
            model.freed.retain(|a, _| model.blocks.keys().any(|cidr| cidr.contains(a)));
            for usage in book.usage() {
                let all = hosts(usage.cidr);
                let taken = all.iter().filter(|a| model.is_taken(**a)).count() as u128;
                let (reserved, in_use): (Vec<IpAddr>, Vec<IpAddr>) = all.into_iter()
                    .filter(|a| model.is_reserved(*a))
                    .partition(|a| !model.is_taken(*a));
                prop_assert_eq!(usage.total, usage.free + taken + reserved.len() as u128);
                prop_assert_eq!(usage.reserved, reserved.len() as u128);
                let pods: Vec<IpAddr> = in_use.into_iter()
                    .filter(|a| model.held.values().any(|held| held.contains(a)))
                    .collect();
                prop_assert_eq!(&usage.reserved_in_use, &pods);
                let named: BTreeSet<IpAddr> =
                    usage.allocations.iter().map(|(address, _)| *address).collect();
                prop_assert_eq!(named.len() as u64, usage.used);
                let expected: BTreeSet<IpAddr> = hosts(usage.cidr).into_iter()
                    .filter(|a| model.held.values().any(|held| held.contains(a)))
                    .collect();
                prop_assert_eq!(named, expected);
            }
        }
    }
}

#[test]
fn a_permission_that_nobody_renews_ends_by_itself() {
    let mut book = AddressBook::new(Duration::ZERO);
    let until = |secs: u64, revision| OwnedBlock {
        until: Duration::from_secs(secs),
        revision,
        ..block("10.0.0.0/29", true)
    };
    let asleep = Duration::from_secs(3600);
    book.set_blocks(vec![until(100, 1)]);
    let given = book.assign(&id(1), &ask(&[Family::V4]), Duration::from_secs(99)).expect("in time");
    let closed =
        Err(AssignError::Closed { family: Family::V4, pools: vec!["default".into()], blocks: 1 });
    assert_eq!(book.assign(&id(2), &ask(&[Family::V4]), asleep), closed);
    assert_eq!(book.assign(&id(1), &ask(&[Family::V4]), asleep), Ok(given), "what it holds stays");
    let usage = &book.usage()[0];
    assert_eq!((usage.hand_out, usage.used, usage.revision), (false, 1, 1));
    // Told again by somebody who does not know the time yet.
    book.set_blocks(vec![until(200, 2)]);
    assert_eq!(book.assign(&id(2), &ask(&[Family::V4]), asleep), closed);
    book.set_blocks(vec![until(7200, 3)]);
    assert!(book.assign(&id(2), &ask(&[Family::V4]), asleep).is_ok());
    assert_eq!(book.usage()[0].revision, 3);
}
