//! What each daemon is told, so that it passes everything to everybody with its own next hop: of its settings those with
//! which it is fastest.

use std::fmt::Write as _;
use std::path::Path;

use super::cell::{Cell, DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, Ends, peer_asn};

/// The objects of `cairn speaker -f`.
pub fn cairn(cell: &Cell) -> String {
    let addresses: Vec<String> = cell.daemon_addresses().iter().map(ToString::to_string).collect();
    let addresses = addresses.join(", ");
    let mut text = format!(
        "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asn: {DAEMON_ASN}, routerID: {DAEMON_ADDRESS}, listenAddresses: [{addresses}], \
         listenPort: {DAEMON_PORT}, topology: Disabled}}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {{name: all}}
spec: {{rules: [{{action: Accept}}]}}
"
    );
    for (number, Ends { peer, .. }, asn) in peers(cell) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {{name: p{number}}}
spec: {{address: {peer}, asn: {asn}, passive: true, multihop: 2, families: [IPv4Unicast, \
             IPv6Unicast], importPolicies: [all], exportPolicies: [all]}}
"
        );
    }
    text
}

/// Of BIRD 2.
pub fn bird(cell: &Cell) -> String {
    let mut text = format!("router id {DAEMON_ADDRESS};\nprotocol device {{}}\n");
    for (number, Ends { peer, daemon }, asn) in peers(cell) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
protocol bgp p{number} {{
  local {daemon} port {DAEMON_PORT} as {DAEMON_ASN};
  neighbor {peer} as {asn};
  multihop 2;
  passive;
  ipv4 {{ import all; export all; next hop self; }};
  ipv6 {{ import all; export all; next hop self; }};
}}
"
        );
    }
    text
}

/// The same of BIRD 3, with as many threads as the machine has cores.
pub fn bird3(cell: &Cell) -> String {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    format!("threads {threads};\n{}", bird(cell))
}

/// Of FRR's bgpd. It shall not wait for more changes, and among equal routes that of the lowest identifier shall win, not
/// the oldest, as with the others.
pub fn frr(cell: &Cell) -> String {
    let mut text = format!(
        "\
router bgp {DAEMON_ASN}
 bgp router-id {DAEMON_ADDRESS}
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp bestpath compare-routerid
 coalesce-time 0
 neighbor peers peer-group
 neighbor peers passive
 neighbor peers ebgp-multihop 2
 neighbor peers advertisement-interval 0
"
    );
    for (_, Ends { peer, daemon }, asn) in peers(cell) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            " neighbor {peer} remote-as {asn}
 neighbor {peer} peer-group peers
 neighbor {peer} update-source {daemon}
"
        );
    }
    text.push_str(" address-family ipv4 unicast\n  neighbor peers next-hop-self\n");
    text
}

/// Of GoBGP.
pub fn gobgp(cell: &Cell) -> String {
    let addresses: Vec<String> =
        cell.daemon_addresses().iter().map(|address| format!("\"{address}\"")).collect();
    let addresses = addresses.join(", ");
    let mut text = format!(
        "\
[global.config]
as = {DAEMON_ASN}
router-id = \"{DAEMON_ADDRESS}\"
port = {DAEMON_PORT}
local-address-list = [{addresses}]
[global.route-selection-options.config]
external-compare-router-id = true
"
    );
    for (_, Ends { peer, daemon }, asn) in peers(cell) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
[[neighbors]]
[neighbors.config]
neighbor-address = \"{peer}\"
peer-as = {asn}
[neighbors.transport.config]
passive-mode = true
local-address = \"{daemon}\"
[neighbors.ebgp-multihop.config]
enabled = true
multihop-ttl = 2
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = \"ipv4-unicast\"
"
        );
    }
    text
}

/// Of OpenBGPD, with its control socket.
pub fn openbgpd(cell: &Cell, socket: &Path) -> String {
    let socket = socket.display();
    let mut text = format!(
        "AS {DAEMON_ASN}\nrouter-id {DAEMON_ADDRESS}\nfib-update no\nsocket \"{socket}\"\n"
    );
    for address in cell.daemon_addresses() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "listen on {address} port {DAEMON_PORT}");
    }
    for (_, Ends { peer, daemon }, asn) in peers(cell) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\
neighbor {peer} {{
  remote-as {asn}
  local-address {daemon}
  passive
  multihop 2
  announce IPv6 none
  announce IPv4 unicast
}}
"
        );
    }
    text.push_str("allow from any\nallow to any\nmatch to any set nexthop self\n");
    text
}

/// Number, addresses and AS of each.
fn peers(cell: &Cell) -> impl Iterator<Item = (u32, Ends, u32)> + '_ {
    (0..cell.peers()).map(|peer| (peer, cell.ends(peer), peer_asn(peer)))
}
