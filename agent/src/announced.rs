//! Which of the node's blocks BGP peers have heard of, for pods that do not begin before
//! (`readiness: Announced` of a NodeConfiguration).
//!
//! ```text
//!  plan ──wanted──► Announced ──held back──► pods
//!                     ▲  └──what was answered last──► speaker
//!                     └────────how far peers are────────┘
//! ```
//!
//! A block that peers have acknowledged once is not asked about again: a session that comes up later takes nothing
//! back. Without an established session there is nobody who could hear, and nothing is held back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cairn_bgp::config::PeerName;
use cairn_bgp::prefix::Prefix;
use cairn_bgp::speaker::{Announcement, Error, Reception, SpeakerHandle};
use ipnet::IpNet;

/// How far the announcements of the node's blocks are.
#[derive(Debug, Default)]
pub struct Announced {
    blocks: BTreeMap<IpNet, Announcement>,
    /// When the blocks that are held back last became others.
    since: Option<Instant>,
    next: Option<Instant>,
    problems: Vec<String>,
}

impl Announced {
    /// Follows these blocks and no others. One that comes back begins anew.
    pub fn want(&mut self, now: Instant, blocks: &BTreeSet<IpNet>) {
        let before = self.held_back();
        self.blocks.retain(|block, _| blocks.contains(block));
        for block in blocks {
            let new = || Announcement::new(Prefix::from(*block));
            self.blocks.entry(*block).or_insert_with(new);
        }
        self.settle(now, &before);
        self.look(now);
    }

    /// Has the speaker asked soon, as sessions or what it announces have changed.
    pub fn look(&mut self, now: Instant) {
        self.next = self.blocks.values().any(is_open).then_some(now);
    }

    /// The blocks of which peers with an established session have still to hear.
    pub fn held_back(&self) -> BTreeSet<IpNet> {
        let held_back = self.blocks.iter().filter(|(_, announcement)| {
            matches!(announcement.reception(), Reception::Unknown | Reception::Awaited(_))
        });
        held_back.map(|(block, _)| *block).collect()
    }

    /// What lasts for too long, one sentence a block.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// When the speaker is to be asked.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Asks the speaker; true when other blocks are held back than before, or other problems are there.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn ask(&mut self, speaker: &SpeakerHandle) -> Result<bool, Error> {
        let asked: Vec<_> = self.blocks.values().filter(|a| is_open(a)).cloned().collect();
        let answered = if asked.is_empty() { asked } else { speaker.announcements(asked).await? };
        Ok(self.take(Instant::now(), answered))
    }

    /// Takes in what the speaker has answered.
    fn take(&mut self, now: Instant, answered: Vec<Announcement>) -> bool {
        let before = (self.held_back(), self.problems.clone());
        for announcement in answered {
            self.blocks.insert(IpNet::from(announcement.prefix()), announcement);
        }
        let lasts = self.settle(now, &before.0);
        // Where nobody hears, a change of the sessions has it looked again.
        self.next = self.since.map(|_| now + (lasts / PAUSE_SHARE).clamp(PAUSE_MIN, PAUSE_MAX));
        (self.held_back(), &self.problems) != (before.0, &before.1)
    }

    /// Notes for how long the same blocks have been held back, and what is wrong after a while.
    fn settle(&mut self, now: Instant, before: &BTreeSet<IpNet>) -> Duration {
        let held_back = self.held_back();
        if held_back.is_empty() {
            self.since = None;
        } else if self.since.is_none() || held_back != *before {
            self.since = Some(now);
        }
        let lasts = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let late = self.blocks.iter().filter_map(|(block, announcement)| {
            let Reception::Awaited(peers) = announcement.reception() else { return None };
            Some(late(*block, peers))
        });
        self.problems = if lasts < ANNOUNCEMENT_WAIT { Vec::new() } else { late.collect() };
        lasts
    }
}

/// Whether more can be heard of it.
fn is_open(announcement: &Announcement) -> bool {
    *announcement.reception() != Reception::Acknowledged
}

