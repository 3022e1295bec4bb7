//! A whole speaker but for its sockets: octets of a peer go through decoder, session and RIB, and what
//! two other peers are told because of them has to be flawless.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use cairn_bgp::config::{Multipath, PeerConfig, SpeakerConfig};
use cairn_bgp::policy::{Action as Verdict, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::rib::{Output, PeerId, PeerSession, Rib, RibConfig, RibPeerConfig};
use cairn_bgp::session::{
    Action, ConnectionId, Established, Event, Jitter, LocalAddresses, Message, Received, Restart,
    Session, SessionConfig,
};
use cairn_bgp::stream::{Decoder, Item, ReaderConfig};
use cairn_bgp::wire::{
    AddPathMode, AttributeTypes, Capability, Frame, MESSAGE_OCTETS_MAX_EXTENDED, Open, RefreshKind,
    UpdateBody, UpdateContext,
};

/// What the peer whose octets are fed is like.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub external: bool,
    /// 4-octet AS numbers.
    pub as4: bool,
    /// Messages up to 65,535 octets.
    pub extended_messages: bool,
    /// Attributes of the types 8 to 40 are discarded unseen.
    pub discards: bool,
    /// It sends several IPv4 paths to a prefix (RFC 7911).
    pub paths: bool,
}

impl Scenario {
    pub fn new(bits: u8) -> Scenario {
        Scenario {
            external: bits & 1 == 0,
            as4: bits & 6 != 0,
            extended_messages: bits & 8 == 0,
            discards: bits & 0x70 == 0,
            paths: bits & 0x70 == 0x10,
        }
    }
}

/// What has happened, to show that everything is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub established: usize,
    pub updates: usize,
    pub errors: usize,
    pub malformed: usize,
    pub refreshes: usize,
    pub notifications: usize,
    /// UPDATEs that the other peers got.
    pub told: usize,
}

impl Seen {
    /// Both together.
    pub fn and(self, other: Seen) -> Seen {
        Seen {
            established: self.established + other.established,
            updates: self.updates + other.updates,
            errors: self.errors + other.errors,
            malformed: self.malformed + other.malformed,
            refreshes: self.refreshes + other.refreshes,
            notifications: self.notifications + other.notifications,
            told: self.told + other.told,
        }
    }
}

pub struct Speaker {
    now: Instant,
    scenario: Scenario,
    session: Session,
    rib: Rib,
    peer: PeerId,
    watchers: [Watcher; 2],
    /// Open connections, the youngest last: the peer may connect again while the session stands.
    streams: Vec<Stream>,
    pub seen: Seen,
}

/// One connection of the peer.
struct Stream {
    connection: ConnectionId,
    decoder: Decoder,
    buffer: BytesMut,
}

/// A peer that only listens.
struct Watcher {
    id: PeerId,
    context: UpdateContext,
}

impl Speaker {
    pub fn new(scenario: Scenario) -> Speaker {
        let now = Instant::now();
        let speaker = speaker_config();
        let mut rib = Rib::new(RibConfig {
            router_id: speaker.router_id,
            multipath: speaker.multipath,
            seed: 1,
            deferral_until: now,
            restarting: false,
        });
        rib.tick(now);
        let asn = if scenario.external { PEER_ASN } else { LOCAL_ASN };
        let mut config = peer_config(2, asn);
        config.add_path.receive = scenario.paths;
        let session = session(&speaker, &config, now);
        let peer = rib.add_peer(RibPeerConfig::new(&speaker, &"peer".into(), &config));
        let watchers = [(3, LOCAL_ASN), (4, WATCHER_ASN)].map(|(host, asn)| {
            let mut config = peer_config(host, asn);
            config.route_reflector_client = asn == LOCAL_ASN;
            let mut open = open(host, asn, true, true);
            if asn == LOCAL_ASN {
                config.add_path.send_max = 3;
                open.capabilities.push(Capability::AddPath(vec![(1, 1, AddPathMode::Receive)]));
            }
            let mut session = self::session(&speaker, &config, now);
            let established = establish(&mut session, now, open);
            let name = format!("watcher{host}").as_str().into();
            let id = rib.add_peer(RibPeerConfig::new(&speaker, &name, &config));
            rib.peer_up(id, PeerSession::new(&established));
            // The watcher reads what we send.
            let first_as = (asn != LOCAL_ASN).then_some(LOCAL_ASN);
            let context = established.negotiated.update_context(first_as, AttributeTypes::NONE);
            let path_ids = established.negotiated.add_path.send;
            let context = UpdateContext { path_ids, ..context };
            Watcher { id, context }
        });
        Speaker {
            now,
            scenario,
            session,
            rib,
            peer,
            watchers,
            streams: Vec::new(),
            seen: Seen::default(),
        }
    }

