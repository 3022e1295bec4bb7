//! Many agents fight for too few blocks, over a way that delays, loses and fails, and are killed at
//! random.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cairn_tests::kube::Api;
use cairn_tests::on_both_apis;

use super::nodes::proxy::{Dice, Proxy};
use super::nodes::{Cluster, HOUR, Memory, Node, Setup, Surroundings, id};

/// A machine: its kernel, which is what its pods hold, and the agent that runs on it now.
struct Machine {
    name: String,
    boot_id: String,
    proxy: Proxy,
    memory: Memory,
    node: Node,
    /// Its pods, the oldest first.
    pods: VecDeque<(String, Vec<IpAddr>)>,
    /// At which request from now the agent is killed.
    killed_at: usize,
}

/// All machines, and who holds which address.
struct Race {
    machines: Vec<Machine>,
    live: BTreeMap<IpAddr, String>,
    dice: Dice,
    seed: u64,
    handed_out: u64,
    kills: u64,
}

impl Race {
    async fn start(cluster: &Cluster, seed: u64, machines: usize) -> Race {
        let mut dice = Dice::new(seed);
        let mut started = Vec::new();
        for n in 0..machines {
            let (name, boot_id) = (format!("n{n}"), format!("boot{n}"));
            cluster.node(&name, &boot_id);
            let proxy = Proxy::start(cluster.serving.address()).await;
            proxy.chaos(Some(dice.draw(u64::MAX)));
            let memory = Memory::default();
            let node = launch(&name, &boot_id, &proxy, &memory, &VecDeque::new());
            let killed_at = dice.draw(KILLED_WITHIN) as usize;
            let pods = VecDeque::new();
            started.push(Machine { name, boot_id, proxy, memory, node, pods, killed_at });
        }
        let live = BTreeMap::new();
        Race { machines: started, live, dice, seed, handed_out: 0, kills: 0 }
    }

    /// Hands out `count` addresses of each machine that has some, the oldest pod making room, and
    /// kills the agents whose moment it is.
    async fn step(&mut self, count: usize) {
        for n in 0..self.machines.len() {
            self.hand_out(n, count);
            if self.machines[n].proxy.asked() >= self.machines[n].killed_at {
                self.kill(n).await;
            }
        }
        // The agents' turn.
        tokio::time::sleep(STEP).await;
    }

    fn hand_out(&mut self, n: usize, count: usize) {
        let open = Node::open(&self.machines[n].node.holdings.borrow());
        for _ in 0..if open.is_empty() { 1 } else { count } {
            if self.machines[n].pods.len() >= PODS_MAX {
                self.end_pod(n);
            }
            let machine = &mut self.machines[n];
            let pod = format!("{}-{}", machine.name, self.handed_out);
            let Ok(addresses) = machine.node.add_quietly(&pod) else { break };
            for address in &addresses {
                let before = self.live.insert(*address, pod.clone());
                assert_eq!(before, None, "seed {}: {address} goes to {pod}, too", self.seed);
                self.handed_out += 1;
            }
            machine.pods.push_back((pod, addresses));
        }
        self.machines[n].node.unmute();
    }

    fn end_pod(&mut self, n: usize) {
        let Some((pod, addresses)) = self.machines[n].pods.pop_front() else { return };
        for address in addresses {
            assert_eq!(self.live.remove(&address), Some(pod.clone()), "seed {}", self.seed);
        }
        self.machines[n].node.del(&pod);
    }

    /// The agent dies where it stands and starts again; its pods live on.
    async fn kill(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        machine.node.tasks.shutdown().await;
        let Machine { name, boot_id, proxy, memory, pods, .. } = machine;
        machine.node = launch(name, boot_id, proxy, memory, pods);
        self.kills += 1;
        machine.killed_at = machine.proxy.asked() + self.dice.draw(KILLED_WITHIN) as usize;
    }

    /// No more faults.
    fn calm(&mut self) {
        for machine in &mut self.machines {
            machine.proxy.chaos(None);
            machine.killed_at = usize::MAX;
        }
    }

    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Race) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            let problems = || {
                let each = self.machines.iter().map(|m| m.node.holdings.borrow().problems.clone());
                each.collect::<Vec<_>>()
            };
            let waited = began.elapsed();
            assert!(waited < CALM_MAX, "seed {}: {what}: {:#?}", self.seed, problems());
            self.step(1).await;
            tokio::time::sleep(20 * STEP).await;
        }
    }

    fn report(&self, what: &str) {
        let (seed, given, kills) = (self.seed, self.handed_out, self.kills);
        println!("{what}: seed {seed}: {given} addresses handed out, {kills} agents killed");
    }
}

fn launch(
    name: &str,
    boot_id: &str,
    proxy: &Proxy,
    memory: &Memory,
    pods: &VecDeque<(String, Vec<IpAddr>)>,
) -> Node {
    let adopted = pods.iter().map(|(pod, addresses)| (id(pod), addresses.clone())).collect();
    let client = proxy.client();
    let setup = Setup { name, boot_id, offline: HOUR, idle_release: None, adopted, client };
    Node::set_up_in(setup, Surroundings { memory: memory.clone(), ..Surroundings::default() })
}

fn owners(cluster: &Cluster) -> Vec<String> {
    let owner = |block: &serde_json::Value| block["spec"]["node"]["name"].to_string();
    cluster.blocks().iter().map(owner).collect()
}

async fn thirty_two_agents_fight_for_sixteen_blocks(api: Api) {
    for seed in SEEDS {
        let cluster = Cluster::start(api).await;
        cluster.pool("small", "10.244.0.0/24", 28);
        let mut race = Race::start(&cluster, seed, 32).await;
        let began = Instant::now();
        while race.handed_out < HANDED_OUT_MIN || race.kills < KILLS_MIN {
            assert!(began.elapsed() < CALM_MAX, "seed {seed}: too slow");
            race.step(HANDED_OUT_A_STEP).await;
        }
        race.calm();
        race.until("every block has an owner that uses it", |race| {
            let open = race.machines.iter().map(|m| Node::open(&m.node.holdings.borrow()).len());
            open.sum::<usize>() == 16
        })
        .await;
        let owners = owners(&cluster);
        assert_eq!(owners.len(), 16, "seed {seed}");
        assert_eq!(owners.into_iter().collect::<BTreeSet<_>>().len(), 16, "seed {seed}");
        race.report("32 agents, 16 blocks");
    }
}

on_both_apis! {
    thirty_two_agents_fight_for_sixteen_blocks,
}

/// Enough that each moment between two calls of an agent meets a kill in some seed.
const SEEDS: std::ops::Range<u64> = 0..2;
/// An agent is killed within so many requests after its start.
const KILLED_WITHIN: u64 = 40;
/// Below what makes an agent claim a second block of 16.
const PODS_MAX: usize = 8;
const STEP: Duration = Duration::from_millis(4);
const HANDED_OUT_A_STEP: usize = 200;
/// In one race.
const HANDED_OUT_MIN: u64 = 60_000;
const KILLS_MIN: u64 = 32;
/// How long all agents may take to settle on a machine that is busy.
const CALM_MAX: Duration = Duration::from_secs(300);
