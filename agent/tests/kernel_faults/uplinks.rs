//! Routes by uplinks that name next-hop objects.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_agent::fib::{Fib, RouteSettings};
use cairn_api::NextHopObjects;
use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{FibChange, FibRoute};
use cairn_bgp::speaker::{FibBatch, FibFeed};
use cairn_kernel::route::{Route, RouteSocket, Target};
use cairn_lab::flow::{Flow, Loss};
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Model, TUNNEL, ip, net, path};
use crate::node::{Agent, Place, difference, kernel, look, on_node, our_routes, sh, until};
use crate::notices::{Notice, Notices};

fn with_objects() -> Model {
    Model { everywhere: true, ..Model::new(20, 300) }
}

/// Of several rounds, as a machine that is busy with other tests makes single ones late.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Routes that BGP does not withdraw, as their peers are not behind the link.
#[test]
fn routes_are_back_within_a_hundred_milliseconds_of_carrier() {
    on_node(async |_| {
        let model = with_objects();
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        let mut socket = RouteSocket::open().expect("a socket");
        let (whole, all) = (kernel(), our_routes(&mut socket).len());
        let routes = |by: &str| {
            let here = kernel();
            let named = here.keys().filter(|line| line.starts_with("route") && line.contains(by));
            named.count()
        };
        let (single, shared) = ("object via 198.51.100.", "group of ");
        let groups = routes(shared);
        assert!(routes(single) > 20 && groups > 20);
        let mut times = Vec::new();
        for _ in 0..7 {
            sh("ip link set up1p down");
            until("the kernel's routes are gone", || routes(single) == 0).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(routes(shared), groups, "the other uplink carries them");
            until("their failure is told", || agent.fib.state.borrow().failed > 20).await;
            let state = agent.fib.state.borrow().clone();
            assert!(
                state.failures.iter().all(|failed| failed.reason.contains("has no carrier")),
                "{state:?}"
            );
            // From before the command, which takes a few milliseconds.
            let carrier = Instant::now();
            sh("ip link set up1p up");
            while our_routes(&mut socket).len() < all {
                assert!(carrier.elapsed() < crate::node::PATIENCE, "never back");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            times.push(carrier.elapsed());
            assert_eq!(difference(&whole, &kernel()), "");
        }
        println!("back after {times:?}");
        let median = median(times);
        assert!(median < Duration::from_millis(100), "{median:?}");
        agent.until_equal(&model, "at the end").await;
        assert_eq!(agent.fib.problems.borrow().clone(), Vec::<String>::new());
        agent.stop().await;
    });
}

#[test]
fn a_restart_writes_nothing() {
    on_node(async |_| {
        let model = with_objects();
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        agent.stop().await;
        let (before, listed) = (kernel(), look("ip nexthop; ip route; ip -6 route"));
        let notices = Notices::open();
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "started again").await;
        assert_eq!(notices.take(), Vec::<Notice>::new());
        assert_eq!(look("ip nexthop; ip route; ip -6 route"), listed, "{before:?}");
        // With the other setting the next one makes it what it is to be, and leaves no object.
        agent.stop().await;
        let plain = Model { everywhere: false, ..model };
        let agent = Agent::start(&plain).await;
        agent.until_equal(&plain, "started without the option").await;
        agent.stop().await;
    });
}

#[test]
fn what_is_deleted_or_changed_comes_back_with_its_routes() {
    on_node(async |_| {
        let model = with_objects();
        let agent = Agent::start(&model).await;
        agent.until_equal(&model, "at first").await;
        let id = |words: &str| {
            let listed = look("ip nexthop");
            let line = listed.lines().find(|line| line.contains(words)).expect(words);
            line.split(' ').nth(1).expect("a number").to_owned()
        };
        for command in [
            format!("ip nexthop del id {}", id("via 192.0.2.2 dev up0")),
            format!("ip nexthop del id {}", id("group")),
            format!(
                "ip nexthop replace id {} via 203.0.113.66 dev calm proto 222",
                id("via 192.0.2.3 dev up0")
            ),
            "ip nexthop flush proto 222".to_owned(),
            "ip link set up1 down; ip link set up1 up; ip address add 2001:db8:1::1/64 dev up1 nodad"
                .to_owned(),
        ] {
            sh(&command);
            agent.until_equal(&model, &command).await;
        }
        let Agent { fib, .. } = agent;
        fib.withdraw().await;
        let mut left: Vec<String> = kernel().into_keys().collect();
        // Tunnels stay, and objects that lead into them.
        left.retain(|line| {
            line.starts_with("route") || line.starts_with("object") && !line.contains(TUNNEL)
        });
        assert_eq!(left, Vec::<String>::new());
    });
}

