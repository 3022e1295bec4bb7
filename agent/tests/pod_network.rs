//! The owner of the pods' addresses over a kernel of the test's own: no namespace, socket or clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_agent::ipam::Clock;
use cairn_agent::pods::{
    AnnotationSource, Attachment, Found, Listed, NetworkOptions, PodCalls, PodConfig, PodKernel,
    PodNetwork, PodsError, PodsHandle, Question, Supply, Usage,
};
use cairn_agent::readiness::Verdict;
use cairn_agent::view::Namespace;
use cairn_api::{LabelSelector, TunnelKind};
use cairn_cni::protocol::{
    AddRequest, CheckRequest, DelRequest, GcRequest, Response, ValidAttachment,
};
use cairn_cni::{Code, ContainerId, InterfaceName, PodIdentity};
use cairn_ipam::{AttachmentId, Demand, Family, OwnedBlock, PodPool, Rule, Rules};
use cairn_kernel::Error;
use cairn_kernel::link::Mac;
use cairn_kernel::pod::{
    Alias, AttachError, Attached, Difference, Expected, HostRoute, NetworkHash, PodAttachment,
    PodSpec, host_interface_name,
};
use futures::FutureExt;
use futures::future::BoxFuture;

#[path = "pod_network/untold.rs"]
mod untold;

/// How long the first pods of a block wait for its announcement.
const WAIT: Duration = Duration::from_secs(1);

/// Interfaces by name; what else holds addresses; whether removals are held up.
#[derive(Debug, Default)]
struct Machine {
    interfaces: BTreeMap<String, Alias>,
    foreign: BTreeSet<IpAddr>,
    tunnels: BTreeSet<IpAddr>,
    agents: usize,
    stuck: bool,
    /// How many interfaces went at once, each time.
    batches: Vec<usize>,
    /// Containers of whose interfaces the alias cannot be read.
    unread: BTreeSet<String>,
    /// Containers whose interfaces cannot be removed.
    unremovable: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Kernel(Arc<Mutex<Machine>>);

impl Kernel {
    fn listed(&self) -> Vec<PodAttachment> {
        let machine = self.0.lock().unwrap();
        let found =
            machine.interfaces.iter().zip(1..).map(|((name, alias), ifindex)| PodAttachment {
                host_ifname: name.clone(),
                ifindex,
                mtu: 1400,
                alias: Some(alias.clone()).filter(|a| !machine.unread.contains(&a.container_id)),
                alias_unread: None,
                routes: alias
                    .addresses
                    .iter()
                    .map(|a| HostRoute { address: *a, source: None })
                    .collect(),
            });
        found.collect()
    }

    fn held(&self) -> Vec<IpAddr> {
        let machine = self.0.lock().unwrap();
        machine.interfaces.values().flat_map(|alias| alias.addresses.clone()).collect()
    }
}

impl PodKernel for Kernel {
    type Netns = ();

    fn seize(&self) -> Result<(), PodsError> {
        let mut machine = self.0.lock().unwrap();
        machine.agents += 1;
        match machine.agents {
            1 => Ok(()),
            _ => Err(PodsError::Locked { run_dir: "/".into(), holder: String::new() }),
        }
    }

    fn read(&self) -> BoxFuture<'static, Result<Found, Error>> {
        let (foreign, tunnels) = {
            let machine = self.0.lock().unwrap();
            (machine.foreign.clone(), machine.tunnels.clone())
        };
        let attachments = self.listed();
        let tunnels = BTreeMap::from([(TunnelKind::VXLAN, tunnels)]);
        async move { Ok(Found { attachments, foreign, tunnels }) }.boxed()
    }

    fn attach(&self, (): (), spec: PodSpec, _: PodIdentity) -> BoxFuture<'static, Attachment> {
        let kernel = self.clone();
        async move {
            tokio::task::yield_now().await;
            let mut machine = kernel.0.lock().unwrap();
            let host_ifname = host_interface_name(&spec.container_id, &spec.ifname);
            let others = machine.interfaces.iter().filter(|(name, _)| **name != host_ifname);
            let taken: BTreeSet<IpAddr> =
                others.flat_map(|(_, alias)| alias.addresses.clone()).collect();
            let in_use = |a: &&IpAddr| taken.contains(a) || machine.foreign.contains(a);
            if let Some(address) = spec.addresses.iter().find(in_use) {
                let outcome = Err(AttachError::AddressInUse(*address));
                return Attachment { outcome, remains: false };
            }
            let alias = Alias {
                container_id: spec.container_id,
                ifname: spec.ifname,
                pod_uid: spec.pod_uid,
                network: NetworkHash::of(&spec.network),
                addresses: spec.addresses,
            };
            machine.interfaces.insert(host_ifname.clone(), alias);
            let mac = Mac([2, 0, 0, 0, 0, 1]);
            let made = Attached {
                host_ifname,
                host_mac: mac,
                pod_mac: mac,
                mtu: spec.mtu,
                gateways: vec![],
            };
            Attachment { outcome: Ok(made), remains: true }
        }
        .boxed()
    }

    fn detach(&self, ids: Vec<AttachmentId>) -> BoxFuture<'static, Vec<Result<(), Error>>> {
        let kernel = self.clone();
        async move {
            while kernel.0.lock().unwrap().stuck {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut machine = kernel.0.lock().unwrap();
            machine.batches.push(ids.len());
            let mut remove = |id: &AttachmentId| {
                if machine.unremovable.contains(&id.container_id) {
                    return Err(Error::Overrun);
                }
                machine.interfaces.remove(&host_interface_name(&id.container_id, &id.ifname));
                Ok(())
            };
            ids.iter().map(&mut remove).collect()
        }
        .boxed()
    }

    fn check(
        &self,
        (): (),
        expected: Expected,
    ) -> BoxFuture<'static, Result<Result<(), Difference>, Error>> {
        let host_ifname = host_interface_name(&expected.container_id, &expected.ifname);
        let machine = self.0.lock().unwrap();
        let difference = match machine.interfaces.get(&host_ifname) {
            None => Err(Difference::NoInterface(host_ifname)),
            Some(alias) if alias.addresses != expected.addresses => {
                Err(Difference::Alias { host_ifname, found: None })
            }
            Some(_) => Ok(()),
        };
        async move { Ok(difference) }.boxed()
    }

    fn list(&self, question: Question) -> BoxFuture<'static, Result<Listed, Error>> {
        let foreign = self.0.lock().unwrap().foreign.clone();
        let freed = question.foreign.into_iter().filter(|a| !foreign.contains(a)).collect();
        let attachments = self.listed();
        async move { Ok(Listed { attachments, freed, foreign, incomplete: false }) }.boxed()
    }
}

