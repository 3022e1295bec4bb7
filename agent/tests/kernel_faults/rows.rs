//! One fault at a time.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use cairn_agent::fib::Fib;
use cairn_api::TunnelKind;
use cairn_ipam::Family;
use cairn_kernel::tunnel::mac_of;

use crate::model::{Lines, Model, TUNNEL, ip, member_name, plain_prefix};
use crate::node::{Agent, kernel, look, on_node, restore, sh, until};
use crate::notices::{Notice, Notices, force_receive_buffer};

/// A node at work, and what `fault` does to it; afterwards all is as before.
fn after(what: &str, fault: impl AsyncFnOnce(&Agent, &mut Model) + Send) {
    on_node(async |_| {
        let mut model = Model::new(20, 300);
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        fault(&agent, &mut model).await;
        agent.until_equal(&model, what).await;
        agent.stop().await;
    });
}

/// How many of our routes lead out by `uplink`.
fn routes_by(uplink: &str) -> usize {
    let by = format!("dev {uplink}");
    kernel().keys().filter(|line| line.starts_with("route") && line.contains(&by)).count()
}

#[test]
fn an_interface_goes_down_and_up() {
    after("up again", async |agent, model| {
        for uplink in ["up1", "up0"] {
            assert!(routes_by(uplink) > 50);
            sh(&format!("ip link set {uplink} down"));
            model.down.insert(uplink);
            // The node's address is on up0 still, and with it the tunnel's end.
            agent.until_equal(model, uplink).await;
            assert_eq!(routes_by(uplink), 0);
            restore(uplink);
            model.down.remove(uplink);
        }
    });
}

#[test]
fn an_address_goes_and_comes() {
    after("the address is there again", async |agent, model| {
        sh("ip address flush dev up1");
        model.down.insert("up1");
        agent.until_equal(model, "without the address").await;
        restore("up1");
        model.down.remove("up1");
        agent.until_equal(model, "with the address").await;
        // Gone and back before anybody can look.
        for _ in 0..5 {
            sh("ip address flush dev up1");
            restore("up1");
        }
    });
}

#[test]
fn the_tunnel_device_is_deleted() {
    after("the device is there again", async |agent, model| {
        for _ in 0..3 {
            sh(&format!("ip link delete {TUNNEL}"));
            agent.until_equal(model, "after a deletion").await;
        }
        until("each is counted", || agent.fib.repairs.borrow().tunnels >= 3).await;
    });
}

