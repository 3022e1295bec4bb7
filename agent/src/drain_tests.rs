use std::io;
use std::sync::Mutex;

use cairn_ipam::Rules;
use serde_json::json;

use super::*;

/// One document, for as long as the test lasts.
#[derive(Debug, Default)]
struct Memory(Mutex<Option<Vec<u8>>>);

impl Storage for Memory {
    fn read(&self, _name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().expect("no panic").clone())
    }

    fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
        assert_eq!(name, "drain.json");
        *self.0.lock().expect("no panic") = Some(document.to_vec());
        Ok(())
    }
}

fn open(storage: &Arc<Memory>) -> Drain {
    let owner = Owner { node: "n1".into(), boot_id: "b1".into(), rules: Rules::ALL };
    Drain::open(Arc::clone(storage) as Arc<dyn Storage>, owner)
}

fn node(value: Option<&str>, unschedulable: bool) -> Node {
    let annotations = value.map(|value| json!({ANNOTATION_DRAIN: value}));
    serde_json::from_value(json!({
        "metadata": {"name": "n1", "annotations": annotations},
        "spec": {"unschedulable": unschedulable},
    }))
    .expect("a Node")
}

#[test]
fn the_annotation_says_what_is_wanted_and_anything_else_is_told() {
    #[rustfmt::skip]
    let rows = [
        (None, false, Ok(Wish::Stay)), (None, true, Ok(Wish::Stay)),
        (Some("now"), false, Ok(Wish::Leave)), (Some("now-with-pods"), true, Ok(Wish::LeaveWithPods)),
        (Some("on-cordon"), false, Ok(Wish::Stay)), (Some("on-cordon"), true, Ok(Wish::Leave)),
        (Some("true"), true, Err(())), (Some(""), true, Err(())), (Some("Now"), true, Err(())),
    ];
    for (value, cordoned, wanted) in rows {
        let wish = Wish::of(&node(value, cordoned));
        assert_eq!(wish.clone().map_err(drop), wanted, "{value:?} {cordoned}");
        if let Err(text) = wish {
            assert!(text.contains("write now, now-with-pods or on-cordon"), "{text}");
        }
    }
}

#[test]
fn each_phase_follows_from_what_is_so() {
    use DrainPhase::{Drained, Leaving, Withdrawing};
    let start = Instant::now();
    let pods = Pods {
        blocks: ["10.0.0.0/26".parse().expect("a block")].into(),
        names: ["default/a".to_owned()].into(),
    };
    let facts = |wish, has_pods, reflects, heard| Facts {
        wish,
        pods: if has_pods { pods.clone() } else { Pods::default() },
        reflects,
        reception: match heard {
            true => Reception::Acknowledged,
            false => Reception::Awaited(vec!["mesh/n2".into()]),
        },
        heard: heard.then_some(start),
        expects: false,
    };
    let (soon, later) = (start + SETTLE - Duration::from_millis(1), start + SETTLE);
    let (yes, no) = (true, false);
    // Phase before, wish, pods, reflects, heard at the start, now, phase after.
    #[rustfmt::skip]
    let rows = [
        (None, Wish::Stay, yes, yes, yes, later, None),
        (None, Wish::Leave, no, no, no, start, Some(Leaving)),
        (None, Wish::Leave, no, no, yes, later, Some(Withdrawing)),
        (Some(Leaving), Wish::Leave, no, no, no, later, Some(Leaving)),
        (Some(Leaving), Wish::Leave, no, no, yes, soon, Some(Leaving)),
        (Some(Leaving), Wish::Leave, yes, no, yes, later, Some(Withdrawing)),
        (Some(Leaving), Wish::LeaveWithPods, no, yes, yes, later, Some(Leaving)),
        (Some(Withdrawing), Wish::Leave, no, no, no, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::Leave, yes, no, yes, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::LeaveWithPods, yes, no, no, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::LeaveWithPods, yes, no, yes, start, Some(Drained)),
        (Some(Withdrawing), Wish::Leave, no, no, yes, start, Some(Drained)),
        (Some(Withdrawing), Wish::Leave, no, yes, yes, later, Some(Leaving)),
        (Some(Drained), Wish::Leave, no, no, no, start, Some(Drained)),
        (Some(Drained), Wish::Leave, yes, no, no, start, Some(Withdrawing)),
        (Some(Drained), Wish::LeaveWithPods, yes, no, no, start, Some(Drained)),
        (Some(Drained), Wish::Leave, no, yes, yes, later, Some(Leaving)),
        (Some(Leaving), Wish::Stay, no, no, no, start, None),
        (Some(Withdrawing), Wish::Stay, yes, no, no, start, None),
        (Some(Drained), Wish::Stay, no, no, yes, start, None),
    ];
    for (phase, wish, pods, reflects, heard, now, after) in rows {
        let facts = facts(wish, pods, reflects, heard);
        assert_eq!(facts.next(phase, now), after, "{phase:?} {facts:?}");
        let departure = facts.departure(after);
        let block = "10.0.0.0/26".parse().expect("a block");
        let stays = after.is_none() || after == Some(Leaving) || wish == Wish::Leave && pods;
        assert_eq!(departure.announces(&block), stays, "{departure:?}");
    }
}

