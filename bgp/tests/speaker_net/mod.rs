//! Speakers on addresses of their own in a network namespace of their own.

#![allow(dead_code, reason = "shared by several test files")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use cairn_bgp::config::{
    GracefulRestart, Multipath, Origination, PeerConfig, PeerName, SpeakerConfig,
};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::prefix::Family;
use cairn_bgp::rib::FibRoute;
use cairn_bgp::speaker::{FibFeed, Speaker, SpeakerHandle, SpeakerOptions};
use cairn_bgp::wire::{
    Capability, Frame, MESSAGE_OCTETS_MAX_EXTENDED, MessageType, Notification, Open, keepalive,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A network namespace: codec and RIB refuse loopback next hops, as they should.
pub struct Net {
    next: AtomicU32,
}

/// A speaker before its start.
#[derive(Clone)]
pub struct Setup {
    pub config: SpeakerConfig,
    pub options: SpeakerOptions,
}

/// A running speaker.
pub struct Node {
    pub config: SpeakerConfig,
    pub handle: SpeakerHandle,
    pub feed: FibFeed,
}

/// The forwarding table that a feed describes.
pub struct Fib {
    feed: FibFeed,
    pub routes: BTreeMap<String, FibRoute>,
    pub removed: BTreeSet<String>,
    pub in_sync: bool,
}

/// Peers as a test writes them by hand.
pub struct FakePeer {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Net {
    /// Moves this thread into a new network namespace, which goes with its last socket.
    pub fn new() -> Net {
        // SAFETY: no memory is passed; a runtime of one thread opens all its sockets on it.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "a network namespace needs root: run the tests as root ({error})");
        ip("link set lo up");
        Net { next: AtomicU32::new(1) }
    }

    /// An address on an interface of its own, with an IPv6 address beside it.
    pub fn address(&self) -> Ipv4Addr {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ip(&format!("link add d{number} type veth peer name p{number}"));
        ip(&format!("link set d{number} up"));
        ip(&format!("addr add 192.0.2.{number}/32 dev d{number}"));
        ip(&format!("addr add 2001:db8::{number}/128 dev d{number} nodad"));
        Ipv4Addr::new(192, 0, 2, number as u8)
    }

    pub fn speaker(&self, asn: u32) -> Setup {
        let address = self.address();
        Setup {
            config: SpeakerConfig {
                origins: Default::default(),
                ranges: Default::default(),
                asn,
                router_id: address,
                cluster_id: None,
                listen: vec![SocketAddr::new(address.into(), PORT)],
                peers: BTreeMap::new(),
                originate: BTreeMap::new(),
                selection_deferral_secs: 10,
                multipath: Multipath { paths_max: 1, same_as_path: false },
            },
            options: SpeakerOptions::default(),
        }
    }

    /// Two speakers `a` and `b` that know each other; `a` connects.
    pub fn pair(&self, asn_a: u32, asn_b: u32) -> (Setup, Setup) {
        let (mut a, mut b) = (self.speaker(asn_a), self.speaker(asn_b));
        connect(&mut a, "a", &mut b, "b");
        (a, b)
    }
}

/// As [`connect`], over the IPv6 addresses beside the IPv4 ones.
pub fn connect_over_ipv6(a: &mut Setup, name_a: &str, b: &mut Setup, name_b: &str) {
    for setup in [&mut *a, &mut *b] {
        let number = setup.config.router_id.octets()[3];
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, hexadecimal(number));
        setup.config.listen = vec![SocketAddr::new(address.into(), PORT)];
    }
    connect(a, name_a, b, name_b);
}

/// `ip` reads the digits of a number in an IPv6 address as hexadecimal ones.
fn hexadecimal(number: u8) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).expect("digits")
}

