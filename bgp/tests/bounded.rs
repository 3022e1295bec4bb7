//! What a message may cost: allocation in proportion to its octets, in few pieces, whatever stands in it.
//!
//! A binary of its own, because its allocator counts. Time is not measured: where twice the octets take
//! twice the allocations at most, and each octet is read by loops that only go forward, work is linear.

#[path = "wire/build.rs"]
mod build;
#[path = "wire/corpus.rs"]
mod corpus;
#[path = "mutation/mutate.rs"]
mod mutate;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use cairn_bgp::session::Received;
use cairn_bgp::stream::{Decoder, Item, ReaderConfig};
use cairn_bgp::wire::{
    AttributeTypes, Frame, MESSAGE_OCTETS_MAX_EXTENDED, MessageType, Notification, Open,
    RouteRefresh, UpdateBody, UpdateContext,
};

use build::{EBGP, IBGP, attribute, body, hex, message};
use mutate::{PLAIN, Random};

#[test]
fn any_message_costs_a_small_multiple_of_its_octets() {
    let mut random = Random::new(0x5eed_0002);
    let seeds: Vec<Vec<u8>> = corpus::ALL.iter().map(|text| corpus::octets(text)).collect();
    let attributes = mutate::attribute_pool(&seeds);
    let mut decoded = 0;
    for _ in 0..ROUNDS {
        let octets = match random.below(2) {
            0 => random.mutated(&seeds),
            _ => random.assembled(&attributes),
        };
        let context = random.context();
        let Some(cost) = cost_of(&octets, &context) else { continue };
        decoded += 1;
        cost.assert_below(octets.len(), &build::digits(&octets));
    }
    assert!(decoded > ROUNDS / 2, "{decoded} of {ROUNDS} messages got as far as a decoder");
}

#[test]
fn the_worst_messages_cost_no_more_by_their_size() {
    for (name, make) in WORST {
        for context in [EBGP, IBGP].map(|c| [c, UpdateContext { as4: false, ..c }]).concat() {
            let mut costs = Vec::new();
            // A half, then all of what a message can hold.
            for octets_max in [32_000, MESSAGE_OCTETS_MAX_EXTENDED] {
                let octets = make(octets_max - 19);
                let octets = message(2, &octets);
                assert!(octets.len() > octets_max * 9 / 10, "{name}: {} octets", octets.len());
                let cost = cost_of(&octets, &context).expect("a whole message");
                cost.assert_below(octets.len(), name);
                costs.push((octets.len(), cost));
            }
            let [(half, few), (whole, many)] = costs[..] else { unreachable!("two sizes") };
            let bound = few.octets * (whole / half + 1) + FIXED_OCTETS;
            assert!(many.octets <= bound, "{name}: {few:?} for {half}, {many:?} for {whole}");
            assert!(many.calls <= few.calls + GROWTHS, "{name}: {few:?}, then {many:?}");
        }
    }
}

/// The head of a stream that never becomes a message, octet by octet, costs nothing but its buffer.
#[test]
fn what_waits_for_more_costs_nothing() {
    let octets = message(2, &body(&[], &[], &vec![0; 60_000]));
    let open = Open::decode(&corpus::octets(corpus::BIRD_OPEN)[19..]).unwrap();
    let config = ReaderConfig {
        first_as: None,
        discard_attributes: AttributeTypes::NONE,
        prefers_link_local: false,
    };
    let mut decoder = Decoder::new(open.clone(), config);
    let (mut buffer, mut items) = (BytesMut::with_capacity(1 << 17), Vec::new());
    buffer.extend_from_slice(&open.encode());
    assert!(decoder.decode(&mut buffer, &mut items));
    assert!(matches!(items[..], [Item::Message(Received::Open(_))]));
    let ((), cost) = counted(|| {
        for octet in &octets[..octets.len() - 1] {
            buffer.extend_from_slice(&[*octet]);
            assert!(decoder.decode(&mut buffer, &mut items));
        }
    });
    assert_eq!((cost.calls, items.len()), (0, 1), "{cost:?}");
}

