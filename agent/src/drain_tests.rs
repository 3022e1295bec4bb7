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

/// What BGP that has been running for long says.
fn answer(reception: Reception) -> Answer {
    answer_since(Instant::now() - Duration::from_secs(3600), reception, &[])
}

fn answer_since(started: Instant, reception: Reception, missing: &[&str]) -> Answer {
    Answer::Delivery {
        delivery: Delivery::answered(reception),
        missing: missing.iter().map(|name| PeerName::from(*name)).collect(),
        started,
        restart_time: RESTART_TIME,
    }
}

const RESTART_TIME: Duration = Duration::from_secs(120);

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
    let facts = |wish, has_pods, reflects, heard: bool| Facts {
        wish,
        pods: if has_pods { pods.clone() } else { Pods::default() },
        reflects,
        reception: match heard {
            true => Reception::Acknowledged,
            false => Reception::Awaited(vec!["mesh/n2".into()]),
        },
        heard: heard.then_some(start),
        ..Facts::default()
    };
    use Reflection::{Alone, None as Nobody, Replaceable};
    let (soon, later) = (start + SETTLE - Duration::from_millis(1), start + SETTLE);
    let (yes, no) = (true, false);
    // Phase before, wish, pods, reflects, heard at the start, now, phase after.
    #[rustfmt::skip]
    let rows = [
        (None, Wish::Stay, yes, Replaceable, yes, later, None),
        (None, Wish::Leave, no, Nobody, no, start, Some(Leaving)),
        (None, Wish::Leave, no, Nobody, yes, later, Some(Withdrawing)),
        (Some(Leaving), Wish::Leave, no, Nobody, no, later, Some(Leaving)),
        (Some(Leaving), Wish::Leave, no, Nobody, yes, soon, Some(Leaving)),
        (Some(Leaving), Wish::Leave, yes, Nobody, yes, later, Some(Withdrawing)),
        (Some(Leaving), Wish::LeaveWithPods, no, Replaceable, yes, later, Some(Leaving)),
        (Some(Withdrawing), Wish::Leave, no, Nobody, no, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::Leave, yes, Nobody, yes, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::LeaveWithPods, yes, Nobody, no, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::LeaveWithPods, yes, Nobody, yes, start, Some(Drained)),
        (Some(Withdrawing), Wish::Leave, no, Nobody, yes, start, Some(Drained)),
        (Some(Leaving), Wish::Leave, no, Alone, yes, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::Leave, no, Replaceable, yes, later, Some(Withdrawing)),
        (Some(Withdrawing), Wish::Leave, no, Alone, yes, later, Some(Drained)),
        (Some(Drained), Wish::Leave, no, Nobody, no, start, Some(Drained)),
        (Some(Drained), Wish::Leave, yes, Nobody, no, start, Some(Withdrawing)),
        (Some(Drained), Wish::LeaveWithPods, yes, Nobody, no, start, Some(Drained)),
        (Some(Drained), Wish::Leave, no, Replaceable, yes, later, Some(Withdrawing)),
        (Some(Drained), Wish::Leave, no, Alone, no, later, Some(Drained)),
        (Some(Leaving), Wish::Stay, no, Nobody, no, start, None),
        (Some(Withdrawing), Wish::Stay, yes, Nobody, no, start, None),
        (Some(Drained), Wish::Stay, no, Nobody, yes, start, None),
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
    let acknowledged = || answer(Reception::Acknowledged);
    drain.know(start, Some(&node(None, false)), &usage, &own);
    assert_eq!((drain.departure(), drain.status()), (Departure::None, None));
    assert_eq!(drain.next_deadline(), None);

    drain.know(start, Some(&node(Some("now"), false)), &usage, &own);
    assert_eq!((drain.departure(), drain.next_deadline()), (Departure::Leaving, Some(start)));
    // BGP has not started; then one peer is slow.
    assert!(!drain.heard(start, Answer::Not("BGP does not run: no AS".into())));
    let message = drain.status().expect("a status").message;
    assert_eq!(message, "waits: BGP does not run: no AS");
    assert!(drain.next_deadline().is_some_and(|at| at > start), "it is looked at again");
    let awaited = answer(Reception::Awaited(vec!["bgppeer/tor".into()]));
    assert!(!drain.heard(start, awaited));
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
    let said = |drain: &Drain| drain.status().expect("a status").message;

    // BGP starts late, and one of two sessions comes up: the other peer still has what it heard before.
    let (mut again, start) = (open(&storage), Instant::now());
    again.know(start, Some(&wish), &usage, &own);
    assert!(again.next_deadline().is_some(), "peers are asked without a further sign");
    let started = start + Duration::from_secs(600);
    let nobody = |missing| answer_since(started, Reception::Nobody, missing);
    let acknowledged = |missing| answer_since(started, Reception::Acknowledged, missing);
    assert!(!again.heard(started, nobody(&["mesh/n2", "mesh/n3"])));
    assert!(!again.heard(started + SETTLE, nobody(&["mesh/n2", "mesh/n3"])), "nobody has heard");
    assert!(
        said(&again).contains("waits for its sessions with mesh/n2, mesh/n3"),
        "{}",
        said(&again)
    );
    let first = started + SETTLE;
    assert!(!again.heard(first, acknowledged(&["mesh/n3"])));
    assert!(!again.heard(first + 2 * SETTLE, acknowledged(&["mesh/n3"])), "one has not heard");
    assert!(said(&again).ends_with("waits for its sessions with mesh/n3"), "{}", said(&again));
    let up = first + 3 * SETTLE;
    assert!(!again.heard(up, acknowledged(&[])));
    assert!(!again.heard(up + SETTLE - Duration::from_millis(1), acknowledged(&[])));
    assert!(again.heard(up + SETTLE, acknowledged(&[])), "ten seconds after they heard");

    // One never comes: it is waited for as long as it keeps routes, and no longer.
    let (mut again, started) = (open(&storage), Instant::now());
    again.know(started, Some(&wish), &usage, &own);
    let gone = || answer_since(started, Reception::Acknowledged, &["mesh/n3"]);
    again.heard(started, gone());
    assert_eq!(again.status().expect("a status").phase, DrainPhase::Withdrawing);
    let over = started + RESTART_TIME;
    again.heard(over - Duration::from_millis(1), gone());
    assert_eq!(again.status().expect("a status").phase, DrainPhase::Withdrawing);
    again.heard(over, gone());
    assert_eq!(again.status().expect("a status").phase, DrainPhase::Drained);
}

