//! Tunnel devices, which take their addresses from own blocks too.

use std::collections::{BTreeMap, BTreeSet};

use cairn_agent::pods::{Supply, Usage};
use cairn_api::TunnelKind;
use cairn_ipam::{Family, Rules};

use crate::kernel::Kernel;
use crate::node::{Node, block, ip, v4};

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
    let told = node.usage().await.tunnels;
    assert_eq!(told.held, BTreeMap::from([(VXLAN, ip("10.0.0.0"))]));
    assert_eq!(node.add("c0", &[]).await, Ok(vec![ip("10.0.0.1")]));
    assert!(node.add("c1", &[]).await.is_err(), "the other is the device's");
    // The block that it is in is to go.
    let stays = block("a", "10.0.0.1/32").cidr;
    node.change(|supply| supply.lodgings = Some(vec![stays]));
    node.until(|usage| usage.tunnels.held.is_empty()).await;
    let left = node.usage().await.tunnels;
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
    let found = node.usage().await.tunnels;
    assert_eq!(found.held, BTreeMap::from([(VXLAN, ip("10.0.0.0"))]));
    // The second one until the device is without it.
    let used = |usage: &Usage| usage.blocks.iter().map(|block| block.used).sum::<u64>();
    node.until(|usage| used(usage) == 2).await;
    node.handle.tunnels_applied(found.revision);
    node.until(|usage| used(usage) == 1).await;
    assert_eq!(node.usage().await.tunnels, found);
    node.change(|supply| supply.lodgings = Some(Vec::new()));
    node.until(|usage| usage.tunnels.held.is_empty()).await;
    assert_eq!(node.used().await, 1);
}
