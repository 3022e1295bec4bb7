//! Watches what others change in the kernel.
//!
//! A [`Monitor`] belongs to the network namespace it was opened in. It joins what arrived since the
//! last look into one event an object, leaves out what our own route sockets wrote, and infers what
//! the kernel does not tell: when a link goes down or an address goes, IPv4 routes vanish without a
//! notification ([`KernelEvent::RoutesLost`]).

mod filter;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::batch::{attributes, read_ip, read_u32};
use crate::error::Error;
use crate::link::{self, Link, Mac};
use crate::netns::NetNs;
use crate::nexthop::{self, Object, RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use crate::route::{self, Family, RouteEvent, RouteKey, TABLE_LOCAL};
use crate::socket::{self, Message, Netlink, messages};
use crate::tunnel::{TunnelKind, parse_forwarding};

/// Something that changed in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A route was added, replaced or removed by somebody else, in any table but the local one.
    Route(RouteEvent),
    /// A link appeared, changed its state, name or MTU, or went.
    Link {
        /// The interface index.
        index: u32,
        /// The interface name.
        name: String,
        /// The state now.
        state: LinkState,
    },
    /// Addresses of a link were added or removed.
    AddressesChanged {
        /// The index of the link.
        ifindex: u32,
    },
    /// A neighbour entry changed.
    Neighbour {
        /// The index of the link.
        ifindex: u32,
        /// The neighbour's address.
        address: IpAddr,
        /// Whether the neighbour's link address is known now.
        present: bool,
        /// Whether somebody has set it for good.
        permanent: bool,
        /// The neighbour's Ethernet address, if the link has such.
        mac: Option<Mac>,
    },
    /// A forwarding entry of a tunnel device of ours changed.
    Forwarding {
        /// The index of the device.
        ifindex: u32,
        /// The Ethernet address behind the tunnel.
        mac: Mac,
        /// Where the tunnel to it ends, while there is a permanent entry.
        outer: Option<IpAddr>,
    },
    /// A next-hop object was added, replaced or removed by somebody else.
    Object {
        /// Its number.
        id: u32,
        /// What it is now, if it still is.
        object: Option<Object>,
    },
    /// Somebody turned forwarding off for all links at once.
    ForwardingOff {
        /// For which family.
        family: Family,
    },
    /// Somebody changed, of a link or of all, how the sources of packets are checked.
    ReversePath,
    /// Routes through a link, or through a next-hop object when the link is unknown, may be gone
    /// without a word: their table must be read again.
    RoutesLost {
        /// The index of the link.
        ifindex: Option<u32>,
    },
    /// Notifications were lost: everything must be read again.
    Overrun,
}

/// What a link can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up, with carrier.
    Running,
    /// Up, without carrier.
    NoCarrier,
    /// Set down.
    Down,
    /// Not there any more.
    Removed,
}

/// What is known of a link: a change of any of it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    state: LinkState,
    mtu: u32,
}

/// A subscription to the notifications of one network namespace.
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
    groups: u32,
    netlink: Netlink,
    own_ports: Vec<u32>,
    links: HashMap<u32, Known>,
    events: Vec<KernelEvent>,
    positions: HashMap<Subject, usize>,
    buffer: Vec<u8>,
}

/// What an event is about: a later event takes the place of an earlier one with the same subject.
#[derive(PartialEq, Eq, Hash)]
enum Subject {
    Route(RouteKey, u8),
    Link(u32),
    Addresses(u32),
    Neighbour(u32, IpAddr),
    Forwarding(u32, Mac),
    Object(u32),
    RoutesLost(Option<u32>),
    ForwardingOff(Family),
    ReversePath,
    Overrun,
}

impl Monitor {
    /// Subscribes in the network namespace of the calling thread. Must be called within a tokio
    /// runtime. Every change after the return is seen, so a dump that follows leaves no gap.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel gives no socket, and those of [`link::list`].
    pub fn open() -> Result<Monitor, Error> {
        Monitor::new(subscribe(GROUPS)?, GROUPS, Netlink::open()?)
    }

    /// As [`Monitor::open`], for [`KernelEvent::Link`] only, with what follows from it.
    ///
    /// # Errors
    /// As [`Monitor::open`].
    pub fn open_links() -> Result<Monitor, Error> {
        Monitor::new(subscribe(GROUP_LINKS)?, GROUP_LINKS, Netlink::open()?)
    }

    /// As [`Monitor::open_links`], with [`KernelEvent::AddressesChanged`] of IPv6 addresses.
    ///
    /// # Errors
    /// As [`Monitor::open`].
    pub fn open_link_addresses() -> Result<Monitor, Error> {
        let groups = GROUP_LINKS | GROUP_IPV6_ADDRESSES;
        Monitor::new(subscribe(groups)?, groups, Netlink::open()?)
    }

