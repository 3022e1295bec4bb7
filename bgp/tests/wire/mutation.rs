//! Hundreds of thousands of damaged messages: none may panic, and what comes of one is bounded by its
//! size, memory included.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::BytesMut;
use cairn_bgp::prefix::Families;
use cairn_bgp::wire::{
    Announcements, AttributeTypes, Frame, MESSAGE_OCTETS_MAX_EXTENDED, MessageFormat, MessageType,
    Notification, Open, RouteRefresh, SessionSort, UpdateBody, UpdateContext,
};

use super::build::EBGP;
use super::corpus;

#[test]
fn mutated_messages() {
    let seed = match std::env::var("CAIRN_MUTATION_SEED") {
        Ok(seed) => seed.parse().expect("CAIRN_MUTATION_SEED is a number"),
        Err(_) => 0x5eed_0001,
    };
    let mut random = Random(seed);
    let seeds: Vec<Vec<u8>> = corpus::ALL.iter().map(|text| corpus::octets(text)).collect();
    let attributes = attribute_pool(&seeds);
    let mut seen = Seen::default();
    for round in 0..ROUNDS {
        let octets = match random.below(2) {
            0 => random.mutated(&seeds),
            _ => random.assembled(&attributes),
        };
        let context = random.context();
        let checked = std::panic::catch_unwind(|| check(&octets, &context));
        match checked {
            Ok(sort) => seen.count(sort),
            Err(_) => panic!("seed {seed} round {round}: {octets:02x?} in {context:?}"),
        }
    }
    // The mutations reach every kind of outcome, else they prove nothing.
    assert!(seen.used > ROUNDS / 10 && seen.withdrawn > ROUNDS / 10, "{seen:?}");
    assert!(seen.reset > ROUNDS / 10 && seen.framing > ROUNDS / 100, "{seen:?}");
}

#[test]
fn the_largest_messages_stay_bounded() {
    // Prefixes of one octet, attributes of three, AS paths and communities as long as they can be.
    let full = |octets: usize| super::build::hex(&"00".repeat(octets));
    let prefixes = super::build::body(&[], &hex_attributes(""), &full(65_000));
    let withdrawn = super::build::body(&full(65_000), &[], &[]);
    let tiny = (0..=u8::MAX).cycle().take(21_000).flat_map(|code| [0xc0, code, 0]);
    let tiny = super::build::body(&[], &tiny.collect::<Vec<_>>(), &[0]);
    let segment = [&[2, 255], [0, 1].repeat(255).as_slice()].concat();
    let path = super::build::attribute(0x40, 2, &segment.repeat(127));
    let path = [hex_attributes("").as_slice(), &path].concat();
    let path = super::build::body(&[], &path[path.len() - segment.len() * 127 - 4..], &[0]);
    for octets in [prefixes, withdrawn, tiny, path] {
        for as4 in [true, false] {
            let message = super::build::message(2, &octets);
            check(&message, &UpdateContext { as4, ..EBGP });
        }
    }
}

/// How far a message came.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Framing,
    Reset,
    Withdrawn,
    Used,
}

#[derive(Debug, Default)]
struct Seen {
    framing: usize,
    reset: usize,
    withdrawn: usize,
    used: usize,
}

impl Seen {
    fn count(&mut self, sort: Sort) {
        match sort {
            Sort::Framing => self.framing += 1,
            Sort::Reset => self.reset += 1,
            Sort::Withdrawn => self.withdrawn += 1,
            Sort::Used => self.used += 1,
        }
    }
}

/// Reads what is in `octets` and looks at all that comes of it.
fn check(octets: &[u8], context: &UpdateContext) -> Sort {
    let mut buffer = BytesMut::from(octets);
    let frame = match Frame::split(&mut buffer, MESSAGE_OCTETS_MAX_EXTENDED) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Sort::Framing,
        Err(notification) => {
            check_notification(&notification, octets);
            return Sort::Framing;
        }
    };
    assert!(frame.body.len() + 19 <= octets.len());
    let before = ALLOCATED.get();
    let sort = match frame.message_type {
        MessageType::Open => match Open::decode(&frame.body) {
            Ok(open) => {
                assert!(open.capabilities.len() <= octets.len() / 2);
                assert_eq!(Open::decode(&open.encode()[19..]).unwrap(), open);
                Sort::Used
            }
            Err(notification) => check_notification(&notification, octets),
        },
        MessageType::Notification => {
            let notification = Notification::decode(&frame.body).unwrap();
            assert!(notification.to_string().len() <= 200 + 3 * octets.len());
            Sort::Used
        }
        MessageType::RouteRefresh => match RouteRefresh::decode(&frame.body) {
            Ok(refresh) => {
                // What follows an unknown subtype is not kept.
                assert!(frame.body.starts_with(&refresh.encode()[19..]));
                Sort::Used
            }
            Err(notification) => check_notification(&notification, octets),
        },
        MessageType::Keepalive => Sort::Used,
        MessageType::Update => check_update(&frame.body, context),
    };
    // Everything above, copies for the comparisons included, in proportion to the message.
    let allocated = ALLOCATED.get() - before;
    assert!(allocated <= 16 * octets.len() + 8192, "{allocated} octets for {}", octets.len());
    sort
}

