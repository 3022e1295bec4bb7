//! A peer moves, under all the routes that lead through its tunnel.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use cairn_kernel::nexthop::{Object, Way};
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::route::{Family, NextHop, Route, RouteSocket, Target};
use cairn_kernel::tunnel::{
    Device, Encapsulation, ObjectUse, Peer, TunnelKind, Tunnels, VxlanSettings, mac_of,
};
use cairn_kernel::{Batch, ROUTE_PROTOCOL, VXLAN_PORT_DEFAULT, VXLAN_VNI_DEFAULT, link, sysctl};

use super::bed::{Bed, Sample, sample};
use super::cell::{Cell, Moment, Shape};
use crate::Result;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Repoint {
    /// Of the packets inside.
    pub family: Family,
    /// The setting net.ipv4.nexthop_compat_mode.
    pub compat: i64,
    /// The number of routes that are moved.
    pub routes: u32,
    /// `Tunnels` from `set_peer` to the last acknowledgement: neighbour, forwarding entry and object.
    pub peer: Sample,
    /// The replacement of the object of these routes alone, by a bare request.
    pub object: Sample,
}

/// Measures one of them, in a namespace of its own.
pub fn run(family: Family, compat: i64, routes: u32) -> Result<Repoint> {
    let bed = Bed::new(Cell { family, shape: Shape::Plain, routes, hops: 1 })?;
    bed.netns.run(|| sysctl::write("ipv4/nexthop_compat_mode", compat))??;
    let mut socket = RouteSocket::open_in(&bed.netns)?;
    let local = Ipv4Addr::new(198, 18, 0, 1);
    let mut up = link::find(socket.netlink(), "up")?.ok_or("the link up is missing")?;
    let address = format!("{local}/15").parse()?;
    link::add_address(socket.netlink(), up.index, address, link::DuplicateDetection::Skip)?;
    let now = Instant::now();
    let mut tunnels = Tunnels::new(ObjectUse::Objects);
    tunnels.set_device(Device {
        local: local.into(),
        mtu: 1450,
        addresses: vec![Ipv4Addr::new(10, 244, 0, 1).into()],
        inner: Family::ALL.into(),
        encapsulation: Encapsulation::Vxlan(VxlanSettings {
            vni: VXLAN_VNI_DEFAULT,
            port: VXLAN_PORT_DEFAULT,
            mac: mac_of("here"),
            dont_fragment: false,
        }),
    });
    let peer = |last| Peer { outer: Ipv4Addr::new(198, 18, 1, last).into(), mac: mac_of("there") };
    tunnels.set_peer(TunnelKind::Vxlan, "there", Some(peer(1)));
    tunnels.prepare(socket.netlink(), now)?;
    let target = tunnels.target(TunnelKind::Vxlan, "there", family).cloned();
    let Some(Target::Object(id)) = target else {
        return Err(format!("no object leads into the tunnel: {:?}", tunnels.problems()).into());
    };
    let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    for route in bed.load.routes(Moment::Before) {
        let route = Route { target: Target::Object(id), ..route };
        reconciler.set(route.key(), Some(route));
    }
    let created = reconciler.apply(&mut socket, now)?.created;
    let (peer, pass) = sample(|| {
        tunnels.set_peer(TunnelKind::Vxlan, "there", Some(peer(2)));
        Ok(tunnels.prepare(socket.netlink(), now)?)
    })?;
    if created != routes as usize || pass.replaced == 0 || pass.refused > 0 {
        return Err(format!("{created} routes were created, and {pass:?}").into());
    }
    reconciler.request_resync();
    let pass = reconciler.apply(&mut socket, now)?;
    if pass != (Pass { resyncs: 1, ..Pass::default() }) {
        return Err(format!("routes were lost or changed: {pass:?}").into());
    }
    up = link::find(socket.netlink(), TunnelKind::Vxlan.device_name())?.ok_or("no tunnel")?;
    let gateway: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(198, 18, 1, 3).into(),
        Family::V6 => "fe80::9".parse()?,
    };
    let hop = NextHop { onlink: true, ..NextHop::via(gateway, up.index) };
    let object = Object { id, protocol: ROUTE_PROTOCOL, way: Way::Hop(hop) };
    let mut batch = Batch::new();
    batch.replace_object(&object);
    let (object, ()) =
        sample(|| Ok(socket.netlink().request(&mut batch, || "replace an object".into())?))?;
    bed.expect_routes(ROUTE_PROTOCOL, routes as usize)?;
    Ok(Repoint { family, compat, routes, peer, object })
}
