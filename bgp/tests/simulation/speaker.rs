//! A speaker on the simulated network: the product's sessions, RIB, decoder and encoder, put together
//! as `cairn_bgp::speaker` does it on sockets. It decides nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cairn_bgp::config::{PeerConfig, PeerName, ResetReason, SpeakerConfig};
use cairn_bgp::prefix::{Families, Family, Prefix};
use cairn_bgp::rib::{
    FibRoute, Output, PeerId, PeerSession, PrefixLimitExceeded, Rib, RibConfig, RibPeerConfig,
};
use cairn_bgp::session::{
    Action, ConnectionId, Event, Jitter, Message, Restart, Session, SessionConfig, SessionState,
    StopReason,
};
use cairn_bgp::stream::{self, Decoder, Item, ReaderConfig};
use cairn_bgp::wire::{AttributeTypes, Open, RefreshKind, RouteRefresh, keepalive};

use super::network::{Network, Side, Wire};
use super::plan::{host_of, local_addresses};
use super::tap::Tap;

/// A peer in a speaker's life; never used twice.
pub type Key = u64;

/// The forwarding table, which outlives a speaker.
pub type Fib = BTreeMap<Prefix, FibRoute>;

#[derive(Debug)]
pub struct Speaker {
    pub host: usize,
    /// Which of the host's speakers this is.
    pub life: u64,
    pub config: SpeakerConfig,
    restart: Restart,
    pub rib: Rib,
    pub peers: BTreeMap<Key, Peer>,
    by_rib_id: BTreeMap<PeerId, Key>,
    next_key: Key,
    seed: u64,
    pub inbox: VecDeque<Input>,
    /// Prefixes that the kernel has been told of: at the end of the deferral the others are swept.
    told_fib: BTreeSet<Prefix>,
    swept: bool,
    pub sabotage: Sabotage,
    /// What happened, for the trace.
    pub log: Vec<String>,
    /// Connections asked for since the last look.
    pub calls: Vec<(Key, ConnectionId, usize)>,
}

#[derive(Debug)]
pub struct Peer {
    pub name: PeerName,
    pub config: PeerConfig,
    pub session: Session,
    pub rib_id: PeerId,
    pub connections: BTreeMap<ConnectionId, Link>,
    pub connecting: BTreeSet<ConnectionId>,
    pub is_up: bool,
    /// How often the session came up.
    pub ups: u64,
    /// When a refresh began last.
    refreshed_at: BTreeMap<Family, Instant>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Link {
    pub wire: Wire,
    pub side: Side,
    decoder: Option<Decoder>,
    buffer: BytesMut,
    pub tap: Option<Tap>,
    /// The stream is of no use any more.
    over: bool,
}

/// What the network tells a speaker.
#[derive(Clone, Debug)]
pub enum Input {
    Connected { key: Key, connection: ConnectionId, result: Result<Wire, String> },
    Accepted { from: usize, wire: Wire },
    Writable { wire: Wire },
}

/// A deliberate fault of the speaker, to show that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    ForgetsToFlushStale,
    ForgetsDown,
    ForgetsPolicies,
    LosesForwardingChanges,
    SendsWithoutOwnNextHop,
    SaysNothingOfWritable,
    AsksNobodyAgain,
}

pub struct Start {
    pub host: usize,
    pub life: u64,
    pub seed: u64,
    pub restart: Restart,
    pub sabotage: Sabotage,
}

impl Speaker {
    pub fn start(now: Instant, net: &mut Network, config: SpeakerConfig, start: Start) -> Speaker {
        let Start { host, life, seed, restart, sabotage } = start;
        let deferral = Duration::from_secs(config.selection_deferral_secs.into());
        let rib = Rib::new(RibConfig {
            router_id: config.router_id,
            multipath: config.multipath,
            seed,
            deferral_until: now + deferral,
            restarting: restart.restarting,
        });
        let mut speaker = Speaker {
            host,
            life,
            config: config.clone(),
            restart,
            rib,
            peers: BTreeMap::new(),
            by_rib_id: BTreeMap::new(),
            next_key: 0,
            seed,
            inbox: VecDeque::new(),
            told_fib: BTreeSet::new(),
            swept: false,
            sabotage,
            log: Vec::new(),
            calls: Vec::new(),
        };
        speaker.rib.set_originated(&config.originate);
        for (name, peer) in &config.peers {
            speaker.add_peer(now, net, name, peer);
        }
        speaker
    }

