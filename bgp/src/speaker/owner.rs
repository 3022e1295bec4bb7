//! The task that owns sessions and RIB.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{sleep_until, timeout};

use crate::config::{InterfaceName, PeerName, SpeakerConfig};
use crate::rib::{Output, PeerId, Rib, RibConfig};
use crate::session::{ConnectionId, Event, Restart, StopReason};
use crate::status::{SpeakerSnapshot, WatchEvent};
use crate::stream::Item;

use super::connection::Connection;
use super::listener::Listeners;
use super::peer::{Peer, Throttle, WARNING_REST};
use super::unnumbered::Neighbour;
use super::{
    Command, Endpoints, FAREWELL_WAIT, FIB_BATCH_CHANGES_MAX, FibBatch, INPUTS_MAX, Shutdown,
    SpeakerOptions, md5,
};

/// A peer in the life of a speaker; never used twice, so that what arrives late finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerKey(pub(super) u64);

/// What other tasks tell the owner.
#[derive(Debug)]
pub(super) enum Input {
    Accepted { stream: TcpStream, endpoints: Endpoints },
    Connection { peer: PeerKey, connection: ConnectionId, kind: InputKind },
}

/// What is told about one connection.
#[derive(Debug)]
pub(super) enum InputKind {
    Connected(io::Result<TcpStream>),
    Read(Vec<Item>),
    Writable,
}

pub(super) struct Owner {
    pub(super) config: SpeakerConfig,
    pub(super) wanted: watch::Receiver<SpeakerConfig>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) mailbox: mpsc::Sender<Input>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) fib: Option<mpsc::Sender<FibBatch>>,
    /// Whether the feed knows that the start's deferral is over.
    pub(super) fib_in_sync: bool,
    pub(super) restart: Restart,
    pub(super) rib: Rib,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    pub(super) by_rib_id: HashMap<PeerId, PeerKey, FixedState>,
    /// Names that an operator has disabled, of configured peers or not.
    pub(super) disabled: BTreeSet<PeerName>,
    /// What is known of the other ends of interfaces.
    pub(super) neighbours: BTreeMap<InterfaceName, Neighbour>,
    /// Ranges that have turned somebody away.
    pub(super) refused: BTreeMap<PeerName, Throttle>,
    pub(super) listeners: Listeners,
    pub(super) signatures: md5::Watch,
    pub(super) next_key: u64,
    pub(super) seed: u64,
    pub(super) changed: bool,
    /// Those who watch what happens, while there are any.
    pub(super) watchers: Option<broadcast::Sender<Arc<WatchEvent>>>,
    /// Prefixes of all batches so far, to bound the work of a turn.
    pub(super) prefixes_taken: usize,
    pub(super) output: Vec<Output>,
}

enum Wake {
    Configured,
    Command(Option<Command>),
    Input(Option<Input>),
    FibRoom,
    FibGone,
    Deadline,
}

impl Owner {
    pub(super) fn new(
        wanted: watch::Receiver<SpeakerConfig>,
        commands: mpsc::Receiver<Command>,
        changes: watch::Sender<u64>,
        fib: mpsc::Sender<FibBatch>,
        options: SpeakerOptions,
    ) -> Owner {
        let config = wanted.borrow().clone();
        let (mailbox, inputs) = mpsc::channel(INPUTS_MAX);
        let seed = RandomState::new().hash_one(config.router_id);
        let deferral = Duration::from_secs(config.selection_deferral_secs.into());
        let mut rib = Rib::new(RibConfig {
            router_id: config.router_id,
            multipath: config.multipath,
            seed,
            deferral_until: now() + deferral,
            restarting: options.restarting,
        });
        rib.set_cluster_id(config.cluster_id());
        rib.set_origins(&config.origins);
        rib.await_unnamed(options.restarting && !config.ranges.is_empty());
        Owner {
            wanted,
            commands,
            inputs,
            mailbox,
            changes,
            fib: Some(fib),
            fib_in_sync: false,
            restart: Restart {
                restarting: options.restarting,
                forwarding_preserved: options.forwarding_preserved,
            },
            rib,
            peers: BTreeMap::new(),
            by_rib_id: HashMap::default(),
            disabled: options.disabled,
            neighbours: BTreeMap::new(),
            refused: BTreeMap::new(),
            listeners: Listeners::default(),
            signatures: md5::Watch::default(),
            next_key: 0,
            seed,
            changed: false,
            watchers: None,
            prefixes_taken: 0,
            output: Vec::new(),
            config,
        }
    }

