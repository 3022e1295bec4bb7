//! The rules of one session (RFC 5880 section 6.8).

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use cairn_bfd::session::{Action, EXTRA_BURST_MAX, EXTRA_INTERVAL, Jitter, Session, Timing};
use cairn_bfd::wire::{ControlPacket, Diagnostic, State};

const OURS: u32 = 1;
const THEIRS: u32 = 2;

/// A session with a clock, and a peer that says what a test wants.
struct Bed {
    now: Instant,
    session: Session,
    sent: Vec<ControlPacket>,
    changes: usize,
    peer: ControlPacket,
}

fn timing(interval_ms: u64, multiplier: u8) -> Timing {
    let multiplier = NonZeroU8::new(multiplier).expect("not 0");
    Timing { interval: ms(interval_ms), multiplier }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Bed {
    fn new(interval_ms: u64, multiplier: u8) -> Bed {
        let now = Instant::now();
        let discriminator = NonZeroU32::new(OURS).expect("not 0");
        let timing = timing(interval_ms, multiplier);
        let peer = ControlPacket {
            diagnostic: Diagnostic::None,
            state: State::Down,
            poll: false,
            is_final: false,
            control_plane_independent: false,
            demand: false,
            detect_multiplier: NonZeroU8::new(4).expect("not 0"),
            my_discriminator: NonZeroU32::new(THEIRS).expect("not 0"),
            your_discriminator: NonZeroU32::new(OURS),
            desired_min_tx_micros: 100_000,
            required_min_rx_micros: 100_000,
            required_min_echo_rx_micros: 0,
        };
        let session = Session::new(now, timing, discriminator, Jitter::new(7));
        Bed { now, session, sent: Vec::new(), changes: 0, peer }
    }

    /// One that is Up, with its poll sequence answered.
    fn up(interval_ms: u64, multiplier: u8) -> Bed {
        let mut bed = Bed::new(interval_ms, multiplier);
        bed.hear(State::Down);
        bed.hear(State::Init);
        bed.hear_packet(ControlPacket { state: State::Up, is_final: true, ..bed.peer });
        assert_eq!(bed.session.state(), State::Up);
        bed.sent.clear();
        bed
    }

    fn hear(&mut self, state: State) {
        self.hear_packet(ControlPacket { state, ..self.peer });
    }

    fn hear_packet(&mut self, packet: ControlPacket) {
        self.peer = ControlPacket { poll: false, is_final: false, ..packet };
        let mut actions = Vec::new();
        self.session.receive(self.now, &packet, &mut actions);
        self.take(actions);
    }

    fn configure(&mut self, interval_ms: u64, multiplier: u8) {
        let mut actions = Vec::new();
        self.session.configure(self.now, timing(interval_ms, multiplier), &mut actions);
        self.take(actions);
    }

    /// Does what is due, and notes the time since the last packet if there is a new one.
    fn tick(&mut self, last: &mut Option<Instant>, gaps: &mut Vec<Duration>) {
        let before = self.sent.len();
        let mut actions = Vec::new();
        self.session.tick(self.now, &mut actions);
        self.take(actions);
        if self.sent.len() > before {
            gaps.extend(last.map(|last| self.now - last));
            *last = Some(self.now);
        }
    }

    /// Lets the clock go, and returns the times between packets.
    fn run(&mut self, time: Duration) -> Vec<Duration> {
        let end = self.now + time;
        let (mut last, mut gaps) = (None, Vec::new());
        while let Some(at) = self.session.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tick(&mut last, &mut gaps);
        }
        self.now = end;
        gaps
    }

    /// The same with a peer that goes on saying what it said last.
    fn run_heard(&mut self, time: Duration) -> Vec<Duration> {
        let end = self.now + time;
        let mut gaps = Vec::new();
        let (mut last, mut hear_at) = (None, self.now);
        while self.now < end {
            let next = self.session.next_deadline().map_or(hear_at, |at| at.min(hear_at));
            self.now = self.now.max(next);
            if self.now >= hear_at {
                self.hear_packet(self.peer);
                hear_at = self.now + ms(100);
            }
            self.tick(&mut last, &mut gaps);
        }
        gaps
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(packet) => self.sent.push(packet),
                Action::Changed => self.changes += 1,
            }
        }
    }

    fn last(&self) -> &ControlPacket {
        self.sent.last().expect("a packet")
    }
}

