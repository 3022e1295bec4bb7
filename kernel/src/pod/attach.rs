//! Making a pod's interface in one pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use ipnet::IpNet;
use rustix::io::Errno;

use super::check::gateways_through;
use super::foreign::foreign_neighbour;
use super::identity::{identity_hash, macs_of, mix};
use super::routes::{elsewhere, exact, host_route, ifindex_of};
use super::{Alias, AliasError, NetworkHash, host_interface_name, is_ours, settle};
use crate::batch::Batch;
use crate::error::{Error, Refusal};
use crate::feature;
use crate::link::{self, DuplicateDetection, Link, LinkSettings, Mac, Veth, VethEnd};
use crate::netns::NetNs;
use crate::route::{self, NextHop, Route, Target};
use crate::socket::{Acknowledge, Netlink};
use crate::sysctl;

/// What a pod's interface should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// The container id of the pod's sandbox.
    pub container_id: String,
    /// The interface's name inside the pod.
    pub ifname: String,
    /// The pod's UID, where known.
    pub pod_uid: Option<String>,
    /// The name of the network configuration by which it is asked for.
    pub network: String,
    /// The pod's addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The Ethernet address of the pod's end, when it is asked for. An interface that is there already
    /// keeps the one that it has.
    pub mac: Option<Mac>,
    /// The node's own blocks in which they lie: a route that is more specific than the block, and a
    /// permanent neighbour, mean that an address is somebody else's. Without a block only a route for
    /// exactly an address does.
    pub blocks: Vec<IpNet>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Addresses of this node: the first of a pod address's family becomes the source of what the
    /// node itself sends to the pod.
    pub node_addresses: Vec<IpAddr>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The host interface's name.
    pub host_ifname: String,
    /// Its Ethernet address.
    pub host_mac: Mac,
    /// The Ethernet address of the pod's interface.
    pub pod_mac: Mac,
    /// The MTU of both in bytes.
    pub mtu: u32,
    /// The gateways to which the pod's default routes lead through the interface: none of a family whose
    /// default route is another interface's, as that of a pod with several networks.
    pub gateways: Vec<IpAddr>,
}

/// Why a pod has no interface. Nothing is left of what was begun.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The host already has a route for exactly this address, or a permanent neighbour, or has the
    /// address itself.
    #[error("the address {0} is in use: this node already has a route or a neighbour entry for it")]
    AddressInUse(IpAddr),
    /// The host has a route to a part of the address's block: a bridge of another tool, say.
    #[error("the address {address} is in use: this node routes {prefix} elsewhere")]
    RoutedElsewhere {
        /// The address.
        address: IpAddr,
        /// The route's destination.
        prefix: IpNet,
    },
    /// The pod already has an interface of that name, which is not ours.
    #[error("the pod already has an interface {0} that Cairn did not make")]
    PodInterfaceExists(String),
    /// Another container has the host interface of this one's name.
    #[error("the host interface {host_ifname} belongs to another container: {alias:?}")]
    HostInterfaceTaken {
        /// The host interface.
        host_ifname: String,
        /// Its alias.
        alias: String,
    },
    /// The identifiers do not fit the alias.
    #[error("the pod cannot be recorded in its interface's alias: {0}")]
    Alias(#[from] AliasError),
    /// The Ethernet address that was asked for is none that the pod's end can have.
    #[error(
        "the pod cannot have the Ethernet address {0}: ask for one that is neither zero nor a group's, \
         and not the node's end's"
    )]
    UnusableMac(Mac),
    /// An IPv6 address was asked for and the kernel has no IPv6.
    #[error(
        "this kernel has no IPv6, or net.ipv6.conf.default.disable_ipv6 is 1 on this node: set it to \
         0 or use IPv4 pools only"
    )]
    NoIpv6,
    /// The node has no such address, which should be the source of the host route.
    #[error("this node does not have the address {0} that is to be the source towards its pods")]
    NodeAddressMissing(IpAddr),
    /// Anything else that the kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Gives the pod in `pod_netns` its interface. Repeated with the same arguments it finds the