/// Bodies of UPDATEs of about so many octets that are dear to read.
type Make = fn(usize) -> Vec<u8>;
const WORST: &[(&str, Make)] = &[
    ("announced prefixes of one octet", |octets| body(&[], &hex(PLAIN), &vec![0; octets - 60])),
    ("withdrawn prefixes of one octet", |octets| body(&vec![0; octets - 8], &[], &[])),
    ("prefixes of one octet in MP_REACH_NLRI", |octets| {
        let head = hex("0002 01 10 20010db8000000000000000000000001 00");
        let reach = attribute(0x80, 14, &[head, vec![0; octets - 80]].concat());
        body(&[], &[reach, hex(PLAIN)].concat(), &[])
    }),
    ("empty attributes of all types", |octets| {
        let tiny = (0..=u8::MAX).cycle().filter(|code| !matches!(code, 14 | 15));
        let tiny = tiny.take(octets / 3 - 4).flat_map(|code| [0xc0, code, 0]);
        body(&[], &tiny.collect::<Vec<_>>(), &[0])
    }),
    ("one attribute again and again", |octets| {
        let again = hex("c06300").repeat(octets / 3 - 20);
        body(&[], &[hex(PLAIN), again].concat(), &[0])
    }),
    ("a path as long as can be", |octets| with_value(0x40, 2, &segments(4), octets)),
    ("a path of 2-octet AS numbers", |octets| with_value(0x40, 2, &segments(2), octets)),
    ("a path of segments with one AS", |octets| with_value(0x40, 2, &hex("0201 0000fde9"), octets)),
    ("AS4_PATH beside AS_PATH", |octets| {
        let path = attribute(0x40, 2, &segments(2).repeat(octets / 512 / 3));
        let as4 = attribute(0xc0, 17, &segments(4).repeat(octets / 1022 * 2 / 3));
        let rest = octets - path.len() - as4.len() - 40;
        let filler = attribute(0xc0, 99, &vec![0; rest]);
        let head = hex("400101 00");
        body(&[], &[head, path, hex("400304 0a000001"), as4, filler].concat(), &[0])
    }),
    ("communities", |octets| with_value(0xc0, 8, &hex("fde90001"), octets)),
    ("large communities, all the same", |octets| {
        with_value(0xc0, 32, &hex("0000fde90000000100000002"), octets)
    }),
    ("large communities, all different", |octets| {
        let count = u32::try_from(octets / 12 - 8).unwrap();
        let values = (0..count).rev().flat_map(|n| [n.to_be_bytes(), [1; 4], [2; 4]].concat());
        let values = attribute(0xc0, 32, &values.collect::<Vec<_>>());
        body(&[], &[hex(PLAIN), values].concat(), &[0])
    }),
    ("tunnels of which every other goes", |octets| {
        let tunnels = hex("0002 0008 0606 00000000 0000 0008 0000");
        with_value(0xc0, 23, &tunnels, octets)
    }),
    ("empty sub-TLVs in one tunnel", |octets| {
        let sub_tlvs = [hex("0606 00000000 0000"), hex("0100").repeat(octets / 2 - 60)].concat();
        let length = u16::try_from(sub_tlvs.len()).unwrap().to_be_bytes();
        let value = [&hex("0002"), length.as_slice(), &sub_tlvs].concat();
        body(&[], &[hex(PLAIN), attribute(0xc0, 23, &value)].concat(), &[0])
    }),
    ("attributes in ATTR_SET", |octets| {
        let set = [hex("0000fde9"), hex("c06300").repeat(octets / 3 - 30)].concat();
        body(&[], &[hex(PLAIN), attribute(0xc0, 128, &set)].concat(), &[0])
    }),
];

/// An attribute of as many repetitions of `member` as there is room for, in place of the plain one.
fn with_value(flags: u8, code: u8, member: &[u8], octets: usize) -> Vec<u8> {
    let value = member.repeat((octets - 80) / member.len());
    let plain = build::split_attributes(&hex(PLAIN)).into_iter().filter(|a| a[1] != code);
    let attributes = plain.chain([attribute(flags, code, &value)]).flatten();
    body(&[], &attributes.collect::<Vec<_>>(), &[0])
}

/// A whole segment of AS numbers of so many octets.
fn segments(asn_octets: usize) -> Vec<u8> {
    [&[2, 255], [vec![0; asn_octets - 2], vec![0xfd, 0xe9]].concat().repeat(255).as_slice()]
        .concat()
}

/// What decoding a message and walking over all its prefixes costs; `None` when it is not whole.
fn cost_of(octets: &[u8], context: &UpdateContext) -> Option<Cost> {
    let mut buffer = BytesMut::from(octets);
    let frame = Frame::split(&mut buffer, MESSAGE_OCTETS_MAX_EXTENDED).ok()??;
    let body: Bytes = frame.body;
    let (decoded, cost) = counted(|| match frame.message_type {
        MessageType::Open => Open::decode(&body).map(drop).is_ok(),
        MessageType::Notification => Notification::decode(&body).is_some(),
        MessageType::RouteRefresh => RouteRefresh::decode(&body).is_ok(),
        MessageType::Keepalive => true,
        MessageType::Update => {
            let update = UpdateBody::split(&body).and_then(|body| body.decode(context));
            update.is_ok_and(|update| {
                let announced = update.announcements().flat_map(|a| a.prefixes).count();
                announced + update.withdrawn().count() <= body.len()
            })
        }
    });
    // Whether it was any good does not matter here; a count too high would be a mistake of ours.
    let _ = decoded;
    Some(cost)
}

/// What was asked of the allocator.
#[derive(Clone, Copy, Debug)]
struct Cost {
    calls: usize,
    octets: usize,
}

impl Cost {
    #[track_caller]
    fn assert_below(self, octets: usize, what: &str) {
        let bound = OCTETS_PER_OCTET * octets + FIXED_OCTETS;
        assert!(self.octets <= bound, "{self:?} for {octets} octets: {what}");
        // An OPEN may have as many capabilities with a value as there is room for.
        let bound = octets / 3 + FIXED_CALLS;
        assert!(self.calls <= bound, "{self:?} for {octets} octets: {what}");
    }
}

fn counted<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let before = COST.get();
    let result = work();
    let after = COST.get();
    let cost = Cost { calls: after.calls - before.calls, octets: after.octets - before.octets };
    (result, cost)
}

const ROUNDS: usize = 200_000;
/// Octets asked for, those given back included, for each octet of the message. A path of a peer with
/// 2-octet AS numbers is widened, merged, and put into its canonical place; sorting large
/// communities takes an index beside each.
const OCTETS_PER_OCTET: usize = 7;
/// Octets asked for whatever the size.
const FIXED_OCTETS: usize = 2048;
/// Pieces asked for whatever the size.
const FIXED_CALLS: usize = 40;
/// Steps by which vectors grow more often in twice the octets.
const GROWTHS: usize = 6;

/// The system's allocator, counting what a thread asks for.
struct Counting;

thread_local! {
    static COST: Cell<Cost> = const { Cell::new(Cost { calls: 0, octets: 0 }) };
}

// SAFETY: every call goes unchanged to the system's allocator; the counter needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = COST.try_with(|cost| {
            let Cost { calls, octets } = cost.get();
            cost.set(Cost { calls: calls + 1, octets: octets + layout.size() });
        });
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