/// Makes two speakers peers of each other; the first one connects.
pub fn connect(a: &mut Setup, name_a: &str, b: &mut Setup, name_b: &str) {
    let (address_a, address_b) = (a.config.listen[0].ip(), b.config.listen[0].ip());
    let to_b = peer(address_a, address_b, b.config.asn, false);
    let to_a = peer(address_b, address_a, a.config.asn, true);
    a.config.peers.insert(PeerName::from(name_b), to_b);
    b.config.peers.insert(PeerName::from(name_a), to_a);
}

pub fn peer(local: IpAddr, remote: IpAddr, asn: u32, passive: bool) -> PeerConfig {
    PeerConfig {
        port: PORT,
        source_address: Some(local),
        passive,
        connect_retry_secs: 1,
        graceful_restart: Some(GracefulRestart::new(30)),
        ..PeerConfig::new(remote, asn)
    }
}

pub fn originate(config: &mut SpeakerConfig, prefixes: &[&str]) {
    for prefix in prefixes {
        let source = Arc::from("test");
        let origination = Origination { source, communities: Vec::new(), local_pref: None };
        config.originate.insert(prefix.parse().expect("a prefix"), origination);
    }
}

pub fn accept_all() -> Arc<Policy> {
    let (matches, set) = (Match::default(), Changes::default());
    Arc::new(Policy {
        name: "all".into(),
        rules: vec![Rule { matches, action: Action::Accept, set }],
    })
}

impl Node {
    pub fn start(setup: Setup) -> Node {
        let Setup { config, options } = setup;
        let (handle, feed) =
            Speaker::start(config.clone(), options).expect("a valid configuration");
        Node { config, handle, feed }
    }
}

impl Fib {
    pub fn new(feed: FibFeed) -> Fib {
        Fib { feed, routes: BTreeMap::new(), removed: BTreeSet::new(), in_sync: false }
    }

    pub fn next_hop(&self, prefix: &str) -> String {
        self.routes[prefix].paths[0].next_hop.to_string()
    }

    pub async fn until_has(&mut self, prefixes: &[&str]) {
        let prefixes = prefixes.to_vec();
        self.until(&format!("{prefixes:?} are there"), |fib| {
            prefixes.iter().all(|prefix| fib.routes.contains_key(*prefix))
        })
        .await;
    }

    pub async fn until_exactly(&mut self, prefixes: &[&str]) {
        let wanted: BTreeSet<&str> = prefixes.iter().copied().collect();
        self.until(&format!("the routes are {wanted:?}"), |fib| {
            fib.routes.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted
        })
        .await;
    }

    pub async fn until_in_sync(&mut self) {
        self.until("the feed is in sync", |fib| fib.in_sync).await;
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Fib) -> bool) {
        let waiting = async {
            while !holds(self) {
                let batch = self.feed.recv().await.expect("the speaker runs");
                for change in batch.changes {
                    let prefix = change.prefix.to_string();
                    match change.route {
                        Some(route) => {
                            self.routes.insert(prefix, route);
                        }
                        None => {
                            self.routes.remove(&prefix);
                            self.removed.insert(prefix);
                        }
                    }
                }
                self.in_sync |= batch.in_sync;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("never: {what}; routes are {:?}", self.routes.keys().collect::<Vec<_>>());
        }
    }
}

/// Another process that has a port.
pub struct PortHolder(libc::pid_t);

impl PortHolder {
    pub fn new(address: SocketAddr) -> PortHolder {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        // SAFETY: the child does nothing but wait with the socket that it inherits.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: system calls only; the kernel ends the child with this thread.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        drop(listener);
        PortHolder(pid)
    }

    pub fn pid(&self) -> libc::pid_t {
        self.0
    }
}

impl Drop for PortHolder {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

impl FakePeer {
    /// Accepts a session and takes it to Established.
    pub async fn accept(listen: SocketAddr, asn: u32, router_id: Ipv4Addr) -> FakePeer {
        let listener = TcpListener::bind(listen).await.expect("a free address");
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut peer = FakePeer { stream, buffer: BytesMut::new() };
        peer.send(&fake_open(asn, router_id).encode()).await;
        peer.send(&keepalive()).await;
        peer
    }