    /// One turn: takes in what has come, then does what is due.
    pub fn turn(&mut self, now: Instant, net: &mut Network, fib: &mut Fib, read_max: usize) {
        while let Some(input) = self.inbox.pop_front() {
            self.take(now, net, input);
        }
        self.read_all(now, net, read_max);
        self.tick_sessions(now, net);
        self.rib.tick(now);
        if self.rib.in_sync() && (self.restart.restarting || !self.restart.forwarding_preserved) {
            self.restart = Restart { restarting: false, forwarding_preserved: true };
            for peer in self.peers.values_mut() {
                peer.session.set_restart(self.restart);
            }
        }
        self.flush(now, net);
        self.feed_fib(fib);
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.peers.values().filter_map(|peer| peer.session.next_deadline());
        sessions.chain(self.rib.next_deadline()).min()
    }

    fn take(&mut self, now: Instant, net: &mut Network, input: Input) {
        match input {
            Input::Connected { key, connection, result } => {
                let asked =
                    self.peers.get_mut(&key).is_some_and(|p| p.connecting.remove(&connection));
                match result {
                    Ok(wire) if !asked => net.close(now, wire, 0),
                    Ok(wire) => {
                        self.link(key, connection, wire, 0);
                        let addresses = local_addresses(self.host);
                        self.handle(now, net, key, Event::Connected { connection, addresses });
                    }
                    Err(error) if asked => {
                        self.handle(now, net, key, Event::ConnectFailed { connection, error });
                    }
                    Err(_) => {}
                }
            }
            Input::Accepted { from, wire } => {
                let found = self.peers.iter_mut().find(|(_, p)| host_of(p.config.address) == from);
                let Some((key, peer)) = found else { return net.close(now, wire, 1) };
                let (key, connection) = (*key, peer.session.next_connection());
                self.link(key, connection, wire, 1);
                let addresses = local_addresses(self.host);
                self.handle(now, net, key, Event::Accepted { connection, addresses });
            }
            Input::Writable { wire } => {
                let found = self.peers.iter().find(|(_, p)| p.is_carried_by(wire));
                if let Some(key) = found.map(|(key, _)| *key)
                    && self.sabotage != Sabotage::SaysNothingOfWritable
                {
                    self.update_room(net, key);
                }
            }
        }
    }

