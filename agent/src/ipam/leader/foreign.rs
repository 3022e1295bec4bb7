//! The look for others' addresses in pools that nobody has judged yet (IPAM rule 8).

use std::collections::BTreeMap;

use cairn_ipam::foreign::{Census, CensusPool, Found};
use cairn_ipam::returns::BlockSeen;

use super::lists::Lists;
use crate::ipam::error::IpamError;

/// What a look has shown.
pub(super) struct Looked {
    /// What was found, by the pool's UID.
    pub(super) found: BTreeMap<String, Found>,
    /// What could not be looked at, in a sentence.
    pub(super) missed: Option<String>,
}

/// Looks at pods, Nodes and Service ranges. `blocks` were listed before, while no node claimed from
/// these pools.
pub(super) async fn look(
    lists: &Lists,
    pools: Vec<CensusPool>,
    blocks: &[BlockSeen],
) -> Result<Looked, IpamError> {
    let mut census = Census::new(pools);
    for block in blocks {
        census.block(&block.pool_uid, block.cidr, &block.owner.name);
    }
    lists.pods(None, |pod| census.pod(&pod)).await?;
    lists.node_ranges(|name, addresses, cidrs| census.node(name, addresses, cidrs)).await?;
    let has_services = lists.services(|name, cidr| census.services(name, cidr)).await?;
    if census.asks_for_allocations() {
        lists.allocations(|pool, address, pod| census.allocation(pool, address, pod)).await?;
    }
    let missed = "this server has no ServiceCIDR objects, so compare the Service range yourself";
    Ok(Looked { found: census.findings(), missed: (!has_services).then(|| missed.to_owned()) })
}
