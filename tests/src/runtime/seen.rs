//! Namespaces without names, and what their kernel holds.

use std::net::IpAddr;
use std::process::Command;

use cairn_kernel::route::{DumpFilter, Family, RouteSocket};
use cairn_kernel::{NetNs, Netlink, POD_ROUTE_PROTOCOL, link};

/// A network namespace that goes with its last descriptor; its loopback interface is up.
///
/// # Panics
/// Without root.
#[must_use]
pub fn fresh() -> NetNs {
    let made = std::thread::spawn(|| {
        // SAFETY: unshare takes no memory; it concerns this thread alone.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "network namespaces need root: run the tests as root ({error})");
        run("ip link set lo up");
        NetNs::current().expect("this namespace")
    });
    made.join().expect("a namespace")
}

/// Does `work` in a namespace.
///
/// # Panics
/// When it cannot be entered, or as `work`.
pub fn on<T: Send>(netns: &NetNs, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).expect("the namespace can be entered")
}

/// Runs a command of words without spaces, and returns what it prints.
///
/// # Panics
/// When it fails.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The addresses of a namespace's interfaces, in order, without those of loopback and of single links.
///
/// # Panics
/// When the kernel refuses.
#[must_use]
pub fn addresses(netns: &NetNs) -> Vec<IpAddr> {
    let mut netlink = Netlink::open_in(netns).expect("a socket");
    let all = link::addresses(&mut netlink).expect("addresses").into_iter();
    let universal = all.filter(|address| address.scope == libc::RT_SCOPE_UNIVERSE);
    let mut addresses: Vec<IpAddr> = universal.map(|address| address.address.addr()).collect();
    addresses.sort_unstable();
    addresses
}

/// The interfaces at the other ends of a namespace's veth interfaces, by their indices there, in order.
///
/// # Panics
/// When the kernel refuses.
#[must_use]
pub fn peers(netns: &NetNs) -> Vec<u32> {
    let mut netlink = Netlink::open_in(netns).expect("a socket");
    let links = link::list(&mut netlink).expect("links").into_iter();
    let mut peers: Vec<u32> = links.filter_map(|link| link.peer).collect();
    peers.sort_unstable();
    peers
}

/// The destinations of a node's routes to its pods.
///
/// # Panics
/// When the kernel refuses.
#[must_use]
pub fn pod_routes(netns: &NetNs) -> Vec<IpAddr> {
    let mut socket = RouteSocket::open_in(netns).expect("a socket");
    let filter = DumpFilter { protocol: Some(POD_ROUTE_PROTOCOL), ..DumpFilter::default() };
    let mut of = |family| socket.dump(family, filter).expect("routes");
    let routes = Family::ALL.into_iter().flat_map(&mut of);
    routes.map(|route| route.prefix.addr()).collect()
}
