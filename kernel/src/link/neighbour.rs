//! Permanent neighbours of links.

use std::net::IpAddr;

use rustix::io::Errno;

use super::{Mac, absent_is_fine};
use crate::batch::{Batch, attributes, read_ip};
use crate::error::Error;
use crate::route;
use crate::socket::Netlink;

/// Sets a permanent neighbour entry, replacing another for the same address.
///
/// # Errors
/// [`Error::Refused`] with ENODEV when there is no such link.
pub fn set_neighbour(
    netlink: &mut Netlink,
    ifindex: u32,
    address: IpAddr,
    mac: Mac,
) -> Result<(), Error> {
    netlink.request(Batch::new().set_neighbour(ifindex, address, mac), || {
        format!("set the neighbour {address} of link {ifindex}")
    })
}

/// The addresses of permanent neighbour entries, of all links and both families, in no order.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn permanent_neighbours(netlink: &mut Netlink) -> Result<Vec<IpAddr>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETNEIGH, 0, &[0; 12]);
    netlink.dump(&mut batch, |kind, body| match kind {
        libc::RTM_NEWNEIGH => parse_permanent_neighbour(body),
        _ => Ok(None),
    })
}

/// Whether one of `links` has a permanent neighbour entry for `address`. Asked for each link alone, as a
/// dump takes 0.4 us for each entry of every link, and a node with tunnels has thousands.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn has_permanent_neighbour(
    netlink: &mut Netlink,
    links: &[u32],
    address: IpAddr,
) -> Result<bool, Error> {
    for &ifindex in links {
        let mut header = neighbour_header(ifindex, address);
        // Strict checking wants no state in a question.
        header[8..10].fill(0);
        let mut batch = Batch::new();
        batch.begin(libc::RTM_GETNEIGH, 0, &header).attr_ip(libc::NDA_DST, address);
        let action = || format!("look up the neighbour {address} of link {ifindex}");
        let found = match netlink.query(&mut batch, action) {
            // Kernels before 5.0 only dump.
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {
                return Ok(permanent_neighbours(netlink)?.contains(&address));
            }
            found => found?,
        };
        if let Some(body) = found
            && parse_permanent_neighbour(&body)?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes a neighbour entry. One that is not there is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete_neighbour(netlink: &mut Netlink, ifindex: u32, address: IpAddr) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.delete_neighbour(ifindex, address);
    absent_is_fine(
        netlink.request(&mut batch, || format!("delete the neighbour {address} of link {ifindex}")),
    )
}

/// Requests about links' neighbours, as [`Netlink::execute`] sends them.
impl Batch {
    /// As [`set_neighbour`].
    pub fn set_neighbour(&mut self, ifindex: u32, address: IpAddr, mac: Mac) -> &mut Batch {
        let flags = libc::NLM_F_CREATE as u16 | libc::NLM_F_REPLACE as u16;
        self.begin(libc::RTM_NEWNEIGH, flags, &neighbour_header(ifindex, address));
        self.attr_ip(libc::NDA_DST, address).attr(libc::NDA_LLADDR, &mac.0)
    }

    /// As [`delete_neighbour`], except that an entry which is not there is refused.
    pub fn delete_neighbour(&mut self, ifindex: u32, address: IpAddr) -> &mut Batch {
        self.begin(libc::RTM_DELNEIGH, 0, &neighbour_header(ifindex, address));
        self.attr_ip(libc::NDA_DST, address)
    }
}

fn parse_permanent_neighbour(body: &[u8]) -> Result<Option<IpAddr>, Error> {
    let (header, rest) = body.split_at_checked(12).ok_or(Error::Malformed("a short neighbour"))?;
    let state = header.get(8..10).and_then(|state| state.try_into().ok()).map(u16::from_ne_bytes);
    if state.is_none_or(|state| state & libc::NUD_PERMANENT == 0) {
        return Ok(None);
    }
    let mut destinations = attributes(rest).filter(|(kind, _)| *kind == libc::NDA_DST);
    Ok(destinations.next().and_then(|(_, value)| read_ip(value)))
}

fn neighbour_header(ifindex: u32, address: IpAddr) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = route::family_of(address);
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    header
}
