//! Links, their addresses and permanent neighbours.
//!
//! Every function acts in the network namespace of the [`Netlink`] socket it is given. The builders
//! on [`Batch`] write the same requests without sending them, for callers that must have several in
//! one system call.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::batch::{Batch, attributes, read_ip, read_str, read_u32};
use crate::error::Error;
use crate::route::{self, Route};
use crate::socket::Netlink;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it can be the address of one interface: not zero and not of a group (IEEE 802, section 8.2).
    pub fn is_of_one(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// A link as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The interface name.
    pub name: String,
    /// The driver's kind, such as `veth`, `bridge` or `vxlan`; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The Ethernet address, if the link has one.
    pub mac: Option<Mac>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// The `IFF_*` flags.
    pub flags: u32,
    /// The alias: text of at most 255 bytes that the link carries.
    pub alias: Option<String>,
    /// The index of the bridge (or other master) that this link is a port of.
    pub master: Option<u32>,
    /// For a veth interface: the index of its peer in the peer's namespace.
    pub peer: Option<u32>,
    /// The number under which this namespace knows the peer's, when that is another one.
    pub peer_netns: Option<u32>,
    /// The group, which allows to delete many links at once; 0 unless set.
    pub group: u32,
}

impl Link {
    /// Whether somebody set the link up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Whether the link can carry packets: it is up and has a carrier.
    pub fn is_running(&self) -> bool {
        self.flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
    }

    /// Whether the link is the namespace's loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }
}

/// A veth pair to create.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// The end in the socket's namespace.
    pub end: VethEnd<'a>,
    /// The other end.
    pub peer: VethEnd<'a>,
    /// The namespace in which the other end is made; the socket's when absent. Making it in place
    /// takes a tenth of the time of moving it later.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// The MTU of both ends in bytes.
    pub mtu: Option<u32>,
}

/// One end of a veth pair to create.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// The interface name.
    pub name: &'a str,
    /// The interface index; the kernel chooses one when absent.
    pub index: Option<u32>,
    /// The Ethernet address; random when absent.
    pub mac: Option<Mac>,
}

impl<'a> VethEnd<'a> {
    /// An end of which only the name matters.
    pub fn named(name: &'a str) -> VethEnd<'a> {
        VethEnd { name, index: None, mac: None }
    }
}

/// Settings of a link to change; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkSettings<'a> {
    /// Set the link up or down.
    pub up: Option<bool>,
    /// Make the link a port of this bridge; 0 takes it out.
    pub master: Option<u32>,
    /// The alias, at most 255 bytes. The kernel ignores it in the request that creates a link.
    pub alias: Option<&'a str>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// The group.
    pub group: Option<u32>,
    /// How the IPv6 link-local address is made.
    pub link_local: Option<LinkLocal>,
}

/// How the kernel makes the IPv6 link-local address of a link (`addrgenmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLocal {
    /// From the Ethernet address.
    Eui64,
    /// Not at all.
    None,
}

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

/// All links.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn list(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    list_with(netlink, |link, _| Some(link))
}

/// What `pick` makes of each link and the body of its message.
pub(crate) fn list_with<T>(
    netlink: &mut Netlink,
    pick: impl Fn(Link, &[u8]) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETLINK, 0, &link_header(0, 0, 0));
    batch.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    netlink.dump(&mut batch, |kind, body| {
        if kind == libc::RTM_NEWLINK { parse(body).map(|link| pick(link, body)) } else { Ok(None) }
    })
}

/// The link `name`, if there is one.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Error> {
    find_body(netlink, name)?.map(|body| parse(&body)).transpose()
}

/// The body of the message about the link `name`, if there is one.
pub(crate) fn find_body(netlink: &mut Netlink, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETLINK, 0, &link_header(0, 0, 0));
    batch.attr_str(libc::IFLA_IFNAME, name);
    batch.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    netlink.query(&mut batch, || format!("look up the link {name}"))
}

/// The link with index `index`, if there is one.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn find_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, Error> {
    find_index_body(netlink, index)?.map(|body| parse(&body)).transpose()
}

