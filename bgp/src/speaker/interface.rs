//! The interface that a session runs over, and the own addresses on it.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;

use crate::session::LocalAddresses;

use super::Endpoints;

/// An address of an interface.
#[derive(Clone, Debug)]
struct InterfaceAddress {
    interface: Vec<u8>,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
}

/// Own next hops for a connection, and the interface that it leaves by. The IPv6 next hop is the configured
/// one, else the local address, else the first global one of the same interface. A peer whose configuration
/// says that it is one hop away is next to the local address; any other one only in a subnet of the
/// interface, or with link-local addresses.
pub(super) fn local_addresses(
    endpoints: Endpoints,
    next_hop_ipv6: Option<Ipv6Addr>,
    one_hop: bool,
) -> LocalAddresses {
    let (local, remote) = (endpoints.local.ip(), endpoints.remote.ip());
    let mut addresses = LocalAddresses { ipv4: None, ipv6: next_hop_ipv6, link: None };
    match local {
        IpAddr::V4(own) => addresses.ipv4 = Some(own),
        IpAddr::V6(own) => addresses.ipv6 = addresses.ipv6.or(Some(own)),
    }
    // Several interfaces may have the same link-local address.
    let scope = scope_of(endpoints.local);
    let all = interface_addresses();
    let is_own = |a: &&InterfaceAddress| a.address == local && (scope == 0 || a.index == scope);
    let Some(own) = all.iter().find(is_own) else { return addresses };
    let mut near = one_hop || scope != 0;
    for address in all.iter().filter(|a| a.interface == own.interface) {
        near |= address.holds(remote);
        match address.address {
            IpAddr::V4(own) => addresses.ipv4 = addresses.ipv4.or(Some(own)),
            IpAddr::V6(own) if own.is_unicast_link_local() => {}
            IpAddr::V6(own) => addresses.ipv6 = addresses.ipv6.or(Some(own)),
        }
    }
    addresses.link = near.then_some(own.index);
    addresses
}

/// The index of the interface that a link-local address is of; 0 of any other.
pub(super) fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => v6.scope_id(),
        _ => 0,
    }
}

/// The address of a socket, in the scope of an interface where it is link-local.
pub(super) fn in_scope(address: IpAddr, port: u16, scope_id: u32) -> SocketAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            SocketAddrV6::new(v6, port, 0, scope_id).into()
        }
        _ => SocketAddr::new(address, port),
    }
}

impl InterfaceAddress {
    /// Whether an address is in the subnet of this one.
    fn holds(&self, other: IpAddr) -> bool {
        IpNet::new(self.address, self.prefix_len).is_ok_and(|net| net.contains(&other))
    }
}

/// The addresses of all interfaces (getifaddrs(3)).
fn interface_addresses() -> Vec<InterfaceAddress> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: on success `list` is a list that freeifaddrs takes back below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is an element of the list, which lives until freeifaddrs.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() || entry.ifa_name.is_null() {
            continue;
        }
        // SAFETY: ifa_name is a string that ends in 0; ifa_addr and, where there is one, ifa_netmask are
        // of the sort that the address's family says.
        let (name, index, address, mask) = unsafe {
            let Some(address) = read_address(entry.ifa_addr) else { continue };
            let mask = read_address(entry.ifa_netmask).unwrap_or(address);
            let name = CStr::from_ptr(entry.ifa_name).to_bytes().to_vec();
            (name, libc::if_nametoindex(entry.ifa_name), address, mask)
        };
        let prefix_len = match mask {
            IpAddr::V4(mask) => mask.to_bits().count_ones(),
            IpAddr::V6(mask) => mask.to_bits().count_ones(),
        };
        addresses.push(InterfaceAddress {
            interface: name,
            index,
            address,
            prefix_len: prefix_len as u8,
        });
    }
    // SAFETY: the list comes from getifaddrs and is not used any more.
    unsafe { libc::freeifaddrs(list) };
    addresses
}

/// # Safety
/// `address` is null or of the sort that its family says.
unsafe fn read_address(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                let address = &*address.cast::<libc::sockaddr_in>();
                Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr))))
            }
            libc::AF_INET6 => {
                let address = &*address.cast::<libc::sockaddr_in6>();
                Some(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)))
            }
            _ => None,
        }
    }
}