/// interface, completes what is missing and gives the same answer; the rest of an interrupted
/// attempt for the same container is replaced.
///
/// The calling thread must be in the namespace of `host`. No descriptor of the pod's namespace and no
/// socket in it is open after the return, except the one that the caller holds.
///
/// # Errors
/// [`AttachError`]. What this call made is removed again.
pub fn attach(
    host: &mut Netlink,
    pod_netns: &NetNs,
    spec: &PodSpec,
) -> Result<Attached, AttachError> {
    let host_ifname = host_interface_name(&spec.container_id, &spec.ifname);
    let record = Alias {
        container_id: spec.container_id.clone(),
        ifname: spec.ifname.clone(),
        pod_uid: spec.pod_uid.clone(),
        network: NetworkHash::of(&spec.network),
        addresses: spec.addresses.clone(),
    };
    let alias = record.encode()?;
    let (host_mac, pod_mac) = macs_of(&spec.container_id, &spec.ifname);
    if let Some(mac) = spec.mac.filter(|mac| *mac == host_mac || !mac.is_of_one()) {
        return Err(AttachError::UnusableMac(mac));
    }
    let v6 = spec.addresses.iter().any(IpAddr::is_ipv6);
    if v6 && !ipv6_ready() {
        return Err(AttachError::NoIpv6);
    }
    if let Some(link) = link::find(host, &host_ifname)?
        && let Some(attached) = resume(host, pod_netns, spec, &record, link)?
    {
        return Ok(attached);
    }
    let index = free_index(host, spec)?;
    for &address in &spec.addresses {
        match elsewhere(host, address, &spec.blocks)? {
            Some(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => {
                return Err(AttachError::AddressInUse(address));
            }
            Some(prefix) => return Err(AttachError::RoutedElsewhere { address, prefix }),
            None => {}
        }
    }
    if !spec.blocks.is_empty()
        && let Some(&address) = foreign_neighbour(host, &spec.addresses)?
    {
        return Err(AttachError::AddressInUse(address));
    }
    let host_side = HostSide {
        host_ifname: &host_ifname,
        alias: &alias,
        index,
        host_mac,
        pod_mac: spec.mac.unwrap_or(pod_mac),
        v6,
    };
    let made = host_side.make(host, pod_netns, spec).and_then(|()| {
        let pod_side =
            pod_side(pod_netns, spec, host_mac, index)?.ok_or_else(|| vanished(&spec.ifname))?;
        settle::carrier(host, index);
        Ok(pod_side.attached(host_ifname.clone(), host_mac, spec.mtu))
    });
    if made.is_err() && !matches!(made, Err(AttachError::PodInterfaceExists(_))) {
        // The index was free and is ours to remove; the first error is the one that counts.
        let _ = link::delete(host, index);
    }
    made
}

/// The address through which a pod reaches everything, for the family of `address`: link-local, and
/// the same in every pod.
pub fn gateway_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// Completes an attachment that is there; `None` after removing one that cannot be completed.
fn resume(
    host: &mut Netlink,
    pod_netns: &NetNs,
    spec: &PodSpec,
    record: &Alias,
    link: Link,
) -> Result<Option<Attached>, AttachError> {
    let found = link.alias.as_deref().filter(|text| !text.is_empty());
    let taken = || AttachError::HostInterfaceTaken {
        host_ifname: link.name.clone(),
        alias: found.unwrap_or_default().into(),
    };
    let parsed = found.map(str::parse::<Alias>);
    match &parsed {
        _ if !is_ours(&link) => return Err(taken()),
        Some(Ok(alias))
            if alias.container_id != record.container_id || alias.ifname != record.ifname =>
        {
            return Err(taken());
        }
        Some(Err(_)) => return Err(taken()),
        _ => {}
    }
    let same = matches!(&parsed, Some(Ok(alias))
        if alias.addresses == record.addresses && alias.network == record.network);
    if let (true, Some(host_mac)) = (same, link.mac)
        && let Some(pod_side) = pod_side(pod_netns, spec, host_mac, link.index)?
    {
        if !link.is_up() {
            link::set_up(host, link.index)?;
        }
        host_settings(spec, &link.name)?;
        let mut steps = Steps::default();
        steps.host_routes(spec, link.index);
        if spec.addresses.iter().any(IpAddr::is_ipv6) {
            steps.gateway(link.index);
        }
        for refusal in steps.execute(host)? {
            let address = spec.addresses.get(refusal.index).copied();
            match address {
                Some(address) if refusal.errno == Errno::EXIST => {
                    if interface_to(host, address)? != Some(link.index) {
                        return Err(AttachError::AddressInUse(address));
                    }
                }
                None if refusal.errno == Errno::EXIST => {}
                _ => return Err(steps.failure(refusal, spec)),
            }
        }
        settle::carrier(host, link.index);
        return Ok(Some(pod_side.attached(link.name.clone(), host_mac, link.mtu)));
    }
    link::delete(host, link.index)?;
    Ok(None)
}

struct HostSide<'a> {
    host_ifname: &'a str,
    alias: &'a str,
    index: u32,
    host_mac: Mac,
    pod_mac: Mac,
    v6: bool,
}