/// Section 6.8.6: every state of ours with every state of the other side.
#[test]
fn state_machine() {
    use State::{AdminDown, Down, Init, Up};
    let table = [
        (Down, AdminDown, Down),
        (Down, Down, Init),
        (Down, Init, Up),
        (Down, Up, Down),
        (Init, AdminDown, Down),
        (Init, Down, Init),
        (Init, Init, Up),
        (Init, Up, Up),
        (Up, AdminDown, Down),
        (Up, Down, Down),
        (Up, Init, Up),
        (Up, Up, Up),
    ];
    for (ours, heard, then) in table {
        let mut bed = Bed::new(300, 3);
        if ours != Down {
            bed.hear(Down);
        }
        if ours == Up {
            bed.hear(Init);
        }
        assert_eq!(bed.session.state(), ours);
        bed.hear(heard);
        assert_eq!(bed.session.state(), then, "{ours:?} hears {heard:?}");
        let lost = ours != Down && then == Down;
        let diagnostic = if lost { Diagnostic::NeighborDown } else { Diagnostic::None };
        assert_eq!(bed.session.diagnostic(), diagnostic, "{ours:?} hears {heard:?}");
    }
}

/// Section 6.8.1: what a new session says, and that it takes the active role.
#[test]
fn first_packet() {
    let mut bed = Bed::new(300, 3);
    bed.run(ms(0));
    let packet = *bed.last();
    assert_eq!(packet.state, State::Down);
    assert_eq!(packet.your_discriminator, None);
    assert_eq!(packet.desired_min_tx_micros, 1_000_000);
    assert_eq!(packet.required_min_rx_micros, 300_000);
    assert_eq!(packet.required_min_echo_rx_micros, 0);
    assert_eq!(packet.detect_multiplier.get(), 3);
    assert!(packet.control_plane_independent && !packet.demand);
}

/// Section 6.8.3: at least a second until Up, and 6.8.7: 75 to 100 % of it.
#[test]
fn slow_until_up() {
    let mut bed = Bed::new(50, 3);
    let gaps = bed.run(ms(200_000));
    assert!(gaps.len() > 190);
    assert!(gaps.iter().all(|gap| (ms(750)..=ms(1000)).contains(gap)), "{gaps:?}");
    let mean = gaps.iter().sum::<Duration>() / gaps.len() as u32;
    assert!((ms(850)..ms(900)).contains(&mean), "{mean:?}");
}

/// Sections 6.8.2 and 6.8.7: the longer of what we want and what the other side takes, with jitter; with a
/// multiplier of 1 at most 90 %.
#[test]
fn sends_with_jitter() {
    for (interval_ms, multiplier, range) in
        [(300, 3, 225..=300), (50, 3, 75..=100), (300, 1, 225..=270), (50, 1, 75..=90)]
    {
        let mut bed = Bed::up(interval_ms, multiplier);
        let gaps = bed.run_heard(ms(60_000));
        assert!(gaps.len() > 190);
        // A gap may be a fraction of a millisecond.
        let (least, most) = (ms(*range.start()), ms(*range.end()));
        assert!(gaps.iter().all(|gap| (least..=most).contains(gap)), "{range:?}: {gaps:?}");
    }
}

/// Section 6.8.4: the other side's multiplier of the longer of what we take and it wants.
#[test]
fn detection_time() {
    for (interval_ms, wanted_ms, time_ms) in [(300, 100, 1200), (50, 100, 400)] {
        let mut bed = Bed::up(interval_ms, 3);
        bed.hear_packet(ControlPacket { desired_min_tx_micros: wanted_ms * 1000, ..bed.peer });
        assert_eq!(bed.session.detection_time(), ms(time_ms));
        bed.run(ms(time_ms - 1));
        assert_eq!(bed.session.state(), State::Up);
        bed.run(ms(1));
        assert_eq!(bed.session.state(), State::Down);
        assert_eq!(bed.session.diagnostic(), Diagnostic::DetectionTimeExpired);
        assert_eq!(bed.session.remote().discriminator, None, "section 6.8.1");
        // It says so at once, slowly from now on.
        let packet = bed.last();
        assert_eq!((packet.state, packet.your_discriminator), (State::Down, None));
        assert_eq!(packet.diagnostic, Diagnostic::DetectionTimeExpired);
        assert_eq!(packet.desired_min_tx_micros, 1_000_000);
    }
}

