//! How far peers are with what a running speaker announces.

mod speaker_net;

use std::net::Ipv4Addr;
use std::sync::Arc;

use cairn_bgp::config::{Origination, PeerName, SpeakerConfig};
use cairn_bgp::prefix::Prefix;
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Announcement, Delivery, Reception, SpeakerHandle};
use cairn_bgp::wire::MessageType;
use speaker_net::{FakePeer, Net, Node, Setup, connect, fake_open, originate, until};

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// Asks again about what was answered last.
async fn ask(handle: &SpeakerHandle, announcement: &mut Announcement) -> Reception {
    let asked = vec![announcement.clone()];
    let mut answered = handle.announcements(asked).await.expect("the speaker runs");
    *announcement = answered.pop().expect("as many as were asked about");
    announcement.reception().clone()
}

async fn until_is(handle: &SpeakerHandle, announcement: &mut Announcement, wanted: &Reception) {
    let mut last = Reception::Unknown;
    for _ in 0..1000 {
        last = ask(handle, announcement).await;
        if last == *wanted {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} is {last:?} and never {wanted:?}", announcement.prefix());
}

async fn until_established(handle: &SpeakerHandle, peer: &str) {
    until("the session stands", || async {
        let snapshot = handle.snapshot().await.expect("it runs");
        snapshot.peers[peer].state == SessionState::Established
    })
    .await;
}

fn awaited(peer: &str) -> Reception {
    Reception::Awaited(vec![peer.into()])
}

/// Many routes whose attributes differ, of this round.
fn flood(config: &mut SpeakerConfig, round: u32) {
    for number in 0..4000 {
        let prefix = format!("11.{}.{}.0/24", number >> 8, number & 255);
        let origination = Origination {
            source: Arc::from("test"),
            communities: vec![round, number],
            local_pref: None,
        };
        config.originate.insert(prefix.parse().expect("a prefix"), origination);
    }
}

#[tokio::test]
async fn those_who_are_told_have_received_it_when_their_kernel_says_so() {
    let net = Net::new();
    let (mut a, mut b) = net.pair(65001, 65001);
    let mut external = net.speaker(65002);
    connect(&mut a, "a", &mut external, "external");
    originate(&mut a.config, &["10.1.0.0/24"]);
    b.config.peers.get_mut("a").expect("a peer").passive = true;
    let a = Node::start(a);
    let mut first = Announcement::new(prefix("10.1.0.0/24"));
    let mut later = Announcement::new(prefix("10.2.0.0/24"));
    assert_eq!(first.reception(), &Reception::Unknown);
    assert_eq!(ask(&a.handle, &mut first).await, Reception::Nobody, "no session");
    assert_eq!(ask(&a.handle, &mut later).await, Reception::Nobody, "no session");

    // No policy lets anything go to an external peer (RFC 8212).
    let _external = Node::start(external);
    until_established(&a.handle, "external").await;
    assert_eq!(ask(&a.handle, &mut first).await, Reception::Nobody);
    let _b = Node::start(b);
    until_established(&a.handle, "b").await;
    until_is(&a.handle, &mut first, &Reception::Acknowledged).await;
    let both = Reception::Awaited(vec!["b".into(), "external".into()]);
    assert_eq!(ask(&a.handle, &mut later).await, both, "it is not originated yet");
    let mut config = a.config.clone();
    originate(&mut config, &["10.2.0.0/24"]);
    a.handle.apply(config).expect("a valid configuration");
    until_is(&a.handle, &mut later, &Reception::Acknowledged).await;
}

/// Two peers, the first of which has more to say than a third one, which connects to it from the address, will read.
fn pair_and_silent(net: &Net) -> (Setup, Setup, Ipv4Addr) {
    let (mut a, b) = net.pair(65001, 65001);
    let from = net.address();
    let silent = speaker_net::peer(a.config.listen[0].ip(), from.into(), 65001, true);
    a.config.peers.insert("silent".into(), silent);
    flood(&mut a.config, 0);
    (a, b, from)
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_awaited_and_what_follows_does_not_matter() {
    let net = Net::new();
    let (a, b, from) = pair_and_silent(&net);
    let to = a.config.listen[0];
    let (a, _b) = (Node::start(a), Node::start(b));
    let mut silent = FakePeer::with_little_room(from, to, fake_open(65001, from)).await;
    until_established(&a.handle, "silent").await;
    until_established(&a.handle, "b").await;

    let mut config = a.config.clone();
    originate(&mut config, &["12.0.1.0/24"]);
    a.handle.apply(config.clone()).expect("a valid configuration");
    let mut announcement = Announcement::new(prefix("12.0.1.0/24"));
    until_is(&a.handle, &mut announcement, &awaited("silent")).await;
    speaker_net::settled(std::time::Duration::from_millis(300)).await;
    assert_eq!(ask(&a.handle, &mut announcement).await, awaited("silent"));

    // What is sent after it is not waited for, but by whoever asks for the first time.
    flood(&mut config, 1);
    a.handle.apply(config).expect("a valid configuration");
    assert_eq!(ask(&a.handle, &mut announcement).await, awaited("silent"));
    let in_update = [24, 12, 0, 1];
    loop {
        let update = silent.until_message(MessageType::Update).await;
        if update.body.windows(4).any(|octets| octets == in_update) {
            break;
        }
    }
    until_is(&a.handle, &mut announcement, &Reception::Acknowledged).await;
    // The other peer, which reads, may still be about to.
    let mut newcomer = Announcement::new(prefix("12.0.1.0/24"));
    until_is(&a.handle, &mut newcomer, &awaited("silent")).await;
}

#[tokio::test]
async fn all_has_arrived_when_the_last_change_before_the_question_has() {
    let net = Net::new();
    let (a, b, from) = pair_and_silent(&net);
    let to = a.config.listen[0];
    let a = Node::start(a);
    let ask = async |asked: Delivery| a.handle.delivery(asked).await.expect("the speaker runs");
    let nobody = ask(Delivery::default()).await;
    assert_eq!(nobody.reception(), &Reception::Nobody, "no session");
    assert_eq!(nobody.missing(), [PeerName::from("b"), "silent".into()]);
    a.handle.set_enabled("b".into(), false).await.expect("a peer");
    assert_eq!(ask(nobody).await.missing(), [PeerName::from("silent")], "nobody waits for b");
    a.handle.set_enabled("b".into(), true).await.expect("a peer");
    let _b = Node::start(b);
    let mut silent = FakePeer::with_little_room(from, to, fake_open(65001, from)).await;
    until_established(&a.handle, "silent").await;
    until_established(&a.handle, "b").await;

    // The same routes in another form: what was told before counts for nothing.
    let mut config = a.config.clone();
    config.peers.values_mut().for_each(|peer| peer.graceful_shutdown = true);
    a.handle.apply(config.clone()).expect("a valid configuration");
    let mut delivery = Delivery::default();
    until("b has all", || async {
        ask(Delivery::default()).await.reception() == &awaited("silent")
    })
    .await;
    delivery = ask(delivery).await;
    assert_eq!(delivery.reception(), &awaited("silent"), "it does not read");
    assert_eq!(delivery.missing(), [] as [PeerName; 0]);

    let mut asked_again = 0;
    while *delivery.reception() != Reception::Acknowledged {
        silent.until_message(MessageType::Update).await;
        delivery = ask(delivery).await;
        asked_again += 1;
    }
    assert!(asked_again > 1, "it was awaited for a while");
    // Withdrawals are to be told as well.
    config.originate.clear();
    a.handle.apply(config).expect("a valid configuration");
    let fresh = ask(Delivery::default()).await;
    assert_eq!(fresh.reception(), &Reception::Awaited(vec!["b".into(), "silent".into()]));
    assert_eq!(ask(delivery).await.reception(), &Reception::Acknowledged, "of what was before");
}