    /// Runs until it is told to end or nobody is left to tell it anything.
    pub(super) async fn run(mut self) {
        let config = self.config.clone();
        self.rib.set_originated(&config.originate);
        self.listeners.configure(now(), &config, &self.listen(), &self.mailbox);
        for (name, peer) in &config.peers {
            self.add_peer(name, peer, None);
        }
        let mut since = Instant::now();
        loop {
            let settled = self.settle();
            // Readers and writers run on this thread, too; a queue that never empties must not keep them.
            if !settled || since.elapsed() >= WORK_PER_TURN_MAX {
                tokio::task::yield_now().await;
                since = Instant::now();
            }
            match self.wait(settled).await {
                Wake::Configured => self.configure(),
                Wake::Command(Some(Command::Shutdown(how, done))) => {
                    self.end(how).await;
                    let _ = done.send(());
                    return;
                }
                Wake::Command(Some(command)) => self.answer(command),
                Wake::Command(None) => {
                    let text = "the speaker's last user has gone".to_owned();
                    return self.end(Shutdown::Cease { text }).await;
                }
                Wake::Input(Some(first)) => self.take_input(first),
                Wake::FibRoom => self.feed_fib(),
                Wake::FibGone => {
                    self.fib = None;
                    self.rib.ignore_fib();
                }
                Wake::Input(None) | Wake::Deadline => {}
            }
            // Whatever it was: configurations and questions that keep coming leave a turn to peers.
            self.take_inputs();
        }
    }

