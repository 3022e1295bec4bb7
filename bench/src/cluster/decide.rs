//! What is decided without asking anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::sync::Arc;

use cairn_agent::plan::{Local, plan};
use cairn_agent::view::{ClusterView, Namespace, PeerNode};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{self, Racks};
use super::{Line, percentile};
use crate::cpu_time::{cpu_time, nanos_each};
use crate::{Extent, Result, ipam};

pub fn measure(extent: Extent) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = ipam::measure(extent)?
        .into_iter()
        .map(|row| Line::new(row.name(), format!("{:.0} {}", row.median(), row.unit()), ""))
        .collect();
    for (nodes, racks, what, goal) in [
        (5_000, Racks::AnAsEach, "5,000 nodes, racks of 40", "< 1 ms"),
        (500, Racks::AnAsEach, "500 nodes, racks of 40", ""),
        (5_000, Racks::OneAs, "5,000 nodes in one full mesh", ""),
    ] {
        let nodes = extent.pick(nodes, nodes / 10);
        let view = view(nodes, racks)?;
        let blocks: [IpNet; 2] = ["10.128.7.0/26".parse()?, "10.128.9.64/26".parse()?];
        let reachable: BTreeSet<IpNet> = blocks.into();
        let own = objects::name(OWN);
        let local = Local::new(&blocks, &reachable, None);
        let each = |work: &mut dyn FnMut()| -> String {
            let runs = extent.pick(200, 3);
            let mut times: Vec<f64> =
                (0..runs).map(|_| nanos_each(cpu_time(&mut *work).0, 1) / 1000.0).collect();
            times.sort_by(f64::total_cmp);
            format!("{:.0} us, p99 {:.0} us", percentile(&times, 50), percentile(&times, 99))
        };
        let planned = each(&mut || drop(black_box(plan(&view, &own, &local))));
        lines.push(Line::new(format!("plan, {what}"), planned, goal));
        let copied = each(&mut || drop(black_box(view.clone())));
        lines.push(Line::new(format!("a new view, {what}"), copied, "< 1 ms"));
    }
    Ok(lines)
}

/// What the measured node knows of such a cluster: of the nodes those of its own AS.
fn view(nodes: usize, racks: Racks) -> Result<ClusterView> {
    let own_asn = objects::asn(OWN, racks);
    let peers = (0..nodes).filter(|n| *n != OWN && objects::asn(*n, racks) == own_asn);
    let peers = peers.map(|number| {
        let ipv4 = Some(objects::address(number));
        let node = PeerNode { asn: own_asn, ipv4, ipv6: None, no_reflector: false };
        (Arc::from(objects::name(number)), node)
    });
    let namespaces = (0..1000).map(|number| {
        let labels = BTreeMap::from([("team".to_owned(), number.to_string())]);
        (format!("team-{number}"), Arc::new(Namespace { labels, pools: None }))
    });
    let (mut node, status) = objects::node(OWN, objects::address(OWN), "boot", 0);
    if racks == Racks::OneAs {
        node["metadata"]["labels"] = serde_json::json!({});
    }
    node["metadata"]["uid"] = "uid".into();
    node["status"] = status["status"].clone();
    Ok(ClusterView {
        synced: true,
        node: Some(object(node)?),
        pools: BTreeMap::from([(
            "default".to_owned(),
            object(objects::pool("default", "10.128.0.0/9"))?,
        )]),
        peer_nodes: Arc::new(peers.collect()),
        namespaces: Arc::new(namespaces.collect()),
        ..ClusterView::default()
    })
}

/// The node that plans.
const OWN: usize = 7;

fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}