fn find_index_body(netlink: &mut Netlink, index: u32) -> Result<Option<Vec<u8>>, Error> {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETLINK, 0, &link_header(index, 0, 0));
    batch.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    netlink.query(&mut batch, || format!("look up the link {index}"))
}

/// Whether the kernel has taken note of the carrier of the link with index `index` and sends through it
/// (RFC 2863, ifOperStatus `up`). [`Link::is_running`] is true before, while that is still unknown.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn is_operational(netlink: &mut Netlink, index: u32) -> Result<bool, Error> {
    let Some(body) = find_index_body(netlink, index)? else { return Ok(false) };
    let rest = body.get(16..).unwrap_or_default();
    Ok(attributes(rest).any(|(kind, value)| kind == libc::IFLA_OPERSTATE && value == [IF_OPER_UP]))
}

/// Creates a veth pair. Both ends are down; an alias can be set only afterwards.
///
/// # Errors
/// [`Error::Refused`] with EEXIST when a name or index is taken in its namespace.
pub fn create_veth(netlink: &mut Netlink, veth: &Veth<'_>) -> Result<(), Error> {
    let action = || format!("create the veth pair {} and {}", veth.end.name, veth.peer.name);
    netlink.request(Batch::new().create_veth(veth), action)
}

/// Creates a bridge, down, without spanning tree.
///
/// # Errors
/// [`Error::Refused`] with EEXIST when the name is taken.
pub fn create_bridge(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    netlink.request(Batch::new().create_bridge(name), || format!("create the bridge {name}"))
}

/// Sets a link up.
///
/// # Errors
/// [`Error::Refused`] with ENODEV when there is no such link.
pub fn set_up(netlink: &mut Netlink, index: u32) -> Result<(), Error> {
    set(netlink, index, &LinkSettings { up: Some(true), ..LinkSettings::default() })
}

/// Sets a link down. IPv4 routes through it vanish without a notification.
///
/// # Errors
/// As [`set_up`].
pub fn set_down(netlink: &mut Netlink, index: u32) -> Result<(), Error> {
    set(netlink, index, &LinkSettings { up: Some(false), ..LinkSettings::default() })
}

/// Makes a link a port of the bridge `master`; 0 takes it out of its bridge.
///
/// # Errors
/// As [`set_up`].
pub fn set_master(netlink: &mut Netlink, index: u32, master: u32) -> Result<(), Error> {
    set(netlink, index, &LinkSettings { master: Some(master), ..LinkSettings::default() })
}

/// Sets a link's alias: at most 255 bytes.
///
/// # Errors
/// As [`set_up`]; [`Error::Refused`] when it is too long.
pub fn set_alias(netlink: &mut Netlink, index: u32, alias: &str) -> Result<(), Error> {
    set(netlink, index, &LinkSettings { alias: Some(alias), ..LinkSettings::default() })
}

/// Changes several settings of a link in one request.
///
/// # Errors
/// As [`set_up`].
pub fn set(netlink: &mut Netlink, index: u32, settings: &LinkSettings<'_>) -> Result<(), Error> {
    netlink.request(Batch::new().set_link(index, settings), || format!("change link {index}"))
}

/// Deletes a link; a veth pair goes as a whole. A link that does not exist is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete(netlink: &mut Netlink, index: u32) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.delete_link(index);
    absent_is_fine(netlink.request(&mut batch, || format!("delete link {index}")))
}

/// Deletes every link of `group`, which must not be 0, at the cost of one. An empty group is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete_group(netlink: &mut Netlink, group: u32) -> Result<(), Error> {
    if group == 0 {
        return Err(Error::Unencodable("group 0 is every link's and cannot be deleted"));
    }
    let mut batch = Batch::new();
    batch.begin(libc::RTM_DELLINK, 0, &link_header(0, 0, 0));
    batch.attr_u32(libc::IFLA_GROUP, group);
    absent_is_fine(netlink.request(&mut batch, || format!("delete the links of group {group}")))
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

