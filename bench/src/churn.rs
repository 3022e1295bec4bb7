//! The RIB when peers come and go while it holds a table.

use std::time::Duration;

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::rib::PeerId;

use crate::cpu_time::{cpu_time, nanos_each};
use crate::feed::thousands;
use crate::rib::{CHALLENGER_PATH, FEEDER_PATH, Speaker, announcements, join, peer, withdrawals};
use crate::table::Row;
use crate::{Extent, Result, memory};

/// Measures these rows of the group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let routes: u32 = extent.pick(1_000_000, 10_000);
    let mut rows = Rows::new(routes);
    for _ in 0..extent.pick(5, 1) {
        rows.run(routes)?;
    }
    rows.weigh(routes)?;
    Ok(rows.into_iter())
}

struct Rows {
    /// Nobody else has the dead peer's routes.
    gone: Row,
    gone_octets: Row,
    /// Somebody else has them all.
    taken_over: Row,
    taken_over_octets: Row,
    late_joiner: Row,
    late_joiner_octets: Row,
    memory: Row,
}

impl Rows {
    fn new(routes: u32) -> Rows {
        let dead = format!("dead peer, {} of {}", thousands(routes / 10), thousands(routes));
        let row = |name: String, unit, reference| Row::new("rib", name, unit, reference);
        let joiner = |what| format!("late joiner, {} routes moving: {what}", thousands(routes));
        Rows {
            gone: row(format!("{dead}: withdraw"), "ns/route", "withdrawing each"),
            gone_octets: row(format!("{dead}: withdraw"), "octets/route", "prefix"),
            taken_over: row(format!("{dead}: others' paths"), "ns/route", "announcing each"),
            taken_over_octets: row(
                format!("{dead}: others' paths"),
                "octets/route",
                "as first announced",
            ),
            late_joiner: row(joiner("first route"), "us", "a batch for the others"),
            late_joiner_octets: row(joiner("octets until then"), "octets", "a batch's octets"),
            memory: row(
                format!("memory after {CYCLES} cycles of {}", thousands(routes)),
                "octets/route",
                "full",
            ),
        }
    }

    fn into_iter(self) -> Vec<Row> {
        let Rows { gone, gone_octets, taken_over, taken_over_octets, .. } = self;
        let Rows { late_joiner, late_joiner_octets, memory, .. } = self;
        vec![
            gone,
            gone_octets,
            taken_over,
            taken_over_octets,
            late_joiner,
            late_joiner_octets,
            memory,
        ]
    }

    fn run(&mut self, routes: u32) -> Result<()> {
        let (tenth, most) = (routes / 10, routes - routes / 10);
        let count = tenth as usize;
        let mut speaker = Speaker::new();
        speaker.take(speaker.feeder, announcements(FAMILY, 0..most, &FEEDER_PATH))?;

        let told = speaker.tell(announcements(FAMILY, most..routes, &CHALLENGER_PATH))?;
        let died = speaker.challenger_dies();
        let announced = speaker.tell(announcements(FAMILY, most..routes, &CHALLENGER_PATH))?;
        let withdrawn = speaker.tell(withdrawals(FAMILY, most..routes))?;
        let each = |cost: &Cost| nanos_each(cost.time, count);
        let octets = |cost: &Cost| cost.octets as f64 / count as f64;
        self.gone.push(each(&died), each(&withdrawn));
        // A length and three octets of an address.
        self.gone_octets.push(octets(&died), 4.0);

        speaker.tell(announcements(FAMILY, 0..tenth, &CHALLENGER_PATH))?;
        let died = speaker.challenger_dies();
        self.taken_over.push(each(&died), each(&announced));
        self.taken_over_octets.push(octets(&died), octets(&told));

        let (first, until, batch) = speaker.late_joiner(most)?;
        self.late_joiner.push(first.as_secs_f64() * 1e6, batch.time.as_secs_f64() * 1e6);
        self.late_joiner_octets.push(until as f64, batch.octets as f64);
        Ok(())
    }

