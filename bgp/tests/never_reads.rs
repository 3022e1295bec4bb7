//! Peers that never read: memory stays bounded, others are not delayed. A process of its own, as its
//! memory is looked at.

mod speaker_net;

use std::sync::Arc;

use cairn_bgp::config::Origination;
use cairn_bgp::session::SessionState;
use speaker_net::{FakePeer, Fib, Net, Node, fake_open, until};

/// Resident memory of this process, in octets.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the process");
    let pages: usize = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("pages");
    pages * 4096
}

#[tokio::test]
async fn peers_that_never_read_cost_a_bounded_number_of_octets() {
    let net = Net::new();
    let (mut a, b) = net.pair(65001, 65001);
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let from = net.address();
        let peer = speaker_net::peer(a.config.listen[0].ip(), from.into(), 65001, true);
        a.config.peers.insert(format!("silent{number}").as_str().into(), peer);
        silent.push(from);
    }
    let to = a.config.listen[0];
    let (a, b) = (Node::start(a), Node::start(b));
    let mut peers = Vec::new();
    for from in silent {
        peers.push(FakePeer::established(from, to, fake_open(65001, from)).await);
    }
    let mut fib = Fib::new(b.feed);
    let mut config = a.config.clone();
    let mut early = 0;
    for round in 0..ROUNDS {
        for number in 0..ROUTES {
            let prefix = format!("11.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255);
            let communities = vec![round, number];
            let origination =
                Origination { source: Arc::from("test"), communities, local_pref: None };
            config.originate.insert(prefix.parse().expect("a prefix"), origination);
        }
        let marker = format!("12.0.{round}.0/24");
        speaker_net::originate(&mut config, &[&marker]);
        a.handle.apply(config.clone()).expect("a valid configuration");
        // The one that reads has got this round.
        fib.until_has(&[&marker]).await;
        if round == 1 {
            early = resident();
        }
    }
    // All rounds in the queues of all silent peers would be some 150 MB.
    let grown = resident().saturating_sub(early);
    assert!(grown < 48 << 20, "{} MiB more for peers that do not read", grown >> 20);
    until("all sessions stand", || async {
        let snapshot = a.handle.snapshot().await.expect("a runs");
        snapshot.peers.values().all(|peer| peer.state == SessionState::Established)
    })
    .await;
    drop(peers);
}

/// Peers that never read.
const SILENT: usize = 10;
/// Routes, each with attributes of its own: about 60 octets of UPDATE.
const ROUTES: u32 = 10_000;
/// How often all of them change.
const ROUNDS: u32 = 25;
