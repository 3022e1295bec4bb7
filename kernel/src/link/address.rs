//! The addresses of links, and the groups that they listen to.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::{CREATE_EXCL, absent_is_fine, present_is_fine};
use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::Error;
use crate::route;
use crate::socket::Netlink;

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of the link.
    pub ifindex: u32,
    /// The address with the length of its subnet.
    pub address: IpNet,
    /// The other end of a point-to-point address; then the subnet is that address's.
    pub peer: Option<IpAddr>,
    /// The scope (`RT_SCOPE_*`).
    pub scope: u8,
    /// The `IFA_F_*` flags.
    pub flags: u32,
}

impl Address {
    /// Whether duplicate address detection still runs, so that the address cannot be used yet.
    pub fn is_tentative(&self) -> bool {
        self.flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC) == libc::IFA_F_TENTATIVE
    }

    /// Whether the address is one to be known by: it can be used and is not on its way out, and is of
    /// IPv4 the first of its subnet, of IPv6 no temporary one (RFC 8981), which have the same flag.
    pub fn is_lasting(&self) -> bool {
        let passing = libc::IFA_F_TEMPORARY | libc::IFA_F_DEPRECATED | libc::IFA_F_DADFAILED;
        self.flags & passing == 0 && !self.is_tentative()
    }
}

/// Whether duplicate address detection runs for a new IPv6 address. It means nothing for IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// The kernel's default: the address is unusable for the first second or two.
    Run,
    /// The address is usable at once.
    Skip,
}

/// The addresses of both families of all links.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn addresses(netlink: &mut Netlink) -> Result<Vec<Address>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETADDR, 0, &[0; 8]);
    netlink.dump(
        &mut batch,
        |kind, body| {
            if kind == libc::RTM_NEWADDR { parse_address(body) } else { Ok(None) }
        },
    )
}

/// The IPv6 multicast groups that the link with index `index` has joined.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn multicast_groups(netlink: &mut Netlink, index: u32) -> Result<Vec<Ipv6Addr>, Error> {
    let mut header = [0; 8];
    header[0] = libc::AF_INET6 as u8;
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETMULTICAST, 0, &header);
    netlink.dump(&mut batch, |kind, body| {
        // Kernels before 4.20 tell of every link.
        if kind != libc::RTM_GETMULTICAST || body.get(4..).and_then(read_u32) != Some(index) {
            return Ok(None);
        }
        let mut groups = attributes(body.get(8..).unwrap_or_default());
        Ok(groups
            .find(|(kind, _)| *kind == libc::IFA_MULTICAST)
            .and_then(|(_, value)| <[u8; 16]>::try_from(value).ok().map(Ipv6Addr::from)))
    })
}

/// Adds an address to a link. One that is already there is fine.
///
/// # Errors
/// [`Error::Refused`] with ENODEV when there is no such link.
pub fn add_address(
    netlink: &mut Netlink,
    ifindex: u32,
    address: IpNet,
    detection: DuplicateDetection,
) -> Result<(), Error> {
    let added = netlink.request(Batch::new().add_address(ifindex, address, detection), || {
        format!("add the address {address} to link {ifindex}")
    });
    present_is_fine(added)
}

/// Removes an address from a link. One that is not there is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete_address(netlink: &mut Netlink, ifindex: u32, address: IpNet) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.delete_address(ifindex, address);
    absent_is_fine(
        netlink.request(&mut batch, || format!("delete the address {address} of link {ifindex}")),
    )
}

/// Requests about links' addresses, as [`Netlink::execute`] sends them.
impl Batch {
    /// As [`add_address`], except that an address which is already there is refused.
    pub fn add_address(
        &mut self,
        ifindex: u32,
        address: IpNet,
        detection: DuplicateDetection,
    ) -> &mut Batch {
        let flags = match detection {
            DuplicateDetection::Run => 0,
            DuplicateDetection::Skip => libc::IFA_F_NODAD,
        };
        // The loopback interface's own subnet is host scope, as the kernel and `ip` have it.
        let loopback = address.addr().is_loopback() && address.addr().is_ipv4();
        let scope = if loopback { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE };
        self.begin(libc::RTM_NEWADDR, CREATE_EXCL, &address_header(ifindex, address, scope));
        self.attr_ip(libc::IFA_LOCAL, address.addr()).attr_ip(libc::IFA_ADDRESS, address.addr());
        self.attr_u32(libc::IFA_FLAGS, flags)
    }

    /// As [`delete_address`], except that an address which is not there is refused.
    pub fn delete_address(&mut self, ifindex: u32, address: IpNet) -> &mut Batch {
        self.begin(libc::RTM_DELADDR, 0, &address_header(ifindex, address, 0));
        self.attr_ip(libc::IFA_LOCAL, address.addr())
    }
}

/// Reads the body of an RTM_NEWADDR or RTM_DELADDR message; `None` for a family that is not IP.
pub(crate) fn parse_address(body: &[u8]) -> Result<Option<Address>, Error> {
    let (header, rest) = body.split_at_checked(8).ok_or(Error::Malformed("a short address"))?;
    let (mut local, mut subnet, mut flags) = (None, None, u32::from(header[2]));
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFA_LOCAL => local = read_ip(value),
            libc::IFA_ADDRESS => subnet = read_ip(value),
            libc::IFA_FLAGS => flags = read_u32(value).unwrap_or(flags),
            _ => {}
        }
    }
    let Some(address) = local.or(subnet) else { return Ok(None) };
    Ok(Some(Address {
        ifindex: header.get(4..).and_then(read_u32).unwrap_or(0),
        address: IpNet::new(address, header[1])
            .map_err(|_| Error::Malformed("an address with an impossible prefix length"))?,
        peer: subnet.filter(|subnet| *subnet != address),
        scope: header[3],
        flags,
    }))
}

fn address_header(ifindex: u32, address: IpNet, scope: u8) -> [u8; 8] {
    let mut header = [route::family_of(address.addr()), address.prefix_len(), 0, scope, 0, 0, 0, 0];
    header[4..].copy_from_slice(&ifindex.to_ne_bytes());
    header
}