/// A node with its pod network. The clock is tokio's, which stands still while nothing waits for it.
struct Node {
    kernel: Kernel,
    handle: PodsHandle,
    calls: PodCalls<()>,
    supply: Supply,
}

fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Clock::new(move || Duration::from_secs(1_000) + start.elapsed())
}

async fn network(kernel: &Kernel, rules: Rules) -> (PodsHandle, PodCalls<()>, PodNetwork<Kernel>) {
    let options = NetworkOptions {
        cooldown: Duration::from_secs(30),
        address_wait: Duration::from_secs(10),
        announcement_wait: WAIT,
        clock: clock(),
        rules,
    };
    PodNetwork::start(kernel.clone(), options).await.unwrap()
}

impl Node {
    async fn start(supply: Supply) -> Node {
        Node::with(Kernel::default(), supply, Rules::ALL).await
    }

    async fn with(kernel: Kernel, supply: Supply, rules: Rules) -> Node {
        let (handle, calls, network) = network(&kernel, rules).await;
        tokio::spawn(network.run());
        handle.set_readiness(&Verdict::Ready);
        let config = PodConfig { node_addresses: vec!["192.0.2.1".parse().unwrap()], mtu: 1400 };
        handle.set_config(config);
        handle.set_supply(supply.clone());
        Node { kernel, handle, calls, supply }
    }

    /// Adds a pod of the namespace `ns` with annotations.
    async fn add(&self, pod: &str, annotations: &[(&str, &str)]) -> Result<Vec<IpAddr>, Refusal> {
        self.calls.add(request(pod, Some(annotations)), ()).await.into_addresses()
    }

    async fn del(&self, pod: &str) {
        assert_eq!(self.calls.del(removal(pod)).await, Response::Done);
    }

    fn spawn_add(&self, pod: &str) -> tokio::task::JoinHandle<Response> {
        let (calls, request) = (self.calls.clone(), request(pod, Some(&[])));
        tokio::spawn(async move { calls.add(request, ()).await })
    }

    /// Changes what pods may be given.
    fn change(&mut self, change: impl FnOnce(&mut Supply)) {
        change(&mut self.supply);
        self.handle.set_supply(self.supply.clone());
    }

    fn usage(&self) -> Usage {
        self.handle.usage().borrow().clone()
    }

    fn used(&self) -> u64 {
        self.usage().blocks.iter().map(|block| block.used).sum()
    }

    async fn until(&self, reached: impl Fn(&Usage) -> bool) {
        let mut usage = self.handle.usage();
        let waited = tokio::time::timeout(Duration::from_secs(60), usage.wait_for(reached));
        assert!(waited.await.is_ok(), "{:?}", self.usage());
    }
}

type Refusal = (Code, String);

trait IntoAddresses {
    fn into_addresses(self) -> Result<Vec<IpAddr>, Refusal>;
}

impl IntoAddresses for Response {
    fn into_addresses(self) -> Result<Vec<IpAddr>, Refusal> {
        match self {
            Response::Added(added) => Ok(added.addresses.iter().map(|a| a.address).collect()),
            Response::Failed(failure) => Err((failure.code, failure.msg)),
            Response::Done => panic!("an ADD without addresses"),
        }
    }
}

fn request(pod: &str, annotations: Option<&[(&str, &str)]>) -> AddRequest {
    let annotations = annotations.map(|all| {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    });
    AddRequest {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
        pod: PodIdentity::parse(Some("ns"), Some(pod), None).unwrap(),
        annotations,
        ips: Vec::new(),
        mac: None,
    }
}

