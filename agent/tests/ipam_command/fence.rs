//! An operator says that a machine is off.

use serde_json::Value;

use crate::objects::{LEASES, SYSTEM, Scene};

#[test]
fn a_silent_node_is_marked_and_the_mark_is_taken_back() {
    let scene = Scene::new();
    let holder = scene.agent("n1", 300);
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.block_of("10.1.0.64/26", "n1", "an-earlier-node", &[]);
    scene.pod("a", "n1", "10.1.0.1");

    let dry = scene.run(&["fence", "n1", "--dry-run"]);
    assert_eq!((dry.code, &scene.mark("n1")), (Some(0), &Value::Null), "{dry:?}");
    let lease = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n1").expect("a Lease");
    let version = lease["metadata"]["resourceVersion"].as_str().expect("a version");
    for part in [
        "was last written 5 min ",
        "1 block of it with 1 address in use return as soon as nobody announces them: 10.1.0.0/26\n",
        "1 pod of n1 run by the word of the API server, and lose their addresses: default/a\n",
        "would patch Lease cairn-system/cairn-node-n1: {\"metadata\":{\"annotations\":",
        &format!("\"cairn.network/machine-off\":\"{holder}\""),
        &format!("\"resourceVersion\":\"{version}\""),
    ] {
        assert!(dry.text.contains(part), "{part:?}\n{}", dry.text);
    }

    let said = scene.run(&["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), holder.clone().into()), "{said:?}");
    assert!(said.text.ends_with("marked: machine of node n1 is off\n"), "{said:?}");
    let again = scene.run(&["fence", "n1"]);
    assert_eq!(again.code, Some(0));
    assert!(again.text.contains(&format!("node n1 is marked already: {holder}")), "{again:?}");
    let dry = scene.run(&["fence", "n1", "--undo", "--dry-run"]);
    assert_eq!(scene.mark("n1"), holder);
    assert!(dry.text.contains("\"cairn.network/machine-off\":null"), "{dry:?}");
    let undone = scene.run(&["fence", "n1", "--undo"]);
    assert_eq!((undone.code, scene.mark("n1")), (Some(0), Value::Null), "{undone:?}");
    let nothing = scene.run(&["fence", "n1", "--undo"]);
    assert!(nothing.code == Some(0) && nothing.text.contains("not marked"), "{nothing:?}");
    let kept = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n1").expect("a Lease");
    assert_eq!(kept["spec"], lease["spec"], "nothing else was written");
}

#[test]
fn a_node_whose_agent_wrote_a_moment_ago_is_refused_without_a_yes() {
    let scene = Scene::new();
    let holder = scene.agent("n1", 2);
    let said = scene.run(&["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(1), Value::Null));
    assert!(said.errors.contains("it seems to live"), "{said:?}");
    assert!(said.errors.contains("add --yes if it has been off since"), "{said:?}");
    let said = scene.run(&["fence", "n1", "--yes"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), holder.into()), "{said:?}");
}

#[test]
fn who_holds_no_lease_is_not_marked() {
    let scene = Scene::new();
    let said = scene.run(&["fence", "n3"]);
    assert_eq!(said.code, Some(1));
    assert!(said.errors.contains("node n3 has no Lease cairn-node-n3 in namespace cairn-system"));
    scene.lease("n2", "nonsense", 300);
    let said = scene.run(&["fence", "n2"]);
    assert_eq!((said.code, scene.mark("n2")), (Some(1), Value::Null));
    assert!(said.errors.contains("names no holder of the form NODE_UID/BOOT_ID"), "{said:?}");
    assert_eq!(scene.run(&["fence"]).code, Some(2), "which node?");
}

/// Its clock may be wrong: that it writes is what counts.
#[test]
fn an_agent_that_writes_meanwhile_is_not_marked() {
    let scene = Scene::new();
    scene.agent("n1", 300);
    let said = scene.run_beside_writes((LEASES, SYSTEM, "cairn-node-n1"), &["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(1), Value::Null), "{said:?}");
    assert!(said.errors.contains("has written its Lease since it was read"), "{said:?}");
}

#[test]
fn after_a_takeover_the_earlier_machine_is_marked_and_the_later_one_goes_on() {
    let scene = Scene::new();
    let holder = scene.agent("n1", 2);
    let earlier = format!("{}/boot-before", scene.uid("nodes", "n1"));
    scene.taken_over("n1", &earlier);
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.pod("a", "n1", "10.1.0.1");
    let said = scene.run(&["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), earlier.clone().into()), "{said:?}");
    for part in [
        "another machine has taken node n1 over, and is not marked",
        "marked: the machine that had node n1 before is off (boot id boot-before)\n",
    ] {
        assert!(said.text.contains(part), "{part:?}\n{}", said.text);
    }
    assert!(!said.text.contains("default/a"), "it may be the later one's: {}", said.text);
    let again = scene.run(&["fence", "n1", "--yes"]);
    assert_eq!((again.code, scene.mark("n1")), (Some(0), earlier.into()), "{again:?}");
    let expected = format!("the present one, {holder}, seems to live");
    assert!(again.text.contains(&expected), "{again:?}");
}

#[test]
fn when_neither_machine_is_heard_both_are_marked_the_earlier_one_first() {
    let scene = Scene::new();
    let holder = scene.agent("n1", 300);
    let earlier = format!("{}/boot-before", scene.uid("nodes", "n1"));
    scene.taken_over("n1", &earlier);
    let said = scene.run(&["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(1), Value::Null), "{said:?}");
    assert!(said.errors.contains("Both have to be marked, the earlier one first"), "{said:?}");
    let said = scene.run(&["fence", "n1", "--yes"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), earlier.into()), "{said:?}");
    let said = scene.run(&["fence", "n1"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), holder.into()), "{said:?}");
    let lease = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n1").expect("a Lease");
    let annotations = &lease["metadata"]["annotations"];
    assert!(annotations.get("cairn.network/taken-over-from").is_none(), "both are spoken of");
}

#[test]
fn no_mark_speaks_for_several_machines() {
    let scene = Scene::new();
    scene.agent("n1", 2);
    scene.taken_over("n1", "several");
    let said = scene.run(&["fence", "n1", "--yes"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(1), Value::Null), "{said:?}");
    assert!(said.errors.contains("say --earlier; or wait 2 min 5 s"), "{said:?}");
    let said = scene.run(&["fence", "n1", "--earlier"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), Value::Null), "{said:?}");
    let lease = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n1").expect("a Lease");
    let annotations = &lease["metadata"]["annotations"];
    let said_of = &annotations["cairn.network/earlier-machines-off"];
    assert_eq!(*said_of, lease["spec"]["holderIdentity"], "{annotations}");
    let said = scene.run(&["fence", "n1", "--earlier"]);
    assert_eq!((said.code, scene.mark("n1")), (Some(0), Value::Null), "{said:?}");
    assert!(said.text.contains("said already"), "{said:?}");
    let said = scene.run(&["fence", "n1", "--undo"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lease = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n1").expect("a Lease");
    let annotations = &lease["metadata"]["annotations"];
    assert!(annotations.get("cairn.network/earlier-machines-off").is_none(), "{annotations}");

    let holder = scene.agent("n2", 300);
    scene.taken_over("n2", "several");
    let said = scene.run(&["fence", "n2"]);
    assert_eq!((said.code, scene.mark("n2")), (Some(0), holder.into()), "{said:?}");
    let lease = scene.cluster.api.get(LEASES, SYSTEM, "cairn-node-n2").expect("a Lease");
    let from = &lease["metadata"]["annotations"]["cairn.network/taken-over-from"];
    assert_eq!(from, "several", "the leader waits by its own clock");
}