/// Section 6.8.4: Init ends in silence as well.
#[test]
fn init_expires() {
    let mut bed = Bed::new(300, 3);
    bed.hear(State::Down);
    assert_eq!(bed.session.state(), State::Init);
    bed.run(ms(1200));
    assert_eq!(bed.session.state(), State::Down);
    assert_eq!(bed.session.diagnostic(), Diagnostic::DetectionTimeExpired);
}

/// Section 6.8.7: what differs from the last packet goes at once.
#[test]
fn changes_go_at_once() {
    let mut bed = Bed::new(300, 3);
    bed.run(ms(0));
    bed.sent.clear();
    bed.hear(State::Down);
    assert_eq!(bed.last().state, State::Init);
    assert_eq!(bed.last().your_discriminator.map(|d| d.get()), Some(THEIRS));
    bed.hear(State::Init);
    assert_eq!(bed.last().state, State::Up);
    bed.hear(State::Down);
    assert_eq!((bed.last().state, bed.last().diagnostic), (State::Down, Diagnostic::NeighborDown));
    assert_eq!(bed.sent.len(), 3);
    assert_eq!(bed.changes, 3);
}

/// Sections 6.5 and 6.8.3: Up announces the interval by a poll sequence, which lasts until the answer.
#[test]
fn up_polls() {
    let mut bed = Bed::new(300, 3);
    bed.hear(State::Down);
    bed.hear(State::Init);
    assert!(bed.last().poll);
    assert_eq!(bed.last().desired_min_tx_micros, 300_000);
    bed.peer.state = State::Up;
    bed.run_heard(ms(1000));
    assert!(bed.last().poll, "every periodic packet polls");
    bed.hear_packet(ControlPacket { is_final: true, ..bed.peer });
    bed.run_heard(ms(1000));
    assert!(!bed.last().poll);
}

/// Section 6.8.7: a poll is answered at once, whatever the timer says, with Final and without Poll.
#[test]
fn answers_polls() {
    let mut bed = Bed::up(300, 3);
    bed.hear_packet(ControlPacket { poll: true, ..bed.peer });
    assert_eq!(bed.sent.len(), 1);
    assert!(bed.last().is_final && !bed.last().poll);
    // Also in Down, and while a poll sequence of our own goes on.
    let mut bed = Bed::new(300, 3);
    bed.hear_packet(ControlPacket { poll: true, state: State::Up, ..bed.peer });
    assert_eq!(bed.session.state(), State::Down);
    assert!(bed.last().is_final);
}

/// Section 6.8.7: answers may be limited, to no less than the announced interval.
#[test]
fn floods_are_bounded() {
    let mut bed = Bed::up(300, 3);
    for round in 0..100_000 {
        let state = if round % 2 == 0 { State::Up } else { State::Down };
        let your_discriminator = NonZeroU32::new(OURS);
        let my_discriminator = NonZeroU32::new(round + 1).expect("not 0");
        bed.hear_packet(ControlPacket {
            poll: true,
            state,
            my_discriminator,
            your_discriminator,
            ..bed.peer
        });
        bed.now += Duration::from_micros(10);
    }
    let most = EXTRA_BURST_MAX + (ms(1000).as_millis() / EXTRA_INTERVAL.as_millis()) as u32 + 1;
    assert!(bed.sent.len() <= most as usize, "{} packets", bed.sent.len());
}

/// Section 6.8.3: to send less often waits until the other side knows; more often does not.
#[test]
fn slower_sending_waits_for_the_answer() {
    let mut bed = Bed::up(300, 3);
    bed.configure(500, 3);
    assert!(bed.last().poll);
    assert_eq!(bed.last().desired_min_tx_micros, 500_000);
    assert_eq!(bed.session.send_interval(), Some(ms(300)));
    bed.hear_packet(ControlPacket { is_final: true, ..bed.peer });
    assert_eq!(bed.session.send_interval(), Some(ms(500)));
    bed.configure(200, 3);
    assert_eq!(bed.session.send_interval(), Some(ms(200)));
    assert_eq!(bed.session.state(), State::Up);
}