    fn link(&mut self, key: Key, connection: ConnectionId, wire: Wire, side: Side) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let buffer = BytesMut::new();
        let link = Link { wire, side, decoder: None, buffer, tap: None, over: false };
        peer.connections.insert(connection, link);
    }

    fn read_all(&mut self, now: Instant, net: &mut Network, max: usize) {
        let all = self
            .peers
            .iter()
            .flat_map(|(key, peer)| peer.connections.keys().map(|connection| (*key, *connection)));
        for (key, connection) in all.collect::<Vec<_>>() {
            self.read(now, net, key, connection, max);
        }
    }

    fn read(
        &mut self,
        now: Instant,
        net: &mut Network,
        key: Key,
        connection: ConnectionId,
        max: usize,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(link) = peer.connections.get_mut(&connection) else { return };
        let (Some(decoder), Some(tap), false) = (&mut link.decoder, &mut link.tap, link.over)
        else {
            return;
        };
        let (octets, ended) = net.read(now, link.wire, link.side, max);
        let mut items = Vec::new();
        tap.read(&octets);
        link.buffer.extend_from_slice(&octets);
        if !decoder.decode(&mut link.buffer, &mut items) {
            link.over = true;
        } else if let Some(error) = ended {
            link.over = true;
            items.push(Item::Lost(error));
        }
        if !items.is_empty() {
            self.take_items(now, net, key, connection, items);
        }
    }

    fn take_items(
        &mut self,
        now: Instant,
        net: &mut Network,
        key: Key,
        connection: ConnectionId,
        items: Vec<Item>,
    ) {
        for item in items {
            match item {
                Item::Message(message) => {
                    self.handle(now, net, key, Event::Received { connection, message });
                }
                Item::Malformed(notification, _) => {
                    panic!("a peer of the same code sent something malformed: {notification}");
                }
                Item::Lost(error) => {
                    self.handle(now, net, key, Event::Lost { connection, error });
                    self.let_go(now, net, key, connection);
                }
                Item::Errors(errors, _) => {
                    panic!("errors in an UPDATE of the same code: {errors:?}")
                }
                Item::Updates(batch) => {
                    let Some(rib_id) = self.established(key, connection) else { continue };
                    if let Err(exceeded) = self.rib.update(rib_id, batch) {
                        let PrefixLimitExceeded { family, prefixes_max, restart_after_secs } =
                            exceeded;
                        let reason =
                            StopReason::PrefixLimit { family, prefixes_max, restart_after_secs };
                        self.handle(now, net, key, Event::Stop(reason));
                    }
                }
                Item::Refresh(refresh) => self.refresh(now, key, connection, refresh),
            }
        }
        self.update_room(net, key);
    }

    fn refresh(&mut self, now: Instant, key: Key, connection: ConnectionId, refresh: RouteRefresh) {
        let Some(rib_id) = self.established(key, connection) else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(established) = peer.session.established() else { return };
        let family = refresh.family().expect("a family that there is");
        assert!(established.families().contains(family), "a family of the session");
        match refresh.kind {
            RefreshKind::Request => self.rib.refresh(rib_id, family),
            RefreshKind::Begin => {
                let last = peer.refreshed_at.get(&family);
                if last.is_none_or(|last| *last + REFRESH_REST <= now) {
                    peer.refreshed_at.insert(family, now);
                    self.rib.begin_refresh(rib_id, family);
                }
            }
            RefreshKind::End => self.rib.end_refresh(rib_id, family),
            RefreshKind::Unknown(_) => unreachable!("nobody sends it"),
        }
    }

    fn established(&self, key: Key, connection: ConnectionId) -> Option<PeerId> {
        let peer = self.peers.get(&key)?;
        let established = peer.session.established()?;
        (established.connection == connection).then_some(peer.rib_id)
    }

    fn update_room(&mut self, net: &Network, key: Key) {
        let Some(peer) = self.peers.get(&key) else { return };
        if let Some(link) = peer.session_link() {
            self.rib.set_room(peer.rib_id, net.room(link.wire, link.side));
        }
    }

    fn tick_sessions(&mut self, now: Instant, net: &mut Network) {
        let due = |peer: &Peer| peer.session.next_deadline().is_some_and(|at| at <= now);
        let due: Vec<Key> =
            self.peers.iter().filter(|(_, peer)| due(peer)).map(|(key, _)| *key).collect();
        for key in due {
            if let Some(peer) = self.peers.get_mut(&key)
                && let Some(expired) = peer.session.hold_expired(now)
                && let Some(link) = peer.connections.get(&expired)
                && net.has_unread(link.wire, link.side)
            {
                peer.session.put_off_hold(now);
            }
            self.handle(now, net, key, Event::Tick);
        }
    }

    fn flush(&mut self, now: Instant, net: &mut Network) {
        let mut output = Vec::new();
        loop {
            self.rib.flush(&mut output);
            if output.is_empty() {
                return;
            }
            for Output { peer: rib_id, chunk } in output.drain(..) {
                let peer = self.by_rib_id.get(&rib_id).and_then(|key| self.peers.get(key));
                let peer = peer.expect("chunks are for peers that there are");
                let link = peer.session_link().expect("chunks are for established sessions");
                let mut buffer = BytesMut::new();
                let own = match self.sabotage {
                    Sabotage::SendsWithoutOwnNextHop => local_addresses(99),
                    _ => local_addresses(self.host),
                };
                stream::write(&chunk, own, &mut buffer);
                net.send(now, link.wire, link.side, buffer.freeze(), chunk.octets);
                self.rib.set_room(rib_id, net.room(link.wire, link.side));
            }
        }
    }

    fn feed_fib(&mut self, fib: &mut Fib) {
        for change in self.rib.take_fib(usize::MAX) {
            if self.sabotage == Sabotage::LosesForwardingChanges && change.route.is_none() {
                continue;
            }
            self.told_fib.insert(change.prefix);
            match change.route {
                Some(route) => drop(fib.insert(change.prefix, route)),
                None => drop(fib.remove(&change.prefix)),
            }
        }
        if self.rib.is_complete() && !self.swept {
            self.swept = true;
            fib.retain(|prefix, _| self.told_fib.contains(prefix));
        }
    }

    pub fn handle(&mut self, now: Instant, net: &mut Network, key: Key, event: Event) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let mut actions = Vec::new();
        peer.session.handle(now, event, &mut actions);
        self.perform(now, net, key, actions);
        if let Some(peer) = self.peers.get(&key) {
            assert_eq!(peer.is_up, peer.session.established().is_some(), "Up and Down are told");
        }
    }

    fn perform(&mut self, now: Instant, net: &mut Network, key: Key, actions: Vec<Action>) {
        for action in actions {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            match action {
                Action::Connect(connection) => {
                    assert!(peer.connecting.is_empty(), "one attempt at a time");
                    peer.connecting.insert(connection);
                    self.calls.push((key, connection, host_of(peer.config.address)));
                }
                Action::Send(connection, message) => {
                    let link = peer.connections.get_mut(&connection);
                    let link = link.expect("nothing is sent over what is closed");
                    let octets: Bytes = match message {
                        Message::Open(open) => {
                            let first_as = Some(peer.config.asn);
                            let config = ReaderConfig {
                                first_as,
                                discard_attributes: AttributeTypes::NONE,
                                prefers_link_local: false,
                            };
                            link.decoder = Some(Decoder::new(Open::clone(&open), config));
                            link.tap = Some(Tap::new(Open::clone(&open)));
                            open.encode()
                        }
                        Message::Keepalive => keepalive(),
                        Message::Notification(notification) => {
                            self.log.push(format!("{} sends {notification}", peer.name));
                            notification.encode()
                        }
                    };
                    net.send(now, link.wire, link.side, octets, 0);
                }
                Action::Close(connection) => {
                    peer.connecting.remove(&connection);
                    self.let_go(now, net, key, connection);
                }
                Action::Abort(connection) => {
                    peer.connecting.remove(&connection);
                    if let Some(link) = peer.connections.remove(&connection) {
                        net.abort(now, link.wire, link.side);
                    }
                }
                Action::LookAtSending(connection) => {
                    let link = peer.connections.get(&connection).expect("it stands");
                    let moves = net.moves(link.wire, link.side);
                    self.handle(now, net, key, Event::Sending { connection, moves });
                }
                Action::Up(established) => {
                    assert!(!std::mem::replace(&mut peer.is_up, true), "up twice");
                    peer.ups += 1;
                    self.log.push(format!("{} up", peer.name));
                    self.rib.peer_up(peer.rib_id, PeerSession::new(&established));
                    self.update_room(net, key);
                }
                Action::Down { reason, keep, keep_older } => {
                    assert!(std::mem::replace(&mut peer.is_up, false), "down without up");
                    self.log.push(format!("{} down: {reason}, keeps {keep:?}", peer.name));
                    if self.sabotage != Sabotage::ForgetsDown {
                        self.rib.peer_down_again(peer.rib_id, keep, keep_older);
                    }
                }
                Action::FlushStale(families) => {
                    self.log.push(format!("{}: stale {families:?} go", peer.name));
                    if self.sabotage != Sabotage::ForgetsToFlushStale {
                        self.rib.flush_stale(peer.rib_id, families);
                    }
                }
                Action::LongLivedStale(families) => {
                    self.log.push(format!("{}: {families:?} are a last resort", peer.name));
                    self.rib.long_lived_stale(peer.rib_id, families);
                }
            }
        }
    }

    fn let_go(&mut self, now: Instant, net: &mut Network, key: Key, connection: ConnectionId) {
        let peer = self.peers.get_mut(&key);
        if let Some(link) = peer.and_then(|peer| peer.connections.remove(&connection)) {
            net.close(now, link.wire, link.side);
        }
    }

    fn add_peer(&mut self, now: Instant, net: &mut Network, name: &PeerName, config: &PeerConfig) {
        let key = self.next_key;
        self.next_key += 1;
        let rib_id = self.rib.add_peer(RibPeerConfig::new(&self.config, name, config));
        let jitter = Jitter::new(self.seed.wrapping_add(key));
        let session = Session::new(SessionConfig::new(&self.config, config), self.restart, jitter);
        let peer = Peer {
            name: Arc::clone(name),
            config: config.clone(),
            session,
            rib_id,
            connections: BTreeMap::new(),
            connecting: BTreeSet::new(),
            is_up: false,
            ups: 0,
            refreshed_at: BTreeMap::new(),
        };
        self.by_rib_id.insert(rib_id, key);
        self.peers.insert(key, peer);
        self.handle(now, net, key, Event::Start);
    }

    /// Takes up a configuration, as the speaker does: only what differs is touched.
    pub fn configure(&mut self, now: Instant, net: &mut Network, new: &SpeakerConfig) {
        let old = std::mem::replace(&mut self.config, new.clone());
        let removed = self.peers.iter().filter(|(_, p)| !new.peers.contains_key(&p.name));
        for key in removed.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.handle(now, net, key, Event::Stop(StopReason::Removed));
            if let Some(peer) = self.peers.remove(&key) {
                assert!(peer.connections.is_empty() && peer.connecting.is_empty(), "all closed");
                self.by_rib_id.remove(&peer.rib_id);
                self.rib.remove_peer(peer.rib_id);
            }
        }
        self.rib.configure(new.router_id, new.multipath);
        self.rib.set_cluster_id(new.cluster_id());
        let identity_changed = (old.asn, old.router_id) != (new.asn, new.router_id);
        for (name, config) in &new.peers {
            match self.peers.iter().find(|(_, peer)| peer.name == *name).map(|(key, _)| *key) {
                None => self.add_peer(now, net, name, config),
                Some(key) => self.configure_peer(now, net, key, config, identity_changed),
            }
        }
        self.rib.set_originated(&new.originate);
    }

    fn configure_peer(
        &mut self,
        now: Instant,
        net: &mut Network,
        key: Key,
        config: &PeerConfig,
        identity_changed: bool,
    ) {
        let Some(peer) = self.peers.get(&key) else { return };
        let needed = peer.config.needs_reset(config);
        let reset = identity_changed || needed.is_some();
        if peer.config == *config && !reset {
            return;
        }
        if reset {
            let same_peer = !identity_changed && needed != Some(ResetReason::Transport);
            let reason = StopReason::ConfigurationChange { same_peer };
            self.handle(now, net, key, Event::Stop(reason));
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let comes_back = peer.config.prefix_limit != config.prefix_limit
            && peer.session.state() == SessionState::Idle;
        let asks_again = !reset && peer.config.needs_refresh(config);
        let ups = (peer.is_up, peer.ups);
        peer.config = config.clone();
        if self.sabotage != Sabotage::ForgetsPolicies {
            let rib_config = RibPeerConfig::new(&self.config, &peer.name, config);
            self.rib.configure_peer(peer.rib_id, rib_config);
        }
        let mut actions = Vec::new();
        peer.session.configure(now, SessionConfig::new(&self.config, config), &mut actions);
        self.perform(now, net, key, actions);
        if reset || comes_back {
            self.handle(now, net, key, Event::Start);
        } else {
            let peer = &self.peers[&key];
            assert_eq!((peer.is_up, peer.ups), ups, "what needs no reset leaves the session alone");
        }
        if asks_again && self.sabotage != Sabotage::AsksNobodyAgain {
            self.ask_again(now, net, key);
        }
    }

    /// Asks a peer for its routes again.
    pub fn ask_again(&mut self, now: Instant, net: &mut Network, key: Key) {
        let Some(link) = self.peers.get(&key).and_then(Peer::session_link) else { return };
        let families = self.peers[&key].session.established().map(|e| e.families());
        for family in families.into_iter().flat_map(Families::iter) {
            let octets = RouteRefresh::new(family, RefreshKind::Request).encode();
            net.send(now, link.wire, link.side, octets, 0);
        }
    }

    /// All links of the host have lost their carrier.
    pub fn lose_carrier(&mut self, now: Instant, net: &mut Network) {
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            let established = self.peers[&key].session.established();
            if let Some(connection) = established.map(|established| established.connection) {
                self.handle(now, net, key, Event::CarrierLost { connection });
            }
        }
    }

    /// BFD has found the path to a peer dead: what the speaker makes of it in each state.
    pub fn path_dead(&mut self, now: Instant, net: &mut Network, key: Key, independent: bool) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.is_up {
            let reason = StopReason::PathDead { text: "simulation".to_owned() };
            self.handle(now, net, key, Event::Stop(reason));
            self.handle(now, net, key, Event::Start);
        } else if independent {
            let mut actions = Vec::new();
            peer.session.drop_stale(&mut actions);
            self.perform(now, net, key, actions);
        } else {
            return;
        }
        let Some(peer) = self.peers.get(&key) else { return };
        let left = Family::ALL.map(|family| self.rib.counts(peer.rib_id, family).received);
        assert_eq!(left, [0; 2], "nothing of {} is kept when BFD says that it is dead", peer.name);
    }

    /// Ends all sessions in the given way.
    pub fn stop(&mut self, now: Instant, net: &mut Network, reason: &StopReason) {
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            self.handle(now, net, key, Event::Stop(reason.clone()));
        }
    }
}

impl Peer {
    /// The connection of the established session.
    pub fn session_link(&self) -> Option<&Link> {
        self.connections.get(&self.session.established()?.connection)
    }

    fn is_carried_by(&self, wire: Wire) -> bool {
        self.session_link().is_some_and(|link| link.wire == wire)
    }
}

/// As the speaker has it: a refresh that begins sooner after another one sweeps nothing.
const REFRESH_REST: Duration = Duration::from_secs(1);
