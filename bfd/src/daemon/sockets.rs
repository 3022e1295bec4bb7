//! The UDP sockets: one to receive for each local address and kind, one to send for each session.
//!
//! RFC 5881 section 4 wants a source port from 49152 on that stays with the session; section 5, and RFC 5883
//! section 5 as advice, a TTL of 255. A socket to receive is bound to its address, so that another program's BFD
//! on other addresses, or the other way around, is left alone.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Path, is_link_local};
use crate::sessions::{Arrival, Id, Output, Sessions};
use crate::wire::State;

use super::datagram;

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    receivers: BTreeMap<ReceiverKey, Receiver>,
    senders: HashMap<Id, Sender>,
    /// The names of the interfaces that sessions have.
    interfaces: HashMap<u32, String>,
    check_at: Instant,
}

/// What a socket to receive is for. Sessions on different interfaces share one unless their address is
/// link-local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ReceiverKey {
    local: IpAddr,
    /// The interface of a link-local address, else 0.
    scope: u32,
    multihop: bool,
}

#[derive(Debug)]
struct Receiver {
    socket: Socket,
    /// The kernel's count of dropped packets when it was read last.
    dropped: u32,
}

/// Where a session's packets leave.
#[derive(Debug)]
struct Sender {
    socket: Socket,
    ends: Ends,
    remote: SocketAddr,
    receiver: ReceiverKey,
    /// The last packet did not go.
    failed: bool,
}

/// What a path is on this machine now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    local: IpAddr,
    /// 0 without an interface.
    interface: u32,
}

impl Sockets {
    pub(super) fn new(now: Instant) -> Sockets {
        let (receivers, senders, interfaces) = Default::default();
        Sockets { receivers, senders, interfaces, check_at: now + CHECK_INTERVAL }
    }

    /// What to wait for.
    pub(super) fn receivers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.receivers.values().map(|receiver| receiver.socket.as_fd())
    }

    /// When [`Sockets::sync`] is due again, as addresses and interfaces come and go.
    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Whether it is.
    pub(super) fn check_due(&self, now: Instant) -> bool {
        self.check_at <= now
    }

    /// Opens what the wanted sessions need and is not open, and closes what none needs.
    pub(super) fn sync(
        &mut self,
        now: Instant,
        sessions: &mut Sessions,
        outputs: &mut Vec<Output>,
    ) {
        self.check_at = now + CHECK_INTERVAL;
        let wanted: Vec<(Id, Path)> =
            sessions.wanted().map(|(id, spec)| (id, spec.path.clone())).collect();
        for (id, path) in wanted {
            match self.open(id, &path, sessions) {
                // What a failed packet says stays until one goes.
                Ok(sender) if sender.failed => {}
                Ok(_) => sessions.set_problem(id, None, outputs),
                Err(problem) => sessions.set_problem(id, Some(problem), outputs),
            }
        }
        let used: BTreeSet<ReceiverKey> =
            self.senders.values().map(|sender| sender.receiver).collect();
        self.receivers.retain(|key, _| used.contains(key));
        let used: BTreeSet<u32> =
            self.senders.values().map(|sender| sender.ends.interface).collect();
        self.interfaces.retain(|index, _| used.contains(index));
    }

    /// Closes a session's socket.
    pub(super) fn close(&mut self, id: Id) {
        self.senders.remove(&id);
    }

    /// How many packets the kernel has dropped at sockets of one hop since this was asked last.
    pub(super) fn dropped(&mut self) -> u64 {
        let direct = self.receivers.iter_mut().filter(|(key, _)| !key.multihop);
        let new = direct.map(|(_, receiver)| {
            let dropped = datagram::dropped(&receiver.socket).unwrap_or(receiver.dropped);
            let new = dropped.wrapping_sub(std::mem::replace(&mut receiver.dropped, dropped));
            u64::from(new)
        });
        new.sum()
    }

    /// Hands over the datagrams that have arrived, but not for ever.
    pub(super) fn receive(&self, mut take: impl FnMut(Arrival<'_>, &[u8])) {
        for (key, Receiver { socket, .. }) in &self.receivers {
            for _ in 0..DATAGRAMS_MAX {
                let mut buffer = [0; DATAGRAM_OCTETS];
                let Ok(datagram) = datagram::receive(socket, &mut buffer) else { break };
                let interface = self.interfaces.get(&datagram.interface).map(String::as_str);
                let arrival = Arrival {
                    remote: datagram.source,
                    local: key.local,
                    interface,
                    multihop: key.multihop,
                    ttl: datagram.ttl,
                };
                take(arrival, buffer.get(..datagram.octets).unwrap_or_default());
            }
        }
    }

    /// Sends a session's packet. What has become of the session's problem, where that is news.
    pub(super) fn send(&mut self, id: Id, octets: &[u8]) -> Option<Option<String>> {
        let sender = self.senders.get_mut(&id)?;
        match sender.socket.send_to(octets, &sender.remote.into()) {
            Ok(_) => std::mem::take(&mut sender.failed).then_some(None),
            // The next packet is as good.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                sender.failed = true;
                Some(Some(format!("cannot send to {}: {error}", sender.remote.ip())))
            }
        }
    }

    /// Opens the sockets of a session, unless they are open as they are to be.
    fn open(&mut self, id: Id, path: &Path, sessions: &mut Sessions) -> Result<&Sender, String> {
        let is_up = sessions.state(id) == Some(State::Up);
        let open = self.senders.get(&id).map(|sender| sender.ends);
        let ends = match ends(path, open.filter(|_| is_up)) {
            Ok(ends) => ends,
            Err(problem) => {
                // What is open is of no use any more, unless a route is merely away for a moment.
                if !is_up {
                    self.senders.remove(&id);
                }
                return Err(problem);
            }
        };
        if open != Some(ends) {
            let sender = self.open_anew(path, ends, sessions)?;
            self.senders.insert(id, sender);
        }
        self.senders.get(&id).ok_or_else(|| "no socket".into())
    }

    fn open_anew(
        &mut self,
        path: &Path,
        ends: Ends,
        sessions: &mut Sessions,
    ) -> Result<Sender, String> {
        let scope = if is_link_local(ends.local) { ends.interface } else { 0 };
        let receiver = ReceiverKey { local: ends.local, scope, multihop: path.multihop };
        if let Entry::Vacant(vacant) = self.receivers.entry(receiver) {
            let socket = vacant.key().open().map_err(|error| vacant.key().explain(&error))?;
            vacant.insert(Receiver { socket, dropped: 0 });
        }
        let socket = sender_socket(path, ends, scope, sessions)
            .map_err(|error| format!("cannot send from {}: {error}", ends.local))?;
        let remote_scope = if is_link_local(path.remote) { ends.interface } else { 0 };
        let remote = socket_address(path.remote, port(path.multihop), remote_scope);
        if let Some(name) = &path.interface {
            self.interfaces.insert(ends.interface, name.clone());
        }
        Ok(Sender { socket, ends, remote, receiver, failed: false })
    }
}

