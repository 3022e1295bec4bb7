//! What the kernel does only after it has answered, and a pod's first packet needs.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::link;
use crate::socket::Netlink;

/// Waits until the kernel has noticed that the host interface has a carrier, which it does on a thread of
/// its own: it drops what it is to send before, and the neighbour solicitation for the pod's IPv6
/// address is repeated only after a second. Asking for a link brings it up to date from Linux 6.8 on,
/// unless that thread is about to.
pub(super) fn carrier(host: &mut Netlink, index: u32) {
    until(|| link::is_operational(host, index));
}

/// Waits until the pod's end has joined the groups in which its IPv6 addresses are solicited, for the same
/// reason: the kernel lets an address be used before.
pub(super) fn groups(pod: &mut Netlink, addresses: &[IpAddr], index: u32) {
    let solicited = |address: &IpAddr| match address {
        IpAddr::V4(_) => None,
        // RFC 4291, section 2.7.1.
        IpAddr::V6(address) => {
            let [.., a, b] = address.segments();
            Some(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b))
        }
    };
    let wanted: Vec<Ipv6Addr> = addresses.iter().filter_map(solicited).collect();
    if wanted.is_empty() {
        return;
    }
    until(|| {
        let joined = link::multicast_groups(pod, index)?;
        Ok(wanted.iter().all(|group| joined.contains(group)))
    });
}

/// Asks until it is so, for half a second at most: the kernel's threads wait for the lock that whoever
/// removes links holds for 30 ms and more. Without it after all, or when the kernel does not tell, the
/// interface is as good as it can be: the first packet may come late.
fn until(mut is_so: impl FnMut() -> Result<bool, Error>) {
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    while !is_so().unwrap_or(true) && start.elapsed() < WAIT_MAX {
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

const WAIT_MAX: Duration = Duration::from_millis(500);
/// Mostly the kernel needs some 50 us, and a sleep takes as much besides.
const PAUSE_MIN: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_millis(1);
