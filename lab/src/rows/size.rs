//! That the largest packets of pods get through, and that none larger is tried.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use cairn_kernel::tunnel::TunnelKind;
use cairn_kernel::{NetNs, Netlink, link};

use super::model::counted;
use super::network::address_of;
use crate::datacenter::build::UPLINK;
use crate::datacenter::{DataCenter, Layout};
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::pod::Pod;
use crate::report::Row;

/// Looks at the MTU of pods, which must be the underlay's less what a tunnel adds, and sends packets of
/// that size between pods of all nodes that must not be fragmented.
///
/// # Errors
/// When a link cannot be read or a socket not be had.
pub fn full_size(
    centre: &DataCenter,
    pods: &[Pod],
    interrupt: &Interrupt,
) -> Result<Vec<Row>, Error> {
    let layout = &centre.layout;
    let Some(machine) = layout.nodes().find_map(|node| centre.machine(&node.name())) else {
        return Ok(Vec::new());
    };
    let underlay = mtu(&machine.netns, UPLINK)?;
    let expected = underlay.saturating_sub(overhead(layout));
    let mut mtus = BTreeSet::new();
    for pod in pods {
        mtus.insert(mtu(&pod.netns, POD_INTERFACE)?);
    }
    let seen = mtus.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let ok = mtus.iter().eq([&expected]);
    let mut rows = vec![Row::new("MTU of pods", expected.to_string(), seen, ok)];

    let first_of = |node: String| pods.iter().find(|pod| pod.node == node);
    let ends: Vec<&Pod> = layout.nodes().filter_map(|node| first_of(node.name())).collect();
    let (mut good, mut wrong) = (0, Vec::new());
    for from in &ends {
        for to in ends.iter().filter(|to| to.node != from.node) {
            for address in layout.versions().iter().filter_map(|v4| address_of(to, *v4)) {
                match pass(from, to, address, expected, interrupt.patient(TIMEOUT))? {
                    Ok(()) => good += 1,
                    Err(why) => wrong.push(format!("{} to {address}: {why}", from.name)),
                }
            }
        }
    }
    let nodes = layout.nodes().count();
    let all = nodes * (nodes - 1) * layout.versions().len();
    let ok = good == all && wrong.is_empty();
    rows.push(Row::new(
        format!("packets of {expected} bytes that must not be fragmented"),
        format!("{all}/{all}, one byte more refused"),
        counted(good, all, wrong),
        ok,
    ));
    Ok(rows)
}

/// Octets that the largest tunnel of the pods' families adds: an IPv4 header, for VXLAN also those of
/// UDP, VXLAN (RFC 7348 section 5) and Ethernet.
fn overhead(layout: &Layout) -> u32 {
    let tunnels = layout.versions().iter().filter_map(|v4| layout.encap.tunnel(*v4));
    let of = |tunnel| match tunnel {
        TunnelKind::Vxlan => 20 + 8 + 8 + 14,
        TunnelKind::Ipip => 20,
    };
    tunnels.map(of).max().unwrap_or_default()
}

fn mtu(netns: &NetNs, name: &str) -> Result<u32, Error> {
    let what = || format!("the MTU of {name}");
    let mut netlink = Netlink::open_in(netns).map_err(Error::kernel(what()))?;
    let found = link::find(&mut netlink, name).map_err(Error::kernel(what()))?;
    Ok(found.map_or(0, |link| link.mtu))
}

/// Sends one UDP packet of `size` bytes with its headers, and tries one that is larger.
fn pass(
    from: &Pod,
    to: &Pod,
    address: IpAddr,
    size: u32,
    within: Duration,
) -> Result<Result<(), String>, Error> {
    let open = |pod: &Pod, at: IpAddr| {
        pod.netns
            .run(|| UdpSocket::bind((at, 0)))
            .map_err(Error::kernel(format!("a socket in {}", pod.name)))?
            .map_err(Error::io(format!("open a socket in {}", pod.name)))
    };
    let Some(own) = address_of(from, address.is_ipv4()) else {
        return Ok(Err("the sender has no such address".into()));
    };
    let (sender, receiver) = (open(from, own)?, open(to, address)?);
    let exchange = || -> io::Result<Result<(), String>> {
        forbid_fragments(&sender, address.is_ipv4())?;
        receiver.set_read_timeout(Some(within))?;
        let target = receiver.local_addr()?;
        let headers = if address.is_ipv4() { 20 + UDP_HEADER } else { 40 + UDP_HEADER };
        let payload = vec![0; (size as usize).saturating_sub(headers) + 1];
        Ok(send_and_receive(&sender, &receiver, target, &payload))
    };
    exchange().map_err(Error::io(format!("send from {}", from.name)))
}

/// Sends all of `payload` but its last octet, then all of it, which must not be possible.
fn send_and_receive(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    target: SocketAddr,
    payload: &[u8],
) -> Result<(), String> {
    let fits = &payload[..payload.len() - 1];
    sender.send_to(fits, target).map_err(|error| format!("not sent: {error}"))?;
    let mut packet = vec![0; payload.len()];
    let len = receiver.recv(&mut packet).map_err(|_| "it does not arrive".to_owned())?;
    if len != fits.len() {
        return Err(format!("{len} of {} octets arrive", fits.len()));
    }
    match sender.send_to(payload, target) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
        Err(error) => Err(format!("one byte more: {error}")),
        Ok(_) => Err("one byte more is sent".into()),
    }
}

/// Sets DF, and has packets refused that are larger than the path takes.
fn forbid_fragments(socket: &UdpSocket, v4: bool) -> io::Result<()> {
    let (level, option, value) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    // SAFETY: the option's value is an int that lives through the call, with its size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The pods' interface, as the lab asks the plugin for it.
const POD_INTERFACE: &str = "eth0";
const UDP_HEADER: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Encap, Families};

    #[test]
    fn the_largest_tunnel_of_a_pods_families_counts() {
        let of = |encap, families| {
            overhead(&Layout::new("lab", 3, AsnPlan::Single, families).with_encap(encap))
        };
        assert_eq!(of(Encap::None, Families::Dual), 0);
        assert_eq!(of(Encap::VxlanCrossSubnet, Families::Ipv4), 50);
        assert_eq!(of(Encap::Ipip, Families::Ipv4), 20);
        // One interface for both families, of which IPv6 takes VXLAN.
        assert_eq!(of(Encap::Ipip, Families::Dual), 50);
    }
}