    async fn wait(&mut self, settled: bool) -> Wake {
        let deadline = if settled { self.next_deadline() } else { Some(now()) };
        let feeds = self.rib.fib_pending() || self.rib.is_complete() != self.fib_in_sync;
        let fib = self.fib.clone();
        let room = async {
            match &fib {
                Some(fib) => fib.reserve().await.map(drop),
                None => std::future::pending().await,
            }
        };
        let at = tokio::time::Instant::from_std(deadline.unwrap_or_else(now));
        // In no fixed order: what is ready without end may not keep the rest waiting.
        tokio::select! {
            Ok(()) = self.wanted.changed() => Wake::Configured,
            command = self.commands.recv() => Wake::Command(command),
            room = room, if feeds => match room {
                Ok(()) => Wake::FibRoom,
                Err(_) => Wake::FibGone,
            },
            input = self.inputs.recv() => Wake::Input(input),
            () = sleep_until(at), if deadline.is_some() => Wake::Deadline,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.peers.values().filter_map(|peer| peer.session.next_deadline());
        let signatures = self.signatures.next_deadline(self.wants_sessions());
        let forgotten = self.peers.values().filter_map(Peer::forgotten_at).min();
        let others =
            [self.rib.next_deadline(), self.listeners.next_deadline(), signatures, forgotten];
        sessions.chain(others.into_iter().flatten()).min()
    }

    /// Does what time and earlier events have made due; false when other tasks have to run before
    /// there can be more.
    fn settle(&mut self) -> bool {
        let now = now();
        self.tick_sessions(now);
        self.forget_over(now);
        self.look_at_signatures(now);
        self.rib.tick(now);
        if self.rib.in_sync() && (self.restart.restarting || !self.restart.forwarding_preserved) {
            // From here on only connections end, not this speaker's forwarding.
            self.restart = Restart { restarting: false, forwarding_preserved: true };
            for peer in self.peers.values_mut() {
                peer.session.set_restart(self.restart);
            }
        }
        self.changed |= self.listeners.tick(now, &self.mailbox);
        let flushed = self.flush();
        self.tell_best_changes();
        self.warn_of_unsayable(now);
        if std::mem::take(&mut self.changed) {
            self.changes.send_modify(|generation| *generation += 1);
        }
        flushed
    }

    /// Whether a peer has no session that should have one.
    fn wants_sessions(&self) -> bool {
        self.peers.values().any(Peer::waits)
    }

    /// Says of peers that cannot be reached what the kernel knows about their signatures.
    fn look_at_signatures(&mut self, now: Instant) {
        let wanted = self.wants_sessions();
        let counted = self.signatures.look(now, wanted);
        if counted == md5::Counters::default() {
            return;
        }
        for has_password in [true, false] {
            let affected =
                |peer: &&mut Peer| peer.waits() && peer.config.password.is_some() == has_password;
            let others = self.peers.values_mut().filter(affected).count().saturating_sub(1);
            let Some(text) = counted.explain(has_password, others) else { continue };
            for peer in self.peers.values_mut().filter(affected) {
                if peer.suspect(now, &text) {
                    tracing::warn!(peer = %peer.name, "{text}");
                    self.changed = true;
                }
            }
        }
    }

    fn tick_sessions(&mut self, now: Instant) {
        let due: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.session.next_deadline().is_some_and(|at| at <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            // The hold timer may only fire when nothing of the peer is left to read: neither in our
            // queue nor in the socket. After a long pause of this process reads come before deadlines.
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(expired) = peer.session.hold_expired(now)
                && peer.connections.get(&expired).is_some_and(Connection::has_unread)
            {
                peer.session.put_off_hold(now);
            }
            self.end_rest(key, now);
            self.handle(key, Event::Tick);
        }
    }

    /// Encodes what peers can take and hands it to their writers; false when there may be more.
    fn flush(&mut self) -> bool {
        let mut output = std::mem::take(&mut self.output);
        let (mut done, began) = (false, Instant::now());
        for _ in 0..FLUSHES_PER_TURN_MAX {
            self.rib.flush(&mut output);
            done = output.is_empty();
            if done {
                break;
            }
            for Output { peer: rib_id, chunk } in output.drain(..) {
                let peer = self.by_rib_id.get(&rib_id).and_then(|key| self.peers.get(key));
                let connection = peer
                    .and_then(|peer| peer.connections.get(&peer.session.established()?.connection));
                if let Some(connection) = connection {
                    connection.send_chunk(chunk);
                    // Only a queue that is really full may stop the RIB: it is what reports room.
                    let (room, catch_up) = connection.rooms();
                    self.rib.set_rooms(rib_id, room, catch_up);
                }
            }
            if began.elapsed() >= WORK_PER_TURN_MAX {
                break;
            }
        }
        self.output = output;
        done
    }

    /// Says, now and then, which routes are too large for some peers.
    fn warn_of_unsayable(&mut self, now: Instant) {
        for unsayable in self.rib.take_unsayable() {
            let peer = unsayable.peers.first().and_then(|peer| self.by_rib_id.get(peer));
            let Some(peer) = peer.and_then(|key| self.peers.get_mut(key)) else { continue };
            let Some(held_back) = peer.unsayable.pass(now, WARNING_REST) else { continue };
            tracing::warn!(
                peer = %peer.name,
                peers_alike = unsayable.peers.len() - 1,
                prefix = %unsayable.prefix,
                routes = unsayable.routes,
                held_back,
                "routes are withheld from this peer and those alike: {}",
                unsayable.error
            );
        }
    }

    fn feed_fib(&mut self) {
        let Some(fib) = &self.fib else { return };
        let Ok(permit) = fib.try_reserve() else { return };
        let changes = self.rib.take_fib(FIB_BATCH_CHANGES_MAX);
        let in_sync = self.rib.is_complete() && !self.rib.fib_pending();
        self.fib_in_sync = in_sync;
        permit.send(FibBatch { changes, in_sync });
    }

    fn answer(&mut self, command: Command) {
        if self.wanted.has_changed().unwrap_or(false) {
            self.configure();
        }
        match command {
            Command::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Command::Routes(filter, answer) => {
                let _ = answer.send(self.rib.routes(&filter));
            }
            Command::Operate(operation) => self.operate(operation),
            Command::Ask(question) => self.answer_question(question),
            // Taken by `run`, which has to end.
            Command::Shutdown(..) => {}
        }
    }

    fn snapshot(&self) -> SpeakerSnapshot {
        let now = now();
        let (prefixes, attribute_sets) = self.rib.sizes();
        let peers = self.peers.values();
        SpeakerSnapshot {
            asn: self.config.asn,
            router_id: self.config.router_id.to_string(),
            in_sync: self.rib.in_sync(),
            peers: peers
                .map(|peer| (peer.name.to_string(), peer.snapshot(now, &self.rib)))
                .collect(),
            listeners: self.listeners.snapshot(),
            prefixes,
            attribute_sets,
        }
    }

    /// Ends all sessions and waits until the last words are out.
    async fn end(mut self, how: Shutdown) {
        self.listeners.close();
        let reason = match how {
            Shutdown::Cease { text } => StopReason::Shutdown { text },
            Shutdown::KeepRoutes => StopReason::KeepRoutes,
        };
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.handle(key, Event::Stop(reason.clone()));
        }
        self.changes.send_modify(|generation| *generation += 1);
        // Every task of a connection holds a sender: when all have gone, all is written.
        let Owner { mailbox, mut inputs, peers, .. } = self;
        drop((mailbox, peers));
        let _ = timeout(FAREWELL_WAIT, async { while inputs.recv().await.is_some() {} }).await;
    }
}

/// The time that everything counts from: tokio's, so that tests can stop it.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long taking in, or encoding, may go on before deadlines are looked at and other tasks run. On a machine
/// that gives this process a fraction of its time, what usually takes a moment takes seconds.
pub(super) const WORK_PER_TURN_MAX: Duration = Duration::from_millis(50);
/// Rounds of encoding between two looks at inputs.
const FLUSHES_PER_TURN_MAX: usize = 8;
