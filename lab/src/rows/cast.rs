//! Who takes part in what is broken, and the flows between them meanwhile.

use super::network::address_of;
use crate::datacenter::Node;
use crate::error::Error;
use crate::flow::{Flow, Loss};
use crate::lab::Lab;

/// Who plays which part.
pub struct Cast {
    /// Carries one end of the flows.
    pub near: Node,
    /// Carries the other end, in the other rack.
    pub far: Node,
    /// Stands in the rack of `near` and will be lost.
    pub victim: Node,
}

impl Cast {
    /// The first node, the last, and another one in the rack of the first; none where there are too few.
    pub fn choose(lab: &Lab) -> Option<Cast> {
        let nodes: Vec<&Node> = lab.centre.layout.nodes().collect();
        let (near, far) = (*nodes.first()?, *nodes.last()?);
        let mut others = nodes.iter().filter(|node| node.number != near.number);
        let victim = others.find(|node| node.rack == near.rack && node.number != far.number)?;
        let hosts = |node: &Node| lab.pods.iter().any(|pod| pod.node == node.name());
        if !hosts(near) || !hosts(far) {
            return None;
        }
        Some(Cast { near: near.clone(), far: far.clone(), victim: (*victim).clone() })
    }
}

/// A flow each way; the way back by IPv6 where the pods have it.
pub struct Flows {
    flows: Vec<Flow>,
    per_sec: u32,
}

impl Flows {
    /// Starts them.
    ///
    /// # Errors
    /// When a socket or thread cannot be had.
    pub fn start(lab: &Lab, cast: &Cast, per_sec: u32) -> Result<Flows, Error> {
        let first = |node: &Node| lab.pods.iter().find(|pod| pod.node == node.name());
        let mut flows = Vec::new();
        if let (Some(near), Some(far)) = (first(&cast.near), first(&cast.far)) {
            for (from, to, v4) in [(near, far, true), (far, near, false)] {
                let address = address_of(to, v4).or_else(|| address_of(to, true));
                if let Some(address) = address {
                    flows.push(Flow::start(&from.netns, &to.netns, address, per_sec)?);
                }
            }
        }
        Ok(Flows { flows, per_sec })
    }

    /// Packets a second of all together.
    pub fn per_sec(&self) -> usize {
        self.flows.len() * self.per_sec as usize
    }

    /// The numbers of the next packets, to begin a time with.
    pub fn mark(&self) -> Vec<usize> {
        self.flows.iter().map(Flow::position).collect()
    }

    /// What became of the packets of all flows since `marks`.
    pub fn since(&self, marks: &[usize]) -> Loss {
        self.flows
            .iter()
            .zip(marks)
            .map(|(flow, mark)| flow.since(*mark))
            .fold(Loss::default(), Loss::with)
    }
}