/// Without another node in its place it is drained all the same, and says what hangs on it.
#[test]
fn a_route_reflector_that_nobody_can_replace_goes_on_passing_on() {
    let storage = Arc::new(Memory::default());
    let (mut drain, start) = (open(&storage), Instant::now());
    let (usage, own) = (Usage::default(), ["10.0.0.0/26".parse().expect("a block")]);
    drain.know(start, Some(&node(Some("now"), false)), &usage, &own);
    drain.reflects(start, Reflection::Replaceable);
    let acknowledged = || answer(Reception::Acknowledged);
    assert!(!drain.heard(start, acknowledged()));
    assert!(!drain.heard(start + 2 * SETTLE, acknowledged()));
    let said = |drain: &Drain| drain.status().map(|status| (status.phase, status.message));
    let (phase, message) = said(&drain).expect("a status");
    assert_eq!(phase, DrainPhase::Leaving);
    assert!(message.contains("waits for the leader to choose other route reflectors"), "{message}");

    drain.reflects(start + 2 * SETTLE, Reflection::Alone);
    assert!(drain.next_deadline().is_some_and(|at| at <= start + 2 * SETTLE));
    assert!(drain.heard(start + 2 * SETTLE, acknowledged()));
    assert!(!drain.heard(start + 2 * SETTLE, acknowledged()));
    let (phase, message) = said(&drain).expect("a status");
    assert_eq!(phase, DrainPhase::Drained);
    assert!(message.contains("no other node may take its place as a route reflector"), "{message}");

    // One is back: the machine is still needed until the leader has it. Then that has to be heard.
    let back = start + 3 * SETTLE;
    drain.reflects(back, Reflection::Replaceable);
    assert_eq!(drain.next_deadline(), Some(back));
    drain.heard(back, acknowledged());
    assert_eq!(said(&drain).expect("a status").0, DrainPhase::Withdrawing);
    drain.reflects(back, Reflection::None);
    let awaited = answer(Reception::Awaited(vec!["mesh/n2".into()]));
    drain.heard(back, awaited);
    assert_eq!(said(&drain).expect("a status").0, DrainPhase::Withdrawing);
    drain.heard(back, acknowledged());
    let (phase, message) = said(&drain).expect("a status");
    assert_eq!(phase, DrainPhase::Drained);
    assert!(!message.contains("reflector"), "{message}");
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
    let acknowledged = || answer(Reception::Acknowledged);
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