impl HostSide<'_> {
    /// Makes the pair with alias and host routes in one system call, then the host interface's
    /// settings.
    fn make(
        &self,
        host: &mut Netlink,
        pod_netns: &NetNs,
        spec: &PodSpec,
    ) -> Result<(), AttachError> {
        let mut steps = Steps::default();
        steps.creation(self, pod_netns, spec);
        for refusal in steps.execute(host)? {
            if refusal.errno != Errno::EXIST {
                return Err(steps.failure(refusal, spec));
            }
            if refusal.index == 0 {
                // Name and index were free on the host, so the name is taken in the pod.
                return Err(AttachError::PodInterfaceExists(spec.ifname.clone()));
            }
            let position = refusal.index.checked_sub(steps.routes_from);
            let Some(&address) = position.and_then(|at| spec.addresses.get(at)) else {
                return Err(steps.failure(refusal, spec));
            };
            // Written by `restore_routes`, which saw the alias before this route.
            if interface_to(host, address)? != Some(self.index) {
                return Err(AttachError::AddressInUse(address));
            }
        }
        Ok(host_settings(spec, self.host_ifname)?)
    }
}

/// Requests of one system call with what each is for.
#[derive(Default)]
struct Steps {
    batch: Batch,
    actions: Vec<String>,
    /// The position of the first host route; one for each address follows.
    routes_from: usize,
}

impl Steps {
    fn creation(&mut self, side: &HostSide<'_>, pod_netns: &NetNs, spec: &PodSpec) {
        let host_ifname = side.host_ifname;
        self.actions.push(format!("create {host_ifname} and its peer {}", spec.ifname));
        self.batch.create_veth(&Veth {
            end: VethEnd { name: host_ifname, index: Some(side.index), mac: Some(side.host_mac) },
            peer: VethEnd { name: &spec.ifname, index: None, mac: Some(side.pod_mac) },
            peer_netns: Some(pod_netns.as_fd()),
            mtu: Some(spec.mtu),
        });
        // The kernel ignores an alias in the creating request and refuses IFF_UP there.
        self.actions.push(format!("set the alias of {host_ifname}"));
        let alias = LinkSettings { alias: Some(side.alias), ..LinkSettings::default() };
        self.batch.set_link(side.index, &alias);
        self.interface_settings(side.v6 || has_ipv6_link(spec.mtu));
        self.actions.push(format!("set {host_ifname} up"));
        let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
        self.batch.set_link(side.index, &up);
        self.host_routes(spec, side.index);
        if side.v6 {
            self.gateway(side.index);
        }
    }

