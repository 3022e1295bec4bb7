//! The example of the guide, as it stands, between two peers.

use crate::ask::{json, text, until_established};
use crate::site::{Site, until};

/// The second example of docs/guide/speaker.md.
pub const EXAMPLE: &str = "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65000, routerID: 10.99.0.1, listenAddresses: [10.99.0.1], listenPort: 1790, topology: Disabled}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {name: all}
spec: {rules: [{action: Accept}]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p1}
spec: {address: 10.99.1.1, asn: 65001, passive: true, multihop: 2, families: [IPv4Unicast, IPv6Unicast], importPolicies: [all], exportPolicies: [all]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p2}
spec: {address: 10.99.1.2, asn: 65000, passive: true, families: [IPv4Unicast, IPv6Unicast], importPolicies: [all], exportPolicies: [all]}
";

/// A speaker at `address` that has the example's as its only peer, and originates `cidr`.
pub fn client(asn: u32, address: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {asn}, routerID: {address}, listenAddresses: [{address}], \
         timers: {{holdTimeSecs: 9, connectRetrySecs: 1}}}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPPolicy\nmetadata: {{name: all}}\n\
         spec: {{rules: [{{action: Accept}}]}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: hub}}\n\
         spec: {{address: 10.99.0.1, port: 1790, asn: 65000, sourceAddress: {address}, multihop: 2, \
         importPolicies: [all], exportPolicies: [all]{more}}}\n---\n\
         apiVersion: cairn.network/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: own}}\n\
         spec: {{cidrs: [{cidr}], communities: ['65001:7']}}\n"
    )
}

#[test]
fn the_example_passes_everything_between_its_peers() {
    let guide = include_str!("../../../docs/guide/speaker.md");
    assert!(guide.contains(EXAMPLE), "the guide shows another one");
    let site = Site::new(&["10.99.0.1", "10.99.1.1", "10.99.1.2"]);
    let hub = site.speaker("hub", &site.write("hub.yaml", EXAMPLE));
    let p1 = client(65001, "10.99.1.1", "172.16.1.0/24", "");
    let _p1 = site.speaker("p1", &site.write("p1.yaml", &p1));
    let p2 = client(65000, "10.99.1.2", "172.16.2.0/24", "");
    let _p2 = site.speaker("p2", &site.write("p2.yaml", &p2));
    let of_hub = until_established(&site, "hub", "p1");
    until_established(&site, "hub", "p2");
    // No interface has an IPv6 address, so that family has no next hop; why is said.
    let missing = &of_hub["negotiated"]["missing"][0];
    assert_eq!(missing["family"], "IPv6Unicast");
    assert!(missing["reason"].as_str().expect("text").contains("nextHopIPv6"), "{missing}");

    let route_at = |run_dir: &str, prefix: &str| {
        until(&format!("{prefix} at {run_dir}"), || {
            let routes = json(&site, run_dir, &["routes", "--peer", "hub"]);
            let route = routes.iter().find(|route| route["prefix"] == prefix).cloned();
            route.ok_or_else(|| format!("{routes:?}"))
        })["candidates"][0]
            .clone()
    };
    // To eBGP with the speaker's own next hop and AS; to iBGP as it came.
    let at_p1 = route_at("p1", "172.16.2.0/24");
    assert_eq!((&at_p1["nextHop"], &at_p1["asPath"]), (&"10.99.0.1".into(), &"65000".into()));
    let at_p2 = route_at("p2", "172.16.1.0/24");
    assert_eq!((&at_p2["nextHop"], &at_p2["asPath"]), (&"10.99.1.1".into(), &"65001".into()));
    assert_eq!(at_p2["communities"], serde_json::json!(["65001:7"]));
    let screen = text(&site, "hub", &["routes"]);
    assert_eq!(screen.lines().count(), 3, "{screen}");
    assert_eq!(hub.lines("ERROR").len() + hub.lines("WARN").len(), 0, "{}", hub.log());
}