#[test]
fn the_tunnel_device_comes_back_as_another() {
    after("ours is there again", async |agent, _| {
        // Renamed, which takes no time in which ours could come between: a deletion does.
        let exchange = "link set cairn.vxlan name gone\nlink set other name cairn.vxlan\n";
        sh("ip link add other type vxlan id 77 dstport 4798 local 192.0.2.1 nolearning");
        sh(&format!("printf '{exchange}' | ip -batch -; ip link delete gone"));
        until("a problem names the foreign device", || {
            agent
                .fib
                .problems
                .borrow()
                .iter()
                .any(|p| p.contains("is not Cairn's and is left alone"))
        })
        .await;
        let untouched = sh(&format!("ip -d link show {TUNNEL}"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(sh(&format!("ip -d link show {TUNNEL}")), untouched);
        assert!(untouched.contains("vxlan id 77 "), "{untouched}");
        assert!(
            !agent.fib.state.borrow().failures.is_empty(),
            "routes through it are missing visibly"
        );
        sh(&format!("ip link delete {TUNNEL}"));
    });
}

/// With an address of one family only, packets of the other would be dropped.
#[test]
fn a_tunnel_is_offered_with_an_address_of_each_family_and_stays_so() {
    on_node(async |_| {
        let model = Model::new(20, 300);
        let whole = model.wrapping();
        let mut without = whole.clone();
        without.addresses.held.remove(&(TunnelKind::VXLAN, Family::V6));
        let fib = Fib::start(None).await.expect("the kernel's routes");
        let offered = || fib.tunnels.borrow().contains(&TunnelKind::VXLAN);
        let has = |address: &str| look(&format!("ip address show {TUNNEL}")).contains(address);
        let v4 = whole.addresses.held[&(TunnelKind::VXLAN, Family::V4)].to_string();
        let v6 = whole.addresses.held[&(TunnelKind::VXLAN, Family::V6)].to_string();
        fib.wrapping.send_replace(without.clone().into());
        until("the device has one address", || has(&v4)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!offered());
        fib.wrapping.send_replace(whole.into());
        until("the device has both", || has(&v6)).await;
        until("it is offered", offered).await;
        // Others send, and a pool's end takes no other pool's tunnel along.
        without.addresses.revision += 1;
        fib.wrapping.send_replace(without.into());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(offered());
    });
}

/// Others hear of a withdrawal a little later, and what they send must not come back by the default route.
#[test]
fn a_block_that_leaves_is_unreachable_at_once_and_caught_for_a_second() {
    on_node(async |_| {
        let block = plain_prefix(0);
        let fib = Fib::start(None).await.expect("the kernel's routes");
        let caught = || look(&format!("ip route show {block} proto 222")).contains("blackhole");
        fib.blocks.send_replace(Some([block].into()));
        until("it is reachable", || fib.reachable.borrow().contains(&block)).await;
        assert!(caught());
        fib.blocks.send_replace(Some([].into()));
        until("it is not", || fib.reachable.borrow().is_empty()).await;
        assert!(caught());
        // One that comes back in time keeps its route.
        fib.blocks.send_replace(Some([block].into()));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(caught());
        fib.blocks.send_replace(Some([].into()));
        until("then it goes", || !caught()).await;
    });
}

#[test]
fn nftables_are_flushed() {
    after("the table is there again", async |agent, model| {
        for command in
            ["nft flush ruleset", "nft delete table inet cairn", "nft flush table inet cairn"]
        {
            sh(command);
            agent.until_equal(model, command).await;
        }
    });
}

#[test]
fn our_routes_and_objects_are_flushed() {
    after("all is there again", async |agent, model| {
        // The kernel lets `ip` flush routes through objects only when it shows where these lead, and
        // stops at them before all are gone.
        for command in [
            "ip -4 route flush proto 222 || true",
            "ip -6 route flush proto 222 || true",
            "ip nexthop flush proto 222",
            "ip -4 neigh flush dev cairn.vxlan nud permanent",
            "ip address flush dev cairn.vxlan",
        ] {
            sh(command);
            agent.until_equal(model, command).await;
        }
        let macs: Vec<String> = (0..20).map(|n| mac_of(&member_name(n)).to_string()).collect();
        for mac in macs {
            sh(&format!("bridge fdb del {mac} dev {TUNNEL} self"));
        }
    });
}

/// What the kernel cannot tell is found by reading all.
#[test]
fn notifications_are_lost() {
    after("everything is read again", async |agent, model| {
        let sockets = listeners();
        assert_eq!(sockets.len(), 2, "one for routes and one for nftables");
        sockets.iter().for_each(|socket| force_receive_buffer(socket.as_raw_fd(), 1));
        let foreign: String = (0..2000)
            .map(|n| format!("route add 10.80.{}.{}/32 via 203.0.113.9\n", n / 256, n % 256))
            .collect();
        let mut rounds = 0;
        while dropped() < 3 {
            rounds += 1;
            assert!(rounds < 50, "the buffers are never full");
            let number = rounds % 300;
            let prefix = plain_prefix(number);
            let family = if prefix.addr().is_ipv6() { "-6" } else { "-4" };
            sh(&format!(
                "ip -batch - <<END\n{foreign}END\nip {family} route del {prefix} proto 222 || true
                 ip nexthop flush proto 222; ip -4 neigh flush dev {TUNNEL} nud permanent
                 nft flush ruleset; ip -4 route flush proto 3"
            ));
            agent.until_equal(model, "after lost notifications").await;
        }
    });
}

/// A route that the kernel refuses is told of, holds back no other, and is there as soon as it may.
#[test]
fn the_kernel_refuses_some_routes() {
    after("nothing is refused any more", async |agent, model| {
        // The rule hides a gateway from the kernel's own check of a new IPv4 route.
        sh("ip rule add to 192.0.2.4 unreachable pref 5");
        sh("ip -4 route flush proto 222 || true; ip -6 route flush proto 222 || true");
        let all = model.clone();
        let mut refused = 0;
        model.learned.retain(|prefix, hops| {
            let through = all.members.values().any(|(_, blocks)| blocks.contains(prefix));
            let refuses = hops.contains(&ip("192.0.2.4")) && !through;
            refused += u64::from(refuses);
            !refuses
        });
        assert!(refused > 5, "{refused}");
        agent.until_equal(model, "all others are there").await;
        let mut state = agent.fib.state.clone();
        let told = state.wait_for(|state| state.failed == refused);
        let state = tokio::time::timeout(crate::node::PATIENCE, told)
            .await
            .expect("told")
            .expect("it runs");
        assert!(
            state.failures.iter().all(|failed| failed.reason.contains("the kernel refuses it: ")),
            "{state:?}"
        );
        drop(state);
        sh("ip rule del pref 5");
        *model = all;
    });
}

/// While nobody of ours looks.
#[test]
fn a_short_loss_of_carrier_takes_no_route_along() {
    on_node(async |_| {
        let model = Model::new(20, 300);
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        agent.stop().await;
        let before: Lines = kernel();
        for uplink in ["up0", "up1"] {
            sh(&format!("ip link set {uplink}p down; sleep 0.3; ip link set {uplink}p up"));
            until("the carrier is back", || {
                look(&format!("ip link show {uplink}")).contains("LOWER_UP")
            })
            .await;
        }
        assert_eq!(crate::node::difference(&before, &kernel()), "");
        let notices = Notices::open();
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "started again").await;
        assert_eq!(notices.take(), Vec::<Notice>::new());
        agent.stop().await;
    });
}

/// The sockets of this process that hear of changes in the namespace of the calling thread: duplicates
/// of them.
fn listeners() -> Vec<OwnedFd> {
    let cookie = |fd: libc::c_int| number(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE);
    let here = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let here = cookie(here.as_raw_fd()).expect("a cookie");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").expect("/proc").flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if cookie(fd) != Some(here) {
            continue;
        }
        // SAFETY: plain system calls on a number; the address has the size that is given.
        unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            let mut size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            let told = libc::getsockname(fd, (&raw mut address).cast(), &raw mut size);
            if told == 0 && address.nl_family == libc::AF_NETLINK as u16 && address.nl_groups != 0 {
                let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
                assert!(copy >= 0);
                found.push(OwnedFd::from_raw_fd(copy));
            }
        }
    }
    found
}

fn number(fd: libc::c_int, level: libc::c_int, name: libc::c_int) -> Option<u64> {
    let mut value = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value has the size that is given.
    let told = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) };
    (told == 0).then_some(value)
}

/// How many notifications the kernel has thrown away in the namespace of the calling thread.
fn dropped() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("/proc");
    let drops = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    drops.sum()
}

const SO_NETNS_COOKIE: libc::c_int = 71;