    /// Subscribes in `netns`, else as [`Monitor::open`].
    ///
    /// # Errors
    /// As [`Monitor::open`], and those of [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Monitor, Error> {
        Monitor::new(netns.run(|| subscribe(GROUPS))??, GROUPS, Netlink::open_in(netns)?)
    }

    fn new(fd: OwnedFd, groups: u32, netlink: Netlink) -> Result<Monitor, Error> {
        let mut monitor = Monitor {
            fd: watched(fd)?,
            groups,
            netlink,
            own_ports: Vec::new(),
            links: HashMap::new(),
            events: Vec::new(),
            positions: HashMap::new(),
            buffer: vec![0; RECEIVE_BYTES],
        };
        monitor.reread_links()?;
        // What is there from the start is no change.
        monitor.take();
        Ok(monitor)
    }

    /// Subscribes anew in the network namespace of the calling thread, which has to be the same, after
    /// [`Monitor::next`] has failed. Returns [`KernelEvent::Overrun`], and how links differ from what was
    /// known of them.
    ///
    /// # Errors
    /// As [`Monitor::open`]; it can be tried again, and nothing is forgotten.
    pub fn reopen(&mut self) -> Result<Vec<KernelEvent>, Error> {
        self.fd = watched(subscribe(self.groups)?)?;
        self.netlink = Netlink::open()?;
        self.leave_out_own();
        self.overrun()?;
        Ok(self.take())
    }

    /// Leaves out routes and next-hop objects that the socket with `port` writes
    /// ([`route::RouteSocket::port`]).
    pub fn ignore_port(&mut self, port: u32) {
        self.own_ports.push(port);
        self.leave_out_own();
    }

    fn leave_out_own(&self) {
        if self.own_ports.is_empty() {
            return;
        }
        // Without it they are sorted out here, after those of a full table have not fit the buffer.
        if let Err(error) = filter::leave_out(self.fd.get_ref(), &OWN_KINDS, &self.own_ports) {
            tracing::debug!(%error, "the kernel tells of our own writes, too");
        }
    }

    /// Sets the size of the receive buffer in bytes and returns what the kernel granted. 8 MiB
    /// unless set.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel refuses.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<usize, Error> {
        socket::force_receive_buffer(self.fd.get_ref(), bytes)
    }

    /// Waits for changes and returns what arrived, one event a subject, at least one. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// When the socket fails; lost notifications are an event and not an error.
    pub async fn next(&mut self) -> Result<Vec<KernelEvent>, Error> {
        loop {
            let mut ready = self
                .fd
                .readable()
                .await
                .map_err(|error| Error::io("wait for kernel notifications", &error))?;
            let mut lost = false;
            let mut drained = false;
            while !drained && !lost && self.events.len() < EVENTS_MAX {
                match receive(ready.get_inner(), &mut self.buffer) {
                    Ok(None) => drained = true,
                    Ok(Some(len)) => {
                        let datagram = self.buffer.get(..len).unwrap_or_default();
                        let mut sink = Sink {
                            own_ports: &self.own_ports,
                            links: &mut self.links,
                            events: &mut self.events,
                            positions: &mut self.positions,
                        };
                        lost = messages(datagram)
                            .try_for_each(|message| sink.notice(&message?))
                            .is_err();
                    }
                    Err(Error::Overrun) => lost = true,
                    Err(error) => return Err(error),
                }
            }
            if drained {
                ready.clear_ready();
            }
            if lost {
                self.overrun()?;
            }
            if !self.events.is_empty() {
                return Ok(self.take());
            }
        }
    }

    /// Forgets what was received, which has gaps, and reads the links again.
    fn overrun(&mut self) -> Result<(), Error> {
        self.take();
        for _ in 0..DISCARD_MAX {
            match receive(self.fd.get_ref(), &mut self.buffer) {
                Ok(None) => break,
                Ok(Some(_)) | Err(Error::Overrun) => {}
                Err(error) => return Err(error),
            }
        }
        self.sink().push(KernelEvent::Overrun);
        self.reread_links()
    }

    fn reread_links(&mut self) -> Result<(), Error> {
        let links = link::list(&mut self.netlink)?;
        let gone: Vec<u32> = self
            .links
            .keys()
            .filter(|index| links.iter().all(|link| link.index != **index))
            .copied()
            .collect();
        let mut sink = self.sink();
        gone.into_iter().for_each(|index| sink.link_removed(index));
        links.into_iter().for_each(|link| sink.link_seen(link));
        Ok(())
    }

    fn sink(&mut self) -> Sink<'_> {
        Sink {
            own_ports: &self.own_ports,
            links: &mut self.links,
            events: &mut self.events,
            positions: &mut self.positions,
        }
    }

    fn take(&mut self) -> Vec<KernelEvent> {
        self.positions.clear();
        std::mem::take(&mut self.events)
    }
}