    /// Brings the session up, when it is not.
    pub fn connect(&mut self) {
        if self.session.established().is_some() {
            return;
        }
        // Whatever rest the session takes after an error is over.
        self.now += Duration::from_secs(600);
        self.handle(Event::Tick);
        self.accept();
        let Scenario { external, as4, extended_messages, paths, .. } = self.scenario;
        let asn = if external { PEER_ASN } else { LOCAL_ASN };
        let mut open = open(2, asn, as4, extended_messages);
        if paths {
            open.capabilities.push(Capability::AddPath(vec![(1, 1, AddPathMode::Both)]));
        }
        self.receive(&open.encode());
        self.receive(&cairn_bgp::wire::keepalive());
        assert!(self.session.established().is_some(), "{:?}", self.session.last_error());
        self.seen.established += 1;
    }

    /// A new connection of the peer, whose OPEN is awaited.
    pub fn accept(&mut self) {
        let connection = self.session.next_connection();
        self.handle(Event::Accepted { connection, addresses: ADDRESSES });
    }

    /// Takes in octets of the peer on its youngest connection and checks all that comes of them.
    pub fn receive(&mut self, octets: &[u8]) {
        let Some(Stream { connection, decoder, buffer }) = self.streams.last_mut() else { return };
        let connection = *connection;
        buffer.extend_from_slice(octets);
        let before = buffer.len();
        let mut items = Vec::new();
        let goes_on = decoder.decode(buffer, &mut items);
        assert!(buffer.len() <= before);
        // What waits for more is less than one message.
        assert!(!goes_on || buffer.len() < MESSAGE_OCTETS_MAX_EXTENDED);
        assert!(items.len() <= 3 * (before / 19 + 1));
        for item in items {
            self.take(connection, item);
        }
        let is_open = self.streams.iter().any(|stream| stream.connection == connection);
        assert!(goes_on || !is_open, "a malformed message ends the connection");
        self.flush();
    }

    fn take(&mut self, connection: ConnectionId, item: Item) {
        let established = self.session.established().is_some_and(|e| e.connection == connection);
        match item {
            Item::Message(message) => {
                self.seen.notifications +=
                    usize::from(matches!(message, Received::Notification(_)));
                self.handle(Event::Received { connection, message });
            }
            Item::Malformed(notification, faulty) => {
                assert!(!faulty.octets.is_empty());
                assert!(notification.encode().len() <= 4096);
                self.seen.malformed += 1;
                self.handle(Event::Malformed { connection, notification });
            }
            Item::Errors(errors, faulty) => {
                assert!(!errors.is_empty() && errors.len() <= 16);
                assert!(faulty.octets.len() >= 23);
                self.seen.errors += 1;
            }
            Item::Updates(batch) if established => {
                self.seen.updates += 1;
                self.rib.update(self.peer, batch).expect("there is no limit");
            }
            Item::Refresh(refresh) if established => {
                let Some(family) = refresh.family() else { return };
                self.seen.refreshes += 1;
                match refresh.kind {
                    RefreshKind::Request => self.rib.refresh(self.peer, family),
                    RefreshKind::Begin => self.rib.begin_refresh(self.peer, family),
                    RefreshKind::End => self.rib.end_refresh(self.peer, family),
                    RefreshKind::Unknown(_) => {}
                }
            }
            Item::Updates(_) | Item::Refresh(_) => {}
            Item::Lost(error) => self.handle(Event::Lost { connection, error }),
        }
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        assert!(actions.len() <= 8, "{actions:?}");
        for action in actions {
            match action {
                Action::Send(connection, Message::Open(open)) => {
                    assert!(open.encode().len() <= 4096);
                    let types = if self.scenario.discards { 8..41 } else { 0..0 };
                    let config = ReaderConfig {
                        first_as: self.scenario.external.then_some(PEER_ASN),
                        discard_attributes: AttributeTypes::discardable(types),
                        prefers_link_local: false,
                    };
                    let decoder = Decoder::new(*open, config);
                    self.streams.push(Stream { connection, decoder, buffer: BytesMut::new() });
                }
                Action::Send(_, Message::Notification(notification)) => {
                    assert!(notification.encode().len() <= 4096);
                }
                Action::Close(closed) | Action::Abort(closed) => {
                    self.streams.retain(|s| s.connection != closed);
                }
                Action::Up(established) => {
                    self.rib.peer_up(self.peer, PeerSession::new(&established));
                }
                Action::Down { keep, keep_older, .. } => {
                    self.rib.peer_down_again(self.peer, keep, keep_older);
                }
                Action::LongLivedStale(families) => {
                    self.rib.long_lived_stale(self.peer, families);
                }
                Action::FlushStale(families) => self.rib.flush_stale(self.peer, families),
                Action::Send(_, Message::Keepalive)
                | Action::Connect(_)
                | Action::LookAtSending(_) => {}
            }
        }
    }

