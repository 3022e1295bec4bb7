//! What is counted: codec, RIB, policy and session, without IO.

use std::hint::black_box;
use std::mem;
use std::sync::Arc;

use bytes::BytesMut;
use cairn_bgp::policy::{
    Action, AsPathPattern, Changes, CommunityChange, Match, PrefixList, PrefixRange, Rule,
};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{Output, PeerId, Rib, RouteAttributes, UpdateBatch};
use cairn_bgp::session::{Event, Received};
use cairn_bgp::stream::{Decoder, Item, ReaderConfig, UPDATE_BATCH_PREFIXES_MAX};
use cairn_bgp::wire::{
    Announcements, AttributeTypes, Capability, Community, FrameHeader, HEADER_OCTETS,
    MESSAGE_OCTETS_MAX, MessageFormat, Nlri, Open, PathAttributes, PathPrefix, SessionSort,
    UpdateBody, UpdateContext,
};

use crate::feed::{self, next_hop};
use crate::rib_bench::{self, policy};
use crate::session_bench;

/// One piece of work.
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// How many units it has.
    pub units: usize,
    /// Of what.
    pub unit: &'static str,
    /// Everything that is not counted; what it returns is.
    pub prepare: fn() -> Run,
}

/// Does the work once; says how many units were done. What it holds outlives the count.
pub type Run = Box<dyn FnMut() -> usize>;

/// Everything that is counted, in the record's order.
pub const ALL: [Workload; 20] = [
    of_prefixes("decode-ipv4-5", || decode(IPV4, 5, plain)),
    of_prefixes("decode-ipv4-1000", || decode(IPV4, 1000, plain)),
    of_prefixes("decode-ipv4-5-paths", || decode(IPV4, 5, path)),
    of_prefixes("decode-ipv6-5", || decode(IPV6, 5, plain)),
    of_prefixes("encode-ipv4-5", || encode(IPV4, 5, plain)),
    of_prefixes("encode-ipv4-1000", || encode(IPV4, 1000, plain)),
    of_prefixes("encode-ipv4-5-paths", || encode(IPV4, 5, path)),
    of_prefixes("encode-ipv6-5", || encode(IPV6, 5, plain)),
    of_prefixes("stream-ipv4-5", || stream(5)),
    of_prefixes("stream-ipv4-1000", || stream(1000)),
    of_prefixes("rib-announce", announce),
    of_prefixes("rib-read-for-kernel", read_for_kernel),
    of_prefixes("rib-better-path", better_path),
    of_prefixes("rib-fall-back", fall_back),
    of_prefixes("rib-withdraw", withdraw),
    of_prefixes("rib-peer-dies", peer_dies),
    of_prefixes("rib-late-joiner", late_joiner),
    of_prefixes("import-20-rules", || import(rules())),
    of_prefixes("import-1000-entries", || import(entries())),
    Workload { name: "session-keepalives", units: 10_000, unit: "tick", prepare: keepalives },
];

const fn of_prefixes(name: &'static str, prepare: fn() -> Run) -> Workload {
    Workload { name, units: PREFIXES as usize, unit: "prefix", prepare }
}

/// Messages, one behind the other, to every prefix read once.
fn decode<N: Nlri>(family: Family, per_set: usize, nlri: fn(Prefix) -> N) -> Run {
    let mut messages = Vec::new();
    encode_all(family, &table(family, per_set, nlri), |message| messages.extend(message));
    let path_ids = if N::PATH_ID_OCTETS > 0 { BOTH } else { Families::NONE };
    let context = UpdateContext { path_ids, ..CONTEXT };
    Box::new(move || {
        let (mut rest, mut count) = (&messages[..], 0);
        while let Some(header) = FrameHeader::peek(rest, MESSAGE_OCTETS_MAX).expect("a header") {
            let (message, behind) = rest.split_at(header.octets);
            rest = behind;
            let body = UpdateBody::split(&message[HEADER_OCTETS..]).expect("an UPDATE");
            let update = body.decode(&context).expect("a valid one");
            for announcement in update.announcements() {
                count += match path_ids {
                    Families::NONE => announcement.prefixes.into_iter().map(black_box).count(),
                    _ => announcement.prefixes.paths().map(black_box).count(),
                };
            }
            black_box(&update.attributes);
        }
        count
    })
}