    /// Adds the per-interface settings to the request that was begun last, which spares a file
    /// operation for each. A link-local address of the kernel's own would be nobody's next hop, and takes
    /// duplicate address detection, groups and routes that must all go again before a DEL can return.
    fn interface_settings(&mut self, v6: bool) {
        let families = self.batch.open(libc::IFLA_AF_SPEC);
        let inet = self.batch.open(libc::AF_INET as u16);
        let conf = self.batch.open(IFLA_INET_CONF);
        for (setting, value) in HOST_SETTINGS_V4 {
            self.batch.attr_u32(setting, value);
        }
        self.batch.close(conf).close(inet);
        if v6 {
            let inet6 = self.batch.open(libc::AF_INET6 as u16);
            self.batch.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]).close(inet6);
        }
        self.batch.close(families);
    }

    fn host_routes(&mut self, spec: &PodSpec, index: u32) {
        self.routes_from = self.batch.len();
        for &address in &spec.addresses {
            self.actions.push(format!("add the host route to {address}"));
            self.batch.add_route(&host_route(address, index, &spec.node_addresses));
        }
    }

    fn gateway(&mut self, index: u32) {
        self.actions.push(format!("add the address {GATEWAY_V6} to link {index}"));
        let gateway = IpNet::new_assert(GATEWAY_V6.into(), 64);
        self.batch.add_address(index, gateway, DuplicateDetection::Skip);
    }

    fn execute(&mut self, netlink: &mut Netlink) -> Result<Vec<Refusal>, Error> {
        netlink.execute(&mut self.batch, Acknowledge::Each)
    }

    fn failure(&self, refusal: Refusal, spec: &PodSpec) -> AttachError {
        // A route's source that is no address of the host is EINVAL in both families.
        if refusal.errno == Errno::INVAL
            && let Some(position) = refusal.index.checked_sub(self.routes_from)
            && let Some(&address) = spec.addresses.get(position)
            && let Some(source) = host_route(address, 0, &spec.node_addresses).prefsrc
        {
            return AttachError::NodeAddressMissing(source);
        }
        let action = self.actions.get(refusal.index).cloned().unwrap_or_default();
        Error::Refused { action, refusal }.into()
    }
}

/// Settings of the host interface that only files reach.
fn host_settings(spec: &PodSpec, host_ifname: &str) -> Result<(), Error> {
    if spec.addresses.iter().any(IpAddr::is_ipv4) {
        // Jiffies: without it an answer to a pod's ARP request waits up to 0.8 s.
        sysctl::ensure(&format!("ipv4/neigh/{host_ifname}/proxy_delay"), 0)?;
    }
    // Also of a pod without IPv6 address, which can send all the same: it must not become this node's
    // router.
    match sysctl::ensure(&format!("ipv6/conf/{host_ifname}/accept_ra"), 0) {
        // A kernel without IPv6.
        Err(error) if error.is_absent() => {}
        ensured => drop(ensured?),
    }
    if spec.addresses.iter().any(IpAddr::is_ipv6) {
        sysctl::ensure(&format!("ipv6/conf/{host_ifname}/forwarding"), 1)?;
    }
    Ok(())
}

/// What the pod's own side turned out to be.
struct PodSide {
    mac: Mac,
    gateways: Vec<IpAddr>,
}

impl PodSide {
    fn attached(self, host_ifname: String, host_mac: Mac, mtu: u32) -> Attached {
        Attached { host_ifname, host_mac, pod_mac: self.mac, mtu, gateways: self.gateways }
    }
}

/// Sets up the pod's own side on a thread inside its namespace. What is there already stays. `None`
/// when the pod has no such interface whose other end is `host_index`.
fn pod_side(
    pod_netns: &NetNs,
    spec: &PodSpec,
    host_mac: Mac,
    host_index: u32,
) -> Result<Option<PodSide>, Error> {
    pod_netns.run(|| {
        let mut netlink = Netlink::open()?;
        let found = link::find(&mut netlink, &spec.ifname)?;
        let Some(link) = found.filter(|link| link.peer == Some(host_index)) else {
            return Ok(None);
        };
        let Some(mac) = link.mac else { return Ok(None) };
        if spec.addresses.iter().any(IpAddr::is_ipv6) {
            // Runtimes switch IPv6 off in pods whose network configuration they know nothing of.
            sysctl::ensure("ipv6/conf/all/disable_ipv6", 0)?;
            for (setting, value) in POD_SETTINGS_V6 {
                sysctl::ensure(&format!("ipv6/conf/{}/{setting}", spec.ifname), value)?;
            }
        }
        let mut steps = Steps::default();
        for (index, name) in [(LOOPBACK_INDEX, "lo"), (link.index, spec.ifname.as_str())] {
            steps.actions.push(format!("set {name} up in the pod"));
            let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
            steps.batch.set_link(index, &up);
        }
        for &address in &spec.addresses {
            steps.actions.push(format!("add the address {address} in the pod"));
            steps.batch.add_address(link.index, address.into(), DuplicateDetection::Skip);
        }
        for &address in &spec.addresses {
            let gateway = gateway_of(address);
            steps.actions.push(format!("set the neighbour {gateway} in the pod"));
            steps.batch.set_neighbour(link.index, gateway, host_mac);
            steps.actions.push(format!("add the default route via {gateway} in the pod"));
            steps.batch.add_route(&default_route(gateway, link.index));
        }
        let refusals = steps.execute(&mut netlink)?;
        let present = |refusal: &Refusal| refusal.errno == Errno::EXIST;
        if let Some(refusal) = refusals.iter().find(|refusal| !present(refusal)) {
            let action = steps.actions.get(refusal.index).cloned().unwrap_or_default();
            return Err(Error::Refused { action, refusal: refusal.clone() });
        }
        // What is there may be the default route of another interface.
        let gateways = match refusals.is_empty() {
            true => spec.addresses.iter().copied().map(gateway_of).collect(),
            false => gateways_through(&mut netlink, &spec.addresses, link.index)?,
        };
        settle::groups(&mut netlink, &spec.addresses, link.index);
        Ok(Some(PodSide { mac, gateways }))
    })?
}

