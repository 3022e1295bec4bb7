//! What of a link can be changed.

use super::{IFF_UP, Mac, link_header};
use crate::batch::Batch;
use crate::error::Error;
use crate::socket::Netlink;

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

/// Requests about links' settings, as [`Netlink::execute`] sends them.
impl Batch {
    /// Begins a request that changes a link; what changes is still to be added.
    pub(crate) fn change_link(&mut self, index: u32) -> &mut Batch {
        self.begin(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0))
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
}

const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_EUI64: u8 = 0;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
