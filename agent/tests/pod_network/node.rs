//! A node with its pod network in virtual time, what it is asked and what it may hand out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_agent::ipam::Clock;
use cairn_agent::pods::{
    AnnotationSource, NetworkOptions, PodCalls, PodConfig, PodNetwork, PodsHandle, Supply, Usage,
};
use cairn_agent::readiness::Verdict;
use cairn_agent::view::Namespace;
use cairn_cni::protocol::{AddRequest, DelRequest, Response};
use cairn_cni::{Code, ContainerId, InterfaceName, PodIdentity};
use cairn_ipam::{Family, OwnedBlock, PodPool, Rules};

use crate::kernel::Kernel;

/// A node with its pod network. The clock is tokio's, which stands still while nothing waits for it.
pub struct Node {
    pub kernel: Kernel,
    pub handle: PodsHandle,
    pub calls: PodCalls<()>,
    supply: Supply,
}

pub fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Clock::new(move || Duration::from_secs(1_000) + start.elapsed())
}

pub async fn network(
    kernel: &Kernel,
    rules: Rules,
) -> (PodsHandle, PodCalls<()>, PodNetwork<Kernel>) {
    let options = NetworkOptions {
        cooldown: Duration::from_secs(30),
        address_wait: Duration::from_secs(10),
        announcement_wait: ANNOUNCEMENT_WAIT,
        clock: clock(),
        rules,
    };
    PodNetwork::start(kernel.clone(), options).await.unwrap()
}

impl Node {
    pub async fn start(supply: Supply) -> Node {
        Node::with(Kernel::default(), supply, Rules::ALL).await
    }

    pub async fn with(kernel: Kernel, supply: Supply, rules: Rules) -> Node {
        let (handle, calls, network) = network(&kernel, rules).await;
        Node { kernel, handle, calls, supply }.serve(network)
    }

    /// One that asks `source` for the annotations that a runtime does not tell.
    pub async fn asking(source: Arc<impl AnnotationSource + 'static>, supply: Supply) -> Node {
        let kernel = Kernel::default();
        let (handle, calls, network) = network(&kernel, Rules::ALL).await;
        Node { kernel, handle, calls, supply }.serve(network.with_annotations(source))
    }

    fn serve(self, network: PodNetwork<Kernel>) -> Node {
        tokio::spawn(network.run());
        self.handle.set_readiness(&Verdict::Ready);
        let config = PodConfig { node_addresses: vec!["192.0.2.1".parse().unwrap()], mtu: 1400 };
        self.handle.set_config(config);
        self.handle.set_supply(self.supply.clone());
        self
    }

    /// Adds a pod of the namespace `ns` with annotations.
    pub async fn add(
        &self,
        pod: &str,
        annotations: &[(&str, &str)],
    ) -> Result<Vec<IpAddr>, Refusal> {
        self.calls.add(request(pod, Some(annotations)), ()).await.into_addresses()
    }

    pub async fn del(&self, pod: &str) {
        assert_eq!(self.calls.del(removal(pod)).await, Response::Done);
    }

    pub fn spawn_add(&self, pod: &str) -> tokio::task::JoinHandle<Response> {
        let (calls, request) = (self.calls.clone(), request(pod, Some(&[])));
        tokio::spawn(async move { calls.add(request, ()).await })
    }

    /// Changes what pods may be given.
    pub fn change(&mut self, change: impl FnOnce(&mut Supply)) {
        change(&mut self.supply);
        self.handle.set_supply(self.supply.clone());
    }

    /// What has come of everything until now, which is told every 20 ms.
    pub async fn usage(&self) -> Usage {
        tokio::time::sleep(Duration::from_millis(25)).await;
        self.handle.usage().borrow().clone()
    }

    pub async fn used(&self) -> u64 {
        self.usage().await.blocks.iter().map(|block| block.used).sum()
    }

    pub async fn until(&self, reached: impl Fn(&Usage) -> bool) {
        let mut usage = self.handle.usage();
        let waited = tokio::time::timeout(Duration::from_secs(60), usage.wait_for(reached));
        assert!(waited.await.is_ok(), "{:?}", self.handle.usage().borrow());
    }
}

pub type Refusal = (Code, String);

pub trait IntoAddresses {
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

pub fn request(pod: &str, annotations: Option<&[(&str, &str)]>) -> AddRequest {
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

pub fn removal(pod: &str) -> DelRequest {
    DelRequest {
        container_id: ContainerId::parse(pod).unwrap(),
        ifname: InterfaceName::parse("eth0").unwrap(),
        network: "cairn".into(),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn pool(name: &str, cidr: &str) -> PodPool {
    PodPool { name: name.into(), cidr: cidr.parse().unwrap(), namespaces: None, unusable: None }
}

pub fn block(pool: &str, cidr: &str) -> OwnedBlock {
    OwnedBlock {
        cidr: cidr.parse().unwrap(),
        pool: pool.into(),
        hand_out: true,
        until: Duration::MAX,
        revision: 0,
        newly_claimed: true,
    }
}

pub fn namespaces(
    label: Option<&str>,
    pools: Option<&str>,
) -> Arc<BTreeMap<String, Arc<Namespace>>> {
    let labels = label.map(|team| ("team".to_owned(), team.to_owned())).into_iter().collect();
    let namespace = Namespace { labels, pools: pools.map(str::to_owned) };
    Arc::new(BTreeMap::from([("ns".to_owned(), Arc::new(namespace))]))
}

/// One IPv4 pool `a` with the block given.
pub fn v4(cidr: &str) -> Supply {
    Supply {
        blocks: vec![block("a", cidr)],
        families: vec![Family::V4],
        pools: vec![pool("a", "10.0.0.0/16")],
        namespaces: namespaces(None, None),
        ..Supply::default()
    }
}

/// Pools `a` and `b` of IPv4 and `six` of IPv6, with a block each.
pub fn dual() -> Supply {
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

/// How long the first pods of a block wait for its announcement.
pub const ANNOUNCEMENT_WAIT: Duration = Duration::from_secs(1);
pub const POOLS: &str = "cairn.network/ippools";
pub const IPS: &str = "cairn.network/ips";
