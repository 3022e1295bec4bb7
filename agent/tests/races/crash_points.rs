//! An agent dies before each of its calls to the API server, and after each without hearing the answer,
//! on its way through all that is done with blocks: the first one claimed, taken up and used, another
//! one claimed when that is nearly full, and one given back when both are empty. Others do the same
//! beside it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;
use futures::future::join_all;
use ipnet::IpNet;
use kube::Client;

use super::nodes::proxy::{Last, Proxy};
use super::nodes::{Cluster, HOUR, Memory, Node, PATIENCE, POOLS, Setup, Surroundings, id, until};

/// Who holds which address, on all nodes.
type Kernels = Mutex<BTreeMap<IpAddr, String>>;

/// A machine whose agent dies once.
struct Machine<'a> {
    cluster: &'a Cluster,
    kernels: &'a Kernels,
    name: String,
    proxy: Proxy,
    memory: Memory,
    node: Node,
    pods: VecDeque<(String, Vec<IpAddr>)>,
    started: usize,
    died: bool,
}

impl<'a> Machine<'a> {
    async fn start(cluster: &'a Cluster, kernels: &'a Kernels, name: String) -> Machine<'a> {
        cluster.node(&name, &name);
        let proxy = Proxy::start(cluster.serving.address()).await;
        let memory = Memory::default();
        let pods = VecDeque::new();
        let node = launch(&name, proxy.client(), &memory, &pods);
        Machine { cluster, kernels, name, proxy, memory, node, pods, started: 0, died: false }
    }

    /// From the first claim to the return of the second block, with one death on the way.
    async fn live(mut self, calls: usize, last: Last) -> Machine<'a> {
        self.proxy.end_after(calls, last);
        self.until("a pod", |machine| machine.add()).await;
        self.until("pods that need another block", |machine| {
            let open = Node::open(&machine.node.holdings.borrow()).len();
            if open < 2 && machine.pods.len() < BLOCK_PODS {
                machine.add();
            }
            open == 2
        })
        .await;
        while !self.pods.is_empty() {
            self.end_pod();
        }
        self.until("one block goes back", |machine| {
            let holdings = machine.node.holdings.borrow();
            holdings.blocks.len() == 1 && Node::open(&holdings).len() == 1
        })
        .await;
        self.until("a pod in the one that stays", |machine| machine.add()).await;
        // The answer to its last call may be on the way.
        if !self.proxy.forget_end() && !self.died {
            self.die().await;
        }
        self
    }

    async fn until(&mut self, what: &str, mut done: impl FnMut(&mut Machine<'a>) -> bool) {
        let began = Instant::now();
        loop {
            if self.proxy.has_ended() && !self.died {
                self.die().await;
            }
            if done(self) {
                return;
            }
            let holdings = self.node.holdings.borrow().clone();
            assert!(began.elapsed() < SLOW_MAX, "{}: {what}: {holdings:#?}", self.name);
            tokio::time::sleep(STEP).await;
        }
    }

    /// The pods live on, and the next process starts at once.
    async fn die(&mut self) {
        self.node.tasks.shutdown().await;
        self.node = launch(&self.name, self.cluster.client(), &self.memory, &self.pods);
        self.died = true;
    }

    fn add(&mut self) -> bool {
        let pod = format!("{}-{}", self.name, self.started);
        let Ok(addresses) = self.node.add(&pod) else { return false };
        let mut kernels = self.kernels.lock().expect("the kernels");
        for address in &addresses {
            let before = kernels.insert(*address, pod.clone());
            assert_eq!(before, None, "{address} goes to {pod}, too");
        }
        self.pods.push_back((pod, addresses));
        self.started += 1;
        true
    }

    fn end_pod(&mut self) {
        let Some((pod, addresses)) = self.pods.pop_front() else { return };
        let mut kernels = self.kernels.lock().expect("the kernels");
        for address in addresses {
            assert_eq!(kernels.remove(&address), Some(pod.clone()));
        }
        drop(kernels);
        self.node.del(&pod);
    }
}

