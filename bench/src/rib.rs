//! The RIB against a bare map.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_bgp::config::{ExportScope, Multipath, NextHopMode};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig, RouteAttributes, UpdateBatch,
};
use cairn_bgp::session::LocalAddresses;
use cairn_bgp::wire::SessionSort;

use crate::cpu_time::{cpu_time, nanos_each};
use crate::feed::{self, thousands};
use crate::table::Row;
use crate::wire::{FORMAT, short};
use crate::{Extent, Result, memory};

/// One size of table.
struct Case {
    family: Family,
    prefixes: u32,
    announce: Row,
    read_for_kernel: Row,
    better: Row,
    fall_back: Row,
    withdraw: Row,
    memory: Row,
}

/// A RIB with its three peers.
pub struct Speaker {
    pub rib: Rib,
    pub feeder: PeerId,
    /// Announces shorter paths.
    pub challenger: PeerId,
    pub receiver: PeerId,
    /// What the last flush brought.
    pub output: Vec<Output>,
}

/// What one pass of batches cost.
#[derive(Default)]
pub struct Times {
    /// Batches in, messages out.
    pub rib: Duration,
    /// Reading what the kernel should hold.
    pub fib: Duration,
}

/// What the map's four passes cost, in nanoseconds a prefix.
struct MapTimes {
    insert: f64,
    look_up: f64,
    change: f64,
    remove: f64,
}

/// Measures all rows of this group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let (small, large) = (extent.pick(200_000, 2000), extent.pick(1_000_000, 10_000));
    let mut cases = [
        Case::new(Family::Ipv4Unicast, small),
        Case::new(Family::Ipv6Unicast, small),
        Case::new(Family::Ipv4Unicast, large),
    ];
    for case in &mut cases {
        case.weigh()?;
    }
    for run in 0..extent.pick(7, 1) {
        for case in &mut cases {
            case.run(run % 2 == 0)?;
        }
    }
    Ok(cases.into_iter().flat_map(Case::into_rows).collect())
}

impl Case {
    fn new(family: Family, prefixes: u32) -> Case {
        let row = |action, unit, reference| {
            let name = format!("{action} {} {}", thousands(prefixes), short(family));
            Row::new("rib", name, unit, reference)
        };
        Case {
            family,
            prefixes,
            announce: row("announce", "ns/prefix", "map insert"),
            read_for_kernel: row("read for kernel", "ns/prefix", "map look-up"),
            better: row("better paths", "ns/prefix", "map change"),
            fall_back: row("fall back", "ns/prefix", "map change"),
            withdraw: row("withdraw all", "ns/prefix", "map remove"),
            memory: row("memory", "octets/route", "map"),
        }
    }

    fn into_rows(self) -> [Row; 6] {
        let Case { announce, read_for_kernel, better, fall_back, withdraw, memory, .. } = self;
        [announce, read_for_kernel, better, fall_back, withdraw, memory]
    }

    fn run(&mut self, map_first: bool) -> Result<()> {
        let count = self.prefixes as usize;
        let before = map_first.then(|| self.map_times());
        let mut speaker = Speaker::new();
        let (feeder, challenger) = (speaker.feeder, speaker.challenger);
        let announced = speaker.take(feeder, self.announcements(&FEEDER_PATH))?;
        speaker.expect(self.family, count)?;
        let better = speaker.take(challenger, self.announcements(&CHALLENGER_PATH))?;
        let fall_back = speaker.take(challenger, self.withdrawals())?;
        speaker.expect(self.family, count)?;
        let withdrawn = speaker.take(feeder, self.withdrawals())?;
        speaker.expect(self.family, 0)?;
        drop(speaker);
        let map = before.unwrap_or_else(|| self.map_times());
        self.announce.push(nanos_each(announced.rib, count), map.insert);
        self.read_for_kernel.push(nanos_each(announced.fib, count), map.look_up);
        self.better.push(nanos_each(better.rib, count), map.change);
        self.fall_back.push(nanos_each(fall_back.rib, count), map.change);
        self.withdraw.push(nanos_each(withdrawn.rib, count), map.remove);
        Ok(())
    }