/// The part of a monitor that messages change.
struct Sink<'a> {
    own_ports: &'a [u32],
    links: &'a mut HashMap<u32, Known>,
    events: &'a mut Vec<KernelEvent>,
    positions: &'a mut HashMap<Subject, usize>,
}

impl Sink<'_> {
    fn notice(&mut self, message: &Message<'_>) -> Result<(), Error> {
        match message.kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.route(message)?,
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.link(message)?,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                if let Some(address) = link::parse_address(message.body)? {
                    let ifindex = address.ifindex;
                    self.push(KernelEvent::AddressesChanged { ifindex });
                    if message.kind == libc::RTM_DELADDR {
                        self.push(KernelEvent::RoutesLost { ifindex: Some(ifindex) });
                    }
                }
            }
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => self.neighbour(message)?,
            RTM_NEWNETCONF => self.settings(message.body),
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.object(message)?,
            _ => {}
        }
        Ok(())
    }

    fn route(&mut self, message: &Message<'_>) -> Result<(), Error> {
        if self.own_ports.contains(&message.port) {
            return Ok(());
        }
        let Some(route) = route::parse(message.body)? else { return Ok(()) };
        if route.table == TABLE_LOCAL {
            return Ok(());
        }
        self.push(KernelEvent::Route(if message.kind == libc::RTM_DELROUTE {
            RouteEvent::Removed(route)
        } else {
            RouteEvent::Added { route, replaced: message.flags & NLM_F_REPLACE != 0 }
        }));
        Ok(())
    }

    fn link(&mut self, message: &Message<'_>) -> Result<(), Error> {
        // A bridge reports its ports in the same messages, with its own family: such an
        // RTM_DELLINK says that a link left the bridge, not that it is gone.
        if message.body.first() != Some(&(libc::AF_UNSPEC as u8)) {
            return Ok(());
        }
        let link = link::parse(message.body)?;
        if message.kind == libc::RTM_DELLINK {
            self.link_removed(link.index);
        } else {
            self.link_seen(link);
        }
        Ok(())
    }

    fn link_seen(&mut self, link: Link) {
        let state = match (link.is_up(), link.is_running()) {
            (_, true) => LinkState::Running,
            (true, false) => LinkState::NoCarrier,
            (false, false) => LinkState::Down,
        };
        let now = Known { name: link.name, state, mtu: link.mtu };
        let before = self.links.insert(link.index, now.clone());
        // Of a tunnel device of ours every setting counts, and not only these.
        if before.as_ref() == Some(&now) && TunnelKind::of_device(&now.name).is_none() {
            return;
        }
        let lost = |before: Known| before.state != state && before.state != LinkState::Down;
        if state != LinkState::Running && before.is_some_and(lost) {
            self.push(KernelEvent::RoutesLost { ifindex: Some(link.index) });
        }
        self.push(KernelEvent::Link { index: link.index, name: now.name, state });
    }

    fn link_removed(&mut self, index: u32) {
        let name = self.links.remove(&index).map(|known| known.name).unwrap_or_default();
        self.push(KernelEvent::RoutesLost { ifindex: Some(index) });
        self.push(KernelEvent::Link { index, name, state: LinkState::Removed });
    }

    fn neighbour(&mut self, message: &Message<'_>) -> Result<(), Error> {
        let (header, rest) =
            message.body.split_at_checked(12).ok_or(Error::Malformed("a short neighbour"))?;
        let ifindex = header.get(4..).and_then(read_u32).unwrap_or(0);
        let added = message.kind == libc::RTM_NEWNEIGH;
        if header.first() == Some(&(libc::AF_BRIDGE as u8)) {
            // Bridges learn all the time.
            let name = self.links.get(&ifindex).map(|known| known.name.as_str());
            if let Some(entry) = parse_forwarding(message.body)?
                && name.and_then(TunnelKind::of_device).is_some()
            {
                let outer = added.then_some(entry.outer).flatten();
                self.push(KernelEvent::Forwarding { ifindex, mac: entry.mac, outer });
            }
            return Ok(());
        }
        let (mut address, mut mac) = (None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                libc::NDA_DST => address = read_ip(value),
                libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        if let Some(address) = address {
            let state =
                header.get(8..10).map_or(0, |state| u16::from_ne_bytes([state[0], state[1]]));
            let present = added && state & NUD_USABLE != 0;
            let permanent = present && state & libc::NUD_PERMANENT != 0;
            self.push(KernelEvent::Neighbour { ifindex, address, present, permanent, mac });
        }
        Ok(())
    }

    fn object(&mut self, message: &Message<'_>) -> Result<(), Error> {
        if self.own_ports.contains(&message.port) {
            return Ok(());
        }
        let object = nexthop::parse(message.body)?;
        let id = object.id;
        let removed = message.kind == RTM_DELNEXTHOP;
        self.push(KernelEvent::Object { id, object: (!removed).then_some(object) });
        if removed {
            self.push(KernelEvent::RoutesLost { ifindex: None });
        }
        Ok(())
    }

    /// Reads a `struct netconfmsg`: one octet and padding, then the settings that changed.
    fn settings(&mut self, body: &[u8]) {
        let Some((header, rest)) = body.split_first_chunk::<4>() else { return };
        let family = match i32::from(header[0]) {
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            _ => return,
        };
        let value = |wanted| {
            attributes(rest).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| read_u32(v))
        };
        if value(NETCONFA_IFINDEX) == Some(NETCONFA_IFINDEX_ALL)
            && value(NETCONFA_FORWARDING) == Some(0)
        {
            self.push(KernelEvent::ForwardingOff { family });
        }
        if value(NETCONFA_RP_FILTER).is_some() {
            self.push(KernelEvent::ReversePath);
        }
    }

    fn push(&mut self, event: KernelEvent) {
        let position = *self.positions.entry(subject(&event)).or_insert(self.events.len());
        match self.events.get_mut(position) {
            Some(earlier) => *earlier = event,
            None => self.events.push(event),
        }
    }
}

