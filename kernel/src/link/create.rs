//! Making links: veth pairs, bridges, and what other modules make.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{CREATE_EXCL, Mac, link_header};
use crate::batch::Batch;
use crate::error::Error;
use crate::socket::Netlink;

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

/// Requests about new links, as [`Netlink::execute`] sends them.
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

    fn veth_end(&mut self, end: &VethEnd<'_>) {
        self.attr_str(libc::IFLA_IFNAME, end.name);
        if let Some(mac) = end.mac {
            self.attr(libc::IFLA_ADDRESS, &mac.0);
        }
    }
}

const VETH_INFO_PEER: u16 = 1;