    /// What the watchers are told can be read without any error.
    fn flush(&mut self) {
        let mut output = Vec::new();
        for watcher in &self.watchers {
            self.rib.set_room(watcher.id, usize::MAX);
        }
        self.rib.flush(&mut output);
        self.rib.take_fib(usize::MAX);
        for Output { peer, chunk } in output {
            let Some(watcher) = self.watchers.iter().find(|w| w.id == peer) else { continue };
            let mut octets = BytesMut::new();
            cairn_bgp::stream::write(&chunk, ADDRESSES, &mut octets);
            while let Some(frame) = Frame::split(&mut octets, MESSAGE_OCTETS_MAX_EXTENDED).unwrap()
            {
                let update = UpdateBody::split(&frame.body).unwrap().decode(&watcher.context);
                let update = update.expect("what we send is well-formed");
                assert_eq!(update.errors, [], "{:02x?}", &frame.body[..]);
                self.seen.told += 1;
            }
            assert!(octets.is_empty());
        }
    }
}

fn speaker_config() -> SpeakerConfig {
    SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: LOCAL_ASN,
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        cluster_id: None,
        listen: Vec::new(),
        peers: Default::default(),
        originate: Default::default(),
        selection_deferral_secs: 0,
        multipath: Multipath { paths_max: 4, same_as_path: false },
    }
}

fn peer_config(host: u8, asn: u32) -> PeerConfig {
    let (matches, set) = (Match::default(), Changes::default());
    let all = Arc::new(Policy {
        name: "all".into(),
        rules: vec![Rule { matches, action: Verdict::Accept, set }],
    });
    let mut config = PeerConfig::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), asn);
    config.passive = true;
    config.import = vec![Arc::clone(&all)];
    config.export = vec![all];
    config
}

fn session(speaker: &SpeakerConfig, peer: &PeerConfig, now: Instant) -> Session {
    let restart = Restart { restarting: false, forwarding_preserved: false };
    let mut session = Session::new(SessionConfig::new(speaker, peer), restart, Jitter::new(1));
    session.handle(now, Event::Start, &mut Vec::new());
    session
}

fn establish(session: &mut Session, now: Instant, open: Open) -> Box<Established> {
    let connection = session.next_connection();
    let mut actions = Vec::new();
    let messages = [Received::Open(Box::new(open)), Received::Keepalive];
    session.handle(now, Event::Accepted { connection, addresses: ADDRESSES }, &mut actions);
    for message in messages {
        session.handle(now, Event::Received { connection, message }, &mut actions);
    }
    let up = actions.into_iter().find_map(|action| match action {
        Action::Up(established) => Some(established),
        _ => None,
    });
    up.expect("a valid handshake")
}

fn open(host: u8, asn: u32, as4: bool, extended_messages: bool) -> Open {
    let mut capabilities: Vec<_> =
        Families::from_iter(Family::ALL).iter().map(Capability::multiprotocol).collect();
    capabilities.extend([Capability::RouteRefresh, Capability::EnhancedRouteRefresh]);
    if as4 {
        capabilities.push(Capability::FourOctetAs(asn));
    }
    if extended_messages {
        capabilities.push(Capability::ExtendedMessage);
    }
    Open { asn, hold_time_secs: 0, router_id: Ipv4Addr::new(192, 0, 2, host), capabilities }
}

const LOCAL_ASN: u32 = 65000;
/// The AS that begins the paths of the corpus.
const PEER_ASN: u32 = 65001;
const WATCHER_ASN: u32 = 65002;
const ADDRESSES: LocalAddresses = LocalAddresses {
    ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
    ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    link: None,
};