fn late(block: IpNet, peers: &[PeerName]) -> String {
    format!(
        "the announcement of {block} has not been acknowledged by {} for {} s, so pods of that block start \
         without: see `cairn bgp peers`, and whether these machines can be reached",
        peers.join(", "),
        ANNOUNCEMENT_WAIT.as_secs()
    )
}

/// How long the first ADDs of a block wait for peers. With the ten seconds that an ADD may have waited for the
/// block before, it stays below the patience of the plugin, which is 25 s. TCP has sent an UPDATE that was lost
/// five times by then.
pub const ANNOUNCEMENT_WAIT: Duration = Duration::from_secs(10);

/// The speaker is asked again after this part of the time that peers have taken so far.
const PAUSE_SHARE: u32 = 4;
/// An acknowledgement takes a round trip, and 40 ms more where the peer's TCP delays it.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// What a pod may wait for longer than it has to, when a peer is back.
const PAUSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn answer(block: &str, reception: Reception) -> Vec<Announcement> {
        let block: IpNet = block.parse().expect("a network");
        vec![Announcement::answered(Prefix::from(block), reception)]
    }

    fn awaited() -> Reception {
        Reception::Awaited(vec!["bgppeer/tor".into()])
    }

    const FIRST: &str = "10.0.0.0/26";
    const SECOND: &str = "10.0.0.64/26";

    #[test]
    fn a_block_is_held_back_until_those_who_can_hear_have_heard() {
        let now = Instant::now();
        let mut announced = Announced::default();
        announced.want(now, &blocks(&[FIRST, SECOND]));
        assert_eq!(announced.held_back(), blocks(&[FIRST, SECOND]), "nobody knows yet");
        assert_eq!(announced.next_deadline(), Some(now));
        assert!(announced.take(now, answer(FIRST, Reception::Nobody)));
        assert!(announced.take(now, answer(SECOND, Reception::Acknowledged)));
        assert_eq!(announced.held_back(), blocks(&[]));
        assert_eq!(announced.next_deadline(), None, "sessions tell of themselves");

        announced.look(now);
        assert_eq!(announced.next_deadline(), Some(now));
        assert!(announced.take(now, answer(FIRST, awaited())));
        assert!(!announced.take(now, answer(FIRST, awaited())), "no news");
        assert_eq!(announced.held_back(), blocks(&[FIRST]));
        assert!(announced.take(now, answer(FIRST, Reception::Acknowledged)));
        announced.look(now);
        assert_eq!(announced.next_deadline(), None, "what was heard was heard");

        announced.want(now, &blocks(&[SECOND]));
        assert_eq!(announced.held_back(), blocks(&[]));
        announced.want(now, &blocks(&[FIRST, SECOND]));
        assert_eq!(announced.held_back(), blocks(&[FIRST]), "it has been withdrawn meanwhile");
    }

    #[test]
    fn the_longer_it_takes_the_less_often_it_is_asked() {
        let start = Instant::now();
        let mut announced = Announced::default();
        announced.want(start, &blocks(&[FIRST]));
        let (mut now, mut asked) = (start, 0);
        while now < start + 10 * ANNOUNCEMENT_WAIT {
            announced.take(now, answer(FIRST, awaited()));
            let late = now >= start + ANNOUNCEMENT_WAIT;
            assert_eq!(announced.problems().len(), usize::from(late));
            let next = announced.next_deadline().expect("it is awaited");
            assert!((PAUSE_MIN..=PAUSE_MAX).contains(&(next - now)));
            (now, asked) = (next, asked + 1);
        }
        assert!((100..200).contains(&asked), "{asked} times in 100 s");
        let [problem] = announced.problems() else { panic!("{:?}", announced.problems()) };
        assert!(problem.contains(FIRST) && problem.contains("bgppeer/tor"), "{problem}");
        assert!(announced.take(now, answer(FIRST, Reception::Acknowledged)));
        assert!(announced.problems().is_empty());
    }
}