fn launch(
    name: &str,
    client: Client,
    memory: &Memory,
    pods: &VecDeque<(String, Vec<IpAddr>)>,
) -> Node {
    let adopted = pods.iter().map(|(pod, addresses)| (id(pod), addresses.clone())).collect();
    let idle_release = Some(Duration::from_secs(1));
    let setup = Setup { name, boot_id: name, offline: HOUR, idle_release, adopted, client };
    Node::set_up_in(setup, Surroundings { memory: memory.clone(), ..Surroundings::default() })
}

async fn an_agent_may_die_before_and_after_each_of_its_calls(api: Api) {
    let cluster = Cluster::start(api).await;
    cluster.pool("default", "10.244.0.0/21", 28);
    let kernels = Kernels::default();
    let leader = Machine::start(&cluster, &kernels, "leader".to_owned()).await;
    let mut machines = vec![leader.live(usize::MAX, Last::Heard).await];
    let mut deaths = 0;
    // Until the cycle is over before the call at which the agent were to die.
    for first in (0..).step_by(WAVE) {
        let calls = first..first + WAVE;
        let ends = calls.flat_map(|calls| [(calls, Last::Heard), (calls + 1, Last::Unheard)]);
        let wave = ends.map(|(calls, last)| {
            let (cluster, kernels) = (&cluster, &kernels);
            async move {
                let name = format!("{last:?}-{calls}").to_lowercase();
                let machine = Machine::start(cluster, kernels, name).await;
                machine.live(calls, last).await
            }
        });
        let wave = join_all(wave).await;
        let died = wave.iter().filter(|machine| machine.died).count();
        machines.extend(wave);
        deaths += died;
        if died == 0 {
            break;
        }
    }
    assert!(deaths > 2 * CALLS_MIN, "a cycle has more calls than {deaths} deaths");
    let owners = || -> Vec<(IpNet, String)> {
        let blocks = cluster.blocks().into_iter();
        blocks
            .map(|block| {
                let text =
                    |at: &str| block.pointer(at).and_then(|v| v.as_str()).expect("it").to_owned();
                (text("/spec/cidr").parse().expect("a network"), text("/spec/node/name"))
            })
            .collect()
    };
    until("no block is left over", || owners().len() == machines.len()).await;
    let owned: BTreeMap<IpNet, String> = owners().into_iter().collect();
    let each: BTreeSet<&String> = owned.values().collect();
    assert_eq!((owned.len(), each.len()), (machines.len(), machines.len()), "one block each");
    for machine in &machines {
        let open = Node::open(&machine.node.holdings.borrow());
        assert_eq!(owned.get(&open[0]), Some(&machine.name));
        for address in machine.pods.iter().flat_map(|(_, addresses)| addresses) {
            assert!(open[0].contains(address), "{address} of {} is not in {open:?}", machine.name);
        }
    }
    println!("{deaths} deaths of {} agents", machines.len());
    for machine in &mut machines {
        machine.end_pod();
    }
    cluster.server.delete(POOLS, None, "default").expect("deleted");
    let began = Instant::now();
    while !cluster.blocks().is_empty() || cluster.server.get(POOLS, None, "default").is_ok() {
        assert!(began.elapsed() < SLOW_MAX, "orphaned: {:?}", owners());
        tokio::time::sleep(STEP).await;
    }
}

on_both_apis! {
    an_agent_may_die_before_and_after_each_of_its_calls,
}

/// Agents that live through the cycle at once are two for each call of a wave.
const WAVE: usize = 6;
/// The addresses of one block.
const BLOCK_PODS: usize = 16;
/// The Lease, two claims with two reads each, and one return are more calls than that.
const CALLS_MIN: usize = 10;
const STEP: Duration = Duration::from_millis(10);
/// How long a step of the cycle may take on a machine that is busy.
const SLOW_MAX: Duration = PATIENCE.saturating_mul(3);
