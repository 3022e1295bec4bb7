//! A node in a namespace of its own: its links, the threads of an agent, and what the kernel holds.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cairn_agent::fib::Fib;
use cairn_agent::firewall::Keeper;
use cairn_bgp::speaker::{FibBatch, FibFeed};
use cairn_kernel::firewall::script;
use cairn_kernel::nexthop::{self, Way};
use cairn_kernel::route::{DumpFilter, Family, NextHop, Route, RouteSocket, Target};
use cairn_kernel::{NetNs, ROUTE_PROTOCOL, TUNNEL_OBJECTS, UPLINK_OBJECTS, link};
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Lines, Model, TUNNEL, UPLINKS};

/// A namespace that goes away with the value.
pub struct Place {
    pub name: String,
    pub netns: NetNs,
}

impl Place {
    pub fn create() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        SWEPT.call_once(remove_left_behind);
        let name =
            format!("faults-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let netns = NetNs::create(&name).expect("a namespace");
        Place { name, netns }
    }

    /// Runs a shell command inside, which must succeed, and returns what it printed.
    pub fn sh(&self, command: &str) -> String {
        self.netns.run(|| sh(command)).expect("entered")
    }

    /// As [`Place::sh`]; whether it succeeded.
    pub fn tries(&self, command: &str) -> bool {
        self.netns.run(|| tries(command)).expect("entered")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = NetNs::delete(&self.name) {
            eprintln!("the namespace {} stays behind: {error}", self.name);
        }
    }
}

/// Removes the namespaces of test runs that were killed.
fn remove_left_behind() {
    for name in NetNs::names("faults-").expect("names") {
        let pid = name.split('-').nth(1).filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            NetNs::delete(&name).expect("deleted");
        }
    }
}

/// Runs `work` in a new namespace with a node's uplinks.
pub fn on_node(work: impl AsyncFnOnce(&Place) + Send) {
    let place = Place::create();
    let run = || {
        furnish();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work(&place));
    };
    place.netns.run(run).expect("entered");
}

/// Makes the uplinks in the namespace of the calling thread.
pub fn furnish() {
    sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
    for (name, _, _) in UPLINKS {
        sh(&format!(
            "ip link add {name} type veth peer name {name}p
                     ip link set {name} addrgenmode none; ip link set {name}p addrgenmode none"
        ));
        restore(name);
    }
}

/// Brings an uplink back to what it was.
pub fn restore(name: &str) {
    let (_, v4, v6) = UPLINKS.iter().find(|(uplink, _, _)| *uplink == name).expect("an uplink");
    sh(&format!(
        "ip link set {name}p up; ip link set {name} up mtu 1500
                 ip address replace {v4} dev {name}; ip address replace {v6} dev {name} nodad"
    ));
}

/// The threads of an agent that keep the kernel.
pub struct Agent {
    pub fib: Fib,
    pub keeper: Keeper,
    feed: mpsc::Sender<FibBatch>,
}

impl Agent {
    /// Starts them in the namespace of the calling thread and tells what is wanted, as an agent does.
    pub async fn start(model: &Model) -> Agent {
        let mut fib = Fib::start(None).await.expect("the kernel's routes");
        let keeper = Keeper::start().await.expect("the packet filter");
        let (feed, batches) = mpsc::channel(16);
        let agent = {
            fib.follow(FibFeed::of(batches));
            Agent { fib, keeper, feed }
        };
        agent.tell(model);
        agent.learn(model, model.learned.keys().copied()).await;
        agent
    }

    /// Tells all that does not come from BGP.
    pub fn tell(&self, model: &Model) {
        self.fib.settings.send_replace(Some(model.settings()));
        self.fib.blocks.send_replace(Some(model.blocks.clone()));
        self.keeper.wanted.send_replace(Some(model.firewall()));
        self.fib.wrapping.send_replace(model.wrapping().into());
    }

    /// Tells what BGP says of `prefixes` now.
    pub async fn learn(&self, model: &Model, prefixes: impl IntoIterator<Item = IpNet>) {
        let changes = prefixes.into_iter().map(|prefix| model.change(prefix)).collect();
        self.feed.send(FibBatch { changes, in_sync: true }).await.expect("the thread runs");
    }

