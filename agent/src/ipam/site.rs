//! What the view says about pools, reservations and this node, parsed once a view.

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_ipam::claims::{PoolError, families, families_ahead, serve_elsewhere};
use cairn_ipam::{Family, PodPool, Pool, Scheduling};
use ipnet::IpNet;

use crate::view::ClusterView;

/// What the view says about where addresses come from.
#[derive(Debug)]
pub(super) struct Site {
    view: Option<Arc<ClusterView>>,
    pub(super) pools: Vec<Pool>,
    /// Pools that are known by name and range only, with what is wrong with them.
    pub(super) invalid: Vec<PodPool>,
    /// Networks that are never handed out, none inside another.
    pub(super) reserved: Vec<IpNet>,
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) scheduling: Scheduling,
    /// What cannot be read, one sentence each.
    pub(super) problems: Vec<String>,
}

impl Default for Site {
    fn default() -> Site {
        Site {
            view: None,
            pools: Vec::new(),
            invalid: Vec::new(),
            reserved: Vec::new(),
            pod_cidrs: Vec::new(),
            scheduling: Scheduling::Open,
            problems: Vec::new(),
        }
    }
}

impl Site {
    /// Reads a view, unless it is the one that was read last. Whether pools or reservations changed.
    pub(super) fn read(&mut self, view: &Arc<ClusterView>) -> bool {
        if self.view.as_ref().is_some_and(|read| Arc::ptr_eq(read, view)) {
            return false;
        }
        self.view = Some(Arc::clone(view));
        let old = (std::mem::take(&mut self.pools), std::mem::take(&mut self.reserved));
        self.invalid.clear();
        self.problems.clear();
        let labels = view.node.as_ref().and_then(|node| node.metadata.labels.clone());
        let labels = labels.unwrap_or_default();
        for pool in view.pools.values() {
            match Pool::parse(pool, &labels) {
                Ok(pool) => self.pools.push(pool),
                Err(error) => {
                    self.problems.push(error.to_string());
                    let namespaces = pool.spec.namespace_selector.clone();
                    // A pool without a range has no place in any choice.
                    if let PoolError::BlockSize { name, cidr, .. } = &error {
                        let (name, cidr) = (name.clone(), *cidr);
                        let unusable = Some(error.to_string());
                        self.invalid.push(PodPool { name, cidr, namespaces, unusable });
                    }
                }
            }
        }
        self.reserved = self.read_reserved(view);
        let spec = view.node.as_ref().and_then(|node| node.spec.as_ref());
        let texts = spec.map(|spec| {
            let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
            all.cloned().collect::<BTreeSet<String>>()
        });
        self.pod_cidrs = self.read_networks(texts.iter().flatten(), "Node.spec.podCIDRs");
        let cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
        self.scheduling = if cordoned { Scheduling::Cordoned } else { Scheduling::Open };
        old != (self.pools.clone(), self.reserved.clone())
    }

    fn read_reserved(&mut self, view: &ClusterView) -> Vec<IpNet> {
        let mut all = Vec::new();
        for (name, reservation) in &view.reservations {
            let what = format!("spec.cidrs of IPReservation {name}");
            all.extend(self.read_networks(&reservation.spec.cidrs, &what));
        }
        let mut all = IpNet::aggregate(&all);
        all.sort_unstable();
        all
    }

    fn read_networks<'a>(
        &mut self,
        texts: impl IntoIterator<Item = &'a String>,
        what: &str,
    ) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(network) => networks.push(network.trunc()),
                Err(_) => self.problems.push(format!("\"{text}\" in {what} is no network")),
            }
        }
        networks
    }

    /// The families of which a pod gets an address each.
    pub(super) fn families(&self) -> Vec<Family> {
        families(&self.pools)
    }

    /// Those of them of which the node has or claims a block though no pod asks for one: none on a cordoned
    /// node, which gives its last block back.
    pub(super) fn families_ahead(&self) -> Vec<Family> {
        match self.scheduling {
            Scheduling::Open => families_ahead(&self.pools),
            Scheduling::Cordoned => Vec::new(),
        }
    }

    /// Whether there are pools that give addresses, none of them on this node.
    pub(super) fn pools_serve_elsewhere(&self) -> bool {
        serve_elsewhere(&self.pools)
    }
}
