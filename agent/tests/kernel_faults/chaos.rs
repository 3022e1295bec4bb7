//! Anything, in any order: what others do to a node while BGP moves.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use cairn_kernel::tunnel::mac_of;
use futures::FutureExt;
use ipnet::IpNet;

use crate::dice::Dice;
use crate::model::{Model, TUNNEL, hop, member_name, net, plain_prefix};
use crate::node::{Agent, Place, furnish, look, on_node, restore, sh, tries};

#[test]
fn whatever_others_do_the_kernel_ends_as_the_model_and_what_is_theirs_is_untouched() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let repeated = std::env::var("CAIRN_CHAOS_SEED").ok();
    let seeds = match repeated {
        Some(seed) => vec![seed.parse().expect("a number")],
        None => {
            let first = number("CAIRN_CHAOS_FIRST", 1);
            (first..first + number("CAIRN_CHAOS_SEEDS", 2)).collect()
        }
    };
    let steps = number("CAIRN_CHAOS_STEPS", 300);
    for seed in seeds {
        let told = std::panic::catch_unwind(|| on_node(async |_| Chaos::run(seed, steps).await));
        if let Err(panic) = told {
            eprintln!("repeat it with CAIRN_CHAOS_SEED={seed} CAIRN_CHAOS_STEPS={steps}");
            std::panic::resume_unwind(panic);
        }
    }
}

struct Chaos {
    dice: Dice,
    model: Model,
    agent: Option<Agent>,
    /// Where only the others act.
    twin: Place,
    /// What was done, to tell of when it fails.
    story: Vec<String>,
    started: Instant,
}

impl Chaos {
    async fn run(seed: u64, steps: u64) {
        let twin = Place::create();
        twin.netns
            .run(|| {
                furnish();
                sh(THEIRS);
            })
            .expect("entered");
        sh(THEIRS);
        let mut dice = Dice(seed);
        let model = Model { everywhere: dice.one_in(2), ..Model::new(MEMBERS, PLAIN) };
        let agent = Agent::start(&model).await;
        let mut chaos = Chaos {
            dice,
            model,
            agent: Some(agent),
            twin,
            story: Vec::new(),
            started: Instant::now(),
        };
        chaos.agent().until_equal(&chaos.model, "before anything happened").await;
        let acted = AssertUnwindSafe(chaos.act(steps)).catch_unwind().await;
        if let Err(panic) = acted {
            eprintln!("seed {seed}:\n{}", chaos.story.join("\n"));
            std::panic::resume_unwind(panic);
        }
        if let Some(agent) = chaos.agent.take() {
            agent.stop().await;
        }
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("it runs")
    }

