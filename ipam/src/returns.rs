//! Which blocks the leader returns, and on what ground (IPAM rules 4, 5 and 7).
//!
//! ```text
//!  blocks ──► Owners ──► LeaseWatch ─┐
//!  Nodes, Leases, taints ────────────┴► plan() ──► NodeReturn: looked at once more, then DELETEs
//! ```
//!
//! The order of looks is what makes a return safe: first the blocks are read, then whatever speaks
//! for their return. An agent that comes back writes its Lease, then changes its blocks, then hands
//! out; so either the leader sees the Lease, or the DELETE, which names the version that was read,
//! comes too late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::fence::{LeaseSeen, LeaseWatch, Owner, Return};
use crate::mark::{Claimant, Likeness};
use crate::rules::{Rule, Rules};

/// A block as the leader needs it. It holds tens of thousands at a time, so that what many of them
/// repeat is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSeen {
    /// The block.
    pub cidr: IpNet,
    /// The object's UID.
    pub uid: String,
    /// The object's version.
    pub version: String,
    /// The UID of the pool from which it was claimed.
    pub pool_uid: Arc<str>,
    /// The Node for which it was claimed.
    pub owner: Arc<Owner>,
    /// The addresses in use, as its owner last said.
    pub used: Option<u128>,
    /// A device of the owner's has an address in it, as it last said.
    pub device: bool,
    /// The object is being deleted.
    pub terminating: bool,
    /// What holds the object.
    pub finalizers: Arc<[String]>,
    /// Which machine claimed it or took it up ([`crate::mark::Claimant`]); empty when that is not known.
    pub claimed_by: Arc<str>,
}

/// Why blocks may be returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ground {
    /// Their Node has not existed for some minutes, and its agent's promise is over.
    NodeGone,
    /// An operator says that the machine is off.
    MachineOff,
    /// The Node carries the taint `node.kubernetes.io/out-of-service`, and its agent is silent.
    OutOfService,
    /// The Node exists, but its agent's promise is over: only blocks without a pod.
    AgentLeft,
    /// Somebody deleted the block. Only where rule 4 is off.
    Deleted,
}

/// The blocks of one Node that may be returned if a last look agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReturn {
    /// Whose they are.
    pub owner: Owner,
    /// Why.
    pub ground: Ground,
    /// The version of the Lease that its agent holds; `None` when it holds none.
    pub lease: Option<String>,
    /// The version of the Lease that a later Node of its name holds and that is unchanged for as long
    /// as it promises; `None` when there is no such Lease.
    pub successor: Option<String>,
    /// The blocks.
    pub blocks: Vec<BlockSeen>,
}

/// What the leader has looked at, in this order.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Every block.
    pub blocks: Vec<BlockSeen>,
    /// The UIDs of the Nodes that exist, by name.
    pub nodes: BTreeMap<String, String>,
    /// The Leases of nodes, by the node's name.
    pub leases: BTreeMap<String, LeaseSeen>,
    /// Of [`suspects`], those whose Node carries the taint.
    pub out_of_service: BTreeSet<Owner>,
}

impl Look {
    /// Every Node that owns a block.
    pub fn owners(&self) -> BTreeSet<Owner> {
        let mut owners: BTreeSet<Owner> = BTreeSet::new();
        for block in &self.blocks {
            if !owners.contains(&*block.owner) {
                owners.insert(Owner::clone(&block.owner));
            }
        }
        owners
    }

    fn exists(&self, owner: &Owner) -> bool {
        self.nodes.get(&owner.name) == Some(&owner.uid)
    }

    /// The Lease that the agent of this Node holds.
    fn held(&self, owner: &Owner) -> Option<&LeaseSeen> {
        let lease = self.leases.get(&owner.name);
        lease.filter(|lease| lease.holder.node_uid == owner.uid)
    }
}

/// Takes in what a look shows of Nodes and Leases.
pub fn observe(look: &Look, watch: &mut LeaseWatch, now: Duration) {
    let owners = look.owners().into_iter().chain(holders_of_gone(look));
    watch.observe(owners, &look.leases, now);
    watch.observe_gone(|owner| !look.exists(owner), now);
}

