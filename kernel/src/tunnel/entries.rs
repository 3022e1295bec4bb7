//! What a peer needs in the kernel besides its next-hop objects: neighbours and forwarding entries, as
//! messages.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::batch::{Batch, attributes, read_ip};
use crate::delta::Key;
use crate::error::Error;
use crate::link::Mac;
use crate::socket::Netlink;

/// A permanent neighbour entry: the Ethernet address of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) ifindex: u32,
    pub(crate) address: IpAddr,
}

/// A permanent forwarding entry: where the tunnel to an Ethernet address ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forwarding {
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
}

impl Key for Neighbour {
    type Value = Mac;

    fn set(self, batch: &mut Batch, mac: &Mac, _exists: bool) {
        // The link is ours, and so is whatever stands on it.
        batch.set_neighbour(self.ifindex, self.address, *mac);
    }

    fn delete(self, batch: &mut Batch) {
        batch.delete_neighbour(self.ifindex, self.address);
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the neighbour entry of {} on link {}", self.address, self.ifindex)
    }
}

impl Key for Forwarding {
    type Value = IpAddr;

    fn set(self, batch: &mut Batch, outer: &IpAddr, _exists: bool) {
        let flags = libc::NLM_F_CREATE as u16 | libc::NLM_F_REPLACE as u16;
        batch.begin(libc::RTM_NEWNEIGH, flags, &forwarding_header(self.ifindex));
        batch.attr(libc::NDA_LLADDR, &self.mac.0).attr_ip(libc::NDA_DST, *outer);
    }

    fn delete(self, batch: &mut Batch) {
        batch.begin(libc::RTM_DELNEIGH, 0, &forwarding_header(self.ifindex));
        batch.attr(libc::NDA_LLADDR, &self.mac.0);
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the forwarding entry of {} on link {}", self.mac, self.ifindex)
    }
}

/// The permanent neighbours of a link, of both families.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub(crate) fn neighbours(
    netlink: &mut Netlink,
    ifindex: u32,
) -> Result<BTreeMap<Neighbour, Mac>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETNEIGH, 0, &[0; NDMSG_BYTES]).attr_u32(NDA_IFINDEX, ifindex);
    let found = netlink.dump(&mut batch, |kind, body| match kind {
        libc::RTM_NEWNEIGH => parse_neighbour(body),
        _ => Ok(None),
    })?;
    // Older kernels ignore the filter in the request.
    Ok(found.into_iter().filter(|(key, _)| key.ifindex == ifindex).collect())
}

fn parse_neighbour(body: &[u8]) -> Result<Option<(Neighbour, Mac)>, Error> {
    let (header, rest) = split(body)?;
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::NDA_DST => address = read_ip(value),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let (Some(address), Some(mac)) = (address, mac) else { return Ok(None) };
    let permanent = header.state & libc::NUD_PERMANENT != 0;
    let ip = i32::from(header.family) != libc::AF_BRIDGE;
    Ok((permanent && ip).then_some((Neighbour { ifindex: header.ifindex, address }, mac)))
}

/// The forwarding entries of a device.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub(crate) fn forwarding(
    netlink: &mut Netlink,
    ifindex: u32,
) -> Result<BTreeMap<Forwarding, IpAddr>, Error> {
    let mut header = [0; NDMSG_BYTES];
    header[0] = libc::AF_BRIDGE as u8;
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETNEIGH, 0, &header).attr_u32(NDA_IFINDEX, ifindex);
    let found = netlink.dump(&mut batch, |kind, body| match kind {
        libc::RTM_NEWNEIGH => parse_forwarding(body),
        _ => Ok(None),
    })?;
    let here = found.into_iter().filter(|entry| entry.ifindex == ifindex);
    Ok(here
        .map(|entry| {
            // One that leads elsewhere than an entry of ours can is there, and differs from each.
            let outer = entry.outer.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
            (Forwarding { ifindex, mac: entry.mac }, outer)
        })
        .collect())
}

/// A forwarding entry as the kernel tells of it.
pub(crate) struct SeenForwarding {
    ifindex: u32,
    pub(crate) mac: Mac,
    /// Where the tunnel ends, if the entry is permanent and leads there by the device's own settings.
    pub(crate) outer: Option<IpAddr>,
}

/// Reads the body of an RTM_NEWNEIGH or RTM_DELNEIGH message of the family AF_BRIDGE; `None` without an
/// Ethernet address.
pub(crate) fn parse_forwarding(body: &[u8]) -> Result<Option<SeenForwarding>, Error> {
    let (header, rest) = split(body)?;
    let (mut mac, mut outer, mut plain) = (None, None, header.state & libc::NUD_PERMANENT != 0);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            libc::NDA_DST => outer = read_ip(value),
            libc::NDA_PORT | libc::NDA_VNI | NDA_IFINDEX => plain = false,
            _ => {}
        }
    }
    let outer = outer.filter(|_| plain);
    Ok(mac.map(|mac| SeenForwarding { ifindex: header.ifindex, mac, outer }))
}

/// `struct ndmsg`, as far as it matters.
struct NeighbourHeader {
    family: u8,
    ifindex: u32,
    state: u16,
}

fn split(body: &[u8]) -> Result<(NeighbourHeader, &[u8]), Error> {
    let Some((header, rest)) = body.split_first_chunk::<NDMSG_BYTES>() else {
        return Err(Error::Malformed("a short neighbour"));
    };
    let [family, _, _, _, i0, i1, i2, i3, s0, s1, ..] = *header;
    let header = NeighbourHeader {
        family,
        ifindex: u32::from_ne_bytes([i0, i1, i2, i3]),
        state: u16::from_ne_bytes([s0, s1]),
    };
    Ok((header, rest))
}

fn forwarding_header(ifindex: u32) -> [u8; NDMSG_BYTES] {
    let mut header = [0; NDMSG_BYTES];
    header[0] = libc::AF_BRIDGE as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&(libc::NUD_PERMANENT | libc::NUD_NOARP).to_ne_bytes());
    header[10] = NTF_SELF;
    header
}

const NDMSG_BYTES: usize = 12;
const NDA_IFINDEX: u16 = 8;
const NTF_SELF: u8 = 2;