/// Adds one route, for setting up a namespace. A route with the same key must not exist.
///
/// # Errors
/// [`Error::Refused`] with EEXIST when a route has the same prefix, table and metric.
pub fn add_route(netlink: &mut Netlink, route: &Route) -> Result<(), Error> {
    netlink.request(Batch::new().add_route(route), || format!("add the route {}", route.prefix))
}

/// Deletes one route, only if its protocol is the given one's. One that is not there is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete_route(netlink: &mut Netlink, route: &Route) -> Result<(), Error> {
    let deleted = netlink
        .request(Batch::new().delete_route(route), || format!("delete the route {}", route.prefix));
    absent_is_fine(deleted)
}

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

fn parse_permanent_neighbour(body: &[u8]) -> Result<Option<IpAddr>, Error> {
    let (header, rest) = body.split_at_checked(12).ok_or(Error::Malformed("a short neighbour"))?;
    let state = header.get(8..10).and_then(|state| state.try_into().ok()).map(u16::from_ne_bytes);
    if state.is_none_or(|state| state & libc::NUD_PERMANENT == 0) {
        return Ok(None);
    }
    let mut destinations = attributes(rest).filter(|(kind, _)| *kind == libc::NDA_DST);
    Ok(destinations.next().and_then(|(_, value)| read_ip(value)))
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

/// Requests about links, as [`Netlink::execute`] sends them.
impl Batch {
    /// As [`create_veth`].
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> &mut Batch {
        let mtu = |batch: &mut Batch| {
            if let Some(mtu) = veth.mtu {
                batch.attr_u32(libc::IFLA_MTU, mtu);
            }
        };
        self.begin(libc::RTM_NEWLINK, CREATE_EXCL, &link_header(veth.end.index.unwrap_or(0), 0, 0));
        self.veth_end(&veth.end);
        mtu(self);
        let info = self.open(libc::IFLA_LINKINFO);
        self.attr(libc::IFLA_INFO_KIND, b"veth");
        let data = self.open(libc::IFLA_INFO_DATA);
        let peer = self.open(VETH_INFO_PEER);
        self.raw(&link_header(veth.peer.index.unwrap_or(0), 0, 0));
        self.veth_end(&veth.peer);
        mtu(self);
        if let Some(netns) = veth.peer_netns {
            self.attr_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
        }
        self.close(peer).close(data).close(info)
    }

    /// As [`create_bridge`].
    pub fn create_bridge(&mut self, name: &str) -> &mut Batch {
        self.create_link(name, "bridge")
    }

    /// A link of a kind that needs nothing but a name.
    pub(crate) fn create_link(&mut self, name: &str, kind: &str) -> &mut Batch {
        self.begin_link(name);
        let info = self.open(libc::IFLA_LINKINFO);
        self.attr(libc::IFLA_INFO_KIND, kind.as_bytes()).close(info)
    }

    /// Begins the request that creates a link; the kind is still to be added.
    pub(crate) fn begin_link(&mut self, name: &str) -> &mut Batch {
        self.begin(libc::RTM_NEWLINK, CREATE_EXCL, &link_header(0, 0, 0));
        self.attr_str(libc::IFLA_IFNAME, name)
    }

    /// Begins a request that changes a link; what changes is still to be added.
    pub(crate) fn change_link(&mut self, index: u32) -> &mut Batch {
        self.begin(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0))
    }

    /// As [`delete`], except that a link which is not there is refused.
    pub fn delete_link(&mut self, index: u32) -> &mut Batch {
        self.begin(libc::RTM_DELLINK, 0, &link_header(index, 0, 0))
    }

    /// As [`set`].
    pub fn set_link(&mut self, index: u32, settings: &LinkSettings<'_>) -> &mut Batch {
        let change = if settings.up.is_some() { IFF_UP } else { 0 };
        let flags = if settings.up == Some(true) { IFF_UP } else { 0 };
        self.begin(libc::RTM_NEWLINK, 0, &link_header(index, flags, change));
        if let Some(master) = settings.master {
            self.attr_u32(libc::IFLA_MASTER, master);
        }
        if let Some(alias) = settings.alias {
            self.attr(libc::IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(mtu) = settings.mtu {
            self.attr_u32(libc::IFLA_MTU, mtu);
        }
        if let Some(mac) = settings.mac {
            self.attr(libc::IFLA_ADDRESS, &mac.0);
        }
        if let Some(group) = settings.group {
            self.attr_u32(libc::IFLA_GROUP, group);
        }
        if let Some(mode) = settings.link_local {
            let families = self.open(libc::IFLA_AF_SPEC);
            let inet6 = self.open(libc::AF_INET6 as u16);
            let mode = match mode {
                LinkLocal::Eui64 => IN6_ADDR_GEN_MODE_EUI64,
                LinkLocal::None => IN6_ADDR_GEN_MODE_NONE,
            };
            self.attr(IFLA_INET6_ADDR_GEN_MODE, &[mode]).close(inet6).close(families);
        }
        self
    }

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

    /// As [`add_route`].
    pub fn add_route(&mut self, route: &Route) -> &mut Batch {
        route::encode_create(self, route.key(), route.protocol, &route.attributes());
        self
    }

    /// As [`delete_route`], except that a route which is not there is refused.
    pub fn delete_route(&mut self, route: &Route) -> &mut Batch {
        route::encode_delete(self, route.key(), route.protocol);
        self
    }

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

    fn veth_end(&mut self, end: &VethEnd<'_>) {
        self.attr_str(libc::IFLA_IFNAME, end.name);
        if let Some(mac) = end.mac {
            self.attr(libc::IFLA_ADDRESS, &mac.0);
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address has six hexadecimal octets between colons, as in 02:00:00:00:00:01")]
pub struct InvalidMac;

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Mac, InvalidMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(InvalidMac)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(InvalidMac);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Ok(Mac(octets)) }
    }
}

/// Reads the body of an RTM_NEWLINK or RTM_DELLINK message.
pub(crate) fn parse(body: &[u8]) -> Result<Link, Error> {
    let (header, rest) = body.split_at_checked(16).ok_or(Error::Malformed("a short link"))?;
    let mut link = Link {
        index: header.get(4..).and_then(read_u32).unwrap_or(0),
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        flags: header.get(8..).and_then(read_u32).unwrap_or(0),
        alias: None,
        master: None,
        peer: None,
        peer_netns: None,
        group: 0,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_IFNAME => link.name = read_str(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = read_u32(value).unwrap_or(0),
            libc::IFLA_IFALIAS => link.alias = Some(read_str(value)),
            libc::IFLA_MASTER => link.master = read_u32(value),
            libc::IFLA_LINK => link.peer = read_u32(value).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => link.peer_netns = read_u32(value),
            libc::IFLA_GROUP => link.group = read_u32(value).unwrap_or(0),
            libc::IFLA_LINKINFO => {
                let info = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = info.map(|(_, name)| read_str(name));
            }
            _ => {}
        }
    }
    Ok(link)
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

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

fn address_header(ifindex: u32, address: IpNet, scope: u8) -> [u8; 8] {
    let mut header = [route::family_of(address.addr()), address.prefix_len(), 0, scope, 0, 0, 0, 0];
    header[4..].copy_from_slice(&ifindex.to_ne_bytes());
    header
}

fn neighbour_header(ifindex: u32, address: IpAddr) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = route::family_of(address);
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    header
}

fn absent_is_fine(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.is_absent() => Ok(()),
        done => done,
    }
}

fn present_is_fine(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.is_present() => Ok(()),
        done => done,
    }
}

const CREATE_EXCL: u16 = libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16;
const IFF_UP: u32 = libc::IFF_UP as u32;
const IFF_RUNNING: u32 = libc::IFF_RUNNING as u32;
const IF_OPER_UP: u8 = 6;
/// Leaves the counters out of the answer, which halves it.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_EUI64: u8 = 0;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