    /// What announcing and withdrawing everything leaves behind does not vary.
    fn weigh(&mut self, routes: u32) -> Result<()> {
        let cycles = |count, ends_full: bool| {
            let (octets, speaker) = memory::held_by(|| {
                let mut speaker = Speaker::new();
                for cycle in 1..=count {
                    let feeder = speaker.feeder;
                    speaker.take(feeder, announcements(FAMILY, 0..routes, &FEEDER_PATH))?;
                    if cycle < count || !ends_full {
                        speaker.take(feeder, withdrawals(FAMILY, 0..routes))?;
                    }
                }
                // As the speaker does when there is nothing more to tell: then memory is given back.
                speaker.rib.flush(&mut speaker.output);
                speaker.output = Vec::new();
                Ok::<_, Box<dyn std::error::Error>>(speaker)
            });
            speaker.map(|_| octets as f64 / f64::from(routes))
        };
        self.memory.push(cycles(CYCLES, false)?, cycles(1, true)?);
        Ok(())
    }
}

/// What something cost, with the octets that one receiver is told.
struct Cost {
    time: Duration,
    octets: usize,
}

impl Speaker {
    /// The challenger sends batches.
    fn tell(&mut self, batches: Vec<cairn_bgp::rib::UpdateBatch>) -> Result<Cost> {
        let mut cost = Cost { time: Duration::ZERO, octets: 0 };
        for batch in batches {
            let (time, taken) = cpu_time(|| {
                let taken = self.rib.update(self.challenger, batch);
                self.flush();
                taken
            });
            taken?;
            cost.time += time;
            cost.octets += self.octets_to(self.receiver);
            self.rest();
        }
        Ok(cost)
    }

    fn challenger_dies(&mut self) -> Cost {
        let challenger = self.challenger;
        let (time, ()) = cpu_time(|| {
            self.rib.peer_down(challenger, Families::NONE);
            self.flush();
        });
        let octets = self.octets_to(self.receiver);
        self.rest();
        self.challenger = join(&mut self.rib, peer(CHALLENGER_AGAIN), CHALLENGER_AGAIN);
        self.rib.remove_peer(challenger);
        self.flush();
        self.rest();
        Cost { time, octets }
    }

    /// The feeder announces everything anew, with other paths. In the midst of it a peer comes, and is
    /// given room as the speaker gives it. Returns the time until it gets its first routes, the octets for
    /// all up to these, and what the batch before cost.
    fn late_joiner(&mut self, routes: u32) -> Result<(Duration, usize, Cost)> {
        let batches = announcements(FAMILY, 0..routes, &CHANGED_PATH);
        let half = batches.len() / 2;
        let (mut waited, mut octets, mut joiner) = (Duration::ZERO, 0, None);
        let mut last = Cost { time: Duration::ZERO, octets: 0 };
        for (number, batch) in batches.into_iter().enumerate() {
            if number == half {
                joiner = Some(join(&mut self.rib, peer(JOINER), JOINER));
            }
            let feeder = self.feeder;
            let (time, taken) = cpu_time(|| {
                let taken = self.rib.update(feeder, batch);
                if let Some(joiner) = joiner {
                    self.rib.set_rooms(joiner, WRITE_QUEUE_OCTETS, CATCH_UP_QUEUE_OCTETS);
                }
                self.flush();
                taken
            });
            taken?;
            match joiner {
                None => last = Cost { time, octets: self.octets_to(self.receiver) },
                Some(joiner) => {
                    waited += time;
                    let place = self.output.iter().position(|output| output.peer == joiner);
                    let until = place.map_or(self.output.len(), |place| place + 1);
                    let told = self.output[..until].iter().map(|output| output.chunk.octets);
                    octets += told.sum::<usize>();
                    if place.is_some() {
                        self.rest();
                        return Ok((waited, octets, last));
                    }
                }
            }
            self.rest();
        }
        Err("a late joiner gets nothing while a table is moving".into())
    }

    fn octets_to(&self, peer: PeerId) -> usize {
        let to_peer = self.output.iter().filter(|output| output.peer == peer);
        to_peer.map(|output| output.chunk.octets).sum()
    }

    fn rest(&mut self) {
        self.output.clear();
        self.drain_fib();
    }
}

const FAMILY: Family = Family::Ipv4Unicast;
const CHANGED_PATH: [u32; 2] = [64501, 64504];
/// Hosts of peers beyond the first three.
const CHALLENGER_AGAIN: u8 = 5;
const JOINER: u8 = 6;
/// As the speaker's own bounds.
const WRITE_QUEUE_OCTETS: usize = 2 * 1024 * 1024;
const CATCH_UP_QUEUE_OCTETS: usize = 256 * 1024;
const CYCLES: usize = 3;