fn removal(pod: &str) -> DelRequest {
    DelRequest {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(name: &str, cidr: &str) -> PodPool {
    PodPool { name: name.into(), cidr: cidr.parse().unwrap(), namespaces: None, unusable: None }
}

fn block(pool: &str, cidr: &str) -> OwnedBlock {
    OwnedBlock {
        cidr: cidr.parse().unwrap(),
        pool: pool.into(),
        hand_out: true,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    }
}

fn namespaces(label: Option<&str>, pools: Option<&str>) -> Arc<BTreeMap<String, Arc<Namespace>>> {
    let labels = label.map(|team| ("team".to_owned(), team.to_owned())).into_iter().collect();
    let namespace = Namespace { labels, pools: pools.map(str::to_owned) };
    Arc::new(BTreeMap::from([("ns".to_owned(), Arc::new(namespace))]))
}

/// One IPv4 pool `a` with the block given.
fn v4(cidr: &str) -> Supply {
    Supply {
        blocks: vec![block("a", cidr)],
        families: vec![Family::V4],
        pools: vec![pool("a", "10.0.0.0/16")],
        namespaces: namespaces(None, None),
        ..Supply::default()
    }
}

/// Pools `a` and `b` of IPv4 and `six` of IPv6, with a block each.
fn dual() -> Supply {
    Supply {
        blocks: vec![
            block("a", "10.0.0.0/29"),
            block("b", "10.1.0.0/29"),
            block("six", "fd00::/125"),
        ],
        families: vec![Family::V4, Family::V6],
        pools: vec![pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16"), pool("six", "fd00::/48")],
        namespaces: namespaces(None, None),
        ..Supply::default()
    }
}

const POOLS: &str = "cairn.network/ippools";
const IPS: &str = "cairn.network/ips";

#[tokio::test(start_paused = true)]
async fn a_24_asked_for_257_gives_256_and_one_clear_error() {
    let node = Node::start(v4("10.0.0.0/24")).await;
    let adding = (0..257).map(|n| {
        let calls = node.calls.clone();
        async move { calls.add(request(&format!("c{n}"), Some(&[])), ()).await.into_addresses() }
    });
    let outcomes = futures::future::join_all(adding).await;
    let given: BTreeSet<IpAddr> = outcomes.iter().flatten().flatten().copied().collect();
    assert_eq!(given.len(), 256);
    assert!(given.contains(&ip("10.0.0.0")) && given.contains(&ip("10.0.0.255")));
    let refused: Vec<&Refusal> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, Code::TryAgainLater);
    let words = "no IPv4 address: all 256 addresses of 1 IPv4 block(s) of IPPool a are in use";
    assert!(refused[0].1.starts_with(words), "{}", refused[0].1);
    let demand = Demand::Pools(Family::V4, vec!["a".into()]);
    assert_eq!(node.usage().exhausted, BTreeSet::from([demand]));
    assert_eq!(node.kernel.held().len(), 256);
}

/// One IPv4 pool `a`, of which a tunnel device needs an address, with two blocks of one address each.
fn wrapped() -> Supply {
    let (one, other) = (block("a", "10.0.0.0/32"), block("a", "10.0.0.1/32"));
    Supply {
        tunnels: BTreeMap::from([(VXLAN, vec!["a".to_owned()])]),
        lodgings: Some(vec![one.cidr, other.cidr]),
        blocks: vec![one, other],
        ..v4("10.0.0.0/32")
    }
}

const VXLAN: (TunnelKind, Family) = (TunnelKind::VXLAN, Family::V4);

#[tokio::test(start_paused = true)]
async fn a_tunnel_device_and_a_pod_never_have_one_address() {
    let mut node = Node::start(wrapped()).await;
    node.until(|usage| usage.tunnels.held.contains_key(&VXLAN)).await;
    let told = node.usage().tunnels;
    assert_eq!(told.held, BTreeMap::from([(VXLAN, ip("10.0.0.0"))]));
    assert_eq!(node.add("c0", &[]).await, Ok(vec![ip("10.0.0.1")]));
    assert!(node.add("c1", &[]).await.is_err(), "the other is the device's");
    // The block that it is in is to go.
    let stays = block("a", "10.0.0.1/32").cidr;
    node.change(|supply| supply.lodgings = Some(vec![stays]));
    node.until(|usage| usage.tunnels.held.is_empty()).await;
    let left = node.usage().tunnels;
    assert!(left.revision > told.revision);
    assert!(node.add("c1", &[]).await.is_err(), "the device may have it still");
    node.handle.tunnels_applied(told.revision);
    assert!(node.add("c1", &[]).await.is_err(), "that was said of what it had before");
    node.handle.tunnels_applied(left.revision);
    node.until(|usage| usage.blocks[0].used == 0).await;
    assert_eq!(node.add("c1", &[]).await, Ok(vec![ip("10.0.0.0")]));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_address_is_kept_over_a_restart_until_its_block_is_known_to_go() {
    let kernel = Kernel::default();
    kernel.0.lock().unwrap().tunnels = BTreeSet::from([ip("10.0.0.0"), ip("10.0.0.1")]);
    let mut node = Node::with(kernel, Supply { lodgings: None, ..wrapped() }, Rules::ALL).await;
    let found = node.usage().tunnels;
    assert_eq!(found.held, BTreeMap::from([(VXLAN, ip("10.0.0.0"))]));
    // The second one until the device is without it.
    let used = |usage: &Usage| usage.blocks.iter().map(|block| block.used).sum::<u64>();
    node.until(|usage| used(usage) == 2).await;
    node.handle.tunnels_applied(found.revision);
    node.until(|usage| used(usage) == 1).await;
    assert_eq!(node.usage().tunnels, found);
    node.change(|supply| supply.lodgings = Some(Vec::new()));
    node.until(|usage| usage.tunnels.held.is_empty()).await;
    assert_eq!(node.used(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_cannot_be_met_ends_the_wait_at_once() {
    let mut node = Node::start(v4("10.0.0.0/32")).await;
    node.add("c0", &[]).await.unwrap();
    let start = tokio::time::Instant::now();
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    node.until(|usage| !usage.exhausted.is_empty()).await;
    let demand = Demand::Pools(Family::V4, vec!["a".into()]);
    node.change(|supply| {
        supply.refusals.insert(demand.clone(), "every block of IPPool a is taken".into());
    });
    let (code, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.ends_with("no block can be claimed: every block of IPPool a is taken"), "{msg}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(node.usage().exhausted.contains(&demand), "the owner of the blocks goes on trying");
    assert!(node.add("c1", &[]).await.is_err());
    // A block that comes all the same serves.
    node.change(|supply| {
        supply.refusals.clear();
        supply.blocks.push(block("a", "10.0.0.8/32"));
    });
    assert_eq!(node.add("c1", &[]).await, Ok(vec![ip("10.0.0.8")]));
}

#[tokio::test(start_paused = true)]
async fn an_annotation_chooses_pools_and_the_wait_is_for_a_block_of_them() {
    let mut node = Node::start(dual()).await;
    assert_eq!(node.add("c1", &[(POOLS, "b")]).await, Ok(vec![ip("10.1.0.0")]));
    let both = node.add("c2", &[(POOLS, r#"["six","b"]"#)]).await.unwrap();
    assert_eq!(both, [ip("10.1.0.1"), ip("fd00::")]);
    let (code, msg) = node.add("c3", &[(POOLS, "nowhere")]).await.unwrap_err();
    assert_eq!(code, Code::InvalidConfig);
    assert!(msg.contains("names the IPPool nowhere, which does not exist"), "{msg}");
    // A pool without a block of this node: only a block of this pool helps.
    node.change(|supply| supply.pools.push(pool("c", "10.2.0.0/16")));
    let calls = node.calls.clone();
    let waiting =
        tokio::spawn(async move { calls.add(request("c4", Some(&[(POOLS, "c")])), ()).await });
    let demand = Demand::Pools(Family::V4, vec!["c".into()]);
    node.until(|usage| usage.exhausted.contains(&demand)).await;
    node.change(|supply| supply.blocks.push(block("c", "10.2.0.0/30")));
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.2.0.0")]));
    // The namespace's annotation is for pods without one.
    node.change(|supply| supply.namespaces = namespaces(None, Some("c")));
    assert_eq!(node.add("c5", &[]).await, Ok(vec![ip("10.2.0.1")]));
    assert_eq!(node.add("c6", &[(POOLS, "a")]).await, Ok(vec![ip("10.0.0.0")]));
}

#[tokio::test(start_paused = true)]
async fn adds_that_wait_leave_places_for_the_dels_that_free_addresses() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let mut held = 0;
    while node.used() < 4 {
        held += 1;
        assert!(held <= 4 && node.add(&format!("held{held}"), &[]).await.is_ok());
        node.until(|usage| usage.blocks[0].used == held).await;
    }
    // Half of the 128 requests that the socket takes.
    let add = |n: usize| {
        let calls = node.calls.clone();
        tokio::spawn(async move { calls.add(request(&format!("new{n}"), Some(&[])), ()).await })
    };
    let waiting: Vec<_> = (0..64).map(add).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(waiting.iter().all(|add| !add.is_finished()));
    let (code, _) = add(64).await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(waiting.iter().all(|add| !add.is_finished()), "it was refused at once");
}

#[tokio::test(start_paused = true)]
async fn a_fixed_address_waits_for_its_holder_and_for_its_block() {
    let mut node = Node::start(dual()).await;
    let wish = [(IPS, "10.1.0.5")];
    assert_eq!(node.add("old", &wish).await, Ok(vec![ip("10.1.0.5"), ip("fd00::")]));
    // The pod that follows asks before the old one has gone.
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("new", Some(&wish)), ()).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished());
    node.del("old").await;
    let held = waiting.await.unwrap().into_addresses().unwrap();
    assert_eq!(held[0], ip("10.1.0.5"));
    let (code, msg) = node.add("third", &wish).await.unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("10.1.0.5 is in use by new/eth0"), "{msg}");
    // In no block of this node: the whole block that holds it has to come.
    let wish = [(IPS, "10.1.0.200")];
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("far", Some(&wish)), ()).await });
    let demand = Demand::Address(ip("10.1.0.200"));
    node.until(|usage| usage.exhausted.contains(&demand)).await;
    node.change(|supply| {
        let reason = "the block 10.1.0.192/26 belongs to node n2".to_owned();
        supply.refusals.insert(demand.clone(), reason);
    });
    let (_, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert!(msg.contains("belongs to node n2"), "{msg}");
    node.change(|supply| {
        supply.refusals.clear();
        supply.blocks.push(block("b", "10.1.0.192/26"));
        supply.reserved = vec!["10.1.0.201/32".parse().unwrap()];
    });
    assert_eq!(node.add("far", &wish).await.unwrap()[0], ip("10.1.0.200"));
    let (code, msg) = node.add("reserved", &[(IPS, "10.1.0.201")]).await.unwrap_err();
    assert_eq!(code, Code::InvalidConfig);
    assert!(msg.contains("is reserved by an IPReservation"), "{msg}");
}

#[tokio::test(start_paused = true)]
async fn dual_stack_without_ipv6_fails_whole_and_leaks_nothing() {
    let mut node = Node::start(dual()).await;
    // No block of IPv6.
    node.change(|supply| supply.blocks.truncate(2));
    let (_, msg) = node.add("c1", &[]).await.unwrap_err();
    assert!(msg.contains("no IPv6 address"), "{msg}");
    // No usable pool of IPv6, while pods of this node are promised one.
    node.change(|supply| supply.pools[2].unusable = Some("others' addresses lie in it".into()));
    let (_, msg) = node.add("c2", &[]).await.unwrap_err();
    assert!(msg.contains("no IPv6 address: IPPool six cannot serve"), "{msg}");
    // No pool of IPv6 at all, and a pod that asks for one.
    node.change(|supply| {
        supply.pools.truncate(2);
        supply.families = vec![Family::V4];
    });
    assert!(node.add("c3", &[(POOLS, "six,a")]).await.is_err());
    assert!(node.add("c4", &[(IPS, "fd00::1")]).await.is_err());
    assert_eq!((node.used(), node.kernel.held().len()), (0, 0), "no IPv4 address leaked");
    assert_eq!(node.add("c5", &[]).await, Ok(vec![ip("10.0.0.0")]), "IPv4 only by the pools");
}

#[tokio::test(start_paused = true)]
async fn a_failed_second_add_leaves_the_first_as_it_is() {
    let mut node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    // The same again, whatever has changed meanwhile.
    node.change(|supply| supply.pools[0].unusable = Some("it is disabled".into()));
    assert_eq!(node.add("c1", &[(POOLS, "nowhere")]).await, Ok(held.clone()));
    // Another interface of the same container is refused: the first one stays.
    let second = AddRequest {
        ifname: InterfaceName::parse("eth1").unwrap(),
        ..request("c1", Some(&[(POOLS, "nowhere")]))
    };
    assert!(node.calls.add(second, ()).await.into_addresses().is_err());
    assert_eq!((node.kernel.held(), node.used()), (held, 1));
}

#[tokio::test(start_paused = true)]
async fn a_del_that_names_another_owner_frees_nothing() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    node.del("c2").await;
    let other = DelRequest {
        container_id: ContainerId::parse("c1").unwrap(),
        ifname: InterfaceName::parse("eth1").unwrap(),
        network: "cairn".into(),
    };
    assert_eq!(node.calls.del(other).await, Response::Done, "nothing of that name is there");
    assert_eq!((node.kernel.held(), node.used()), (held, 1));
    node.del("c1").await;
    assert_eq!(node.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_disabled_pool_is_never_used_and_a_selector_counts_for_new_pods_only() {
    let mut node = Node::start(dual()).await;
    let first = node.add("c1", &[(POOLS, "a")]).await.unwrap();
    node.change(|supply| {
        supply.pools[0].unusable = Some("it is disabled".into());
        // Its block may still be open for a moment: the pool decides.
        assert!(supply.blocks[0].hand_out);
    });
    for n in 0..8 {
        let given = node.add(&format!("d{n}"), &[]).await.unwrap();
        assert!("10.1.0.0/29".parse::<ipnet::IpNet>().unwrap().contains(&given[0]), "{given:?}");
    }
    assert!(node.add("d8", &[]).await.is_err());
    let team = LabelSelector {
        match_labels: BTreeMap::from([("team".into(), "red".into())]),
        ..LabelSelector::default()
    };
    node.change(|supply| {
        supply.pools[0].unusable = None;
        supply.pools[0].namespaces = Some(team);
        supply.pools[1].unusable = Some("it is disabled".into());
    });
    assert_eq!(node.add("c1", &[]).await, Ok(first), "who runs keeps its address");
    let (_, msg) = node.add("e1", &[(POOLS, "a")]).await.unwrap_err();
    assert!(msg.contains("does not select the namespace ns"), "{msg}");
    node.change(|supply| supply.namespaces = namespaces(Some("red"), None));
    assert_eq!(node.add("e1", &[(POOLS, "a")]).await, Ok(vec![ip("10.0.0.1")]));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_not_known_yet_is_waited_for() {
    let mut node = Node::start(dual()).await;
    node.change(|supply| {
        supply.namespaces = Arc::new(BTreeMap::from([("x".into(), Arc::default())]))
    });
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    node.change(|supply| supply.namespaces = namespaces(None, Some("b")));
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.1.0.0")]));
    node.change(|supply| {
        supply.namespaces = Arc::new(BTreeMap::from([("x".into(), Arc::default())]))
    });
    let (code, msg) = node.add("c2", &[]).await.unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("does not know the namespace ns yet"), "{msg}");
}

/// Answers what it was told, and counts.
#[derive(Debug)]
struct Source(Mutex<(Annotations, u32)>);

type Annotations = Result<BTreeMap<String, String>, String>;

impl AnnotationSource for Source {
    fn annotations(&self, _: &PodIdentity) -> BoxFuture<'static, Annotations> {
        let mut told = self.0.lock().unwrap();
        told.1 += 1;
        std::future::ready(told.0.clone()).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn annotations_that_the_runtime_does_not_tell_are_asked_for_and_never_guessed() {
    let kernel = Kernel::default();
    let (handle, calls, network) = network(&kernel, Rules::ALL).await;
    let source = Arc::new(Source(Mutex::new((Err("the API server does not answer".into()), 0))));
    tokio::spawn(network.with_annotations(source.clone()).run());
    handle.set_readiness(&Verdict::Ready);
    handle.set_config(PodConfig { node_addresses: vec![ip("192.0.2.1")], mtu: 1400 });
    handle.set_supply(dual());
    let (code, msg) = calls.add(request("c1", None), ()).await.into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("the API server does not answer"), "{msg}");
    assert!(kernel.held().is_empty());
    source.0.lock().unwrap().0 = Ok(BTreeMap::from([(POOLS.to_owned(), "b".to_owned())]));
    let held = calls.add(request("c1", None), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.0")]));
    assert_eq!(calls.add(request("c1", None), ()).await.into_addresses(), held);
    assert_eq!(source.0.lock().unwrap().1, 2, "an interface that is there needs no answer");
    // Told ones need no question, and what is no pod has none.
    assert!(calls.add(request("c2", Some(&[])), ()).await.into_addresses().is_ok());
    let no_pod = AddRequest { pod: PodIdentity::default(), ..request("c3", None) };
    assert!(calls.add(no_pod, ()).await.into_addresses().is_ok());
    assert_eq!(source.0.lock().unwrap().1, 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_own_kernel_holds_is_passed_over_and_comes_back() {
    let kernel = Kernel::default();
    kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.0"));
    let node = Node::with(kernel.clone(), v4("10.0.0.0/30"), Rules::ALL).await;
    // This one appears later, and only the attempt notices.
    kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.1"));
    assert_eq!(node.add("c1", &[]).await, Ok(vec![ip("10.0.0.2")]));
    assert_eq!(node.usage().blocks[0].foreign, [ip("10.0.0.0"), ip("10.0.0.1")]);
    kernel.0.lock().unwrap().foreign.clear();
    node.handle.resync();
    node.until(|usage| usage.blocks[0].foreign.is_empty()).await;
}

/// How many of two addresses that pods hold are free while the interface of one cannot be removed.
async fn free_while_a_removal_hangs(rules: Rules) -> u128 {
    let node = Node::with(Kernel::default(), v4("10.0.0.0/31"), rules).await;
    node.add("c1", &[]).await.unwrap();
    node.add("c2", &[]).await.unwrap();
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let removal = DelRequest {
        container_id: ContainerId::parse("c1").unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
    };
    let removing = tokio::spawn(async move { calls.del(removal).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let free = node.usage().blocks[0].free;
    node.kernel.0.lock().unwrap().stuck = false;
    assert_eq!(removing.await.unwrap(), Response::Done);
    free
}

#[tokio::test(start_paused = true)]
async fn an_address_is_free_only_after_its_interface_has_gone() {
    assert_eq!(free_while_a_removal_hangs(Rules::ALL).await, 0);
    let careless = Rules::ALL.without(Rule::FreeAfterInterface);
    assert_eq!(free_while_a_removal_hangs(careless).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_the_kernel_for_the_truth_and_only_one_does() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    let options = |rules| NetworkOptions {
        cooldown: Duration::ZERO,
        address_wait: Duration::from_secs(1),
        announcement_wait: WAIT,
        clock: clock(),
        rules,
    };
    let second = PodNetwork::start(node.kernel.clone(), options(Rules::ALL)).await;
    assert!(matches!(second, Err(PodsError::Locked { .. })));
    node.kernel.0.lock().unwrap().agents = 0;
    let restarted = Node::with(node.kernel.clone(), v4("10.0.0.0/30"), Rules::ALL).await;
    restarted.until(|usage| usage.blocks.first().is_some_and(|block| block.used == 1)).await;
    assert_eq!(restarted.usage().blocks[0].allocations[0].0, held[0]);
    // Careless: the second agent runs beside the first and believes that all is free.
    let careless = Rules::ALL.without(Rule::OneAgent).without(Rule::KernelIsRecord);
    let careless = Node::with(node.kernel.clone(), v4("10.0.0.0/30"), careless).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(careless.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_permission_ends_at_its_time_unless_the_fence_is_off() {
    for (rules, given) in [(Rules::ALL, false), (Rules::ALL.without(Rule::OwnFence), true)] {
        let mut supply = v4("10.0.0.0/30");
        supply.blocks[0].until = Duration::from_secs(1_060);
        let node = Node::with(Kernel::default(), supply, rules).await;
        assert!(node.add("c1", &[]).await.is_ok());
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(node.add("c2", &[]).await.is_ok(), given);
    }
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_the_node_to_be_ready_and_then_go() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let shut = |reason: &str| node.handle.set_readiness(&Verdict::NoRoutes(reason.into()));
    shut("0/2 sessions are established");
    let start = tokio::time::Instant::now();
    let (code, msg) = node.add("c0", &[]).await.unwrap_err();
    assert_eq!((code, start.elapsed().as_secs()), (Code::TryAgainLater, 10));
    assert!(msg.contains("not ready: 0/2 sessions are established; the request may"), "{msg}");
    assert!(node.usage().exhausted.is_empty(), "no block is claimed for it");

    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c1", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    // It waits on, and not from the beginning.
    shut("1/2 sessions are established");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished() && node.kernel.held().is_empty());
    node.handle.set_readiness(&Verdict::Ready);
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    assert_eq!(node.calls.status().await, Response::Done);

    shut("2/3 sessions are established");
    let Response::Failed(failure) = node.calls.status().await else { panic!("it is not ready") };
    assert_eq!(
        (failure.code, &*failure.msg),
        (Code::LimitedConnectivity, "2/3 sessions are established")
    );
    let late = tokio::time::Instant::now();
    let calls = node.calls.clone();
    let waiting = tokio::spawn(async move { calls.add(request("c2", Some(&[])), ()).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    shut("no session is established");
    let (_, msg) = waiting.await.unwrap().into_addresses().unwrap_err();
    assert!(msg.contains("no session is established"), "the latest reason: {msg}");
    assert_eq!(late.elapsed().as_secs(), 10, "a new reason is no new patience");
}

#[tokio::test(start_paused = true)]
async fn what_is_to_go_while_a_removal_runs_goes_together() {
    let node = Node::start(v4("10.0.0.0/25")).await;
    for n in 0..100 {
        node.add(&format!("c{n}"), &[]).await.unwrap();
    }
    {
        let mut machine = node.kernel.0.lock().unwrap();
        machine.stuck = true;
        machine.unremovable.insert("c50".into());
    }
    let removing: Vec<_> = (0..100)
        .map(|n| {
            let calls = node.calls.clone();
            tokio::spawn(async move { calls.del(removal(&format!("c{n}"))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.used(), 100, "no address is free before its interface has gone");
    node.kernel.0.lock().unwrap().stuck = false;
    for (n, removing) in removing.into_iter().enumerate() {
        match removing.await.unwrap() {
            Response::Done => assert_ne!(n, 50),
            Response::Failed(failure) => {
                assert_eq!((n, failure.code), (50, Code::TryAgainLater), "one alone fails");
                assert!(failure.msg.contains("could not be removed"), "{}", failure.msg);
            }
            Response::Added(_) => panic!("a DEL"),
        }
    }
    assert_eq!(node.kernel.0.lock().unwrap().batches, [1, 99]);
    node.until(|usage| usage.blocks[0].used == 1).await;
    node.kernel.0.lock().unwrap().unremovable.clear();
    node.del("c50").await;
    node.until(|usage| usage.blocks[0].used == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_del_ends_an_add_that_only_waits_and_goes_on_at_once() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.add("held", &[]).await.unwrap();
    let start = tokio::time::Instant::now();
    // The second one waits for its turn.
    let waiting = [node.spawn_add("c1"), node.spawn_add("c1"), node.spawn_add("c2")];
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.del("c1").await;
    let [first, second, other] = waiting;
    for ended in [first, second] {
        let (code, msg) = ended.await.unwrap().into_addresses().unwrap_err();
        assert_eq!(code, Code::TryAgainLater);
        assert!(msg.contains("a DEL for the interface came"), "{msg}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!other.is_finished(), "it is another pod's");
    node.del("held").await;
    assert_eq!(other.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    assert_eq!(node.kernel.held().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_add_that_would_begin_to_wait_before_a_del_ends() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.kernel.0.lock().unwrap().foreign.insert(ip("10.0.0.0"));
    let start = tokio::time::Instant::now();
    let add = node.spawn_add("c1");
    tokio::task::yield_now().await;
    node.del("c1").await;
    let (code, msg) = add.await.unwrap().into_addresses().unwrap_err();
    assert!(code == Code::TryAgainLater && msg.contains("a DEL for the interface"), "{msg}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_waits_for_blocks_alone_hears_what_its_pods_ask_for() {
    let mut node = Node::start(Supply { blocks: vec![], ..v4("10.0.0.0/30") }).await;
    let reason = || "this node has no block of IPv4 addresses yet".to_owned();
    node.handle.set_readiness(&Verdict::NoAddress { reason: reason(), routes: None });
    let waiting = node.spawn_add("c1");
    node.until(|usage| !usage.exhausted.is_empty()).await;
    let Response::Failed(failure) = node.calls.status().await else { panic!("it is not ready") };
    assert_eq!((failure.code, failure.msg), (Code::NotAvailable, reason()));
    // A block of a pool for its namespace, say.
    let blocks = v4("10.0.0.0/30").blocks;
    node.change(|supply| supply.blocks = blocks);
    assert_eq!(waiting.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    // Without routes it would reach nobody.
    let routes = Some("0/2 sessions are established".to_owned());
    node.handle.set_readiness(&Verdict::NoAddress { reason: reason(), routes });
    let (code, msg) = node.add("c2", &[]).await.unwrap_err();
    assert!(code == Code::TryAgainLater && msg.contains("0/2 sessions"), "{msg}");
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_waits_no_more_and_gets_nothing() {
    let node = Node::start(v4("10.0.0.0/32")).await;
    node.add("held", &[]).await.unwrap();
    // As many as may wait: the next one is refused at once.
    let waiting: Vec<_> = (0..64).map(|n| node.spawn_add(&format!("w{n}"))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = tokio::time::Instant::now();
    assert!(node.add("more", &[]).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(1));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for ended in waiting {
        assert!(ended.await.unwrap_err().is_cancelled());
    }
    let last = node.spawn_add("more");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!last.is_finished(), "there is a place to wait again");
    node.del("held").await;
    assert_eq!(last.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]), "not one of those");
}

/// Answers never.
#[derive(Debug)]
struct Silent;

impl AnnotationSource for Silent {
    fn annotations(&self, _: &PodIdentity) -> BoxFuture<'static, Annotations> {
        std::future::pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn neither_waits_an_add_for_annotations_that_nobody_needs() {
    let kernel = Kernel::default();
    let (handle, calls, network) = network(&kernel, Rules::ALL).await;
    tokio::spawn(network.with_annotations(Arc::new(Silent)).run());
    handle.set_readiness(&Verdict::Ready);
    handle.set_config(PodConfig { node_addresses: vec![ip("192.0.2.1")], mtu: 1400 });
    handle.set_supply(v4("10.0.0.0/30"));
    let add = |pod: &str| {
        let (calls, request) = (calls.clone(), request(pod, None));
        tokio::spawn(async move { calls.add(request, ()).await })
    };
    let (deleted, hung_up) = (add("c1"), add("c2"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!deleted.is_finished());
    hung_up.abort();
    for pod in ["c1", "c2"] {
        let removed = tokio::time::timeout(Duration::from_secs(1), calls.del(removal(pod))).await;
        assert_eq!(removed, Ok(Response::Done), "{pod}");
    }
    let (code, _) = deleted.await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(kernel.held().is_empty());
}

fn compared(pod: &str, addresses: &[IpAddr]) -> CheckRequest {
    CheckRequest {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
        addresses: addresses.to_vec(),
        gateways: Vec::new(),
        mtu: None,
    }
}

#[tokio::test(start_paused = true)]
async fn check_names_the_difference_and_takes_its_turn() {
    let node = Node::start(v4("10.0.0.0/30")).await;
    let held = node.add("c1", &[]).await.unwrap();
    let check = |addresses: &[IpAddr]| {
        let (calls, request) = (node.calls.clone(), compared("c1", addresses));
        tokio::spawn(async move { calls.check(request, ()).await })
    };
    let failure = |response: Response| match response {
        Response::Failed(failure) => failure.msg,
        other => panic!("{other:?}"),
    };
    assert_eq!(check(&held).await.unwrap(), Response::Done);
    let other = failure(check(&[ip("10.0.0.3")]).await.unwrap());
    assert!(other.contains("has the alias"), "{other}");
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let removing = tokio::spawn(async move { calls.del(removal("c1")).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let late = check(&held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!late.is_finished(), "the interface is being removed");
    node.kernel.0.lock().unwrap().stuck = false;
    assert_eq!(removing.await.unwrap(), Response::Done);
    let gone = failure(late.await.unwrap());
    assert!(gone.contains("does not exist"), "{gone}");
}

/// Asks for the end of what is not in `valid`, of the network `cairn`.
async fn gc(node: &Node, valid: &[&str]) -> Response {
    let known = |pod: &&str| ValidAttachment {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
    };
    let valid = valid.iter().map(known).collect();
    node.calls.gc(GcRequest { network: "cairn".into(), valid }).await
}

/// The containers that have interfaces.
fn containers(node: &Node) -> BTreeSet<String> {
    let machine = node.kernel.0.lock().unwrap();
    machine.interfaces.values().map(|alias| alias.container_id.clone()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn gc_takes_what_no_runtime_knows_and_spares_what_is_new_busy_or_of_others() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["known", "lost", "leaving"] {
        node.add(pod, &[]).await.unwrap();
    }
    let other = AddRequest { network: "other".into(), ..request("other", Some(&[])) };
    node.calls.add(other, ()).await.into_addresses().unwrap();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(gc(&node, &["known"]).await, Response::Done);
    assert_eq!(containers(&node).len(), 4, "less than a minute old");
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.add("young", &[]).await.unwrap();
    node.kernel.0.lock().unwrap().stuck = true;
    let calls = node.calls.clone();
    let leaving = tokio::spawn(async move { calls.del(removal("leaving")).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let collecting = async {
        let start = tokio::time::Instant::now();
        (gc(&node, &["known"]).await, start.elapsed())
    };
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.used(), 5, "no address is free before its interface has gone");
        node.kernel.0.lock().unwrap().stuck = false;
    };
    let ((answer, took), ()) = tokio::join!(collecting, release);
    assert_eq!(answer, Response::Done);
    assert!(took >= Duration::from_secs(1), "answered when it is done: {took:?}");
    assert_eq!(leaving.await.unwrap(), Response::Done);
    assert_eq!(containers(&node), set(&["known", "young", "other"]));
    node.until(|usage| usage.blocks[0].used == 3).await;
}

#[tokio::test(start_paused = true)]
async fn gc_names_what_stays_and_takes_the_rest() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["one", "two", "three"] {
        node.add(pod, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    node.kernel.0.lock().unwrap().unremovable.insert("two".into());
    let Response::Failed(failure) = gc(&node, &[]).await else { panic!("one stays") };
    assert_eq!(failure.code, Code::TryAgainLater);
    assert!(failure.msg.starts_with("1 of 3 interfaces stay: two/eth0: "), "{}", failure.msg);
    assert_eq!(containers(&node), set(&["two"]));
    node.kernel.0.lock().unwrap().unremovable.clear();
    assert_eq!(gc(&node, &[]).await, Response::Done);
    assert!(containers(&node).is_empty());
}

#[tokio::test(start_paused = true)]
async fn gc_of_a_new_agent_waits_a_minute_and_spares_what_it_cannot_read() {
    let node = Node::start(v4("10.0.0.0/29")).await;
    for pod in ["one", "two"] {
        node.add(pod, &[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    {
        let mut machine = node.kernel.0.lock().unwrap();
        machine.agents = 0;
        machine.unread.insert("two".into());
    }
    let next = Node::with(node.kernel.clone(), v4("10.0.0.0/29"), Rules::ALL).await;
    assert_eq!(gc(&next, &[]).await, Response::Done);
    assert_eq!(containers(&next).len(), 2, "nobody knows how old they are");
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(gc(&next, &[]).await, Response::Done);
    assert_eq!(containers(&next), set(&["two"]));
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_the_addresses_that_its_runtime_asks_for() {
    let supply = Supply {
        blocks: vec![block("a", "10.1.0.0/28")],
        families: vec![Family::V4],
        pools: vec![pool("a", "10.1.0.0/16")],
        ..Supply::default()
    };
    let node = Node::start(supply).await;
    let asks = |pod: &str, annotation: Option<&str>| {
        let annotations: Vec<_> =
            annotation.map(|text| ("cairn.network/ips", text)).into_iter().collect();
        AddRequest { ips: vec![ip("10.1.0.9")], ..request(pod, Some(&annotations)) }
    };
    let held = node.calls.add(asks("one", None), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.9")]));
    let refused = node.calls.add(asks("two", Some("10.1.0.8")), ()).await.into_addresses();
    let (code, sentence) = refused.unwrap_err();
    assert!(code == Code::InvalidConfig && sentence.contains("different addresses"), "{sentence}");
    node.del("one").await;
    let held = node.calls.add(asks("three", Some("10.1.0.9")), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.9")]));
}
