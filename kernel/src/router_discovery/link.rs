//! The routers on one link: who is there, and when to send what. No socket, no clock.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::wire::Message;

/// This machine's end of a link, while it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEnd {
    /// The index of the interface.
    pub index: u32,
    /// The own link-local address.
    pub local: Ipv6Addr,
}

/// What is known of the routers on one link, and what is to be sent there.
///
/// The first router that is heard is the neighbour and stays it. When another one is heard, the link is asked
/// who is there, and whether the neighbour's address is: a neighbour whose address nobody has is gone, and the
/// other one takes its place. One that is there stays while its session stands: anybody on the link can advertise,
/// and who does proves nothing about others. Then there are two, which is told, and asked again from time to time:
/// one that advertises itself, and with which no session has come to stand meanwhile, makes room for the other, so
/// that a router that was away finds its place again. A neighbour that is merely silent stays: whether it lives, its
/// session knows.
#[derive(Clone, Debug)]
pub struct LinkRouters {
    end: Option<LinkEnd>,
    heard: BTreeMap<Ipv6Addr, Instant>,
    neighbour: Option<Ipv6Addr>,
    /// Since when it is that one.
    since: Option<Instant>,
    /// Another router has been heard: since when it is asked whether the neighbour is there.
    doubt: Option<Instant>,
    /// When somebody last had the neighbour's address.
    present: Option<Instant>,
    /// At the end of the last doubt the neighbour was there, too.
    crowded: bool,
    /// When that was.
    settled_at: Option<Instant>,
    advertise_at: Option<Instant>,
    advertised_at: Option<Instant>,
    /// How many advertisements follow each other faster than later ones.
    initial_left: u8,
    solicit_at: Option<Instant>,
    solicitations_left: u8,
    random: u64,
}

/// What is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// An advertisement to all nodes.
    pub advertisement: bool,
    /// A solicitation to all routers.
    pub solicitation: bool,
    /// The question whether this address is on the link.
    pub ask_for: Option<Ipv6Addr>,
    /// The neighbour is there, and another router as well: [`LinkRouters::judge`] is to be told whether the
    /// neighbour's session stands.
    pub judgement: bool,
}

impl LinkRouters {
    /// A link that cannot be used yet; `seed` is where its randomness comes from.
    pub fn new(seed: u64) -> LinkRouters {
        LinkRouters {
            end: None,
            heard: BTreeMap::new(),
            neighbour: None,
            since: None,
            doubt: None,
            present: None,
            crowded: false,
            settled_at: None,
            advertise_at: None,
            advertised_at: None,
            initial_left: 0,
            solicit_at: None,
            solicitations_left: 0,
            random: seed,
        }
    }

    /// The own end, while the link can be used.
    pub fn end(&self) -> Option<LinkEnd> {
        self.end
    }

    /// The router at the other end.
    pub fn neighbour(&self) -> Option<Ipv6Addr> {
        self.neighbour
    }

    /// The routers heard lately besides the neighbour, while that is there too.
    pub fn others(&self, now: Instant) -> Vec<Ipv6Addr> {
        if self.doubt.is_some() && !self.crowded {
            return Vec::new();
        }
        let lately = |(address, at): (&Ipv6Addr, &Instant)| {
            let other = Some(*address) != self.neighbour && *at + TOLD_FOR > now;
            other.then_some(*address)
        };
        self.heard.iter().filter_map(lately).collect()
    }

    /// Whether it is doubtful who is there, so that it matters which addresses are on the link.
    pub fn doubts(&self) -> bool {
        self.doubt.is_some()
    }

    /// Takes in what the own end has become. A new one begins to advertise and asks who is there. Without one
    /// nobody is known: the next to be heard may be somebody else.
    pub fn set_end(&mut self, now: Instant, end: Option<LinkEnd>) {
        if self.end == end {
            return;
        }
        let same_link = self.end.zip(end).is_some_and(|(before, end)| before.index == end.index);
        if !same_link {
            self.heard.clear();
            (self.neighbour, self.doubt, self.crowded) = (None, None, false);
        }
        self.end = end;
        (self.advertised_at, self.initial_left) = (None, INITIAL_ADVERTISEMENTS);
        self.advertise_at = end.map(|_| now);
        self.solicit(end.map(|_| now));
    }