/// Attributes and prefixes to messages, each allocated and freed.
fn encode<N: Nlri + 'static>(family: Family, per_set: usize, nlri: fn(Prefix) -> N) -> Run {
    let sets = table(family, per_set, nlri);
    Box::new(move || {
        encode_all(family, &sets, |message| {
            black_box(message);
        })
    })
}

/// Octets in portions as a socket brings them, to batches for the RIB.
fn stream(per_set: usize) -> Run {
    let mut octets = Vec::new();
    encode_all(IPV4, &table(IPV4, per_set, plain), |message| octets.extend(message));
    let open = |asn| Open {
        asn,
        hold_time_secs: 90,
        router_id: [192, 0, 2, 1].into(),
        capabilities: vec![Capability::multiprotocol(IPV4), Capability::FourOctetAs(asn)],
    };
    let reader = ReaderConfig {
        first_as: Some(FIRST_AS),
        discard_attributes: AttributeTypes::NONE,
        prefers_link_local: false,
    };
    let mut decoder = Decoder::new(open(65000), reader);
    let (mut buffer, mut items) = (BytesMut::from(&open(FIRST_AS).encode()[..]), Vec::new());
    assert!(decoder.decode(&mut buffer, &mut items));
    Box::new(move || {
        let mut count = 0;
        for portion in octets.chunks(READ_OCTETS) {
            buffer.extend_from_slice(portion);
            assert!(decoder.decode(&mut buffer, &mut items), "{items:?}");
            count += items.drain(..).map(prefixes).sum::<usize>();
        }
        count
    })
}

fn prefixes(item: Item) -> usize {
    match item {
        Item::Updates(batch) => batch.len(),
        _ => 0,
    }
}

/// A RIB with peers in one update group, and what they send.
struct Speaker {
    bench: rib_bench::Bench,
    feeder: PeerId,
    /// Its paths are shorter.
    challenger: PeerId,
    receiver: PeerId,
    output: Vec<Output>,
}

/// Decoded batches to the messages for all others.
fn announce() -> Run {
    Speaker::new().advertising(|speaker| speaker.feeder, announcements(&FEEDER_PATH))
}

/// What changed, as it goes to whom writes it into the kernel.
fn read_for_kernel() -> Run {
    let mut speaker = Speaker::new();
    speaker.take(speaker.feeder, &mut announcements(&FEEDER_PATH));
    Box::new(move || speaker.drain_fib())
}

/// A second peer announces shorter paths to everything.
fn better_path() -> Run {
    Speaker::loaded().advertising(|speaker| speaker.challenger, announcements(&CHALLENGER_PATH))
}

/// It withdraws them.
fn fall_back() -> Run {
    Speaker::challenged().advertising(|speaker| speaker.challenger, withdrawals())
}

/// Nothing else is left for any prefix.
fn withdraw() -> Run {
    let (mut speaker, mut batches) = (Speaker::loaded(), withdrawals());
    Box::new(move || {
        speaker.take(speaker.feeder, &mut batches);
        PREFIXES as usize - speaker.advertised()
    })
}

/// The session of the peer with the best paths to everything ends.
fn peer_dies() -> Run {
    let mut speaker = Speaker::challenged();
    Box::new(move || {
        speaker.bench.rib.peer_down(speaker.challenger, Families::NONE);
        speaker.flush();
        speaker.advertised()
    })
}

/// A peer comes up when everything is there, and is sent it all.
fn late_joiner() -> Run {
    let mut speaker = Speaker::loaded();
    Box::new(move || {
        speaker.receiver = speaker.bench.peer(65004);
        // It counts as told from the beginning: what it is told is what goes out.
        while speaker.flush() > 0 {}
        speaker.advertised()
    })
}

/// A table comes in through a policy; what goes out is not asked for.
fn import(rules: Vec<Rule>) -> Run {
    let mut bench = rib_bench::Bench::new();
    let feeder = bench.peer_with(FIRST_AS, |config| config.import = vec![policy("import", rules)]);
    let mut batches = announcements(&FEEDER_PATH);
    Box::new(move || {
        take(&mut bench.rib, feeder, &mut batches);
        bench.rib.counts(feeder, IPV4).received
    })
}