fn subject(event: &KernelEvent) -> Subject {
    match event {
        KernelEvent::Route(event) => Subject::Route(event.route().key(), event.route().protocol),
        KernelEvent::Link { index, .. } => Subject::Link(*index),
        KernelEvent::AddressesChanged { ifindex } => Subject::Addresses(*ifindex),
        KernelEvent::Neighbour { ifindex, address, .. } => Subject::Neighbour(*ifindex, *address),
        KernelEvent::Forwarding { ifindex, mac, .. } => Subject::Forwarding(*ifindex, *mac),
        KernelEvent::Object { id, .. } => Subject::Object(*id),
        KernelEvent::RoutesLost { ifindex } => Subject::RoutesLost(*ifindex),
        KernelEvent::ForwardingOff { family } => Subject::ForwardingOff(*family),
        KernelEvent::ReversePath => Subject::ReversePath,
        KernelEvent::Overrun => Subject::Overrun,
    }
}

fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, Error> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and it stays open until the
    // `AsyncFd`, which owns it, has deregistered it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| Error::io("watch a netlink socket", &error.into()))
}

fn subscribe(groups: u32) -> Result<OwnedFd, Error> {
    let fd = socket::open_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    socket::force_receive_buffer(&fd, RECEIVE_BUFFER_BYTES)?;
    socket::bind(&fd, groups)?;
    Ok(fd)
}

/// Receives one datagram; `None` when there is none.
pub(crate) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recv(fd, &mut *buffer, RecvFlags::TRUNC | RecvFlags::DONTWAIT)
    });
    match received {
        // Truncated: what it said is lost.
        Ok((_, len)) if len > buffer.len() => Err(Error::Overrun),
        Ok((_, len)) => Ok(Some(len)),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::NOBUFS) => Err(Error::Overrun),
        Err(errno) => Err(Error::system("receive kernel notifications", errno)),
    }
}

/// What is left out when we have written it.
const OWN_KINDS: [u16; 4] =
    [libc::RTM_NEWROUTE, libc::RTM_DELROUTE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP];
/// The most events that are joined before they are handed on.
const EVENTS_MAX: usize = 8192;
/// The most datagrams that are thrown away after an overrun before the next look.
const DISCARD_MAX: usize = 1 << 16;
const RECEIVE_BYTES: usize = 64 << 10;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
const NUD_USABLE: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_NOARP
    | libc::NUD_PERMANENT;
const NLM_F_REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const RTM_NEWNETCONF: u16 = 80;
/// `NETCONFA_*` (linux/netconf.h).
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
/// Links, neighbours, IPv4 and IPv6 addresses, routes and settings, next-hop objects: RTNLGRP_LINK,
/// _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV4_NETCONF, _IPV6_NETCONF and
/// _NEXTHOP.
const GROUPS: u32 = GROUP_LINKS
    | 1 << 2
    | 1 << 4
    | 1 << 6
    | GROUP_IPV6_ADDRESSES
    | 1 << 10
    | 1 << 23
    | 1 << 24
    | 1 << 31;
/// RTNLGRP_IPV6_IFADDR.
const GROUP_IPV6_ADDRESSES: u32 = 1 << 8;
/// RTNLGRP_LINK.
const GROUP_LINKS: u32 = 1;