/// Nodes that exist, own blocks and have a silent agent: their taints are worth a look.
pub fn suspects(look: &Look, watch: &LeaseWatch, now: Duration) -> Vec<Owner> {
    let silent = |owner: &Owner| look.exists(owner) && watch.is_silent(owner, now);
    look.owners().into_iter().filter(silent).collect()
}

/// The agents that held Leases of Nodes that do not exist: their Leases are worth a watch, too.
fn holders_of_gone(look: &Look) -> impl Iterator<Item = Owner> {
    let gone = look.leases.iter().filter(|(name, _)| !look.nodes.contains_key(*name));
    gone.map(|(name, lease)| Owner { name: name.clone(), uid: lease.holder.node_uid.clone() })
}

/// Leases that may go, by their node's name, each with its version: there is no Node of that name, no
/// block names it, and whoever held the Lease hands out nothing any more.
pub fn abandoned(look: &Look, watch: &LeaseWatch, now: Duration) -> Vec<(String, String)> {
    let named: BTreeSet<&String> = look.blocks.iter().map(|block| &block.owner.name).collect();
    let over = holders_of_gone(look).filter(|holder| {
        !named.contains(&holder.name) && watch.verdict(holder, now) == Return::Allowed
    });
    over.filter_map(|holder| {
        let version = look.leases.get(&holder.name)?.version.clone();
        Some((holder.name, version))
    })
    .collect()
}

/// What may be returned, Node by Node.
pub fn plan(mut look: Look, watch: &LeaseWatch, rules: Rules, now: Duration) -> Vec<NodeReturn> {
    let blocks = std::mem::take(&mut look.blocks);
    let mut returns: BTreeMap<(Arc<Owner>, Ground), Vec<BlockSeen>> = BTreeMap::new();
    let mut grounds: BTreeMap<Arc<Owner>, Option<Ground>> = BTreeMap::new();
    for block in blocks {
        let known = grounds.get(&block.owner).copied();
        let ground = known.unwrap_or_else(|| {
            let ground = ground(&block.owner, &look, watch, rules, now);
            grounds.insert(block.owner.clone(), ground);
            ground
        });
        let careless = block.terminating && !rules.hold(Rule::FinalizerWaitsForPods);
        let deleted = careless.then_some(Ground::Deleted);
        if let Some(ground) = ground.or(deleted) {
            returns.entry((block.owner.clone(), ground)).or_default().push(block);
        }
    }
    let returns = returns.into_iter().map(|((owner, ground), blocks)| {
        let owner = Owner::clone(&owner);
        let lease = watch.version(&owner).map(str::to_owned);
        let successor = look.leases.get(&owner.name).filter(|lease| {
            let holder = Owner { name: owner.name.clone(), uid: lease.holder.node_uid.clone() };
            holder != owner && watch.verdict(&holder, now) == Return::Allowed
        });
        let successor = successor.map(|lease| lease.version.clone());
        NodeReturn { owner, ground, lease, successor, blocks }
    });
    returns.collect()
}

fn ground(
    owner: &Owner,
    look: &Look,
    watch: &LeaseWatch,
    rules: Rules,
    now: Duration,
) -> Option<Ground> {
    let over = watch.verdict(owner, now) == Return::Allowed;
    let held = look.held(owner);
    // A person's word is about one machine. Blocks of another one may stand under the same Node.
    let word_counts = over || !held.is_some_and(|lease| lease.others_rest);
    if word_counts && held.is_some_and(|lease| lease.machine_off) {
        Some(Ground::MachineOff)
    } else if !look.exists(owner) {
        let over = over && watch.is_long_gone(owner, now);
        (over || !rules.hold(Rule::LeaderWaits)).then_some(Ground::NodeGone)
    } else if word_counts && look.out_of_service.contains(owner) && watch.is_silent(owner, now) {
        Some(Ground::OutOfService)
    } else {
        over.then_some(Ground::AgentLeft)
    }
}

