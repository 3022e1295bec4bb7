//! Blocks that only a person can release.

use serde_json::json;

use crate::objects::{BLOCKS, Scene};

const BLOCK: &str = "10.1.0.0-26";

/// A block of a dead node, whose Lease is as old as this.
fn dead(age_secs: i64, pods: &[(&str, &str)]) -> Scene {
    let scene = Scene::new();
    scene.block_of("10.1.0.0/26", "n9", "dead", pods);
    scene.lease("n9", "dead/b1", age_secs);
    scene
}

#[test]
fn a_block_that_nothing_speaks_for_is_deleted_by_any_of_its_names() {
    let scene = dead(3600, &[]);
    let dry = scene.run(&["release", "10.1.0.0/26", "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    for part in [
        "block 10.1.0.0/26 of pool pods, owned by node n9 (UID dead), 0 addresses in use by its word\n",
        "no agent runs here: whether somebody announces it is not known",
        "would delete IPBlock 10.1.0.0-26 of UID ",
    ] {
        assert!(dry.text.contains(part), "{part:?}\n{}", dry.text);
    }
    assert!(scene.has_block(BLOCK));
    for words in
        [&["10.1.0.0/26"][..], &[BLOCK], &["ipblock/10.1.0.0-26"], &["--address", "10.1.0.9"]]
    {
        if !scene.has_block(BLOCK) {
            scene.block_of("10.1.0.0/26", "n9", "dead", &[]);
        }
        let said = scene.run(&[&["release"], words].concat());
        assert_eq!((said.code, scene.has_block(BLOCK)), (Some(0), false), "{words:?}: {said:?}");
        assert!(said.text.contains("is deleted: its addresses can be claimed again"), "{said:?}");
    }
}

#[test]
fn doubts_need_a_yes() {
    let scene = dead(3600, &[("10.1.0.1", "default/a")]);
    let said = scene.run(&["release", BLOCK]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(1), true), "{said:?}");
    assert!(
        said.text.contains("against it: by the last word of its owner 1 address of it in use"),
        "{said:?}"
    );
    assert!(said.errors.contains("add --yes if none of this counts"), "{said:?}");
    let said = scene.run(&["release", BLOCK, "--yes"]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(0), false), "{said:?}");
}

#[test]
fn no_word_releases_what_may_be_in_use() {
    let refused = |scene: &Scene, words: &str| {
        let said = scene.run(&["release", BLOCK, "--yes"]);
        assert_eq!((said.code, scene.has_block(BLOCK)), (Some(1), true), "{said:?}");
        assert!(said.errors.contains(words), "{words:?}: {said:?}");
    };
    refused(&dead(30, &[]), "may hand out addresses for 2 min 5 s after that");
    let scene = dead(3600, &[]);
    scene.pod("a", "n2", "10.1.0.1");
    refused(&scene, "1 pod on nodes that exist have addresses in it (default/a)");
    let scene = Scene::new();
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.agent("n1", 5);
    refused(&scene, "the agent of n1 wrote its Lease ");
    let scene = Scene::new();
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.agent("n1", 3600);
    refused(&scene, "it is in use, and that Node exists");
}

#[test]
fn another_owner_than_the_one_that_is_meant_is_refused() {
    let scene = dead(3600, &[]);
    let said = scene.run(&["release", BLOCK, "--node", "n1", "--yes"]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(1), true));
    assert_eq!(said.errors, "cairn: block 10.1.0.0/26 belongs to node n9, not to n1\n");
    let said = scene.run(&["release", BLOCK, "--node", "n9"]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(0), false), "{said:?}");
}

#[test]
fn a_deletion_that_is_stuck_is_ended_and_finalizers_of_others_are_left() {
    let scene = dead(3600, &[]);
    scene.cluster.api.delete(BLOCKS, None, BLOCK).expect("it waits for its finalizer");
    assert!(scene.has_block(BLOCK));
    let said = scene.run(&["release", BLOCK]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(0), false), "{said:?}");

    scene.block_of("10.1.0.0/26", "n9", "dead", &[]);
    let finalizers = json!({"metadata": {"finalizers": ["cairn.network/block", "example.org/x"]}});
    let merge = cairn_lab::apiserver::PatchType::Merge;
    scene.cluster.api.patch(BLOCKS, None, BLOCK, merge, &finalizers).expect("patched");
    let said = scene.run(&["release", BLOCK, "--yes"]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(0), true), "{said:?}");
    assert!(said.text.contains("is deleted once the finalizers of others are gone"), "{said:?}");
    let kept = scene.cluster.api.get(BLOCKS, None, BLOCK).expect("the block");
    assert_eq!(kept["metadata"]["finalizers"], json!(["example.org/x"]));
}

#[test]
fn what_is_no_block_is_said() {
    let scene = Scene::new();
    for (words, code, said) in [
        (&["release", "10.1.0.0/26"][..], 1, "there is no IPBlock 10.1.0.0-26"),
        (&["release", "--address", "10.1.0.9"], 1, "no block holds 10.1.0.9"),
        (&["release", "../nodes/n1"], 1, "\"../nodes/n1\" is no block: write a CIDR"),
        (&["release", ""], 1, "is no block"),
        (&["release"], 2, "required"),
        (&["release", "--address", "x"], 2, "invalid"),
        (&["release", "10.1.0.0/26", "--address", "10.1.0.9"], 2, "cannot be used with"),
    ] {
        let answer = scene.run(words);
        assert_eq!(answer.code, Some(code), "{words:?}: {answer:?}");
        assert!(answer.errors.contains(said), "{words:?}: {answer:?}");
    }
}

#[test]
fn an_owner_that_writes_meanwhile_keeps_its_block() {
    let scene = dead(3600, &[]);
    let said = scene.run_beside_writes((BLOCKS, None, BLOCK), &["release", BLOCK]);
    assert_eq!((said.code, scene.has_block(BLOCK)), (Some(1), true), "{said:?}");
    assert!(said.errors.contains("has changed since it was read: somebody uses it"), "{said:?}");
    let block = scene.cluster.api.get(BLOCKS, None, BLOCK).expect("the block");
    assert!(block["metadata"].get("deletionTimestamp").is_none(), "not even begun");
}
