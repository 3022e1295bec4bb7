//! Namespaces, links and addresses, as cabling and DHCP would give them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use cairn_kernel::link::{self, DuplicateDetection, LinkSettings, Mac, Veth, VethEnd};
use cairn_kernel::route::{Family, NextHop, Route, RouteSocket, TABLE_MAIN, Target};
use cairn_kernel::{NetNs, Netlink, sysctl};
use ipnet::IpNet;

use super::layout::{Layout, Node, Rack, Role, SPINE};
use crate::error::Error;

/// The machines of a lab, as namespaces of this one.
///
/// Dropping it removes the namespaces' names; a namespace itself goes with its last process and
/// socket.
pub struct DataCenter {
    /// What was built.
    pub layout: Layout,
    machines: BTreeMap<String, Machine>,
}

/// A machine of the lab.
pub struct Machine {
    /// What it is.
    pub role: Role,
    /// Its namespace.
    pub netns: NetNs,
    routes: Mutex<RouteSocket>,
}

impl Machine {
    /// The socket on which the machine's routes are read and deleted.
    pub fn routes(&self) -> MutexGuard<'_, RouteSocket> {
        // A panic elsewhere leaves the socket usable: every answer is matched to its request.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataCenter {
    /// Makes every namespace, link and address of `layout`. Nothing of its names must exist; what
    /// was made is removed again when a part fails.
    ///
    /// # Errors
    /// [`Error::Kernel`] for the first part that the kernel refused.
    pub fn build(layout: Layout) -> Result<DataCenter, Error> {
        let mut made = DataCenter { layout, machines: BTreeMap::new() };
        // One after the other: making a namespace is serial in the kernel anyway.
        for (name, role) in made.layout.machines() {
            let machine = make_machine(&made.layout.namespace(&name), role)
                .map_err(Error::kernel(format!("the namespace of {name}")))?;
            made.machines.insert(name, machine);
        }
        let centre = &made;
        thread::scope(|scope| {
            let racks: Vec<_> = (centre.layout.racks.iter())
                .map(|rack| scope.spawn(move || centre.connect_rack(rack)))
                .collect();
            racks.into_iter().try_for_each(|rack| {
                rack.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        Ok(made)
    }

    /// The machine `name`, unless it is gone.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.get(name)
    }

    /// All machines by name.
    pub fn machines(&self) -> impl Iterator<Item = (&str, &Machine)> {
        self.machines.iter().map(|(name, machine)| (name.as_str(), machine))
    }

    /// Pulls the node's cable and forgets the machine, as if it had lost power. Its processes are
    /// the caller's to end.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the link cannot be cut.
    pub fn lose(&mut self, node: &Node) -> Result<(), Error> {
        let name = node.name();
        let tor = self.layout.rack_of(node).map(Rack::tor);
        if let Some(tor) = tor.and_then(|tor| self.machines.get(&tor)) {
            let mut routes = tor.routes();
            let port = link::find(routes.netlink(), &name)
                .and_then(|port| {
                    port.map_or(Ok(()), |port| link::delete(routes.netlink(), port.index))
                })
                .map_err(Error::kernel(format!("the cut of {name}'s link")));
            drop(routes);
            port?;
        }
        self.machines.remove(&name);
        NetNs::delete(&self.layout.namespace(&name))
            .map_err(Error::kernel(format!("the end of {name}")))
    }

    /// Takes the links of a rack's router down, and all its routes with them, or up again with the addresses
    /// that they had.
    ///
    /// # Errors
    /// [`Error::Kernel`] when a link cannot be changed.
    pub fn set_links(&self, rack: &Rack, up: bool) -> Result<(), Error> {
        let Some(tor) = self.machine(&rack.tor()) else { return Ok(()) };
        let ports = rack.nodes.iter().map(Node::name);
        let change = |name: &str| {
            let mut routes = tor.routes();
            let Some(port) = link::find(routes.netlink(), name)? else { return Ok(()) };
            match up {
                true => link::set_up(routes.netlink(), port.index),
                false => link::set_down(routes.netlink(), port.index),
            }
        };
        [SPINE.to_owned(), BRIDGE.to_owned()]
            .into_iter()
            .chain(ports)
            .try_for_each(|name| change(&name))
            .map_err(Error::kernel(format!("the links of {}", rack.tor())))
    }

    fn connect_rack(&self, rack: &Rack) -> Result<(), Error> {
        let part = |what: String| Error::kernel(what);
        let tor = self.require(&rack.tor());
        let spine = self.require(SPINE);
        connect_spine(spine, tor, rack).map_err(part(format!("the link spine-{}", rack.tor())))?;
        let bridge =
            make_bridge(tor, rack).map_err(part(format!("the switch of {}", rack.tor())))?;
        for node in &rack.nodes {
            connect_node(tor, bridge, self.require(&node.name()), rack, node)
                .map_err(part(format!("the link of {}", node.name())))?;
        }
        Ok(())
    }

    /// A machine of the layout while it is built.
    fn require(&self, name: &str) -> &Machine {
        &self.machines[name]
    }
}

impl Drop for DataCenter {
    fn drop(&mut self) {
        for name in self.machines.keys() {
            // A name that stays is removed by the next run of the lab.
            let _ = NetNs::delete(&self.layout.namespace(name));
        }
    }
}

fn make_machine(namespace: &str, role: Role) -> Result<Machine, cairn_kernel::Error> {
    let netns = NetNs::create(namespace)?;
    let prepared = netns.run(|| prepare(role)).and_then(|done| done);
    match prepared.and_then(|()| RouteSocket::open_in(&netns)) {
        Ok(routes) => Ok(Machine { role, netns, routes: Mutex::new(routes) }),
        Err(error) => {
            let _ = NetNs::delete(namespace);
            Err(error)
        }
    }
}

/// Settings that a machine's operating system has before Cairn starts.
fn prepare(role: Role) -> Result<(), cairn_kernel::Error> {
    // Duplicate address detection takes seconds and finds nothing here.
    for scope in ["all", "default"] {
        sysctl::write(&format!("ipv6/conf/{scope}/accept_dad"), 0)?;
        sysctl::write(&format!("ipv6/conf/{scope}/accept_ra"), 0)?;
    }
    if role != Role::Node {
        // Nodes are left to their agent, which must turn forwarding on by itself.
        sysctl::enable_forwarding(Family::V4)?;
        sysctl::enable_forwarding(Family::V6)?;
        // Of a router that reboots here only the links go down: its addresses are configured, like IPv4's.
        sysctl::write("ipv6/conf/all/keep_addr_on_down", 1)?;
    }
    Ok(())
}

fn connect_spine(spine: &Machine, tor: &Machine, rack: &Rack) -> Result<(), cairn_kernel::Error> {
    let name = rack.tor();
    let mut spine_routes = spine.routes();
    link::create_veth(spine_routes.netlink(), &veth(&name, "spine", tor))?;
    let lens = rack.uplinks().map(|net| net.prefix_len());
    bring_up(spine_routes.netlink(), &name, &with_lens(rack.spine_end(), lens))?;
    bring_up(tor.routes().netlink(), "spine", &with_lens(rack.tor_end(), lens))?;
    Ok(())
}

/// The rack's switch is a bridge in the router's namespace; returns its index.
fn make_bridge(tor: &Machine, rack: &Rack) -> Result<u32, cairn_kernel::Error> {
    let mut routes = tor.routes();
    let netlink = routes.netlink();
    link::create_bridge(netlink, BRIDGE)?;
    let index = index_of(netlink, BRIDGE)?;
    // A fixed address: otherwise a bridge takes the lowest of its ports' and changes with them.
    let mac = Mac([0x02, 0xca, 0x19, 0, 0, rack.number]);
    link::set(netlink, index, &LinkSettings { mac: Some(mac), ..LinkSettings::default() })?;
    let lens = rack.subnets().map(|net| net.prefix_len());
    bring_up(netlink, BRIDGE, &with_lens(rack.gateways(), lens))
}

fn connect_node(
    tor: &Machine,
    bridge: u32,
    machine: &Machine,
    rack: &Rack,
    node: &Node,
) -> Result<(), cairn_kernel::Error> {
    let name = node.name();
    let mut tor_routes = tor.routes();
    link::create_veth(tor_routes.netlink(), &veth(&name, UPLINK, machine))?;
    let port = bring_up(tor_routes.netlink(), &name, &[])?;
    link::set_master(tor_routes.netlink(), port, bridge)?;
    drop(tor_routes);
    let lens = rack.subnets().map(|net| net.prefix_len());
    let mut routes = machine.routes();
    let uplink = bring_up(routes.netlink(), UPLINK, &with_lens(node.addresses(), lens))?;
    for (gateway, everything) in rack.gateways().into_iter().zip(["0.0.0.0/0", "::/0"]) {
        let default = Route {
            prefix: everything.parse().unwrap_or_default(),
            table: TABLE_MAIN,
            metric: 0,
            protocol: PROTOCOL_DHCP,
            target: Target::Unicast(vec![NextHop::via(gateway, uplink)]),
            prefsrc: None,
        };
        link::add_route(routes.netlink(), &default)?;
    }
    Ok(())
}

fn veth<'a>(name: &'a str, peer: &'a str, peer_machine: &'a Machine) -> Veth<'a> {
    Veth {
        end: VethEnd::named(name),
        peer: VethEnd::named(peer),
        peer_netns: Some(peer_machine.netns.as_fd()),
        mtu: None,
    }
}

fn with_lens(addresses: [IpAddr; 2], lens: [u8; 2]) -> Vec<IpNet> {
    addresses.into_iter().zip(lens).filter_map(|(at, len)| IpNet::new(at, len).ok()).collect()
}

/// Sets a link up, gives it addresses and returns its index.
fn bring_up(
    netlink: &mut Netlink,
    name: &str,
    addresses: &[IpNet],
) -> Result<u32, cairn_kernel::Error> {
    let index = index_of(netlink, name)?;
    link::set_up(netlink, index)?;
    for address in addresses {
        link::add_address(netlink, index, *address, DuplicateDetection::Skip)?;
    }
    Ok(index)
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, cairn_kernel::Error> {
    let found = link::find(netlink, name)?;
    found.map(|link| link.index).ok_or_else(|| cairn_kernel::Error::System {
        action: format!("find the link {name} that was just made"),
        errno: cairn_kernel::Errno::NODEV,
    })
}

/// The name of a node's uplink.
pub const UPLINK: &str = "eth0";
/// The name of the switch in a rack's router.
pub const BRIDGE: &str = "rack";
/// `RTPROT_DHCP`.
const PROTOCOL_DHCP: u8 = 16;