/// The last of 20 rules is for every route.
fn rules() -> Vec<Rule> {
    let reject = |matches| Rule { matches, action: Action::Reject, set: Changes::default() };
    let one_of_five = |number: u32| match number % 5 {
        0 => Match { communities: vec![Community(number)], ..Match::default() },
        1 => Match { origin_as: vec![number], ..Match::default() },
        2 => Match { as_path_len_min: Some(20 + number), ..Match::default() },
        3 => {
            let pattern = AsPathPattern::new(&format!("_{number}_[0-9]+$")).expect("a pattern");
            Match { as_path: Some(pattern), ..Match::default() }
        }
        _ => {
            let elsewhere = Prefix::of([10, number as u8, 0, 0].into(), 16).expect("a prefix");
            let list = [PrefixRange::within(elsewhere)].into_iter().collect();
            Match { prefixes: Some(list), ..Match::default() }
        }
    };
    let mut rules: Vec<Rule> = (0..19).map(|number| reject(one_of_five(number))).collect();
    let add = CommunityChange { add: vec![Community(0xfc01_0002)], ..CommunityChange::default() };
    let set = Changes { local_pref: Some(200), communities: add, ..Changes::default() };
    rules.push(Rule { matches: Match::default(), action: Action::Accept, set });
    rules
}

/// 1,000 networks with lengths from 14 to 24 are accepted, about a third of the table.
fn entries() -> Vec<Rule> {
    let entry = |number: u32| {
        let network = Prefix::V4(cairn_bgp::prefix::Ipv4Prefix::new(
            (20 << 24) + number.wrapping_mul(0x9e37_79b1) % (1 << 28),
            14 + (number % 11) as u8,
        )?);
        Some(PrefixRange::new(network, None, Some(24)))
    };
    let list: PrefixList = (0..1000).filter_map(entry).collect();
    let matches = Match { prefixes: Some(list), ..Match::default() };
    vec![Rule { matches, action: Action::Accept, set: Changes::default() }]
}

/// A session in which nothing happens: a KEEPALIVE comes, and each deadline passes.
fn keepalives() -> Run {
    let mut bench = session_bench::Bench::new(session_bench::config(1, 2, 65001, 65002));
    let connection = bench.establish();
    let mut actions = Vec::new();
    Box::new(move || {
        let mut ticks = 0;
        for _ in 0..10_000 {
            let message = Received::Keepalive;
            bench.session.handle(bench.now, Event::Received { connection, message }, &mut actions);
            bench.now = bench.session.next_deadline().expect("a deadline");
            bench.session.handle(bench.now, Event::Tick, &mut actions);
            // It said something: a KEEPALIVE of its own is due long before the peer is missed.
            ticks += usize::from(!black_box(&actions).is_empty());
            actions.clear();
        }
        ticks
    })
}

impl Speaker {
    fn new() -> Speaker {
        let mut bench = rib_bench::Bench::new();
        let (feeder, challenger) = (bench.peer(65001), bench.peer(65002));
        let receiver = bench.peer(65003);
        Speaker { bench, feeder, challenger, receiver, output: Vec::new() }
    }

    /// With the feeder's table, told to everybody.
    fn loaded() -> Speaker {
        let mut speaker = Speaker::new();
        speaker.take(speaker.feeder, &mut announcements(&FEEDER_PATH));
        speaker.drain_fib();
        speaker
    }

    /// With the challenger's, too.
    fn challenged() -> Speaker {
        let mut speaker = Speaker::loaded();
        speaker.take(speaker.challenger, &mut announcements(&CHALLENGER_PATH));
        speaker.drain_fib();
        speaker
    }

    /// What `source` sends is taken in; says how many routes the receiver has then been told.
    fn advertising(mut self, source: fn(&Speaker) -> PeerId, mut batches: Vec<UpdateBatch>) -> Run {
        let source = source(&self);
        Box::new(move || {
            self.take(source, &mut batches);
            self.advertised()
        })
    }

    /// Takes in batches and flushes behind each, as the speaker does.
    fn take(&mut self, source: PeerId, batches: &mut Vec<UpdateBatch>) {
        for batch in mem::take(batches) {
            self.bench.rib.update(source, batch).expect("there is no limit");
            self.flush();
        }
    }