fn check_update(octets: &[u8], context: &UpdateContext) -> Sort {
    let update = match UpdateBody::split(octets).and_then(|body| body.decode(context)) {
        Ok(update) => update,
        Err(notification) => return check_notification(&notification, octets),
    };
    let announced = update.announcements().flat_map(|a| a.prefixes).count();
    assert!(announced + update.withdrawn().count() <= octets.len());
    assert_eq!(update.withdrawn().count(), update.withdrawn_len());
    assert!(update.errors.len() <= 16);
    assert!(update.errors.iter().all(|error| !error.to_string().is_empty()));
    assert_eq!(update.attributes.is_some(), announced > 0);
    let families = update.announcements().map(|a| a.prefixes.family());
    assert!(
        families
            .chain(update.withdrawn().map(|p| p.family()))
            .all(|f| context.families.contains(f))
    );
    if update.end_of_rib.is_some() {
        assert!(announced == 0 && update.withdrawn_len() == 0);
    }
    let Some(attributes) = &update.attributes else {
        return if update.is_treated_as_withdraw() { Sort::Withdrawn } else { Sort::Used };
    };
    assert!(attributes.as_bytes().len() <= 2 * octets.len());
    assert_eq!(attributes.as_path().asns().count() as u32, attributes.as_path_len());
    // What was accepted can be said again and means the same.
    let format = MessageFormat {
        octets_max: MESSAGE_OCTETS_MAX_EXTENDED,
        as4: context.as4,
        extended_next_hop: context.extended_next_hop,
    };
    for announcement in update.announcements() {
        let (family, next_hop) = (announcement.prefixes.family(), announcement.next_hop);
        let Some(first) = announcement.prefixes.iter().next() else { continue };
        let Ok(mut messages) = Announcements::new(format, family, attributes, next_hop, [first])
        else {
            assert!(octets.len() > 20_000, "what came in a short message fits into a long one");
            continue;
        };
        let message = messages.next().unwrap();
        let again = UpdateBody::split(&message.bytes[19..]).unwrap().decode(context).unwrap();
        assert!(again.errors.is_empty(), "{:?}", again.errors);
        let again_attributes = again.attributes.as_deref().unwrap();
        let paths = [attributes.as_path(), again_attributes.as_path()];
        let [left, right] = paths.map(|path| path.asns().collect::<Vec<_>>());
        assert_eq!(left, right);
        if context.as4 {
            assert_eq!(again_attributes, &**attributes);
        }
        assert_eq!(again.announcements().next().unwrap().next_hop, next_hop);
    }
    if update.is_treated_as_withdraw() { Sort::Withdrawn } else { Sort::Used }
}

fn check_notification(notification: &Notification, octets: &[u8]) -> Sort {
    assert!(notification.data.len() <= octets.len() + 19);
    assert!(notification.encode().len() <= 4096);
    assert!(!notification.to_string().is_empty());
    Sort::Reset
}

fn hex_attributes(more: &str) -> Vec<u8> {
    super::build::hex(&format!("400101 00 400206 02010000fde9 400304 0a000001 {more}"))
}