/// What the last look before a return has shown of a Node, after its blocks were read.
#[derive(Clone, Debug, Default)]
pub struct LastLook {
    /// The UID of the Node of that name; `None` when there is none.
    pub node_uid: Option<String>,
    /// Whether that Node carries the taint.
    pub out_of_service: bool,
    /// Whether Kubernetes hears of that Node's kubelet: its condition Ready is True or False. When it
    /// does not, the API's word on the node's pods is of an earlier time.
    pub kubelet_heard: bool,
    /// The boot id of the machine on which the kubelet of that Node runs; empty when it is not known.
    pub boot_id: String,
    /// The Lease.
    pub lease: Option<LeaseSeen>,
    /// The node's pods; looked at for [`Ground::AgentLeft`] only.
    pub pods: Vec<PodSeen>,
}

/// A pod that has not ended and has an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// namespace/name.
    pub name: String,
    /// The node on which it is to run.
    pub node: String,
    /// Its addresses, as far as the API knows them.
    pub addresses: Vec<std::net::IpAddr>,
}

/// What becomes of one block after the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is returned.
    Returns,
    /// It stays for now, and nobody needs to hear of it.
    Waits,
    /// It stays, and a person should know why.
    Stays(String),
}

/// Whether a block may still be returned.
pub fn fate(planned: &NodeReturn, block: &BlockSeen, look: &LastLook, rules: Rules) -> Fate {
    let owner = &planned.owner;
    let returns = |yes: bool| if yes { Fate::Returns } else { Fate::Waits };
    let unchanged =
        crate::fence::is_unchanged(owner, planned.lease.as_deref(), look.lease.as_ref());
    if !unchanged && rules.hold(Rule::LeaderWaits) && planned.ground != Ground::Deleted {
        return Fate::Waits;
    }
    let exists = look.node_uid.as_ref() == Some(&owner.uid);
    let successor_over = |lease: &LeaseSeen| planned.successor.as_ref() == Some(&lease.version);
    let successor_off =
        |lease: &LeaseSeen| lease.machine_off && (!lease.others_rest || successor_over(lease));
    // A person's word is about one machine.
    let by_word = matches!(planned.ground, Ground::MachineOff | Ground::OutOfService);
    if by_word && look.lease.as_ref().is_some_and(|lease| is_of_another(block, lease)) {
        let node = &owner.name;
        return Fate::Stays(format!(
            "block {} of node {node} stays: another machine that had the node claimed it; if every such \
             machine is off: cairn ipam fence {node} --earlier",
            block.cidr
        ));
    }
    match planned.ground {
        Ground::Deleted => Fate::Returns,
        Ground::MachineOff => returns(
            look.lease
                .as_ref()
                .is_some_and(|lease| lease.machine_off && lease.holder.node_uid == owner.uid),
        ),
        Ground::OutOfService => returns(exists && look.out_of_service),
        // The machine of a successor may be the same, and a route may be missing for a moment only.
        // Its agent says what is left in the blocks of earlier Nodes of its name.
        Ground::NodeGone => returns(match &look.node_uid {
            // That successor's Node may be gone, too, and its agent live on within its own promise, on
            // the machine whose pods are in this block.
            None => {
                let is_over = |lease: &LeaseSeen| {
                    lease.holder.node_uid == owner.uid
                        || successor_off(lease)
                        || successor_over(lease)
                };
                let lives = look.lease.as_ref().is_some_and(|lease| !is_over(lease));
                !lives || block.used == Some(0) || !rules.hold(Rule::LeaderWaits)
            }
            Some(uid) if *uid == owner.uid => false,
            Some(uid) => {
                let off = |lease: &LeaseSeen| successor_off(lease) && lease.holder.node_uid == *uid;
                block.used.is_none_or(|used| used == 0) || look.lease.as_ref().is_some_and(off)
            }
        }),
        Ground::AgentLeft if !exists => Fate::Waits,
        Ground::AgentLeft => match kept_by(block, look) {
            Some(why) if rules.hold(Rule::PodsKeepBlocks) => Fate::Stays(format!(
                "block {} stays with node {}, whose agent is gone: {why}",
                block.cidr, owner.name
            )),
            _ => Fate::Returns,
        },
    }
}

/// Whether another machine than the Lease's holder claimed the block, and nobody says that it is off.
fn is_of_another(block: &BlockSeen, lease: &LeaseSeen) -> bool {
    let claimed_by = Claimant::from(&*block.claimed_by);
    !lease.earlier_off
        && !block.claimed_by.is_empty()
        && lease.marked_boot.as_ref() != Some(&claimed_by.boot_id)
        && lease.claimant.likeness(&claimed_by) == Likeness::Other
}