    /// Takes in a valid message from `source`.
    pub fn handle(&mut self, now: Instant, source: Ipv6Addr, message: Message) {
        if self.end.is_none_or(|end| end.local == source) {
            return;
        }
        match message {
            Message::Solicitation => {
                // RFC 4861 section 6.2.6.
                let delayed = now + self.random(Duration::ZERO, ANSWER_DELAY_MAX);
                let allowed = self.advertised_at.map_or(delayed, |at| at + ADVERTISEMENT_REST);
                let answer = delayed.max(allowed);
                self.advertise_at = self.advertise_at.map(|at| at.min(answer));
            }
            Message::Advertisement { .. } => self.hear(now, source),
            Message::Present { target } if self.neighbour == Some(target) => {
                self.present = Some(now);
            }
            Message::Present { .. } => {}
        }
    }

    fn hear(&mut self, now: Instant, router: Ipv6Addr) {
        let is_new = !self.heard.contains_key(&router);
        if is_new && self.heard.len() >= ROUTERS_MAX {
            let others = self.heard.iter().filter(|(address, _)| Some(**address) != self.neighbour);
            let oldest = others.min_by_key(|(_, at)| **at).map(|(address, _)| *address);
            oldest.map(|oldest| self.heard.remove(&oldest));
        }
        self.heard.insert(router, now);
        let Some(neighbour) = self.neighbour else {
            (self.neighbour, self.since) = (Some(router), Some(now));
            self.solicit(None);
            return;
        };
        let silent = self.heard.get(&neighbour).is_none_or(|at| *at + SILENT_AFTER <= now);
        let again = self.crowded && self.settled_at.is_some_and(|at| at + PATIENCE <= now);
        if router != neighbour && self.doubt.is_none() && (is_new || silent || again) {
            self.doubt = Some(now);
            self.solicit(Some(now));
        }
    }

    /// What is to be sent now. An advertisement or a solicitation that cannot be sent is as lost as one that
    /// does not arrive: the next follows.
    pub fn poll(&mut self, now: Instant) -> Due {
        let mut due = Due { judgement: self.settle_doubt(now), ..Due::default() };
        if self.advertise_at.is_some_and(|at| at <= now) {
            due.advertisement = true;
            self.advertised_at = Some(now);
            let rest = match self.initial_left {
                0 => self.random(INTERVAL_MIN, INTERVAL_MAX),
                _ => ADVERTISEMENT_REST,
            };
            self.initial_left = self.initial_left.saturating_sub(1);
            self.advertise_at = Some(now + rest);
        }
        if self.solicit_at.is_some_and(|at| at <= now) {
            due.solicitation = true;
            due.ask_for = self.neighbour.filter(|_| self.doubt.is_some());
            self.solicitations_left = self.solicitations_left.saturating_sub(1);
            // Until somebody is there, all the time: a router that does not advertise by itself answers.
            let rest = match self.solicitations_left {
                0 if self.neighbour.is_some() => None,
                0 => Some(SOLICITATION_REST_LATER),
                _ => Some(SOLICITATION_REST),
            };
            self.solicit_at = rest.map(|rest| now + rest);
        }
        due
    }