/// A socket on a source port of its own.
fn sender_socket(
    path: &Path,
    ends: Ends,
    scope: u32,
    sessions: &mut Sessions,
) -> io::Result<Socket> {
    let socket = new_socket(ends.local)?;
    if let Some(name) = &path.interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    match ends.local {
        IpAddr::V4(_) => {
            socket.set_ttl_v4(TTL)?;
            socket.set_tos_v4(CONTROL_TRAFFIC)?;
        }
        IpAddr::V6(_) => {
            socket.set_unicast_hops_v6(TTL)?;
            socket.set_tclass_v6(CONTROL_TRAFFIC)?;
        }
    }
    // Nothing is to arrive here.
    socket.set_recv_buffer_size(0)?;
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORTS_TRIED_MAX {
        let port = SOURCE_PORT_MIN | sessions.random() as u16;
        match socket.bind(&socket_address(ends.local, port, scope).into()) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

impl ReceiverKey {
    fn open(&self) -> io::Result<Socket> {
        let socket = new_socket(self.local)?;
        datagram::ask_for_ttl(&socket, self.local)?;
        if !self.multihop {
            // Judged once more where it arrives: without the filter nothing is lost but time.
            let _ = datagram::take_from_next_hop_alone(&socket, self.local);
        }
        // A burst of others' packets must not push out those of a session. As much as is allowed.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_OCTETS);
        socket.bind(&socket_address(self.local, port(self.multihop), self.scope).into())?;
        Ok(socket)
    }

    fn explain(&self, error: &io::Error) -> String {
        let (port, local) = (port(self.multihop), self.local);
        match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "UDP port {port} of {local} is taken by another process: another BFD daemon runs on this machine; stop \
                 its BFD or bind it to other addresses"
            ),
            io::ErrorKind::AddrNotAvailable => {
                format!("{local} is no address of this machine, or not yet")
            }
            _ => format!("cannot listen on UDP port {port} of {local}: {error}"),
        }
    }
}

/// What a path is on this machine now. An Up session without an own address keeps what it has: its peer knows it
/// by that.
fn ends(path: &Path, up: Option<Ends>) -> Result<Ends, String> {
    let interface = match &path.interface {
        None => 0,
        Some(name) => {
            // Any socket will do to ask.
            let socket = UnixDatagram::unbound().map_err(|error| error.to_string())?;
            rustix::net::netdevice::name_to_index(socket, name)
                .map_err(|_| format!("there is no interface {name}"))?
        }
    };
    let local = match (path.local, up) {
        (Some(local), _) => local,
        (None, Some(up)) if up.interface == interface => up.local,
        (None, _) => source_towards(path, interface)
            .map_err(|error| format!("there is no way to {}: {error}", path.remote))?,
    };
    Ok(Ends { local, interface })
}

/// The address that the kernel takes as source; nothing is sent.
fn source_towards(path: &Path, interface: u32) -> io::Result<IpAddr> {
    let socket = new_socket(path.remote)?;
    if let Some(name) = &path.interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    let scope = if is_link_local(path.remote) { interface } else { 0 };
    socket.connect(&socket_address(path.remote, port(path.multihop), scope).into())?;
    let local = socket.local_addr()?.as_socket().map(|address| address.ip());
    local.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn new_socket(of: IpAddr) -> io::Result<Socket> {
    let domain = if of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if of.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn socket_address(address: IpAddr, port: u16, scope: u32) -> SocketAddr {
    match address {
        IpAddr::V4(_) => SocketAddr::new(address, port),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scope).into(),
    }
}

/// RFC 5881 section 4, RFC 5883 section 5.
const fn port(multihop: bool) -> u16 {
    if multihop { 4784 } else { 3784 }
}

/// RFC 5881 section 4: from 49152 to 65535, which are the numbers with these bits.
const SOURCE_PORT_MIN: u16 = 0xc000;
const PORTS_TRIED_MAX: usize = 64;
const TTL: u32 = 255;
/// CS6, as other routing protocols.
const CONTROL_TRAFFIC: u32 = 0xc0;
/// More than a control packet with the longest authentication.
const DATAGRAM_OCTETS: usize = 128;
/// Datagrams of one socket in a turn: what does not end must not keep timers waiting.
const DATAGRAMS_MAX: usize = 2048;
const RECEIVE_BUFFER_OCTETS: usize = 1 << 20;
/// Addresses and interfaces come and go.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
