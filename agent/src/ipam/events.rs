//! Events at the API server: what happened to a pool or to this node, for `kubectl describe`.
//!
//! ```text
//!  leader, blocks ──tell()──► queue of [`QUEUE_MAX`] ──► Throttle ──► POST events.k8s.io
//!  holdings, fence, view ──► run() ──┘
//! ```
//!
//! Events are a convenience beside conditions and problems: a full queue or a server that refuses
//! them loses them, and delays nothing. The same sentence about an object is told once an hour, which
//! is how long the API server keeps it, and of one object and reason one a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_api::{DrainPhase, DrainStatus};
use cairn_ipam::Standing;
use cairn_ipam::fence::OwnFence;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;

use super::error::call;
use super::{Holdings, Shared};

/// The object of an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    Pool { name: String, uid: String },
    Node { name: String, uid: String },
}

/// What an event is about, one CamelCase word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    PoolExhausted,
    PoolNearlyFull,
    PoolOverlap,
    ForeignAddresses,
    NoAddress,
    Fenced,
    OtherMachine,
    BlockConflict,
    BlocksReturned,
    Draining,
    Withdrawing,
    Drained,
    DrainUndone,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Reason::PoolExhausted => "PoolExhausted",
            Reason::PoolNearlyFull => "PoolNearlyFull",
            Reason::PoolOverlap => "PoolOverlap",
            Reason::ForeignAddresses => "ForeignAddresses",
            Reason::NoAddress => "NoAddress",
            Reason::Fenced => "Fenced",
            Reason::OtherMachine => "OtherMachine",
            Reason::BlockConflict => "BlockConflict",
            Reason::BlocksReturned => "BlocksReturned",
            Reason::Draining => "Draining",
            Reason::Withdrawing => "Withdrawing",
            Reason::Drained => "Drained",
            Reason::DrainUndone => "DrainUndone",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Reason::BlocksReturned => "ReturnBlocks",
            Reason::NoAddress => "AssignAddress",
            Reason::Draining | Reason::Withdrawing | Reason::Drained | Reason::DrainUndone => {
                "Drain"
            }
            _ => "ClaimBlock",
        }
    }

    fn type_(self) -> &'static str {
        match self {
            Reason::BlocksReturned
            | Reason::Draining
            | Reason::Withdrawing
            | Reason::Drained
            | Reason::DrainUndone => "Normal",
            _ => "Warning",
        }
    }
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    about: About,
    reason: Reason,
    note: String,
}

/// Where events are told. Clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct Events(mpsc::Sender<Notice>);

/// What was told and is not written yet.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Receiver<Notice>);

impl Events {
    pub(super) fn new() -> (Events, Queue) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Events(sender), Queue(receiver))
    }

    /// Tells of something, and returns at once; what does not fit into the queue is lost.
    pub(super) fn tell(&self, about: About, reason: Reason, note: String) {
        // Full, or nobody writes any more.
        let _ = self.0.try_send(Notice { about, reason, note });
    }
}

/// Tells of this node.
pub(super) fn tell_of_this_node(shared: &Shared, reason: Reason, note: String) {
    let uid = shared.view.borrow().node.as_ref().and_then(|node| node.metadata.uid.clone());
    let name = shared.options.node.clone();
    shared.events.tell(About::Node { name, uid: uid.unwrap_or_default() }, reason, note);
}

/// Writes events for as long as it is polled, and tells of this node what follows from its state.
pub(super) async fn run(shared: Shared, queue: Queue) {
    tokio::join!(write(&shared, queue), observe(&shared));
}

async fn observe(shared: &Shared) {
    let mut promise = shared.promise.subscribe();
    let mut holdings = shared.reports.holdings.subscribe();
    let mut drain = shared.drain.clone();
    let mut phase = None;
    loop {
        let drained = drain.borrow_and_update().status.clone();
        if let Some((reason, note)) = of_drain(&mut phase, drained) {
            tell_of_this_node(shared, reason, note);
        }
        let held = holdings.borrow_and_update().clone();
        let up = promise.borrow_and_update().fence;
        for (reason, note) in of_node(&held, shared.membership().err(), &up, shared.now()) {
            tell_of_this_node(shared, reason, note);
        }
        tokio::select! {
            biased;
            changed = holdings.changed() => if changed.is_err() { return },
            changed = promise.changed() => if changed.is_err() { return },
            // Without the rest of an agent there is none.
            Ok(()) = drain.changed() => {}
        }
    }
}