    /// When [`LinkRouters::poll`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let doubt = self.doubt.map(|since| since + DOUBT);
        [self.advertise_at, self.solicit_at, doubt].into_iter().flatten().min()
    }

    /// Takes in whether the session with a neighbour stands that is there beside another router: then it stays.
    pub fn judge(&mut self, now: Instant, session_stands: bool) {
        match session_stands {
            true => self.stay(now),
            false => self.move_on(now),
        }
    }

    fn stay(&mut self, now: Instant) {
        (self.doubt, self.crowded, self.settled_at) = (None, true, Some(now));
    }

    /// Decides who is the neighbour once everybody has had the time to answer; true when its session decides.
    fn settle_doubt(&mut self, now: Instant) -> bool {
        let Some(since) = self.doubt.filter(|since| *since + DOUBT <= now) else { return false };
        let heard_since =
            |address: &Ipv6Addr| self.heard.get(address).is_some_and(|at| *at >= since);
        if self.neighbour.as_ref().is_some_and(heard_since) {
            // A session takes its time to come up.
            let is_young = self.since.is_some_and(|at| at + PATIENCE > now);
            if is_young {
                self.stay(now);
            }
            return !is_young;
        }
        if self.present.is_some_and(|at| at >= since) {
            return true;
        }
        self.move_on(now);
        false
    }

    /// The neighbour is who was heard last of the others.
    fn move_on(&mut self, now: Instant) {
        (self.doubt, self.crowded) = (None, false);
        if let Some(gone) = self.neighbour.take() {
            self.heard.remove(&gone);
        }
        let latest = self.heard.iter().max_by_key(|(_, at)| **at);
        self.neighbour = latest.map(|(address, _)| *address);
        self.since = self.neighbour.map(|_| now);
    }

    fn solicit(&mut self, at: Option<Instant>) {
        (self.solicit_at, self.solicitations_left) = (at, SOLICITATIONS);
    }

    /// Between the two, by SplitMix64.
    fn random(&mut self, least: Duration, most: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1_u32 << 24);
        least + (most - least).mul_f64(part)
    }
}

