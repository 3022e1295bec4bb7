//! The netlink requests that a pod's interface takes, and nothing else.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use cairn_kernel::link::{self, DuplicateDetection, LinkSettings, Veth, VethEnd};
use cairn_kernel::pod::{gateway_of, host_interface_name};
use cairn_kernel::route::{self, NextHop, Route, Target};
use cairn_kernel::socket::Acknowledge;
use cairn_kernel::{Batch, NetNs, Netlink, POD_ROUTE_PROTOCOL};
use ipnet::IpNet;

use crate::Result;

/// Makes pods' interfaces on a node that has the address `node`.
#[derive(Debug)]
pub struct Floor {
    node: Ipv4Addr,
    next: AtomicU32,
}

impl Floor {
    /// One for a node.
    pub fn new(node: Ipv4Addr) -> Floor {
        Floor { node, next: AtomicU32::new(1) }
    }

    /// Makes an interface: a request of its own for each thing, in one message on either side.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&self, container: &str, pod: &NetNs) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let address = IpAddr::from(Ipv4Addr::from_bits(FIRST.to_bits() + number));
        let index = FIRST_INDEX + number;
        let name = host_interface_name(container, "eth0");
        let mut host = Netlink::open()?;
        let mut batch = Batch::new();
        batch.create_veth(&Veth {
            end: VethEnd { name: &name, index: Some(index), mac: None },
            peer: VethEnd { name: "eth0", index: None, mac: None },
            peer_netns: Some(pod.as_fd()),
            mtu: Some(1500),
        });
        let alias = format!("bench {container} eth0 {address}");
        batch.set_link(index, &LinkSettings { alias: Some(&alias), ..LinkSettings::default() });
        batch.set_link(index, &LinkSettings { up: Some(true), ..LinkSettings::default() });
        batch.add_route(&Route {
            prefix: address.into(),
            table: route::TABLE_MAIN,
            metric: 0,
            protocol: POD_ROUTE_PROTOCOL,
            target: Target::Unicast(vec![NextHop::link(index)]),
            prefsrc: Some(self.node.into()),
        });
        execute(&mut host, &mut batch)?;
        let mac = link::find_index(&mut host, index)?.and_then(|link| link.mac);
        let mac = mac.ok_or("a veth without an Ethernet address")?;
        pod.run(|| -> std::result::Result<(), String> {
            let inside = || -> Result<()> {
                let mut netlink = Netlink::open()?;
                let index = link::find(&mut netlink, "eth0")?.ok_or("no eth0")?.index;
                let gateway = gateway_of(address);
                let mut batch = Batch::new();
                for up in [1, index] {
                    batch.set_link(up, &LinkSettings { up: Some(true), ..LinkSettings::default() });
                }
                batch.add_address(index, address.into(), DuplicateDetection::Skip);
                batch.set_neighbour(index, gateway, mac);
                batch.add_route(&Route {
                    prefix: IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?,
                    table: route::TABLE_MAIN,
                    metric: 0,
                    protocol: route::PROTOCOL_STATIC,
                    target: Target::Unicast(vec![NextHop {
                        onlink: true,
                        ..NextHop::via(gateway, index)
                    }]),
                    prefsrc: None,
                });
                execute(&mut netlink, &mut batch)
            };
            inside().map_err(|error| error.to_string())
        })??;
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn del(&self, container: &str) -> Result<()> {
        let mut host = Netlink::open()?;
        let found = link::find(&mut host, &host_interface_name(container, "eth0"))?;
        Ok(link::delete(&mut host, found.ok_or("no such interface")?.index)?)
    }
}

fn execute(netlink: &mut Netlink, batch: &mut Batch) -> Result<()> {
    match netlink.execute(batch, Acknowledge::Each)?.first() {
        None => Ok(()),
        Some(refusal) => Err(format!("request {}: {}", refusal.index, refusal.errno).into()),
    }
}

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
const FIRST_INDEX: u32 = 0x1000_0000;