    /// The room of all peers is without bounds. Says how many chunks went out.
    fn flush(&mut self) -> usize {
        self.bench.rib.flush(&mut self.output);
        black_box(&self.output);
        self.output.drain(..).count()
    }

    fn drain_fib(&mut self) -> usize {
        let mut count = 0;
        while self.bench.rib.fib_pending() {
            count += black_box(self.bench.rib.take_fib(FIB_CHANGES)).len();
        }
        count
    }

    /// Routes that the receiver was told.
    fn advertised(&self) -> usize {
        self.bench.rib.counts(self.receiver, IPV4).advertised
    }
}

fn take(rib: &mut Rib, source: PeerId, batches: &mut Vec<UpdateBatch>) {
    for batch in mem::take(batches) {
        rib.update(source, batch).expect("there is no limit");
    }
}

/// The table in batches as a decoder makes them, five prefixes an attribute set.
fn announcements(path_asns: &[u32]) -> Vec<UpdateBatch> {
    let mut batches = vec![UpdateBatch::default()];
    for set in feed::table(IPV4, PREFIXES, 5, path_asns) {
        let attributes = Arc::new(RouteAttributes::new(next_hop(IPV4), set.path));
        not_full(&mut batches).push_announcements(attributes, set.prefixes);
    }
    batches
}

fn withdrawals() -> Vec<UpdateBatch> {
    let mut batches = vec![UpdateBatch::default()];
    for set in feed::table(IPV4, PREFIXES, 1000, &[]) {
        not_full(&mut batches).push_withdrawals(set.prefixes);
    }
    batches
}

/// The last batch, or a new one behind it.
fn not_full(batches: &mut Vec<UpdateBatch>) -> &mut UpdateBatch {
    if batches.last().is_none_or(|batch| batch.len() >= UPDATE_BATCH_PREFIXES_MAX) {
        batches.push(UpdateBatch::default());
    }
    batches.last_mut().expect("one was pushed")
}

/// Attributes with the prefixes that share them.
type Set<N> = (PathAttributes, Vec<N>);

fn table<N>(family: Family, per_set: usize, nlri: fn(Prefix) -> N) -> Vec<Set<N>> {
    let sets = feed::table(family, PREFIXES, per_set, &[FIRST_AS, 64502]).into_iter();
    sets.map(|set| (set.path, set.prefixes.into_iter().map(nlri).collect())).collect()
}

/// Passes every message to `take`; says how many prefixes were in them.
fn encode_all<N: Nlri>(family: Family, sets: &[Set<N>], mut take: impl FnMut(&[u8])) -> usize {
    let mut count = 0;
    for (path, prefixes) in sets {
        let prefixes = prefixes.iter().copied();
        let updates = Announcements::new(FORMAT, family, path, next_hop(family), prefixes);
        for update in updates.expect("one prefix fits") {
            count += update.prefixes;
            take(&update.bytes);
        }
    }
    count
}

fn plain(prefix: Prefix) -> Prefix {
    prefix
}

fn path(prefix: Prefix) -> PathPrefix {
    PathPrefix { prefix, path_id: 1 }
}

const PREFIXES: u32 = 20_000;
const IPV4: Family = Family::Ipv4Unicast;
const IPV6: Family = Family::Ipv6Unicast;
const BOTH: Families = Families::NONE.with(IPV4).with(IPV6);
const FIRST_AS: u32 = 64501;
const FEEDER_PATH: [u32; 2] = [FIRST_AS, 64502];
const CHALLENGER_PATH: [u32; 1] = [64503];
/// As the speaker reads for the kernel.
const FIB_CHANGES: usize = 4096;
/// What one read may bring.
const READ_OCTETS: usize = 16 * 1024;
const FORMAT: MessageFormat =
    MessageFormat { octets_max: MESSAGE_OCTETS_MAX, as4: true, extended_next_hop: false };
const CONTEXT: UpdateContext = UpdateContext {
    sort: SessionSort::Ebgp,
    as4: true,
    families: BOTH,
    extended_next_hop: false,
    first_as: Some(FIRST_AS),
    discard_attributes: AttributeTypes::NONE,
    path_ids: Families::NONE,
};