/// What keeps the block of an agent that left, and what to do. Such an agent hands out within its promise,
/// of which a kubelet that is heard has told by now, and one that is not tells nobody. Pods that were
/// deleted by force run on there.
fn kept_by(block: &BlockSeen, look: &LastLook) -> Option<String> {
    let has = |pod: &&PodSeen| pod.addresses.iter().any(|address| block.cidr.contains(address));
    if let Some(pod) = look.pods.iter().find(has) {
        let end = "bring the agent back, or delete the node's pods";
        return Some(format!("pod {} has an address in it; {end}", pod.name));
    }
    if block.device {
        let end =
            "bring the agent back, or run cairn cleanup on the node and then cairn ipam release";
        return Some(format!("a tunnel device of the node has an address in it; {end}"));
    }
    if !look.kubelet_heard {
        let why = "its kubelet is not heard, so nobody knows what runs there; bring the node back, or \
                   once the machine is off delete the Node object or run cairn ipam fence";
        return Some(why.to_owned());
    }
    // Of two machines of one name, the one that is heard knows nothing of the other's pods.
    let left = look.lease.as_ref().map(|lease| &lease.holder.boot_id)?;
    (*left != look.boot_id).then(|| {
        format!(
            "it ran on the machine of boot {left}, and the kubelet that is heard runs on that of boot \
             {}, so nobody knows what runs on the former; bring the agent back, or if that machine is \
             off or was started anew run cairn ipam fence",
            if look.boot_id.is_empty() { "unknown" } else { &look.boot_id }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Holder;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn owner(uid: &str) -> Owner {
        Owner { name: "n1".into(), uid: uid.into() }
    }

    fn block(uid: &str) -> BlockSeen {
        BlockSeen {
            cidr: "10.0.0.0/26".parse().expect("a net"),
            uid: "b".into(),
            version: "5".into(),
            pool_uid: "p".into(),
            owner: owner(uid).into(),
            used: Some(3),
            device: false,
            terminating: false,
            finalizers: Arc::default(),
            claimed_by: "m1/u1/b1".into(),
        }
    }

    fn lease(version: &str, uid: &str, machine_off: bool) -> LeaseSeen {
        let holder = Holder { node_uid: uid.into(), boot_id: "b1".into() };
        let version = version.to_owned();
        let claimant = Claimant::from("m1/u1/b1");
        LeaseSeen {
            version,
            holder,
            promise: secs(100),
            machine_off,
            others_rest: false,
            claimant,
            earlier_off: false,
            marked_boot: None,
        }
    }

    #[test]
    fn a_word_about_one_machine_returns_no_block_of_another() {
        let returns = |claimed_by: &str, earlier_off, ground| {
            let block = BlockSeen { claimed_by: claimed_by.into(), ..block("u1") };
            let marked_boot = Some("marked".to_owned());
            let lease = LeaseSeen { earlier_off, marked_boot, ..lease("7", "u1", true) };
            let planned = NodeReturn {
                owner: owner("u1"),
                ground,
                lease: Some("7".into()),
                successor: None,
                blocks: Vec::new(),
            };
            let node_uid = Some("u1".to_owned());
            let lease = Some(lease);
            let look = LastLook { node_uid, out_of_service: true, lease, ..LastLook::default() };
            fate(&planned, &block, &look, Rules::ALL)
        };
        for ground in [Ground::MachineOff, Ground::OutOfService] {
            // This boot, an earlier one of the same machine, a version that did not say.
            for own in ["m1/u1/b1", "m1/u1/b0", ""] {
                assert_eq!(returns(own, false, ground), Fate::Returns, "{own} {ground:?}");
            }
            let stays = returns("m0/u0/b0", false, ground);
            let says = |why: &String| why.contains("cairn ipam fence n1 --earlier");
            assert!(matches!(&stays, Fate::Stays(why) if says(why)), "{stays:?}");
            assert_eq!(returns("m0/u0/b0", true, ground), Fate::Returns, "{ground:?}");
            assert_eq!(returns("m0/u0/marked", false, ground), Fate::Returns, "{ground:?}");
        }
    }

    /// Held by a machine that took the Node over from one whose promise may stand.
    fn lease_taken_over(version: &str, uid: &str, machine_off: bool) -> LeaseSeen {
        LeaseSeen { others_rest: true, ..lease(version, uid, machine_off) }
    }

    fn look(node: Option<&str>, lease: LeaseSeen) -> Look {
        Look {
            blocks: vec![block("u1")],
            nodes: node.map(|uid| ("n1".to_owned(), uid.to_owned())).into_iter().collect(),
            leases: BTreeMap::from([("n1".to_owned(), lease)]),
            out_of_service: BTreeSet::new(),
        }
    }

    /// The ground on which the block is returned after `waited` without a write.
    fn ground_after(look: &Look, waited: u64, rules: Rules) -> Option<Ground> {
        let mut watch = LeaseWatch::new(secs(100));
        for at in [0, waited] {
            observe(look, &mut watch, secs(at));
        }
        let planned = plan(look.clone(), &watch, rules, secs(waited));
        assert!(planned.len() <= 1);
        planned.first().map(|planned| planned.ground)
    }

    #[test]
    fn on_which_ground_blocks_return_and_when() {
        let quiet = |uid| lease("7", uid, false);
        let tainted = |node| {
            let look = look(node, quiet("u1"));
            Look { out_of_service: look.owners(), ..look }
        };
        let marked = |uid| look(Some("u1"), lease("7", uid, true));
        let taken_over = |node| look(node, lease_taken_over("7", "u1", true));
        let taken_over_tainted = || {
            let look = look(Some("u1"), lease_taken_over("7", "u1", false));
            Look { out_of_service: look.owners(), ..look }
        };
        use Ground::{AgentLeft, MachineOff, NodeGone, OutOfService};
        let cases = [
            ("a live node", look(Some("u1"), quiet("u1")), 9, None),
            ("an agent that is late", look(Some("u1"), quiet("u1")), 124, None),
            ("an agent that left", look(Some("u1"), quiet("u1")), 125, Some(AgentLeft)),
            ("a node gone, early", look(None, quiet("u1")), 124, None),
            ("a node gone", look(None, quiet("u1")), 125, Some(NodeGone)),
            ("a successor", look(Some("u2"), quiet("u2")), 125, Some(NodeGone)),
            ("marked", marked("u1"), 0, Some(MachineOff)),
            ("marked and gone", look(None, lease("7", "u1", true)), 0, Some(MachineOff)),
            ("the mark of another Node", marked("u2"), 0, None),
            ("tainted, its agent writes", tainted(Some("u1")), 9, None),
            ("tainted", tainted(Some("u1")), 10, Some(OutOfService)),
            ("tainted and gone", tainted(None), 10, None),
            ("marked, the machine before it is not", taken_over(Some("u1")), 124, None),
            ("marked, both promises over", taken_over(Some("u1")), 125, Some(MachineOff)),
            ("marked and gone, the machine before it is not", taken_over(None), 124, None),
            ("tainted, the machine before it lives", taken_over_tainted(), 124, None),
            ("tainted, both promises over", taken_over_tainted(), 125, Some(OutOfService)),
        ];
        for (what, look, waited, expected) in cases {
            assert_eq!(ground_after(&look, waited, Rules::ALL), expected, "{what}");
        }
    }

    #[test]
    fn rules_that_are_off_return_what_they_should_not() {
        let gone = look(None, lease("7", "u1", false));
        let hasty = Rules::ALL.without(Rule::LeaderWaits);
        assert_eq!(ground_after(&gone, 0, hasty), Some(Ground::NodeGone));
        let mut deleted = look(Some("u1"), lease("7", "u1", false));
        deleted.blocks[0].terminating = true;
        assert_eq!(ground_after(&deleted, 0, Rules::ALL), None);
        let careless = Rules::ALL.without(Rule::FinalizerWaitsForPods);
        assert_eq!(ground_after(&deleted, 0, careless), Some(Ground::Deleted));
    }

    #[test]
    fn a_lease_goes_when_nothing_is_left_of_its_node_and_its_promise_is_over() {
        let after = |waited: u64, look: &Look, last: &str| {
            let mut watch = LeaseWatch::new(secs(100));
            observe(look, &mut watch, secs(0));
            let mut look = look.clone();
            look.leases.insert("n1".to_owned(), lease(last, "u1", false));
            observe(&look, &mut watch, secs(waited));
            abandoned(&look, &watch, secs(waited))
        };
        let bare = |node| Look { blocks: Vec::new(), ..look(node, lease("7", "u1", false)) };
        assert_eq!(after(125, &bare(None), "7"), [("n1".to_owned(), "7".to_owned())]);
        assert!(after(124, &bare(None), "7").is_empty(), "its agent may live");
        assert!(after(125, &bare(None), "8").is_empty(), "its agent lives");
        assert!(after(125, &bare(Some("u1")), "7").is_empty(), "its Node is there");
        assert!(after(125, &bare(Some("u2")), "7").is_empty(), "a successor takes it over");
        let of_blocks = look(None, lease("7", "u1", false));
        assert!(after(125, &of_blocks, "7").is_empty(), "its blocks wait for it");
    }

    #[test]
    fn nodes_with_a_silent_agent_are_suspects() {
        let live = look(Some("u1"), lease("7", "u1", false));
        let mut watch = LeaseWatch::new(secs(100));
        observe(&live, &mut watch, secs(0));
        assert!(suspects(&live, &watch, secs(9)).is_empty());
        assert_eq!(suspects(&live, &watch, secs(10)), [owner("u1")]);
        let gone = look(None, lease("7", "u1", false));
        assert!(suspects(&gone, &watch, secs(10)).is_empty());
    }

    #[test]
    fn the_last_look_decides() {
        let seen = |node: Option<&str>, lease: LeaseSeen| LastLook {
            node_uid: node.map(str::to_owned),
            kubelet_heard: true,
            boot_id: "b1".into(),
            lease: Some(lease),
            ..LastLook::default()
        };
        let same = || lease("7", "u1", false);
        let tainted = || LastLook { out_of_service: true, ..seen(Some("u1"), same()) };
        let off = || lease("7", "u1", true);
        use Ground::{AgentLeft, MachineOff, NodeGone, OutOfService};
        let cases = [
            (NodeGone, seen(None, same()), true),
            (NodeGone, seen(None, lease("8", "u1", false)), false),
            (NodeGone, seen(Some("u1"), same()), false),
            // A successor whose agent says that addresses are in use.
            (NodeGone, seen(Some("u2"), lease("9", "u2", false)), false),
            (NodeGone, seen(Some("u2"), lease("9", "u2", true)), true),
            // A successor that is gone, too, and may live on.
            (NodeGone, seen(None, lease("9", "u2", false)), false),
            (NodeGone, seen(None, lease("9", "u2", true)), true),
            // The one that is marked took over from one that may live, with pods of this block.
            (NodeGone, seen(Some("u2"), lease_taken_over("9", "u2", true)), false),
            (NodeGone, seen(None, lease_taken_over("9", "u2", true)), false),
            (MachineOff, seen(Some("u1"), off()), true),
            (MachineOff, seen(None, off()), true),
            (MachineOff, seen(Some("u1"), same()), false),
            (MachineOff, seen(Some("u1"), lease("8", "u1", true)), false),
            (OutOfService, tainted(), true),
            (OutOfService, seen(Some("u1"), same()), false),
            (OutOfService, LastLook { node_uid: None, ..tainted() }, false),
            (AgentLeft, seen(Some("u1"), same()), true),
            (AgentLeft, seen(Some("u1"), lease("8", "u1", false)), false),
            (AgentLeft, seen(None, same()), false),
        ];
        for (ground, look, returns) in cases {
            let blocks = vec![block("u1")];
            let lease = Some("7".to_owned());
            let planned = NodeReturn { owner: owner("u1"), ground, lease, successor: None, blocks };
            let fate = fate(&planned, &planned.blocks[0], &look, Rules::ALL);
            assert_eq!(fate == Fate::Returns, returns, "{ground:?} {look:?}");
        }
        let idle = BlockSeen { used: Some(0), ..block("u1") };
        let lease_of_u1 = Some("7".to_owned());
        let planned = NodeReturn {
            owner: owner("u1"),
            ground: NodeGone,
            lease: lease_of_u1,
            successor: None,
            blocks: vec![idle.clone()],
        };
        let successor = seen(Some("u2"), lease("9", "u2", false));
        assert_eq!(fate(&planned, &idle, &successor, Rules::ALL), Fate::Returns);
        let planned = NodeReturn { successor: Some("9".to_owned()), ..planned };
        let gone = |version| seen(None, lease(version, "u2", false));
        assert_eq!(fate(&planned, &block("u1"), &gone("9"), Rules::ALL), Fate::Returns);
        assert_eq!(fate(&planned, &block("u1"), &gone("10"), Rules::ALL), Fate::Waits, "it writes");
        let marked = seen(Some("u2"), lease_taken_over("9", "u2", true));
        assert_eq!(fate(&planned, &block("u1"), &marked, Rules::ALL), Fate::Returns);
    }

    #[test]
    fn a_tunnel_device_keeps_the_block_of_an_agent_that_left() {
        let block = BlockSeen { device: true, used: Some(1), ..block("u1") };
        let planned = NodeReturn {
            owner: owner("u1"),
            ground: Ground::AgentLeft,
            lease: Some("7".to_owned()),
            successor: None,
            blocks: vec![block.clone()],
        };
        let look = LastLook {
            node_uid: Some("u1".into()),
            kubelet_heard: true,
            boot_id: "b1".into(),
            lease: Some(lease("7", "u1", false)),
            ..LastLook::default()
        };
        let Fate::Stays(why) = fate(&planned, &block, &look, Rules::ALL) else { panic!("it goes") };
        assert!(why.contains("cairn cleanup"), "{why}");
    }

    #[test]
    fn a_kubelet_of_another_machine_does_not_speak_for_the_one_that_left() {
        for (boot_id, returns) in [("b1", true), ("b2", false), ("", false)] {
            let planned = NodeReturn {
                owner: owner("u1"),
                ground: Ground::AgentLeft,
                lease: Some("7".to_owned()),
                successor: None,
                blocks: vec![block("u1")],
            };
            let look = LastLook {
                node_uid: Some("u1".into()),
                kubelet_heard: true,
                boot_id: boot_id.into(),
                lease: Some(lease("7", "u1", false)),
                ..LastLook::default()
            };
            match fate(&planned, &planned.blocks[0], &look, Rules::ALL) {
                Fate::Stays(why) => assert!(!returns && why.contains("boot b1"), "{why}"),
                fate => assert_eq!(fate == Fate::Returns, returns, "{boot_id:?}"),
            }
        }
    }

    #[test]
    fn pods_keep_the_block_of_an_agent_that_left() {
        let pod = |name: &str, addresses: &[&str]| PodSeen {
            name: name.into(),
            node: "n1".into(),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        };
        let elsewhere = || vec![pod("shop/db", &["10.0.0.64"])];
        let cases = [
            ("no pod", vec![], true, true),
            ("no pod, as of an earlier time", vec![], false, false),
            ("in the block", vec![pod("shop/db", &["fd00::1", "10.0.0.9"])], true, false),
            ("elsewhere", elsewhere(), true, true),
            ("elsewhere, as of an earlier time", elsewhere(), false, false),
            ("no address: it never started", vec![pod("shop/db", &[])], true, true),
        ];
        for (what, pods, kubelet_heard, returns) in cases {
            let planned = NodeReturn {
                owner: owner("u1"),
                ground: Ground::AgentLeft,
                lease: Some("7".into()),
                successor: None,
                blocks: vec![block("u1")],
            };
            let look = LastLook {
                node_uid: Some("u1".into()),
                kubelet_heard,
                boot_id: "b1".into(),
                lease: Some(lease("7", "u1", false)),
                pods,
                ..LastLook::default()
            };
            let judged = |rules| fate(&planned, &planned.blocks[0], &look, rules);
            assert_eq!(judged(Rules::ALL) == Fate::Returns, returns, "{what}");
            if let Fate::Stays(why) = judged(Rules::ALL) {
                let known = why.contains("shop/db") || why.contains("kubelet is not heard");
                assert!(why.contains("10.0.0.0/26") && known, "{why}");
            }
            assert_eq!(judged(Rules::ALL.without(Rule::PodsKeepBlocks)), Fate::Returns);
        }
    }
}