/// What there is to tell about a drain that was in `before`: each phase once, with what was the case then.
fn of_drain(before: &mut Option<DrainPhase>, now: Option<DrainStatus>) -> Option<(Reason, String)> {
    let phase = now.as_ref().map(|status| status.phase);
    if std::mem::replace(before, phase) == phase {
        return None;
    }
    let undone = || (Reason::DrainUndone, "all is announced as ever".to_owned());
    Some(now.map_or_else(undone, |DrainStatus { phase, message, .. }| match phase {
        DrainPhase::Leaving => (Reason::Draining, message),
        DrainPhase::Withdrawing => (Reason::Withdrawing, message),
        DrainPhase::Drained => (Reason::Drained, message),
    }))
}

/// What there is to tell about a node in this state.
fn of_node(
    held: &Holdings,
    standing: Option<Standing>,
    fence: &OwnFence,
    now: Duration,
) -> Vec<(Reason, String)> {
    let mut told = Vec::new();
    if standing == Some(Standing::OtherMachine) {
        let note = "another machine is registered under this node's name: this one gives no new \
                    addresses; turn one of the two off or rename it";
        told.push((Reason::OtherMachine, note.to_owned()));
    }
    // Before the first write it has never been up.
    if standing.is_none() && fence.term() > 0 && !fence.is_up(now) {
        let note = "the API server did not take this node's Lease for longer than the fence: it \
                    gave no new addresses meanwhile";
        told.push((Reason::Fenced, note.to_owned()));
    }
    if let Some((demand, refusal)) = held.refusals.iter().next() {
        let more = match held.refusals.len() {
            1 => String::new(),
            several => format!(" (and {} more)", several - 1),
        };
        told.push((Reason::NoAddress, format!("no address for pods: {demand}: {refusal}{more}")));
    }
    told
}