#[test]
fn the_option_changes_under_traffic_and_no_packet_is_lost() {
    let site = Site::new();
    site.run(async |agent| {
        let flows = site.flows(&TARGETS, 1000).await;
        let began: Vec<usize> = flows.iter().map(Flow::position).collect();
        for round in 0..6 {
            let wanted = match round % 2 {
                0 => NextHopObjects::Everywhere,
                _ => NextHopObjects::TunnelsOnly,
            };
            agent.set(wanted);
            let through = if round % 2 == 0 { Site::PREFIXES } else { 0 };
            until("every route has changed", || Site::through_objects() == through).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let objects = look("ip nexthop show proto 222").lines().count();
            assert_eq!(objects, if round % 2 == 0 { 6 } else { 0 });
        }
        let loss = loss(&flows, &began);
        assert!(loss.sent > 4000, "{loss}");
        assert_eq!(loss.lost, 0, "every route is replaced in one step: {loss}");
    });
}

/// What the option is for: the kernel itself takes an uplink without carrier out of a group.
#[test]
fn what_two_uplinks_share_goes_by_the_other_when_one_has_no_carrier() {
    let site = Site::new();
    let lost = |wanted: NextHopObjects| {
        let mut lost = Loss::default();
        site.run(async |agent| {
            agent.set(wanted);
            let through = if wanted == NextHopObjects::Everywhere { Site::PREFIXES } else { 0 };
            until("the option", || Site::through_objects() == through).await;
            // Enough that some lead by either, which the kernel chooses by their ports.
            let flows = site.flows(&[TARGETS[2], TARGETS[3]].repeat(8), 50).await;
            let began: Vec<usize> = flows.iter().map(Flow::position).collect();
            site.far.sh("ip link set wan0 down");
            tokio::time::sleep(Duration::from_millis(500)).await;
            lost = loss(&flows, &began);
            site.far.sh("ip link set wan0 up");
            site.address_far();
        });
        lost
    };
    let plain = lost(NextHopObjects::TunnelsOnly);
    let objects = lost(NextHopObjects::Everywhere);
    println!("plain: {plain}; objects: {objects}");
    // Until BGP says otherwise, which nobody does here.
    assert!(plain.lost > plain.sent / 20, "{plain}");
    // What was under way.
    assert!(objects.lost * 4 < plain.lost, "{objects} with objects, {plain} without");
}

/// What became of all packets of `flows` since they had these numbers.
fn loss(flows: &[Flow], began: &[usize]) -> Loss {
    let each = flows.iter().zip(began).map(|(flow, began)| flow.since(*began));
    each.fold(Loss::default(), Loss::with)
}

/// A node between a sender and a receiver behind two routers' links.
struct Site {
    node: Place,
    far: Place,
    source: Place,
}

/// The thread that keeps the node's routes.
struct Routes {
    fib: Fib,
}

impl Routes {
    fn set(&self, next_hop_objects: NextHopObjects) {
        let settings = RouteSettings { next_hop_objects, ..RouteSettings::default() };
        self.fib.settings.send_replace(Some(settings));
    }
}

impl Site {
    /// The routes from BGP: those to the receiver's addresses and enough others that changing them takes
    /// a while.
    const PREFIXES: usize = 4 + 2000;

    fn new() -> Site {
        let site = Site { node: Place::create(), far: Place::create(), source: Place::create() };
        let Site { node, far, source } = &site;
        for place in [node, far, source] {
            // Else the first packets of IPv6 wait for link-local addresses.
            place
                .sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        }
        // The kernel tells at once that a link has no carrier if its number is not its other end's, and
        // otherwise when it has told of nothing for a second.
        far.sh("ip link add spare0 type veth peer name spare1");
        node.sh(&format!(
            "ip link add wan0 type veth peer name wan0 netns {0}
             ip link add wan1 type veth peer name wan1 netns {0}
             ip link add lan type veth peer name lan netns {1}
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1
             for i in 0 1; do
                 ip address add 192.0.$i.1/24 dev wan$i
                 ip address add fd00:$i::1/64 dev wan$i nodad; ip link set wan$i up
             done
             ip address add 198.51.100.1/24 dev lan; ip address add fd00:9::1/64 dev lan nodad
             ip link set lan up",
            far.name, source.name
        ));
        far.sh(&format!(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
             ip link set lo up; ip link set wan0 up; ip link set wan1 up
             for address in {}; do ip address add $address dev lo; done",
            TARGETS.join(" ")
        ));
        site.address_far();
        source.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
             ip address add 198.51.100.2/24 dev lan; ip address add fd00:9::2/64 dev lan nodad
             ip link set lan up; ip route add default via 198.51.100.1
             ip -6 route add default via fd00:9::1");
        site
    }