    /// Ends both threads, as the end of a process does: what is in the kernel stays.
    pub async fn stop(self) {
        let Agent { fib, keeper, feed } = self;
        let (mut routes, mut filter) = (fib.state.clone(), keeper.problems.clone());
        drop((fib, keeper, feed));
        let ended = async {
            while routes.changed().await.is_ok() {}
            while filter.changed().await.is_ok() {}
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the threads end");
    }

    /// Waits until the kernel is as the model says, and stays so for a moment.
    pub async fn until_equal(&self, model: &Model, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut equal = 0;
        while equal < 2 {
            let mut difference = difference(&model.lines(), &kernel());
            if difference.is_empty() {
                difference = filter_difference(model);
            }
            equal = if difference.is_empty() { equal + 1 } else { 0 };
            if Instant::now() > deadline {
                let (state, tunnels) = (self.fib.state.borrow(), self.fib.problems.borrow());
                let filter = self.keeper.problems.borrow();
                panic!(
                    "{what}: the kernel differs from the model:\n{difference}{state:?}\n{tunnels:?}\n{filter:?}"
                );
            }
            tokio::time::sleep(if equal == 0 { LOOK } else { QUIET }).await;
        }
    }
}

/// What of ours the kernel holds, in the namespace of the calling thread, besides the packet filter.
pub fn kernel() -> Lines {
    let mut lines = Lines::new();
    let mut add = |line: String| *lines.entry(line).or_default() += 1;
    let mut socket = RouteSocket::open().expect("a socket");
    let links = link::list(socket.netlink()).expect("links");
    let names: HashMap<u32, String> =
        links.iter().map(|link| (link.index, link.name.clone())).collect();
    let way = |hop: &NextHop| {
        let via = hop.gateway.map_or(String::new(), |gateway| format!("via {gateway} "));
        let name = names.get(&hop.ifindex).map_or("?", String::as_str);
        format!("{via}dev {name}{}", if hop.onlink { " onlink" } else { "" })
    };
    let mut objects = BTreeMap::new();
    for object in nexthop::list(socket.netlink()).expect("objects") {
        if object.protocol != ROUTE_PROTOCOL {
            continue;
        }
        let text = match &object.way {
            Way::Hop(hop) => way(hop),
            // Its members come before it, as the kernel lists objects by their numbers.
            Way::Group(members) => {
                let unknown = || "?".to_owned();
                let member = |(id, weight): &(u32, u16)| {
                    assert_eq!(*weight, 1, "{object:?}");
                    objects.get(id).cloned().unwrap_or_else(unknown)
                };
                let mut members: Vec<String> = members.iter().map(member).collect();
                members.sort_unstable();
                format!("group of {}", members.join(", "))
            }
            other => format!("{other:?}"),
        };
        let numbers = [TUNNEL_OBJECTS, UPLINK_OBJECTS];
        assert!(numbers.iter().any(|range| range.contains(&object.id)), "{object:?}");
        add(format!("object {text}"));
        objects.insert(object.id, text);
    }
    for route in our_routes(&mut socket) {
        let target = match &route.target {
            Target::Unicast(hops) => {
                let mut hops: Vec<String> = hops.iter().map(way).collect();
                hops.sort_unstable();
                hops.join(", ")
            }
            Target::Object(id) => {
                let text = objects.get(id).cloned().unwrap_or_else(|| id.to_string());
                format!("object {text}")
            }
            Target::Blackhole => "blackhole".to_owned(),
            Target::Other(kind) => format!("type {kind}"),
        };
        let source = route.prefsrc.map_or(String::new(), |source| format!(" src {source}"));
        add(format!("route {} metric {}: {target}{source}", route.prefix, route.metric));
    }
    let Some(tunnel) = links.iter().find(|link| link.name == TUNNEL) else { return lines };
    let mut addresses: Vec<IpNet> = link::addresses(socket.netlink())
        .expect("addresses")
        .into_iter()
        .filter(|own| own.ifindex == tunnel.index)
        .map(|own| own.address)
        .collect();
    addresses.sort_unstable();
    let addresses: Vec<String> = addresses.iter().map(IpNet::to_string).collect();
    let mac = tunnel.mac.map_or(String::new(), |mac| mac.to_string());
    let up = if tunnel.is_up() { "up" } else { "down" };
    let ours = tunnel.alias.as_deref() == Some("cairn.network/tunnel");
    let kind = if ours { "device" } else { "unmarked device" };
    add(format!("{kind} {mac} mtu {} {up}: {}", tunnel.mtu, addresses.join(" ")));
    // The device may go while it is looked at.
    for line in look(&format!(
        "ip -4 neigh show dev {TUNNEL} nud permanent; ip -6 neigh show dev {TUNNEL} nud permanent"
    ))
    .lines()
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [address, "lladdr", mac, ..] = words[..] {
            add(format!("neighbour {address} {mac}"));
        } else {
            add(format!("neighbour {line}"));
        }
    }
    for line in look(&format!("bridge fdb show dev {TUNNEL}")).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [mac, "dst", outer, "self", "permanent"] => add(format!("forwarding {mac} to {outer}")),
            _ => add(format!("forwarding {line}")),
        }
    }
    lines
}

/// The routes with our protocol number, in all tables.
pub fn our_routes(socket: &mut RouteSocket) -> Vec<Route> {
    let filter = DumpFilter { protocol: Some(ROUTE_PROTOCOL), ..DumpFilter::default() };
    Family::ALL
        .into_iter()
        .flat_map(|family| socket.dump(family, filter).expect("routes"))
        .collect()
}

/// What is in the one and not in the other, empty when they are equal.
pub fn difference(wanted: &Lines, found: &Lines) -> String {
    let mut text = String::new();
    for (sign, these, others) in [("missing", wanted, found), ("too much", found, wanted)] {
        for (line, count) in these {
            if others.get(line).is_none_or(|other| other < count) {
                text.push_str(&format!("  {sign}: {line} ({count}x)\n"));
            }
        }
    }
    text
}

/// How the packet filter differs from what the model's script makes in a namespace without anything.
fn filter_difference(model: &Model) -> String {
    let scratch = Place::create();
    let load = || {
        nft(&script(&model.firewall()));
        look(LIST_TABLE)
    };
    let wanted = scratch.netns.run(load).expect("entered");
    let found = look(LIST_TABLE);
    if wanted == found {
        String::new()
    } else {
        format!("  packet filter, wanted: {wanted}\nfound: {found}\n")
    }
}

fn nft(script: &str) {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nftables");
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
    assert!(child.wait().expect("its end").success(), "nft refuses the script");
}

/// Runs a shell command, which must succeed, and returns what it printed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// As [`sh`], whatever comes of it.
pub fn look(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a shell command; whether it succeeded.
pub fn tries(command: &str) -> bool {
    Command::new("sh").args(["-ec", command]).output().expect("sh").status.success()
}

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

const LIST_TABLE: &str = "nft -s list table inet cairn";
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// How long the kernel has to stay as it should be.
const QUIET: Duration = Duration::from_millis(200);