async fn write(shared: &Shared, mut queue: Queue) {
    let mut throttle = Throttle::default();
    let mut written: u64 = 0;
    while let Some(notice) = queue.0.recv().await {
        let now = shared.now();
        if !throttle.lets(&notice, now) {
            continue;
        }
        written = written.wrapping_add(1);
        let boot = shared.options.boot_id.get(..8).unwrap_or(&shared.options.boot_id);
        let stamp = format!("{boot}{:x}-{written}", now.as_nanos());
        if let Err(error) = post(&shared.client, &shared.options.node, notice, &stamp).await {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

async fn post(
    client: &Client,
    node: &str,
    notice: Notice,
    stamp: &str,
) -> Result<(), super::IpamError> {
    let Notice { about, reason, note } = notice;
    let (api_version, kind, name, uid) = match about {
        About::Pool { name, uid } => ("cairn.network/v1alpha1", "IPPool", name, uid),
        About::Node { name, uid } => ("v1", "Node", name, uid),
    };
    let event = Event {
        metadata: ObjectMeta {
            // The names of Nodes and pools have 253 octets at most, as events' have.
            name: Some(format!("{}.{stamp}", name.get(..NAME_BYTES_MAX).unwrap_or(&name))),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some(reason.action().to_owned()),
        reason: Some(reason.word().to_owned()),
        type_: Some(reason.type_().to_owned()),
        note: Some(shortened(note)),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("cairn.network/agent".to_owned()),
        reporting_instance: Some(node.get(..INSTANCE_BYTES_MAX).unwrap_or(node).to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    call(|| "cannot write an event".to_owned(), api.create(&PostParams::default(), &event)).await?;
    Ok(())
}

/// A note as long as the API takes it.
fn shortened(mut note: String) -> String {
    if note.len() > NOTE_BYTES_MAX {
        let mut end = NOTE_BYTES_MAX - "...".len();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str("...");
    }
    note
}

/// Which notices are worth an event.
#[derive(Debug)]
struct Throttle {
    told: BTreeMap<(About, Reason), (String, Duration)>,
    /// Events that may be written at once.
    tokens: u32,
    refilled: Duration,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle { told: BTreeMap::new(), tokens: BURST_MAX, refilled: Duration::ZERO }
    }
}

impl Throttle {
    fn lets(&mut self, notice: &Notice, now: Duration) -> bool {
        self.told.retain(|_, (_, at)| now.saturating_sub(*at) < REPEAT_INTERVAL);
        let key = (notice.about.clone(), notice.reason);
        if let Some((note, at)) = self.told.get(&key)
            && (*note == notice.note || now.saturating_sub(*at) < SAME_REASON_INTERVAL)
        {
            return false;
        }
        let since = now.saturating_sub(self.refilled);
        let fresh =
            u32::try_from(since.as_nanos() / REFILL_INTERVAL.as_nanos()).unwrap_or(u32::MAX);
        if fresh > 0 {
            self.tokens = self.tokens.saturating_add(fresh).min(BURST_MAX);
            self.refilled = now;
        }
        if self.tokens == 0 || self.told.len() >= TOLD_MAX {
            return false;
        }
        self.tokens -= 1;
        self.told.insert(key, (notice.note.clone(), now));
        true
    }
}

/// Cluster-scoped objects' events are here by convention.
const NAMESPACE: &str = "default";
/// Notices that wait.
const QUEUE_MAX: usize = 64;
/// Between two events about one object for one reason.
const SAME_REASON_INTERVAL: Duration = Duration::from_secs(60);
/// How long the same sentence is not told again: the API server keeps events for an hour.
const REPEAT_INTERVAL: Duration = Duration::from_secs(3600);
/// Events at once, and between two more.
const BURST_MAX: u32 = 10;
const REFILL_INTERVAL: Duration = Duration::from_secs(2);
/// Sentences remembered.
const TOLD_MAX: usize = 1_000;
/// The API's own bounds.
const NOTE_BYTES_MAX: usize = 1_024;
const INSTANCE_BYTES_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use cairn_ipam::Demand;

    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn notice(name: &str, note: &str) -> Notice {
        let about = About::Pool { name: name.into(), uid: "u".into() };
        Notice { about, reason: Reason::PoolNearlyFull, note: note.into() }
    }

    #[test]
    fn an_object_and_a_reason_are_told_once_a_minute_and_a_sentence_once_an_hour() {
        let mut throttle = Throttle::default();
        let steps = [
            (0, "5 left", true),
            (1, "5 left", false),
            (59, "4 left", false),
            (60, "4 left", true),
            (300, "4 left", false),
            (3_659, "4 left", false),
            (3_660, "4 left", true),
        ];
        for (at, note, told) in steps {
            assert_eq!(throttle.lets(&notice("p", note), secs(at)), told, "{at} s");
        }
        assert!(throttle.lets(&notice("other", "4 left"), secs(3_660)));
    }

    #[test]
    fn a_burst_ends_and_comes_back() {
        let mut throttle = Throttle::default();
        let told = |throttle: &mut Throttle, from: u32, at| {
            (from..from + 100).filter(|n| throttle.lets(&notice(&n.to_string(), "x"), at)).count()
        };
        assert_eq!(told(&mut throttle, 0, secs(1_000)), BURST_MAX as usize);
        assert_eq!(told(&mut throttle, 100, secs(1_001)), 0);
        assert_eq!(told(&mut throttle, 200, secs(1_004)), 2);
        for n in 0..10_000u32 {
            throttle.lets(&notice(&format!("n{n}"), "x"), secs(1_004 + u64::from(n)));
        }
        assert!(throttle.told.len() <= TOLD_MAX);
    }

    #[test]
    fn what_a_node_s_state_tells() {
        let held = Holdings::default();
        let mut fence = OwnFence::new(secs(10));
        let reasons = |held: &Holdings, standing, fence: &OwnFence, at| -> Vec<Reason> {
            of_node(held, standing, fence, secs(at)).into_iter().map(|(reason, _)| reason).collect()
        };
        assert!(reasons(&held, None, &fence, 5).is_empty(), "before the first write");
        fence.wrote(secs(100), secs(100));
        assert!(reasons(&held, None, &fence, 105).is_empty());
        assert_eq!(reasons(&held, None, &fence, 110), [Reason::Fenced]);
        let other = Some(Standing::OtherMachine);
        assert_eq!(reasons(&held, other, &fence, 110), [Reason::OtherMachine]);
        assert!(reasons(&held, Some(Standing::NodeMissing), &fence, 110).is_empty());
        let demand = Demand::Address("10.0.0.1".parse().expect("an address"));
        let refusals = BTreeMap::from([(demand, "another node has it".to_owned())]);
        let short = Holdings { refusals, ..Holdings::default() };
        let told = of_node(&short, None, &fence, secs(105));
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("10.0.0.1: another node has it"), "{}", told[0].1);
    }

    #[test]
    fn a_note_is_as_long_as_the_api_takes_it() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("ü".repeat(2_000));
        assert!(long.len() <= NOTE_BYTES_MAX && long.ends_with("ü..."));
    }
}
