//! What speaks against a release, and what no word outweighs.

use std::time::Duration;

use cairn_api::ObjectReference;
use cairn_ipam::mark::Holder;

use super::super::snapshot::AllocationSeen;
use super::*;

const NOW: i64 = 1_000_000;

fn lease(age: i64) -> LeaseSeen {
    LeaseSeen {
        holder: Some(Holder { node_uid: "u1".into(), boot_id: "b1".into() }),
        renewed_secs: Some(NOW - age),
        promise: Some(Duration::from_secs(800)),
        off: None,
        taken_over: None,
        earlier_off: None,
    }
}

fn pod() -> PodSeen {
    PodSeen {
        name: "a/one".into(),
        node: Some("n1".into()),
        addresses: vec!["10.1.0.1".parse().expect("an address")],
        running: true,
        ending: false,
    }
}

/// A block of a Node that is gone, whose Lease is older than the fence.
fn evidence() -> Evidence {
    let reference = |name: &str, uid: &str| ObjectReference { name: name.into(), uid: uid.into() };
    Evidence {
        now_secs: NOW,
        block: BlockSeen {
            name: "10.1.0.0-26".into(),
            cidr: "10.1.0.0/26".parse().expect("a block"),
            pool: reference("pods", "p"),
            node: reference("n1", "u1"),
            used: Some(0),
            free: Some(64),
            advertised: Some(true),
            allocations: Vec::new(),
            held: true,
            held_by_others: Vec::new(),
            owned: false,
            terminating_secs: None,
        },
        owner_exists: false,
        lease: Some(lease(1000)),
        pods: Vec::new(),
        heard: Some(Vec::new()),
    }
}

/// What is different, how, a word of each refusal, a word of each doubt.
type Row = (&'static str, fn(&mut Evidence), &'static [&'static str], &'static [&'static str]);

#[test]
fn what_speaks_against_a_release_is_said_and_a_live_owner_is_never_touched() {
    fn in_use(e: &mut Evidence) {
        let address = "10.1.0.1".parse().expect("an address");
        e.block.used = Some(1);
        e.block.allocations.push(AllocationSeen { address, pod: None, container: None });
    }
    fn marked(e: &mut Evidence) {
        let mut marked = lease(1);
        marked.off = marked.holder.clone();
        e.lease = Some(marked);
    }
    fn taken_over(e: &mut Evidence) {
        marked(e);
        let lease = e.lease.as_mut().expect("it is marked");
        lease.taken_over = Some("u1/b0".into());
    }
    #[rustfmt::skip]
    let rows: [Row; 14] = [
        ("nothing", |_| {}, &[], &[]),
        ("the fence stands", |e| e.lease = Some(lease(999)), &["16 min 39 s ago"], &[]),
        ("a Lease that was never written", |e| e.lease = Some(LeaseSeen { renewed_secs: None, ..lease(1) }), &["at a time unknown"], &[]),
        ("the machine is off", marked, &[], &[]),
        ("the machine is off, one before it may be on", taken_over, &["another machine that had the Node before may hand out"], &[]),
        ("no Lease", |e| e.lease = None, &[], &["no Lease"]),
        ("pods of a dead node", |e| e.pods.push((pod(), false)), &[], &["of nodes that are gone"]),
        ("pods of a live node", |e| e.pods.push((pod(), true)), &["end them first"], &[]),
        ("shown in use by the dead", in_use, &[], &["by the last word"]),
        ("a live owner without pods", |e| e.owner_exists = true, &[], &["exists"]),
        ("a live owner with pods", |e| { in_use(e); e.owner_exists = true; }, &["that Node exists"], &["exists", "by the last word"]),
        ("a live owner that has not told", |e| { e.block.used = None; e.owner_exists = true; }, &["that Node exists"], &["exists"]),
        ("it is announced", |e| e.heard = Some(vec![HeardRoute {
            prefix: "10.1.0.0/26".parse().expect("a prefix"), peer: "tor".into(),
            next_hop: "192.0.2.66".parse().expect("an address"), origin_as: None,
            looped: false, stale: true, verdict: String::new(),
        }]), &[], &["peer tor announces 10.1.0.0/26 by next hop 192.0.2.66, stale"]),
        ("finalizers of others", |e| e.block.held_by_others.push("x/y".into()), &[], &["x/y"]),
    ];
    for (what, change, refusals, doubts) in rows {
        let mut evidence = evidence();
        change(&mut evidence);
        let judgement = judge(&evidence);
        let said = |said: &[String], words: &[&str]| {
            said.len() == words.len() && said.iter().zip(words).all(|(s, w)| s.contains(w))
        };
        assert!(said(&judgement.refusals, refusals), "{what}: {judgement:#?}");
        assert!(said(&judgement.doubts, doubts), "{what}: {judgement:#?}");
    }
}