    /// Connects from an address, without a word.
    pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> FakePeer {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(from.into(), 0)).expect("the peer's address");
        let stream = socket.connect(to).await.expect("a listener");
        FakePeer { stream, buffer: BytesMut::new() }
    }

    /// Connects as soon as somebody listens, and takes the session to Established from this side.
    pub async fn established(from: Ipv4Addr, to: SocketAddr, open: Open) -> FakePeer {
        until_listens(to).await;
        FakePeer::connect(from, to).await.establish(open).await
    }

    /// As [`FakePeer::established`], with a kernel that takes next to nothing while nobody reads.
    pub async fn with_little_room(from: Ipv4Addr, to: SocketAddr, open: Open) -> FakePeer {
        until_listens(to).await;
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        socket.bind(SocketAddr::new(from.into(), 0)).expect("the peer's address");
        let stream = socket.connect(to).await.expect("a listener");
        FakePeer { stream, buffer: BytesMut::new() }.establish(open).await
    }

    async fn establish(self, open: Open) -> FakePeer {
        let mut peer = self;
        peer.send(&open.encode()).await;
        peer.send(&keepalive()).await;
        peer.until_message(MessageType::Keepalive).await;
        peer
    }

    /// Says KEEPALIVE from a thread of its own, whatever the runtime does, for a number of times.
    pub fn keep_alive(self, every: Duration, times: u32) -> std::thread::JoinHandle<()> {
        let mut stream = self.stream.into_std().expect("a socket");
        stream.set_nonblocking(false).expect("a socket");
        std::thread::spawn(move || {
            for _ in 0..times {
                if std::io::Write::write_all(&mut stream, &keepalive()).is_err() {
                    return;
                }
                std::thread::sleep(every);
            }
        })
    }

    pub async fn send(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.expect("an open socket");
    }

    /// As [`FakePeer::send`], to a side that may have closed.
    pub async fn try_send(&mut self, octets: &[u8]) -> bool {
        self.stream.write_all(octets).await.is_ok()
    }

    /// The next message; `None` when the other side has closed.
    pub async fn message(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                let frame = Frame::split(&mut self.buffer, MESSAGE_OCTETS_MAX_EXTENDED);
                if let Some(frame) = frame.expect("a frame") {
                    return Some(frame);
                }
                // A reset is as good an end as any.
                if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a message or the end")
    }

    pub async fn until_message(&mut self, wanted: MessageType) -> Frame {
        loop {
            let frame = self.message().await.unwrap_or_else(|| panic!("closed before {wanted:?}"));
            if frame.message_type == wanted {
                return frame;
            }
        }
    }

    /// Reads until a NOTIFICATION comes.
    pub async fn notification(mut self) -> Notification {
        let frame = self.until_message(MessageType::Notification).await;
        Notification::decode(&frame.body).expect("a notification")
    }

    /// Reads until the other side closes.
    pub async fn until_closed(mut self) {
        while self.message().await.is_some() {}
    }
}

/// An OPEN with the IPv4 family and a 4-octet AS number.
pub fn fake_open(asn: u32, router_id: Ipv4Addr) -> Open {
    Open {
        asn,
        hold_time_secs: 90,
        router_id,
        capabilities: vec![
            Capability::multiprotocol(Family::Ipv4Unicast),
            Capability::FourOctetAs(asn),
        ],
    }
}

pub async fn until_listens(to: SocketAddr) {
    until("somebody listens", || async {
        // From its own address, which is no peer's: closed at once.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(to.ip(), 0)).expect("an address");
        socket.connect(to).await.is_ok()
    })
    .await;
}

pub fn ip(arguments: &str) {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
    let status = status.expect("the ip command: apt-get install iproute2");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

/// Lets things go their way for a while.
pub async fn settled(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Addresses differ, so the port need not.
const PORT: u16 = 1790;
/// Longest wait for something that has to happen; only a failing test takes it.
const PATIENCE: Duration = Duration::from_secs(15);