fn default_route(gateway: IpAddr, ifindex: u32) -> Route {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let hop = NextHop { onlink: true, ..NextHop::via(gateway, ifindex) };
    Route {
        prefix: everywhere,
        table: route::TABLE_MAIN,
        metric: 0,
        protocol: route::PROTOCOL_STATIC,
        target: Target::Unicast(vec![hop]),
        prefsrc: None,
    }
}

/// An index that no link of the host has. A chosen one lets alias and routes follow the creation in
/// the same system call.
fn free_index(host: &mut Netlink, spec: &PodSpec) -> Result<u32, Error> {
    let mut hash = identity_hash(&spec.container_id, &spec.ifname);
    for _ in 0..INDEX_ATTEMPTS {
        hash = mix(hash ^ INDEX_SALT);
        // Far above what the kernel numbers by itself, and positive as a signed number.
        let index = INDEX_MIN + (hash % u64::from(INDEX_COUNT)) as u32;
        if link::find_index(host, index)?.is_none() {
            return Ok(index);
        }
    }
    Err(Error::Unencodable("every interface index that was tried is taken"))
}

/// The interface of the route for exactly `address`, 0 if it has none.
fn interface_to(host: &mut Netlink, address: IpAddr) -> Result<Option<u32>, Error> {
    Ok(exact(host, address)?.map(|route| ifindex_of(&route)))
}

fn vanished(ifname: &str) -> AttachError {
    let action = format!("find {ifname} in the pod right after its creation");
    Error::System { action, errno: Errno::NODEV }.into()
}

/// Whether the kernel keeps settings of IPv6 for a link of this MTU.
fn has_ipv6_link(mtu: u32) -> bool {
    mtu >= IPV6_MTU_MIN && feature::has_ipv6()
}

fn ipv6_ready() -> bool {
    feature::has_ipv6() && matches!(sysctl::read("ipv6/conf/default/disable_ipv6"), Ok(0))
}

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// `IPV4_DEVCONF_*` (linux/ip.h): forwarding; answer ARP for the gateway, which only pods whose
/// Ethernet address changed and machines inside pods need; no redirects between neighbours that
/// reach each other only through the host; a pod may not send under another's address.
const HOST_SETTINGS_V4: [(u16, u32); 4] = [(1, 1), (3, 1), (6, 0), (8, 1)];
/// No router advertisements, and no two seconds of duplicate address detection.
const POD_SETTINGS_V6: [(&str, i64); 3] =
    [("disable_ipv6", 0), ("accept_ra", 0), ("accept_dad", 0)];
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `IPV6_MIN_MTU` (linux/ipv6.h), RFC 8200, section 5.
const IPV6_MTU_MIN: u32 = 1280;
const LOOPBACK_INDEX: u32 = 1;
const INDEX_ATTEMPTS: u32 = 16;
const INDEX_MIN: u32 = 0x1000_0000;
const INDEX_COUNT: u32 = 0x6000_0000;
const INDEX_SALT: u64 = 0x9e37_79b9_7f4a_7c15;