/// A drain from the wish to the end, beside a speaker that answers as it should.
#[test]
fn a_node_is_drained_step_by_step_and_an_agent_that_restarts_goes_on() {
    let storage = Arc::new(Memory::default());
    let (mut drain, start) = (open(&storage), Instant::now());
    let (usage, own) = (Usage::default(), ["10.0.0.0/26".parse().expect("a block")]);
    let acknowledged = || Some(Delivery::answered(Reception::Acknowledged));
    drain.know(start, Some(&node(None, false)), &usage, &own);
    assert_eq!((drain.departure(), drain.status()), (Departure::None, None));
    assert_eq!(drain.next_deadline(), None);

    drain.know(start, Some(&node(Some("now"), false)), &usage, &own);
    assert_eq!((drain.departure(), drain.next_deadline()), (Departure::Leaving, Some(start)));
    // BGP has not started; then one peer is slow.
    assert!(!drain.heard(start, None));
    let awaited = Delivery::answered(Reception::Awaited(vec!["bgppeer/tor".into()]));
    assert!(!drain.heard(start, Some(awaited)));
    let message = drain.status().expect("a status").message;
    assert!(message.contains("waits for bgppeer/tor to acknowledge"), "{message}");
    let heard = start + Duration::from_secs(60);
    assert!(!drain.heard(heard, acknowledged()));
    assert_eq!(drain.next_deadline(), Some(heard + SETTLE), "nothing happens before");
    assert!(drain.heard(heard + SETTLE, acknowledged()));
    assert_eq!(drain.departure(), Departure::Withdrawn { but: BTreeSet::new() });
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Withdrawing);
    assert!(!drain.heard(heard + SETTLE, acknowledged()));
    assert_eq!(drain.next_deadline(), None);
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Drained);

    // The next process, before and after it knows its Node.
    let mut drain = open(&storage);
    assert_eq!(drain.departure(), Departure::Withdrawn { but: BTreeSet::new() });
    drain.know(start, None, &usage, &own);
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Drained);
    drain.know(start, Some(&node(Some("no-such"), false)), &usage, &own);
    assert_eq!(drain.departure(), Departure::None);
    assert_eq!(open(&storage).status(), None);
}

/// Peers keep what an agent said before it restarted: that it has no session yet is no sign of having been heard.
#[test]
fn after_a_restart_sessions_are_waited_for() {
    let storage = Arc::new(Memory::default());
    let (mut drain, start) = (open(&storage), Instant::now());
    let (usage, own) = (Usage::default(), ["10.0.0.0/26".parse().expect("a block")]);
    let wish = node(Some("now"), false);
    drain.know(start, Some(&wish), &usage, &own);
    let nobody = || Some(Delivery::answered(Reception::Nobody));
    let acknowledged = || Some(Delivery::answered(Reception::Acknowledged));

    let (mut again, start) = (open(&storage), Instant::now());
    again.know(start, Some(&wish), &usage, &own);
    assert!(again.next_deadline().is_some(), "peers are asked without a further sign");
    assert!(!again.heard(start, nobody()));
    assert!(!again.heard(start + SETTLE, nobody()), "nobody has heard");
    let message = again.status().expect("a status").message;
    assert!(message.contains("waits for its sessions"), "{message}");
    let up = start + SETTLE;
    assert!(!again.heard(up, acknowledged()));
    assert!(!again.heard(up + SETTLE - Duration::from_millis(1), acknowledged()));
    assert!(again.heard(up + SETTLE, acknowledged()), "ten seconds after they heard");

    // No session comes.
    let (mut again, start) = (open(&storage), Instant::now());
    again.know(start, Some(&wish), &usage, &own);
    again.heard(start, nobody());
    assert_eq!(again.status().expect("a status").phase, DrainPhase::Withdrawing);
    again.heard(start + SESSIONS_WITHIN + SETTLE, nobody());
    assert_eq!(again.status().expect("a status").phase, DrainPhase::Drained);
}

#[test]
fn what_was_heard_of_other_routes_counts_for_nothing() {
    let storage = Arc::new(Memory::default());
    let (mut drain, start) = (open(&storage), Instant::now());
    let blocks = ["10.0.0.0/26".parse().expect("a block")];
    let pod = |used: bool| {
        let id = cairn_ipam::AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
        let address = "10.0.0.1".parse().expect("an address");
        Usage { outside: if used { vec![(address, id)] } else { Vec::new() }, ..Usage::default() }
    };
    let acknowledged = || Some(Delivery::answered(Reception::Acknowledged));
    let wish = node(Some("now"), true);
    drain.know(start, Some(&wish), &pod(true), &blocks);
    drain.heard(start, acknowledged());
    drain.heard(start + SETTLE, acknowledged());
    drain.heard(start + SETTLE, acknowledged());
    assert_eq!(drain.departure(), Departure::Withdrawn { but: blocks.into() });
    let message = drain.status().expect("a status").message;
    assert!(message.contains("1 pod has an address"), "{message}");
    // The last pod goes, and with it the block: that has to be heard, too.
    drain.know(start + SETTLE, Some(&wish), &pod(false), &blocks);
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Withdrawing);
    assert_eq!(drain.next_deadline(), Some(start + SETTLE));
    drain.heard(start + SETTLE, acknowledged());
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Drained);
    // A pod that begins has its block announced again.
    drain.know(start + SETTLE, Some(&wish), &pod(true), &blocks);
    assert_eq!(drain.departure(), Departure::Withdrawn { but: blocks.into() });
    assert_eq!(drain.status().expect("a status").phase, DrainPhase::Withdrawing);
}
