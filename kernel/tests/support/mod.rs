//! What the tests of this crate share: network namespaces that go away with the test.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod packets;
pub mod pods;

use std::ops::Deref;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use cairn_kernel::link::{self, Link, Veth, VethEnd};
use cairn_kernel::{NetNs, Netlink};

/// A network namespace of one test, removed when the value is dropped.
pub struct TestNetNs {
    pub name: String,
    netns: NetNs,
}

impl TestNetNs {
    pub fn create() -> TestNetNs {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the tests of the kernel crate make network namespaces: run them as root"
        );
        static SWEPT: Once = Once::new();
        SWEPT.call_once(remove_left_behind);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Of one length: no name begins with another one.
        let name = format!("kernel-{}-{number:03}", std::process::id());
        let netns = NetNs::create(&name).unwrap();
        TestNetNs { name, netns }
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).unwrap()
    }
}

impl Deref for TestNetNs {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.netns
    }
}

impl Drop for TestNetNs {
    fn drop(&mut self) {
        if let Err(error) = NetNs::delete(&self.name) {
            eprintln!("the namespace {} stays behind: {error}", self.name);
        }
    }
}

/// Removes the namespaces of test runs that were killed.
fn remove_left_behind() {
    for name in NetNs::names("kernel-").unwrap() {
        let pid = name.split('-').nth(1).filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            NetNs::delete(&name).unwrap();
        }
    }
}

/// A veth pair inside one namespace, both ends up, the first with `addresses`.
pub fn veth_up(netlink: &mut Netlink, name: &str, addresses: &[&str]) -> Link {
    let peer = format!("{name}p");
    let pair = Veth {
        end: VethEnd::named(name),
        peer: VethEnd::named(&peer),
        peer_netns: None,
        mtu: None,
    };
    link::create_veth(netlink, &pair).unwrap();
    let end = link::find(netlink, name).unwrap().unwrap();
    let other = link::find(netlink, &peer).unwrap().unwrap();
    link::set_up(netlink, end.index).unwrap();
    link::set_up(netlink, other.index).unwrap();
    for address in addresses {
        let address = address.parse().unwrap();
        link::add_address(netlink, end.index, address, link::DuplicateDetection::Skip).unwrap();
    }
    end
}

/// Runs `ip` inside `netns`, as an administrator would.
pub fn ip(netns: &NetNs, arguments: &str) {
    ip_output(netns, arguments);
}

/// As [`ip`], and returns what it wrote.
pub fn ip_output(netns: &NetNs, arguments: &str) -> String {
    run(netns, "ip", arguments)
}

/// Runs a program of iproute2 inside `netns` and returns what it wrote.
pub fn run(netns: &NetNs, program: &str, arguments: &str) -> String {
    let output = netns
        .run(|| std::process::Command::new(program).args(arguments.split(' ')).output())
        .unwrap()
        .expect("the tests need the commands of iproute2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell command inside `netns` and returns what it prints.
pub fn sh(netns: &NetNs, command: &str) -> String {
    let output = netns
        .run(|| std::process::Command::new("sh").args(["-ec", command]).output())
        .unwrap()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