    /// Gives the receiver's links their addresses, of which IPv6's go when a link goes down.
    fn address_far(&self) {
        self.far.sh("for i in 0 1; do
                         ip address replace 192.0.$i.2/24 dev wan$i
                         ip address replace fd00:$i::2/64 dev wan$i nodad
                     done");
    }

    /// Runs `work` beside a thread that keeps the node's routes.
    fn run(&self, work: impl AsyncFnOnce(&Routes) + Send) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut fib = Fib::start(None).await.expect("the kernel's routes");
                let (feed, batches) = mpsc::channel(16);
                fib.follow(FibFeed::of(batches));
                fib.blocks.send_replace(Some([].into()));
                let routes = Routes { fib };
                routes.set(NextHopObjects::TunnelsOnly);
                let changes = routes_from_bgp();
                feed.send(FibBatch { changes, in_sync: true }).await.expect("the thread runs");
                until("the routes", || Site::routes().len() == Site::PREFIXES).await;
                work(&routes).await;
            });
        };
        self.node.netns.run(run).expect("entered");
    }

    /// A flow to each of `targets`, once packets arrive.
    async fn flows(&self, targets: &[&str], per_sec: u32) -> Vec<Flow> {
        let flow = |target: &str| {
            Flow::start(&self.source.netns, &self.far.netns, ip(target), per_sec).expect("a flow")
        };
        let targets = targets.iter().map(|target| target.split_once('/').expect("a length").0);
        let flows: Vec<Flow> = targets.map(flow).collect();
        let all_arrive = || {
            let began: Vec<usize> = flows.iter().map(Flow::position).collect();
            std::thread::sleep(Duration::from_millis(50));
            loss(&flows, &began).lost == 0
        };
        until("neighbours are known", all_arrive).await;
        flows
    }

    /// Our routes in the namespace of the calling thread.
    fn routes() -> Vec<Route> {
        our_routes(&mut RouteSocket::open().expect("a socket"))
    }

    /// How many of them name an object.
    fn through_objects() -> usize {
        let named = |route: &Route| matches!(route.target, Target::Object(_));
        Site::routes().into_iter().filter(named).count()
    }
}

/// What BGP found: the receiver's addresses, some by one link and some by both.
fn routes_from_bgp() -> Vec<FibChange> {
    let hops = |prefix: IpNet, links: &[u8]| -> Vec<IpAddr> {
        let v6 = prefix.addr().is_ipv6();
        let hop = |link: &u8| match v6 {
            true => ip(&format!("fd00:{link}::2")),
            false => ip(&format!("192.0.{link}.2")),
        };
        links.iter().map(hop).collect()
    };
    let targets = TARGETS.iter().enumerate().map(|(number, target)| {
        let prefix = net(target);
        (prefix, hops(prefix, if number < 2 { &[1] } else { &[0, 1] }))
    });
    let others = (0..Site::PREFIXES - TARGETS.len()).map(|number| {
        let prefix = match number % 2 {
            0 => net(&format!("10.{}.{}.0/24", number / 256, number % 256)),
            _ => net(&format!("fd01:{number:x}::/64")),
        };
        (prefix, hops(prefix, if number % 3 == 0 { &[0, 1] } else { &[1] }))
    });
    let change = |(prefix, hops): (IpNet, Vec<IpAddr>)| FibChange {
        prefix: Prefix::from(prefix),
        route: Some(FibRoute { paths: hops.into_iter().map(path).collect() }),
    };
    targets.chain(others).map(change).collect()
}

/// The receiver's addresses: the first of each family by the second link alone.
const TARGETS: [&str; 4] =
    ["203.0.113.1/32", "fd00:113::1/128", "203.0.113.2/32", "fd00:113::2/128"];
