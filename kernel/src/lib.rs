//! The only code of Cairn that talks to the Linux kernel's network stack.
//!
//! Everything that is read from or written to rtnetlink, nftables, network namespaces and network
//! sysctls goes through this crate. It decides nothing about the cluster: callers hand in what they want
//! as plain values and get back what the kernel holds and what failed.

pub mod batch;
pub mod cleanup;
mod delta;
mod entries;
pub mod error;
pub mod feature;
pub mod firewall;
pub mod link;
pub mod monitor;
pub mod netns;
pub mod nexthop;
mod objects;
mod paths;
pub mod pod;
pub mod reconcile;
pub mod resolve;
pub mod route;
pub mod router_discovery;
pub mod rule;
pub mod socket;
pub mod sysctl;
pub mod tunnel;
pub mod uplink;

#[cfg(test)]
mod decode_tests;

pub use batch::Batch;
pub use error::{Error, Refusal};
pub use netns::NetNs;
pub use rustix::io::Errno;
pub use socket::Netlink;

/// Route protocol number (`rtm_protocol`) of routes that come from BGP and of own blocks, unless
/// configured, and of next-hop objects.
pub const ROUTE_PROTOCOL: u8 = 222;

/// Route protocol number of host routes to local pods. They are the pods' database and are never
/// swept together with the routes of [`ROUTE_PROTOCOL`].
pub const POD_ROUTE_PROTOCOL: u8 = 223;

/// Metric of routes that come from BGP unless configured. No other daemon uses it by default, so that neither side
/// replaces the other's route to the same prefix.
pub const ROUTE_METRIC: u32 = 198;

/// Metric of the blackhole route that holds an own block: above that of learned routes and every pod's host route, so that a
/// block of one address does not hide its own pod.
pub const BLACKHOLE_METRIC: u32 = 4198;

/// VXLAN network identifier unless configured. Calico takes 4096.
pub const VXLAN_VNI_DEFAULT: u32 = 198;

/// UDP port of VXLAN unless configured. Others take 4789 and 8472, and a port serves only one kind of
/// device.
pub const VXLAN_PORT_DEFAULT: u16 = 4798;

/// Numbers of the next-hop objects that lead into tunnels: 16,384 nodes with both tunnels and both
/// families.
pub const TUNNEL_OBJECTS: std::ops::Range<u32> = 0x4341_0000..0x4342_0000;

/// Numbers of the next-hop objects on uplinks: the first half of single next hops, the second of groups.
pub const UPLINK_OBJECTS: std::ops::Range<u32> = 0x4342_0000..0x4343_0000;
