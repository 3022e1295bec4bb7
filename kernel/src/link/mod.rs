//! Links, their addresses and permanent neighbours.
//!
//! Every function acts in the network namespace of the [`Netlink`] socket it is given. The builders
//! on [`Batch`] write the same requests without sending them, for callers that must have several in
//! one system call.

mod address;
mod create;
mod mac;
mod neighbour;
mod routes;
mod settings;

use crate::batch::{Batch, attributes, read_str, read_u32};
use crate::error::Error;
use crate::socket::Netlink;

pub(crate) use address::parse_address;
pub use address::{
    Address, DuplicateDetection, add_address, addresses, delete_address, multicast_groups,
};
pub use create::{Veth, VethEnd, create_bridge, create_veth};
pub use mac::{InvalidMac, Mac};
pub use neighbour::{
    delete_neighbour, has_permanent_neighbour, permanent_neighbours, set_neighbour,
};
pub use routes::{add_route, delete_route};
pub use settings::{LinkLocal, LinkSettings, set, set_alias, set_down, set_master, set_up};

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

/// Requests about the end of links, as [`Netlink::execute`] sends them.
impl Batch {
    /// As [`delete`], except that a link which is not there is refused.
    pub fn delete_link(&mut self, index: u32) -> &mut Batch {
        self.begin(libc::RTM_DELLINK, 0, &link_header(index, 0, 0))
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

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
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