/// Xorshift: the same messages on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn context(&mut self) -> UpdateContext {
        let bits = self.next();
        let families = match bits & 0x300 {
            0x100 => Families::NONE,
            _ => EBGP.families,
        };
        UpdateContext {
            sort: if bits & 1 == 0 { SessionSort::Ebgp } else { SessionSort::Ibgp },
            as4: bits & 6 != 0,
            families,
            extended_next_hop: bits & 8 == 0,
            first_as: (bits & 0x70 == 0).then_some(65001),
            discard_attributes: match bits & 0xc00 {
                0xc00 => AttributeTypes::discardable((0..=u8::MAX).filter(|t| t % 3 == 2)),
                _ => AttributeTypes::NONE,
            },
        }
    }

    /// A seed with a few octets changed, wherever they stand.
    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut octets = seeds[self.below(seeds.len())].clone();
        self.mutate(&mut octets, seeds);
        octets
    }

    /// An UPDATE with right lengths around attributes in any order, some of them damaged inside: what
    /// gets by the outer checks.
    fn assembled(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut attributes = hex_attributes("");
        for _ in 0..self.below(5) {
            let mut attribute = pool[self.below(pool.len())].clone();
            let head = if attribute[0] & 0x10 == 0 { 3 } else { 4 };
            match self.below(4) {
                0 => attribute[0] ^= 0x80 >> self.below(3),
                1 if attribute.len() > head => {
                    let at = head + self.below(attribute.len() - head);
                    attribute[at] = INTERESTING[self.below(8)];
                }
                2 if attribute.len() > head => {
                    attribute.truncate(attribute.len() - 1);
                    attribute[head - 1] -= 1;
                }
                _ => {}
            }
            match self.below(8) {
                0 => attributes = [attribute, attributes].concat(),
                _ => attributes.extend(attribute),
            }
        }
        let mut prefixes = Vec::new();
        for _ in 0..self.below(4) {
            let len = u8::try_from(self.below(33)).unwrap();
            prefixes.push(len);
            prefixes.extend((0..len.div_ceil(8)).map(|_| self.next() as u8));
        }
        let withdrawn = if self.below(3) == 0 { prefixes.as_slice() } else { &[] };
        let nlri = if self.below(4) == 0 { &[] } else { prefixes.as_slice() };
        super::build::message(2, &super::build::body(withdrawn, &attributes, nlri))
    }

    fn mutate(&mut self, octets: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        for _ in 0..1 + self.below(4) {
            // The header stays mostly whole, or few messages would get beyond it.
            let head = if self.below(30) == 0 { 0 } else { 19 };
            let at = head + self.below(octets.len().saturating_sub(head));
            match self.below(6) {
                0 => octets.insert(at.min(octets.len()), INTERESTING[self.below(8)]),
                1 if at < octets.len() => drop(octets.remove(at)),
                2 if at < octets.len() => octets[at] = INTERESTING[self.below(8)],
                3 if at < octets.len() => octets[at] ^= 1 << self.below(8),
                4 => {
                    let donor = &seeds[self.below(seeds.len())];
                    let from = self.below(donor.len());
                    let to = (from + 1 + self.below(24)).min(donor.len());
                    octets.splice(
                        at.min(octets.len())..at.min(octets.len()),
                        donor[from..to].iter().copied(),
                    );
                }
                _ => {
                    let end = (at + self.below(16)).min(octets.len());
                    let piece = octets.get(at..end).unwrap_or_default().to_vec();
                    octets.extend(piece);
                }
            }
        }
        self.repair(octets);
    }

    /// Mostly makes the lengths right again, so that what is behind them is reached.
    fn repair(&mut self, octets: &mut [u8]) {
        if octets.len() < 19 || self.below(20) == 0 {
            return;
        }
        let total = u16::try_from(octets.len()).unwrap();
        octets[16..18].copy_from_slice(&total.to_be_bytes());
        if octets[18] == 2 && octets.len() >= 23 && self.below(4) != 0 {
            let withdrawn = usize::from(u16::from_be_bytes([octets[19], octets[20]]));
            let at = 21 + withdrawn;
            if at + 2 <= octets.len() {
                let rest = octets.len() - at - 2;
                // The prefixes of the seeds take up to seven octets.
                let attributes = u16::try_from(rest - self.below(8).min(rest)).unwrap();
                octets[at..at + 2].copy_from_slice(&attributes.to_be_bytes());
            }
        }
    }
}

/// The attributes of the seeds' UPDATEs, and some that none of them has.
fn attribute_pool(seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let updates = seeds.iter().filter(|seed| seed[18] == 2);
    let mut pool: Vec<Vec<u8>> = updates
        .flat_map(|update| {
            let body = UpdateBody::split(&update[19..]).unwrap();
            super::build::split_attributes(body.attributes)
        })
        .collect();
    for more in [
        "400600",
        "c00708 0000fde9 0a000001",
        "c01008 0002fde900000064",
        "c01914 0002 20010db8000000000000000000000001 0064",
        "c02304 0000fde9",
        "40020c 02010000fde9 01010000fdea",
        "400206 03010000fde9",
        "c06300",
        "806300",
        "406300",
    ] {
        pool.push(super::build::hex(more));
    }
    pool
}

const INTERESTING: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xc0, 0xff];
/// Some seconds at the test profile's optimization.
const ROUNDS: usize = 1_000_000;

/// The system's allocator, counting the octets that a thread asks for.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes unchanged to the system's allocator; the counter needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + layout.size()));
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