/// Section 6.8.3: to judge by a shorter interval waits as well; by a longer one does not.
#[test]
fn faster_detection_waits_for_the_answer() {
    let mut bed = Bed::up(300, 3);
    bed.configure(100, 3);
    assert_eq!(bed.last().required_min_rx_micros, 100_000);
    assert_eq!(bed.session.detection_time(), ms(1200));
    bed.hear_packet(ControlPacket { is_final: true, ..bed.peer });
    assert_eq!(bed.session.detection_time(), ms(400));
    bed.configure(1000, 3);
    assert_eq!(bed.session.detection_time(), ms(4000));
}

/// Section 6.8.3: a change during a poll sequence is polled for again, as the answer may be to the former.
#[test]
fn a_second_change_polls_again() {
    let mut bed = Bed::up(300, 3);
    bed.configure(500, 3);
    bed.configure(700, 3);
    bed.hear_packet(ControlPacket { is_final: true, ..bed.peer });
    assert_eq!(bed.session.send_interval(), Some(ms(300)), "the answer to the first");
    bed.run_heard(ms(400));
    assert!(bed.last().poll);
    bed.hear_packet(ControlPacket { is_final: true, ..bed.peer });
    assert_eq!(bed.session.send_interval(), Some(ms(700)));
}

/// Section 6.8.12: another multiplier is told at once and takes no poll sequence.
#[test]
fn multiplier_changes() {
    let mut bed = Bed::up(300, 3);
    bed.configure(300, 5);
    assert_eq!(bed.last().detect_multiplier.get(), 5);
    assert!(!bed.last().poll);
}

/// Section 6.8.3: when the other side takes more, the next packet does not wait for the former time.
#[test]
fn a_shorter_remote_interval_holds_at_once() {
    let mut bed = Bed::up(50, 3);
    bed.hear_packet(ControlPacket { required_min_rx_micros: 10_000_000, ..bed.peer });
    assert!(bed.run_heard(ms(7000)).is_empty());
    bed.hear_packet(ControlPacket { required_min_rx_micros: 50_000, ..bed.peer });
    bed.sent.clear();
    bed.run(ms(50));
    assert!(!bed.sent.is_empty());
}

/// Section 6.8.7: nothing periodic to one that wants none; a poll is answered all the same, and when
/// it has gone its wish is forgotten (6.8.1).
#[test]
fn required_min_rx_of_zero() {
    let mut bed = Bed::up(300, 3);
    bed.hear_packet(ControlPacket { required_min_rx_micros: 0, ..bed.peer });
    bed.sent.clear();
    bed.run_heard(ms(5000));
    assert!(bed.sent.is_empty(), "{:?}", bed.sent);
    bed.hear_packet(ControlPacket { poll: true, ..bed.peer });
    assert_eq!(bed.sent.len(), 1);
    bed.run(ms(5000));
    assert_eq!(bed.session.state(), State::Down);
    assert!(bed.sent.len() > 3, "it looks for the other side again");
}

/// Sections 6.6 and 6.8.7: demand mode of the other side stops periodic packets while both are Up, but no
/// poll sequence, and our own detection goes on.
#[test]
fn demand_mode_of_the_peer() {
    let mut bed = Bed::up(300, 3);
    bed.hear_packet(ControlPacket { demand: true, ..bed.peer });
    bed.sent.clear();
    bed.run_heard(ms(5000));
    assert!(bed.sent.is_empty(), "{:?}", bed.sent);
    bed.configure(500, 3);
    bed.run_heard(ms(2000));
    assert!(bed.sent.len() > 2 && bed.sent.iter().all(|packet| packet.poll));
    bed.hear_packet(ControlPacket { is_final: true, demand: true, ..bed.peer });
    bed.sent.clear();
    bed.run_heard(ms(5000));
    assert!(bed.sent.is_empty(), "{:?}", bed.sent);
    bed.run(ms(2000));
    assert_eq!(bed.session.state(), State::Down);
}