    /// Memory needs one run only: it does not vary.
    fn weigh(&mut self) -> Result<()> {
        let (ours, speaker) = memory::held_by(|| {
            let mut speaker = Speaker::new();
            speaker.take(speaker.feeder, self.announcements(&FEEDER_PATH))?;
            // What is kept for the next output is no property of a route.
            speaker.output = Vec::new();
            Ok::<_, Box<dyn std::error::Error>>(speaker)
        });
        speaker?.expect(self.family, self.prefixes as usize)?;
        let (bare, map) = memory::held_by(|| {
            let mut map = BareMap::default();
            map.extend(self.keys().map(|prefix| (prefix, 1)));
            map
        });
        drop(map);
        let count = f64::from(self.prefixes);
        self.memory.push(ours as f64 / count, bare as f64 / count);
        Ok(())
    }

    /// The table in batches as the speaker makes them.
    fn announcements(&self, path_asns: &[u32]) -> Vec<UpdateBatch> {
        announcements(self.family, 0..self.prefixes, path_asns)
    }

    fn withdrawals(&self) -> Vec<UpdateBatch> {
        withdrawals(self.family, 0..self.prefixes)
    }

    fn keys(&self) -> impl Iterator<Item = Prefix> + use<> {
        let sets = feed::table(self.family, self.prefixes, PREFIXES_PER_WITHDRAWAL, &[]);
        sets.into_iter().flat_map(|set| set.prefixes)
    }

    fn map_times(&self) -> MapTimes {
        let keys: Vec<Prefix> = self.keys().collect();
        let mut map = BareMap::default();
        MapTimes {
            insert: each(&keys, |key| map.insert(key, 1)),
            look_up: each(&keys, |key| map.get(&key).copied()),
            change: each(&keys, |key| map.get_mut(&key).map(|value| *value += 1)),
            remove: each(&keys, |key| map.remove(&key)),
        }
    }
}

/// Prefixes with these numbers in batches as the speaker makes them, five an attribute set.
pub fn announcements(family: Family, numbers: Range<u32>, path_asns: &[u32]) -> Vec<UpdateBatch> {
    let mut batches = vec![UpdateBatch::default()];
    for set in feed::table_of(family, numbers, PREFIXES_PER_SET, path_asns) {
        let attributes = RouteAttributes::new(feed::next_hop(family), set.path);
        not_full(&mut batches).push_announcements(Arc::new(attributes), set.prefixes);
    }
    batches
}

/// Their withdrawals.
pub fn withdrawals(family: Family, numbers: Range<u32>) -> Vec<UpdateBatch> {
    let mut batches = vec![UpdateBatch::default()];
    for set in feed::table_of(family, numbers, PREFIXES_PER_WITHDRAWAL, &[]) {
        not_full(&mut batches).push_withdrawals(set.prefixes);
    }
    batches
}

/// Nanoseconds that `act` takes for each of `keys`.
fn each<T>(keys: &[Prefix], mut act: impl FnMut(Prefix) -> T) -> f64 {
    let (time, ()) = cpu_time(|| {
        for key in keys {
            black_box(act(*key));
        }
    });
    nanos_each(time, keys.len())
}

impl Speaker {
    /// Its peers take and announce everything.
    pub fn new() -> Speaker {
        let mut rib = Rib::new(RibConfig {
            router_id: OWN,
            multipath: Multipath { paths_max: 1, same_as_path: false },
            seed: 7,
            deferral_until: Instant::now(),
            restarting: false,
        });
        let mut add = |host: u8| join(&mut rib, peer(host), host);
        let (feeder, challenger, receiver) = (add(2), add(3), add(4));
        Speaker { rib, feeder, challenger, receiver, output: Vec::new() }
    }

    /// Takes in what `source` sends, and drops what goes out.
    pub fn take(&mut self, source: PeerId, batches: Vec<UpdateBatch>) -> Result<Times> {
        let mut times = Times::default();
        for batch in batches {
            let (time, taken) = cpu_time(|| {
                let taken = self.rib.update(source, batch);
                self.flush();
                black_box(&self.output);
                self.output.clear();
                taken
            });
            taken?;
            times.rib += time;
            let (time, ()) = cpu_time(|| self.drain_fib());
            times.fib += time;
        }
        Ok(times)
    }