    async fn act(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.dice.below(10) {
                0..3 => self.bgp().await,
                3..5 => self.others(),
                5..8 => self.aim_at_ours(),
                8 => self.uplinks(),
                _ if self.dice.one_in(12) => self.restart().await,
                _ => {}
            }
            if self.dice.one_in(4) {
                let pause = Duration::from_millis(self.dice.below(40) as u64);
                tokio::time::sleep(pause).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
        self.story.push("the end".into());
        restore("up0");
        restore("up1");
        if self.dice.one_in(2) {
            self.model.down.insert("up1");
            sh("ip link set up1 down");
        }
        self.agent().until_equal(&self.model, "at the end").await;
        let (theirs, here) = (self.twin.netns.run(others).expect("entered"), others());
        let differs: Vec<_> = theirs.symmetric_difference(&here).collect();
        assert!(differs.is_empty(), "what others have: {differs:#?}");
        // What was contested is ours again when they let go of it.
        for prefix in std::mem::take(&mut self.model.contested) {
            sh(&format!("ip {} route del {prefix} metric 198 proto static", family(prefix)));
        }
        self.agent().until_equal(&self.model, "with nothing contested any more").await;
    }

    /// Notes what happens.
    fn tell(&mut self, what: &str) {
        let line = format!("{:6} ms  {what}", self.started.elapsed().as_millis());
        self.story.push(line);
    }

    /// Somebody else's command that has nothing to do with ours: done in the twin too, if it worked.
    fn do_theirs(&mut self, command: &str) -> bool {
        let done = tries(command);
        self.tell(&format!("theirs, {done}: {command}"));
        assert!(!done || self.twin.tries(command), "works here and not in the twin: {command}");
        done
    }

    /// Somebody else's command that goes against what is ours; it may fail.
    fn do_against(&mut self, command: &str) {
        let done = tries(command);
        self.tell(&format!("against ours, {done}: {command}"));
    }

    async fn bgp(&mut self) {
        let mut changed = BTreeSet::new();
        match self.dice.below(9) {
            0 => {
                let name = member_name(self.dice.below(MEMBERS));
                let host = self.dice.below(250) as u8 + 1;
                let taken: Vec<Ipv4Addr> =
                    self.model.members.values().map(|(outer, _)| *outer).collect();
                let outer = Ipv4Addr::new(172, 16, 9, host);
                if !taken.contains(&outer) {
                    self.tell(&format!("{name} moves to {outer}"));
                    self.model.members.get_mut(&name).expect("a member").0 = outer;
                    self.agent().tell(&self.model);
                }
            }
            1 => {
                let block = net(&format!("10.60.{}.0/26", self.dice.below(4)));
                if !self.model.blocks.remove(&block) {
                    self.model.blocks.insert(block);
                }
                self.tell(&format!("own block {block} comes or goes"));
                self.agent().tell(&self.model);
            }
            2 => {
                let pool = net(&format!("10.{}.0.0/16", self.dice.below(4) + 100));
                if !self.model.plain_pools.remove(&pool) {
                    self.model.plain_pools.insert(pool);
                }
                self.tell(&format!("pool {pool} comes or goes"));
                self.agent().tell(&self.model);
            }
            3 => {
                self.model.everywhere = !self.model.everywhere;
                self.tell(&format!("objects on uplinks: {}", self.model.everywhere));
                self.agent().tell(&self.model);
            }
            _ => {
                for _ in 0..self.dice.below(20) + 1 {
                    let number = self.dice.below(PLAIN);
                    let prefix = plain_prefix(number);
                    if CONTESTED.contains(&number) {
                        continue;
                    }
                    if self.dice.one_in(3) {
                        self.model.learned.remove(&prefix);
                    } else {
                        let v6 = prefix.addr().is_ipv6();
                        let mut hops = vec![self.hop(v6)];
                        if self.dice.one_in(3) {
                            hops.push(self.hop(v6));
                        }
                        hops.sort_unstable();
                        hops.dedup();
                        self.model.learned.insert(prefix, hops);
                    }
                    changed.insert(prefix);
                }
                self.tell(&format!("BGP: {} prefixes", changed.len()));
            }
        }
        if !changed.is_empty() {
            self.agent().learn(&self.model, changed).await;
        }
    }

    fn hop(&mut self, v6: bool) -> std::net::IpAddr {
        let (uplink, host) = (self.dice.below(3), self.dice.below(6) as u8 + 2);
        hop(uplink, host, v6)
    }

    /// What others do with what is theirs.
    fn others(&mut self) {
        let n = self.dice.below(6);
        let command = match self.dice.below(16) {
            0 => format!(
                "ip route add 10.70.{n}.0/24 via 203.0.113.{} proto static metric {}",
                n + 2,
                [0, 50, 198][n % 3]
            ),
            1 => format!("ip route del 10.70.{n}.0/24"),
            2 => format!(
                "ip -6 route add fd70:{n}::/64 via 2001:db8:2::{} proto static metric {}",
                n + 2,
                [50, 198][n % 2]
            ),
            3 => format!("ip -6 route del fd70:{n}::/64"),
            4 => format!("ip route replace 10.71.{n}.0/24 dev calm table 77 proto 77"),
            5 => {
                format!("ip rule {} from 10.72.{n}.0/24 lookup 77", self.dice.pick(&["add", "del"]))
            }
            // A number of our ranges.
            6 => format!(
                "ip nexthop add id {} via 203.0.113.{} dev calm proto static",
                self.dice.pick(&[0x4341_0000 + n, 0x4342_0000 + n, 0x4342_8000 + n]),
                n + 2
            ),
            7 => format!("ip nexthop add id {} via 203.0.113.{} dev calm", 70 + n, n + 2),
            8 => {
                let ours = *self.dice.pick(&[0x4341_0000, 0x4342_0000, 0x4342_8000]);
                let id = *self.dice.pick(&[ours + n, 70 + n]);
                // Only one that is theirs, as the kernel does not ask.
                let shown = look(&format!("ip nexthop show id {id}"));
                if !shown.contains("dev calm") || shown.contains("proto 222") {
                    return;
                }
                format!("ip nexthop del id {id}")
            }
            9 => format!("ip route add 10.73.{n}.0/24 nhid {} proto static", 70 + n),
            10 => format!(
                "ip neigh replace 203.0.113.{} lladdr 02:00:00:00:00:0{n} dev calm nud permanent",
                n + 2
            ),
            11 => format!("ip neigh del 203.0.113.{} dev calm", n + 2),
            12 => format!(
                "bridge fdb {} 02:00:00:00:01:0{n} dev theirs dst 203.0.113.{} self permanent",
                self.dice.pick(&["replace", "del"]),
                n + 2
            ),
            13 => format!(
                "ip address {} 203.0.113.{}/32 dev calm",
                self.dice.pick(&["add", "del"]),
                n + 100
            ),
            14 => match n % 3 {
                0 => "nft add table inet theirs; nft add chain inet theirs c".to_owned(),
                1 => "nft add rule inet theirs c counter".to_owned(),
                _ => "nft delete table inet theirs".to_owned(),
            },
            _ => match self.dice.one_in(2) {
                true => format!("ip link add their{n} type veth peer name theirp{n}"),
                false => format!("ip link del their{n}"),
            },
        };
        self.do_theirs(&command);
    }

    /// What others do to what is ours.
    fn aim_at_ours(&mut self) {
        // One that BGP may move at the same time, and that nobody else claims.
        let mut number = self.dice.below(PLAIN);
        while CONTESTED.contains(&number) {
            number = self.dice.below(PLAIN);
        }
        let prefix = plain_prefix(number);
        let ip = format!("ip {}", family(prefix));
        let other = hop(2, 66, prefix.addr().is_ipv6());
        let member = member_name(self.dice.below(MEMBERS));
        let mac = mac_of(&member);
        let outer = self.model.members[&member].0;
        let numbers = *self.dice.pick(&[0x4341_0000, 0x4342_0000, 0x4342_8000]);
        let id = numbers + self.dice.below(3 * MEMBERS);
        let host = self.dice.below(9) + 2;
        let setting =
            *self.dice.pick(&["down", "mtu 1300", "alias x", "address 02:00:00:00:00:77"]);
        match self.dice.below(22) {
            0 => self.do_against(&format!("{ip} route del {prefix} proto 222 metric 198")),
            1 => self.do_against(&format!(
                "{ip} route replace {prefix} via {other} proto 222 metric 198"
            )),
            2 => self.do_against(&format!(
                "{ip} route append {prefix} via {other} proto 222 metric 198"
            )),
            3 => self.do_against(&format!("{ip} route flush proto 222")),
            4 => self.do_against(&format!(
                "{ip} route add {} via {other} proto 222 metric 198",
                strange(prefix)
            )),
            5 => self.do_against("ip nexthop flush proto 222"),
            6 => {
                if look(&format!("ip nexthop show id {id}")).contains("proto 222") {
                    self.do_against(&format!(
                        "ip nexthop replace id {id} via 203.0.113.66 dev calm proto 222"
                    ));
                }
            }
            7 => {
                if look(&format!("ip nexthop show id {id}")).contains("proto 222") {
                    self.do_against(&format!("ip nexthop del id {id}"));
                }
            }
            8 => self.do_against(&format!("ip neigh del {outer} dev {TUNNEL}")),
            9 => self.do_against(&format!(
                "ip neigh replace {outer} lladdr 02:00:00:00:00:66 dev {TUNNEL} nud permanent"
            )),
            10 => self.do_against(&format!(
                "ip neigh add 172.20.0.6 lladdr 02:00:00:00:00:66 dev {TUNNEL} nud permanent"
            )),
            11 => self.do_against(&format!("bridge fdb del {mac} dev {TUNNEL} self")),
            12 => self.do_against(&format!(
                "bridge fdb replace {mac} dev {TUNNEL} dst 172.20.0.6 self permanent"
            )),
            13 => self.do_against(&format!(
                "bridge fdb add 02:00:00:00:00:66 dev {TUNNEL} dst 172.20.0.6 self permanent"
            )),
            14 => self.do_against(&format!("ip link del {TUNNEL}")),
            15 => self.do_against(&format!("ip link set {TUNNEL} {}", setting)),
            16 => self.do_against(&format!("ip address flush dev {TUNNEL}")),
            17 => self.do_against(&format!("ip address add 10.244.0.{}/32 dev {TUNNEL}", host)),
            18 => self.do_against("nft delete table inet cairn"),
            19 => self.do_against("nft flush table inet cairn"),
            20 => {
                self.do_theirs("nft flush ruleset");
            }
            _ => self.contest(),
        }
    }

    /// Somebody else takes the place of a route of ours that is not to change now, or gives it back.
    fn contest(&mut self) {
        let prefix = plain_prefix(*self.dice.pick(&CONTESTED));
        let v6 = prefix.addr().is_ipv6();
        if self.model.contested.contains(&prefix) {
            if self.do_theirs(&format!(
                "ip {} route del {prefix} metric 198 proto static",
                family(prefix)
            )) {
                self.model.contested.remove(&prefix);
            }
        } else {
            let other = hop(2, 88, v6);
            let command = format!(
                "ip {} route replace {prefix} via {other} metric 198 proto static",
                family(prefix)
            );
            assert!(self.do_theirs(&command), "{command}");
            self.model.contested.insert(prefix);
        }
    }

    fn uplinks(&mut self) {
        let uplink = *self.dice.pick(&["up0", "up1"]);
        let command = match self.dice.below(6) {
            0 => format!("ip link set {uplink} down"),
            1 => format!("ip link set {uplink}p down"),
            2 => format!("ip address flush dev {uplink}"),
            3 => format!("ip link set {uplink} mtu 1400"),
            _ => {
                restore(uplink);
                return self.tell(&format!("{uplink} restored"));
            }
        };
        self.do_against(&command);
    }

    async fn restart(&mut self) {
        self.tell("the agent restarts");
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
        self.agent = Some(Agent::start(&self.model).await);
    }
}

/// What others have in the namespace of the calling thread.
fn others() -> BTreeSet<String> {
    let listing = look(
        "ip rule; ip -6 rule; ip address show dev calm | grep inet; ip neigh show dev calm nud permanent
         bridge fdb show dev theirs; ip -o link | grep -o ' their[^@]*@'
         ip nexthop | grep -v 'proto 222'
         for v in -4 -6; do ip -o $v route show table all | grep -vE 'proto 222|table local' \
             | grep -E 'dev calm|nhid|table 77'; done
         nft list table inet theirs",
    );
    let lines = listing.lines().map(|line| line.replace(" linkdown", "").trim().to_owned());
    // Whether the kernel has heard of a neighbour changes by itself.
    lines.filter(|line| !line.starts_with("ff00::/8") && !line.contains("valid_lft")).collect()
}

fn family(prefix: IpNet) -> &'static str {
    if prefix.addr().is_ipv6() { "-6" } else { "-4" }
}

/// A prefix that nobody wants.
fn strange(prefix: IpNet) -> IpNet {
    net(if prefix.addr().is_ipv6() { "fd66::/64" } else { "10.66.0.0/24" })
}

const MEMBERS: usize = 12;
const PLAIN: usize = 120;
/// Numbers of plain prefixes of which others take the place. Each is behind the uplink to which nothing
/// happens, in one way only, and BGP does not move it: where somebody else replaces a route at the very
/// moment at which we do, the kernel gives the place to the later one.
const CONTESTED: [usize; 4] = [2, 5, 8, 11];
/// What others have from the start.
const THEIRS: &str = "ip link add theirs type vxlan id 77 dstport 4789 local 203.0.113.1 nolearning
    ip link set theirs up addrgenmode none
    nft add table inet theirs; nft add chain inet theirs c";