/// Section 6.8.16: AdminDown is said at once, hears nothing, and ends only by our own will.
#[test]
fn admin_down() {
    let mut bed = Bed::up(300, 3);
    let mut actions = Vec::new();
    bed.session.disable(bed.now, &mut actions);
    bed.take(actions);
    assert_eq!(bed.last().state, State::AdminDown);
    assert_eq!(bed.last().diagnostic, Diagnostic::AdministrativelyDown);
    let told = bed.sent.len();
    bed.hear_packet(ControlPacket { poll: true, state: State::Down, ..bed.peer });
    assert_eq!(bed.session.state(), State::AdminDown);
    assert_eq!(bed.sent.len(), told, "section 6.8.6: discarded");
    bed.run(ms(5000));
    assert_eq!(bed.session.state(), State::AdminDown);
    assert!(bed.sent.len() > told, "it goes on saying so");
    let mut actions = Vec::new();
    bed.session.enable(bed.now, &mut actions);
    bed.take(actions);
    bed.hear(State::Down);
    bed.hear(State::Init);
    assert_eq!(bed.session.state(), State::Up);
}

/// RFC 5882 section 3.2: a path is lost when the session leaves Up, until it is Up again; not before it ever was,
/// and not by an operator's will, also when the other side is silent afterwards.
#[test]
fn lost_paths() {
    let mut bed = Bed::new(300, 3);
    bed.hear(State::Down);
    bed.run(ms(2000));
    assert_eq!((bed.session.state(), bed.session.lost_at()), (State::Down, None), "never up");
    let mut bed = Bed::up(300, 3);
    bed.run(ms(1200));
    let lost_at = bed.session.lost_at().expect("silence");
    bed.run(ms(2000));
    bed.hear(State::Down);
    bed.run(ms(2000));
    assert_eq!(bed.session.lost_at(), Some(lost_at), "Init is not Up");
    bed.hear(State::Down);
    bed.hear(State::Init);
    assert_eq!(bed.session.lost_at(), None);
    bed.hear(State::Down);
    assert_eq!(bed.session.lost_at(), Some(bed.now));
    let mut bed = Bed::up(300, 3);
    bed.hear(State::AdminDown);
    assert_eq!(bed.session.state(), State::Down);
    bed.run(ms(5000));
    assert_eq!(bed.session.lost_at(), None);
    let mut bed = Bed::up(300, 3);
    bed.session.disable(bed.now, &mut Vec::new());
    assert_eq!(bed.session.lost_at(), None);
}

/// The path is known to be alive when a packet has come to the Up session, and not when one ends it.
#[test]
fn alive_at() {
    let mut bed = Bed::new(300, 3);
    bed.hear(State::Down);
    assert_eq!(bed.session.alive_at(), None, "never Up");
    let mut bed = Bed::up(300, 3);
    let alive_at = bed.now;
    assert_eq!(bed.session.alive_at(), Some(alive_at));
    bed.run(ms(100));
    bed.hear(State::Down);
    assert_eq!((bed.session.state(), bed.session.alive_at()), (State::Down, Some(alive_at)));
    bed.hear(State::Down);
    bed.hear(State::Init);
    assert_eq!((bed.session.state(), bed.session.alive_at()), (State::Up, Some(bed.now)));
}

/// RFC 5882 section 4.3: the C bit of the other side is kept and its change told.
#[test]
fn control_plane_independent() {
    let mut bed = Bed::up(300, 3);
    let changes = bed.changes;
    bed.hear_packet(ControlPacket { control_plane_independent: true, ..bed.peer });
    assert!(bed.session.remote().control_plane_independent);
    assert_eq!(bed.changes, changes + 1);
    bed.hear_packet(bed.peer);
    assert_eq!(bed.changes, changes + 1, "nothing new");
    bed.run(ms(5000));
    assert_eq!((bed.session.state(), bed.session.remote().discriminator), (State::Down, None));
    assert!(bed.session.remote().control_plane_independent, "what it said last stands");
}

/// Any values of a peer, the longest times among them, are taken without overflow.
#[test]
fn extreme_values() {
    for micros in [0, 1, u32::MAX] {
        let mut bed = Bed::up(60_000, 255);
        bed.hear_packet(ControlPacket {
            detect_multiplier: NonZeroU8::MAX,
            desired_min_tx_micros: micros,
            required_min_rx_micros: micros,
            required_min_echo_rx_micros: micros,
            ..bed.peer
        });
        bed.run(ms(1_000_000));
        bed.configure(50, 1);
        bed.run(Duration::from_secs(2_000_000));
        assert_eq!(bed.session.state(), State::Down);
    }
}