/// Routers of one link that are remembered: on a link between two there is one.
pub const ROUTERS_MAX: usize = 16;
/// MAX_INITIAL_RTR_ADVERTISEMENTS (RFC 4861 section 10).
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// MIN_DELAY_BETWEEN_RAS.
const ADVERTISEMENT_REST: Duration = Duration::from_secs(3);
/// MAX_RA_DELAY_TIME.
const ANSWER_DELAY_MAX: Duration = Duration::from_millis(500);
/// MAX_RTR_SOLICITATIONS.
const SOLICITATIONS: u8 = 3;
/// RTR_SOLICITATION_INTERVAL is 4 s, of hosts. Here nothing but routers is on the link.
const SOLICITATION_REST: Duration = Duration::from_secs(2);
/// While nobody is known.
const SOLICITATION_REST_LATER: Duration = Duration::from_secs(15);
/// Between advertisements: as FRR's of 10 s, with the jitter of RFC 4861 section 6.2.1.
const INTERVAL_MIN: Duration = Duration::from_millis(7500);
const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Three solicitations and their answers.
const DOUBT: Duration = Duration::from_secs(6);
/// How long a session has to come up before another router that advertises itself may have its place, and
/// between two questions who is there where there are two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than three intervals.
const SILENT_AFTER: Duration = Duration::from_secs(35);
/// A second router is told of for so long after it was heard.
const TOLD_FOR: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const ADVERTISEMENT: Message = Message::Advertisement { lifetime_secs: 0, mac: None };

    fn address(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last)
    }

    fn end(last: u16) -> Option<LinkEnd> {
        Some(LinkEnd { index: 7, local: address(last) })
    }

    /// A link under a clock of its own.
    struct Run {
        routers: LinkRouters,
        start: Instant,
        now: Instant,
    }

    impl Run {
        fn new(seed: u64) -> Run {
            let start = Instant::now();
            let mut routers = LinkRouters::new(seed);
            routers.set_end(start, end(1));
            Run { routers, start, now: start }
        }

        /// Until this second, without a session; when advertisements and solicitations left, in milliseconds.
        fn until(&mut self, secs: u64) -> (Vec<u128>, Vec<u128>) {
            let end = self.start + Duration::from_secs(secs);
            let (mut advertised, mut solicited) = (Vec::new(), Vec::new());
            loop {
                let due = self.routers.poll(self.now);
                if due.judgement {
                    self.routers.judge(self.now, false);
                }
                let at = (self.now - self.start).as_millis();
                advertised.extend(due.advertisement.then_some(at));
                solicited.extend(due.solicitation.then_some(at));
                match self.routers.next_deadline() {
                    Some(next) if next <= end => self.now = next,
                    _ => break,
                }
            }
            self.now = end;
            (advertised, solicited)
        }

        /// Until this second; who was asked for, and whether a judgement was.
        fn asked_until(&mut self, secs: u64) -> (Vec<Ipv6Addr>, bool) {
            let end = self.start + Duration::from_secs(secs);
            let mut asked = Vec::new();
            loop {
                let due = self.routers.poll(self.now);
                asked.extend(due.ask_for);
                if due.judgement {
                    return (asked, true);
                }
                match self.routers.next_deadline() {
                    Some(next) if next <= end => self.now = next,
                    _ => break,
                }
            }
            self.now = end;
            (asked, false)
        }

        fn hear(&mut self, last: u16, message: Message) {
            self.routers.handle(self.now, address(last), message);
        }
    }

    #[test]
    fn it_is_fast_at_first_and_then_every_ten_seconds() {
        for seed in 0..20 {
            let mut run = Run::new(seed);
            let (advertised, solicited) = run.until(100);
            assert_eq!(advertised[..4], [0, 3000, 6000, 9000]);
            let rests: Vec<u128> = advertised[3..].windows(2).map(|w| w[1] - w[0]).collect();
            assert!(rests.iter().all(|rest| (7500..=10_000).contains(rest)), "{rests:?}");
            assert_eq!(solicited[..4], [0, 2000, 4000, 19_000], "until somebody is there");
        }
    }

    #[test]
    fn solicitations_are_answered_but_not_more_often_than_every_three_seconds() {
        let mut run = Run::new(1);
        run.until(60);
        for _ in 0..50 {
            run.hear(2, Message::Solicitation);
        }
        let (answers, _) = run.until(61);
        assert_eq!(answers.len(), 1, "{answers:?}");
        for _ in 0..5 {
            run.hear(2, Message::Solicitation);
            let now = (run.now - run.start).as_secs();
            run.until(now + 1);
        }
        let (more, _) = run.until(67);
        assert!(more.len() <= 1, "{more:?}");
        assert_eq!(run.routers.neighbour(), None, "who asks is no router");
    }

    #[test]
    fn the_first_one_is_the_neighbour_and_our_own_words_are_nobodys() {
        let mut run = Run::new(1);
        run.until(1);
        run.hear(1, ADVERTISEMENT);
        assert_eq!(run.routers.neighbour(), None);
        run.hear(2, ADVERTISEMENT);
        assert_eq!(run.routers.neighbour(), Some(address(2)));
        let (_, solicited) = run.until(60);
        assert_eq!(solicited, [], "it is known who is there");
        assert_eq!(run.routers.neighbour(), Some(address(2)), "though it has been silent");
    }

    #[test]
    fn a_changed_address_is_followed() {
        let mut run = Run::new(1);
        run.until(1);
        run.hear(2, ADVERTISEMENT);
        run.until(5);
        run.hear(3, ADVERTISEMENT);
        assert_eq!(run.routers.neighbour(), Some(address(2)), "perhaps both are there");
        let (_, solicited) = run.until(12);
        assert_eq!(solicited, [5000, 7000, 9000]);
        assert_eq!(run.routers.neighbour(), Some(address(3)));
        assert_eq!(run.routers.others(run.now), [] as [Ipv6Addr; 0]);
    }

    #[test]
    fn of_two_that_answer_the_first_one_stays_until_it_goes() {
        let mut run = Run::new(1);
        run.until(1);
        run.hear(2, ADVERTISEMENT);
        run.hear(3, ADVERTISEMENT);
        run.until(2);
        run.hear(2, ADVERTISEMENT);
        run.until(8);
        assert_eq!(run.routers.neighbour(), Some(address(2)));
        assert_eq!(run.routers.others(run.now), [address(3)]);
        for secs in [20, 30, 40, 50] {
            run.until(secs);
            run.hear(3, ADVERTISEMENT);
        }
        run.until(57);
        assert_eq!(run.routers.neighbour(), Some(address(3)), "the other has not answered");
        run.until(130);
        assert_eq!(run.routers.others(run.now), [] as [Ipv6Addr; 0]);
    }

    #[test]
    fn a_router_that_was_away_finds_its_place_again_beside_one_that_advertises_all_the_while() {
        let mut run = Run::new(1);
        run.until(1);
        run.hear(2, ADVERTISEMENT);
        let mut between = |from: u64, to: u64, both: bool| {
            for secs in (from..to).step_by(5) {
                run.until(secs);
                run.hear(3, ADVERTISEMENT);
                if both {
                    run.hear(2, ADVERTISEMENT);
                }
            }
            run.until(to);
            run.routers.neighbour()
        };
        assert_eq!(between(5, 40, false), Some(address(3)), "nobody has the first one's address");
        assert_eq!(between(40, 50, true), Some(address(2)), "no session has come up");
        assert_eq!(between(50, 75, true), Some(address(2)), "a session takes its time");
        assert_eq!(
            between(75, 130, true),
            Some(address(3)),
            "they take turns until one has a session"
        );
    }

    /// Who has the neighbour's address cannot be hidden by whoever else is on the link.
    #[test]
    fn advertisements_of_others_end_no_session_while_the_address_is_there() {
        for (session_stands, neighbour) in [(true, address(2)), (false, address(3))] {
            let mut run = Run::new(1);
            run.until(1);
            run.hear(2, ADVERTISEMENT);
            run.until(5);
            run.hear(3, ADVERTISEMENT);
            assert!(run.routers.doubts());
            run.until(6);
            run.hear(2, Message::Present { target: address(2) });
            run.hear(3, Message::Present { target: address(3) });
            let (asked, judgement) = run.asked_until(20);
            assert!(judgement && asked == [address(2); 2], "{asked:?}");
            run.routers.judge(run.now, session_stands);
            assert_eq!(run.routers.neighbour(), Some(neighbour));
            assert!(!run.routers.doubts());
            let told = if session_stands { vec![address(3)] } else { Vec::new() };
            assert_eq!(run.routers.others(run.now), told);
        }
        // It goes on like that, and is told all the time.
        let mut run = Run::new(1);
        run.until(1);
        run.hear(2, ADVERTISEMENT);
        for secs in (5..200).step_by(10) {
            run.until(secs);
            run.hear(3, ADVERTISEMENT);
            run.hear(2, Message::Present { target: address(2) });
            if run.asked_until(secs + 7).1 {
                run.routers.judge(run.now, true);
            }
            assert_eq!(run.routers.neighbour(), Some(address(2)), "at {secs} s");
            assert_eq!(run.routers.others(run.now), [address(3)], "at {secs} s");
        }
        // Its address goes.
        run.until(210);
        run.hear(3, ADVERTISEMENT);
        assert!(!run.asked_until(220).1);
        assert_eq!(run.routers.neighbour(), Some(address(3)));
    }

    #[test]
    fn a_link_that_goes_takes_its_neighbour_along() {
        let mut run = Run::new(1);
        run.until(1);
        run.hear(2, ADVERTISEMENT);
        run.routers.set_end(run.now, None);
        assert_eq!((run.routers.neighbour(), run.routers.next_deadline()), (None, None));
        run.hear(2, ADVERTISEMENT);
        assert_eq!(run.routers.neighbour(), None, "a late one");
        run.until(5);
        run.routers.set_end(run.now, end(1));
        let (advertised, solicited) = run.until(6);
        assert_eq!((advertised, solicited), (vec![5000], vec![5000]), "at once");
        run.hear(2, ADVERTISEMENT);
        run.routers.set_end(run.now, end(9));
        assert_eq!(run.routers.neighbour(), Some(address(2)), "only our own address is another");
    }

    #[test]
    fn a_crowd_is_bounded_and_never_pushes_out_the_neighbour() {
        let mut run = Run::new(1);
        run.until(1);
        for last in 2..500 {
            run.hear(last, ADVERTISEMENT);
        }
        assert_eq!(run.routers.heard.len(), ROUTERS_MAX);
        run.hear(2, ADVERTISEMENT);
        run.until(10);
        assert_eq!(run.routers.neighbour(), Some(address(2)));
        assert_eq!(run.routers.others(run.now).len(), ROUTERS_MAX - 1);
    }
}
