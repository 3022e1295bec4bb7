//! The least that a program can do to write or read routes: the limit that every other writer is
//! compared with.
//!
//! It shares no code with `cairn-kernel` on purpose.

use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;

use cairn_kernel::route::Family;
use cairn_kernel::{NetNs, ROUTE_METRIC, ROUTE_PROTOCOL};
use ipnet::IpNet;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::bed::{Bed, Samples, family_number, sample};
use super::cell::{Load, Moment, Shape, object};
use crate::Result;

/// One run. The requests are built beforehand; a dump is read and not looked at.
pub fn run(bed: &Bed) -> Result<Samples> {
    let (load, count) = (&bed.load, bed.load.prefixes.len());
    let mut socket = RawNetlink::open_in(&bed.netns)?;
    let create = Requests::write(load, Moment::Before, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    let (install, ()) = sample(|| socket.execute(&create))?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    // Both families, as every writer of both must.
    let (resync, seen) = sample(|| {
        let families = [libc::AF_INET, libc::AF_INET6];
        families.into_iter().try_fold(0, |seen, family| Ok(seen + socket.dump(family as u8, None)?))
    })?;
    if seen < count {
        return Err(format!("a dump shows {seen} of {count} routes").into());
    }
    let replace = Requests::write(load, Moment::After, libc::NLM_F_REPLACE);
    let (replace, ()) = sample(|| socket.execute(&replace))?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let delete = Requests::delete(load.prefixes.iter().copied());
    let (remove, ()) = sample(|| socket.execute(&delete))?;
    bed.expect_routes(ROUTE_PROTOCOL, 0)?;
    let [install, resync, replace, remove] = [install, resync, replace, remove].map(Some);
    Ok(Samples { install, resync, replace, remove })
}

/// Prebuilt requests, in portions that go out by one system call each.
#[derive(Debug, Default)]
pub struct Requests {
    octets: Vec<u8>,
    starts: Vec<usize>,
    portions: Vec<Range<usize>>,
}

/// A netlink socket without options.
#[derive(Debug)]
pub struct RawNetlink {
    fd: OwnedFd,
    answer: Vec<u8>,
}

impl Requests {
    /// Requests that write the routes of a load.
    fn write(load: &Load, moment: Moment, flags: libc::c_int) -> Requests {
        let mut requests = Requests::default();
        let (scope, kind) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
        let interface = load.ifindex.to_ne_bytes();
        for (index, prefix) in load.prefixes.iter().enumerate() {
            requests.begin(libc::RTM_NEWROUTE, flags, *prefix, scope, kind);
            match load.cell.shape {
                Shape::Object => {
                    let id = object(load.hop(index, moment));
                    requests.attribute(RTA_NH_ID, &id.to_ne_bytes());
                }
                Shape::Plain => {
                    for gateway in load.gateways(index, moment) {
                        requests.attribute(libc::RTA_GATEWAY, &octets_of(gateway));
                    }
                    requests.attribute(libc::RTA_OIF, &interface);
                }
                Shape::Ecmp => {
                    let mut hops = Vec::new();
                    for gateway in load.gateways(index, moment) {
                        let gateway = octets_of(gateway);
                        let len = gateway.len() as u16 + 4;
                        hops.extend((8 + len).to_ne_bytes());
                        hops.extend([0; 2]);
                        hops.extend(interface);
                        hops.extend(len.to_ne_bytes());
                        hops.extend(libc::RTA_GATEWAY.to_ne_bytes());
                        hops.extend(gateway);
                    }
                    requests.attribute(libc::RTA_MULTIPATH, &hops);
                }
            }
        }
        requests.divide();
        requests
    }

    /// Requests that delete routes to `prefixes`.
    pub fn delete(prefixes: impl IntoIterator<Item = IpNet>) -> Requests {
        let mut requests = Requests::default();
        for prefix in prefixes {
            requests.begin(libc::RTM_DELROUTE, 0, prefix, libc::RT_SCOPE_NOWHERE, 0);
        }
        requests.divide();
        requests
    }

    fn begin(&mut self, message: u16, flags: libc::c_int, prefix: IpNet, scope: u8, kind: u8) {
        self.starts.push(self.octets.len());
        let flags = flags as u16 | libc::NLM_F_REQUEST as u16;
        self.octets.extend([0; 4]);
        self.octets.extend(message.to_ne_bytes());
        self.octets.extend(flags.to_ne_bytes());
        self.octets.extend([0; 8]);
        let family = if prefix.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let (len, table) = (prefix.prefix_len(), libc::RT_TABLE_MAIN);
        self.octets.extend([family as u8, len, 0, 0, table, ROUTE_PROTOCOL, scope, kind]);
        self.octets.extend([0; 4]);
        self.attribute(libc::RTA_DST, &octets_of(prefix.network()));
        self.attribute(libc::RTA_TABLE, &u32::from(table).to_ne_bytes());
        self.attribute(libc::RTA_PRIORITY, &ROUTE_METRIC.to_ne_bytes());
    }

    /// Appends an attribute whose value needs no padding.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.octets.extend((4 + value.len() as u16).to_ne_bytes());
        self.octets.extend(kind.to_ne_bytes());
        self.octets.extend(value);
        let Some(start) = self.starts.last() else { return };
        let len = (self.octets.len() - start) as u32;
        self.put(*start, &len.to_ne_bytes());
    }

    /// Forms portions, and asks for an acknowledgement of the last request in each.
    fn divide(&mut self) {
        let ends: Vec<usize> =
            self.starts.iter().skip(1).copied().chain([self.octets.len()]).collect();
        let mut start = 0;
        for index in 0..ends.len() {
            let (Some(last), Some(end)) = (self.starts.get(index).copied(), ends.get(index)) else {
                continue;
            };
            let next = ends.get(index + 1);
            if next.is_none_or(|next| next - start > PORTION_OCTETS) {
                self.portions.push(start..*end);
                start = *end;
                let flags = self.octets.get(last + 6).copied().unwrap_or(0);
                self.put(last + 6, &[flags | libc::NLM_F_ACK as u8]);
            }
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.octets.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }
}

impl RawNetlink {
    /// Opens a socket in a namespace.
    pub fn open_in(netns: &NetNs) -> Result<RawNetlink> {
        let fd = netns.run(|| {
            let cloexec = SocketFlags::CLOEXEC;
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, cloexec, None)
        })??;
        Ok(RawNetlink { fd, answer: vec![0; ANSWER_OCTETS] })
    }

    /// Has the kernel carry out all requests.
    pub fn execute(&mut self, requests: &Requests) -> Result<()> {
        for portion in &requests.portions {
            self.send(requests.octets.get(portion.clone()).unwrap_or_default())?;
            // The kernel has handled all of them before `send` returns. What it refuses it answers
            // first, and only the last of the portion is answered otherwise.
            let received = self.receive()?;
            for (kind, body) in messages(self.answer.get(..received).unwrap_or_default()) {
                let status = body.first_chunk().map_or(-1, |status| i32::from_ne_bytes(*status));
                if i32::from(kind) != libc::NLMSG_ERROR || status != 0 {
                    return Err(format!("the kernel answered a bare request with {status}").into());
                }
            }
        }
        Ok(())
    }

    /// Reads all routes of a family and looks at none; says how many. With `protocol`, those of others do
    /// not count.
    pub fn dump(&mut self, family: u8, protocol: Option<u8>) -> Result<usize> {
        let mut request = Vec::with_capacity(28);
        request.extend(28u32.to_ne_bytes());
        request.extend(libc::RTM_GETROUTE.to_ne_bytes());
        request.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_DUMP as u16).to_ne_bytes());
        request.extend([0; 8]);
        request.push(family);
        request.extend([0; 11]);
        self.send(&request)?;
        let mut routes = 0;
        loop {
            let received = self.receive()?;
            for (kind, body) in messages(self.answer.get(..received).unwrap_or_default()) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(routes),
                    libc::NLMSG_ERROR => return Err("the kernel refused a dump".into()),
                    _ => {
                        let counts = protocol.is_none_or(|wanted| body.get(5) == Some(&wanted));
                        routes += usize::from(counts);
                    }
                }
            }
        }
    }

    /// How many routes of a family have `protocol`.
    pub fn count(&mut self, family: Family, protocol: u8) -> Result<usize> {
        self.dump(family_number(family), Some(protocol))
    }

    fn send(&self, octets: &[u8]) -> Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.fd, octets, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<usize> {
        let (received, _) =
            rustix::net::recv(&self.fd, self.answer.as_mut_slice(), RecvFlags::empty())?;
        Ok(received)
    }
}

/// Type and body of each message in a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d, low, high] = datagram.first_chunk()?;
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = datagram.get(16..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([low, high]), body))
    })
}

fn octets_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Larger portions are no faster.
const PORTION_OCTETS: usize = 64 << 10;
/// The largest part of a dump that the kernel puts into one datagram is 32 KiB.
const ANSWER_OCTETS: usize = 64 << 10;
const RTA_NH_ID: u16 = 30;
