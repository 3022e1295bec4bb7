//! What was read at one moment, parsed: the input of every decision of these commands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use cairn_api::ObjectReference;
use cairn_bgp::rib::HeardRoute;
use cairn_ipam::mark::{self, Holder};
use ipnet::IpNet;

/// The cluster, and this node where there is an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// The time of the look, in seconds since 1970.
    pub(super) now_secs: i64,
    pub(super) pools: Vec<PoolSeen>,
    pub(super) blocks: Vec<BlockSeen>,
    /// Reserved networks, each with the name of its IPReservation.
    pub(super) reserved: Vec<(IpNet, String)>,
    pub(super) nodes: BTreeMap<String, NodeSeen>,
    /// What nodes' agents tell of themselves, by node.
    pub(super) speakers: BTreeMap<String, SpeakerSeen>,
    /// Leases of nodes, by node.
    pub(super) leases: BTreeMap<String, LeaseSeen>,
    pub(super) pods: Vec<PodSeen>,
    /// What is wrong on nodes by their own word, by node.
    pub(super) problems: BTreeMap<String, Vec<String>>,
    /// The ranges of Services, each with the name of its ServiceCIDR.
    pub(super) service_cidrs: Vec<(IpNet, String)>,
    /// Objects that cannot be read, each with the reason.
    pub(super) unread: Vec<(String, String)>,
    pub(super) local: Option<LocalSeen>,
}

/// A pool of pods or of Services.
#[derive(Clone, Debug)]
pub(super) struct PoolSeen {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) cidr: IpNet,
    pub(super) block_size: u8,
    pub(super) created_secs: i64,
    pub(super) disabled: bool,
    pub(super) terminating: bool,
    pub(super) advertise: bool,
    /// It takes Nodes' podCIDRs as its blocks.
    pub(super) node_pod_cidrs: bool,
    /// Ready as the leader says: status, reason, message.
    pub(super) ready: Option<(bool, String, String)>,
}

/// A block.
#[derive(Clone, Debug)]
pub(super) struct BlockSeen {
    pub(super) name: String,
    pub(super) cidr: IpNet,
    pub(super) pool: ObjectReference,
    pub(super) node: ObjectReference,
    pub(super) used: Option<u128>,
    pub(super) free: Option<u128>,
    pub(super) advertised: Option<bool>,
    pub(super) allocations: Vec<AllocationSeen>,
    /// Our finalizer is there.
    pub(super) held: bool,
    /// Other ones.
    pub(super) held_by_others: Vec<String>,
    /// It has ownerReferences.
    pub(super) owned: bool,
    /// Since when it is being deleted.
    pub(super) terminating_secs: Option<i64>,
}

/// An address in use, as the block's owner says.
#[derive(Clone, Debug)]
pub(super) struct AllocationSeen {
    pub(super) address: IpAddr,
    pub(super) pod: Option<String>,
    pub(super) container: Option<String>,
}

/// A Node object.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeSeen {
    pub(super) uid: String,
    pub(super) boot_id: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNet>,
}

/// A BGPNode object.
#[derive(Clone, Debug)]
pub(super) struct SpeakerSeen {
    pub(super) asn: u32,
    pub(super) addresses: Vec<IpAddr>,
}

/// The Lease of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct LeaseSeen {
    pub(super) holder: Option<Holder>,
    /// When its holder last wrote it, by the holder's clock.
    pub(super) renewed_secs: Option<i64>,
    pub(super) promise: Option<Duration>,
    /// The holder that an operator says is off.
    pub(super) off: Option<Holder>,
    /// The machine that had the Node before and may still hand out, or that there are several.
    pub(super) taken_over: Option<String>,
    /// The holder before whom an operator says that every machine is off.
    pub(super) earlier_off: Option<Holder>,
}

/// A pod with addresses of its own.
#[derive(Clone, Debug)]
pub(super) struct PodSeen {
    /// namespace/name.
    pub(super) name: String,
    pub(super) node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) running: bool,
    /// It is being deleted.
    pub(super) ending: bool,
}

/// What this machine shows besides.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalSeen {
    pub(super) node: String,
    /// Pods' interfaces, by address.
    pub(super) kernel: BTreeMap<IpAddr, String>,
    /// What peers announce inside of blocks.
    pub(super) heard: Vec<HeardRoute>,
    /// Why one of both is not known.
    pub(super) unknown: Vec<String>,
}

impl Snapshot {
    /// The blocks by their networks.
    pub(super) fn block_index(&self) -> NetIndex<&BlockSeen> {
        self.blocks.iter().map(|block| (block.cidr, block)).collect()
    }

    /// The pool that holds an address: the oldest, since only that one is used.
    pub(super) fn pool_of(&self, address: IpAddr) -> Option<&PoolSeen> {
        let holding = self.pools.iter().filter(|pool| pool.cidr.contains(&address));
        holding.min_by_key(|pool| (pool.created_secs, &pool.uid))
    }
}

impl LeaseSeen {
    /// Whether it is held for this Node object.
    pub(super) fn is_of(&self, node_uid: &str) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.node_uid == node_uid)
    }

    /// Whether an operator says that the machine of its holder is off, and no other one may hand out
    /// under its Node.
    pub(super) fn is_off(&self) -> bool {
        self.off.is_some() && self.off == self.holder && !self.others_rest()
    }

    /// Whether another machine that had the Node before may still hand out.
    pub(super) fn others_rest(&self) -> bool {
        let mark = self.off.as_ref().map(Holder::to_string);
        mark::others_rest(self.taken_over.as_deref(), mark.as_deref())
    }

    /// How long ago it was written, by this machine's clock.
    pub(super) fn age_secs(&self, now_secs: i64) -> Option<i64> {
        self.renewed_secs.map(|renewed| now_secs.saturating_sub(renewed))
    }

    /// How long after its last write the leader waits.
    pub(super) fn wait_secs(&self) -> Option<i64> {
        let promise = i64::try_from(self.promise?.as_secs()).ok()?;
        Some(promise.saturating_add(promise / 4))
    }
}

impl PodSeen {
    /// Whether it has an address in a block.
    pub(super) fn is_in(&self, block: &BlockSeen) -> bool {
        self.addresses.iter().any(|address| block.cidr.contains(address))
    }
}

/// Things by network, found by what lies in them.
pub(super) struct NetIndex<T> {
    nets: HashMap<IpNet, T>,
    lens: BTreeSet<u8>,
}

impl<T: Copy> NetIndex<T> {
    /// The one of the smallest network that holds an address.
    pub(super) fn of(&self, address: IpAddr) -> Option<T> {
        self.around(IpNet::from(address)).next()
    }

    /// Those of the networks that hold this one, smallest first.
    pub(super) fn around(&self, net: IpNet) -> impl Iterator<Item = T> {
        let lens = self.lens.range(..=net.prefix_len()).rev();
        lens.filter_map(move |len| IpNet::new(net.addr(), *len).ok())
            .filter_map(|outer| self.nets.get(&outer.trunc()).copied())
    }
}

impl<T> FromIterator<(IpNet, T)> for NetIndex<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(all: I) -> NetIndex<T> {
        let nets: HashMap<IpNet, T> = all.into_iter().collect();
        let lens = nets.keys().map(IpNet::prefix_len).collect();
        NetIndex { nets, lens }
    }
}