    /// Appends to the output what everybody has to be told.
    pub fn flush(&mut self) {
        for peer in [self.feeder, self.challenger, self.receiver] {
            self.rib.set_room(peer, ROOM_OCTETS);
        }
        self.rib.flush(&mut self.output);
    }

    /// Reads everything that the kernel should hold.
    pub fn drain_fib(&mut self) {
        while self.rib.fib_pending() {
            black_box(self.rib.take_fib(FIB_BATCH_CHANGES));
        }
    }

    fn expect(&self, family: Family, advertised: usize) -> Result<()> {
        match self.rib.counts(self.receiver, family).advertised {
            seen if seen == advertised => Ok(()),
            seen => Err(format!("{seen} routes were announced, not {advertised}").into()),
        }
    }
}

/// The last batch, or a new one behind it when that is full.
fn not_full(batches: &mut Vec<UpdateBatch>) -> &mut UpdateBatch {
    if batches.last().is_none_or(|batch| batch.len() >= BATCH_PREFIXES) {
        batches.push(UpdateBatch::default());
    }
    let last = batches.len() - 1;
    &mut batches[last]
}

/// Adds a peer whose session is up. `host` tells it from all others.
pub fn join(rib: &mut Rib, config: RibPeerConfig, host: u8) -> PeerId {
    let id = rib.add_peer(config);
    rib.peer_up(id, session(host));
    id
}

/// An eBGP peer whose policies accept everything.
pub fn peer(host: u8) -> RibPeerConfig {
    let accept =
        Rule { matches: Match::default(), action: Action::Accept, set: Changes::default() };
    let policies = vec![Arc::new(Policy { name: "accept".into(), rules: vec![accept] })];
    RibPeerConfig {
        name: format!("peer-{host}").into(),
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)),
        sort: SessionSort::Ebgp,
        asn: 65000 + u32::from(host),
        prepend: vec![64512],
        prepend_received: None,
        route_reflector_client: false,
        next_hop: NextHopMode::Auto,
        export_scope: ExportScope::All,
        sent_paths_max: 0,
        prefix_limit: None,
        own_as_max: 0,
        as_path_len_max: None,
        remove_private_as: false,
        graceful_shutdown: false,
        long_lived_within: None,
        import: policies.clone(),
        export: policies,
    }
}

fn session(host: u8) -> PeerSession {
    PeerSession {
        router_id: Ipv4Addr::new(192, 0, 2, host),
        families: Family::ALL.into_iter().collect(),
        format: FORMAT,
        addresses: LocalAddresses {
            ipv4: Some(OWN),
            ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            link: None,
        },
        promises_end_of_rib: true,
        sends_end_of_rib: true,
        stale_kept: Families::NONE,
        enhanced_route_refresh: false,
        ipv4_via_ipv6: false,
        knows_long_lived: false,
        add_path: Default::default(),
    }
}

/// What a table of prefixes costs at least.
type BareMap = HashMap<Prefix, u32, BuildHasherDefault<Multiplier>>;

/// A cheap hash for keys that nobody chooses to collide.
#[derive(Default)]
struct Multiplier(u64);

impl Hasher for Multiplier {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x5851_f42d) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// AS numbers of the feeder's paths.
pub const FEEDER_PATH: [u32; 2] = [64501, 64502];
/// Those of the challenger's.
pub const CHALLENGER_PATH: [u32; 1] = [64503];
const PREFIXES_PER_SET: usize = 5;
/// About as many as one message holds.
const PREFIXES_PER_WITHDRAWAL: usize = 1000;
/// As the speaker's own bound of a batch.
const BATCH_PREFIXES: usize = 8192;
/// As the speaker's own bound of one reading for the kernel.
const FIB_BATCH_CHANGES: usize = 4096;
/// More than one batch fills.
const ROOM_OCTETS: usize = 1 << 30;
