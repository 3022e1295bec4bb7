//! Garbage collection by ownerReferences.

use kube::Resource;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};

use super::*;

#[tokio::test]
async fn objects_go_when_their_last_owner_has_gone() {
    let world = World::new();
    let pools = world.pools();
    let kind = pool_resource();
    let create =
        async |object: DynamicObject| pools.create(&PostParams::default(), &object).await.unwrap();
    let first = create(pool("first", "10.0.0.0/16")).await;
    let second = create(pool("second", "10.1.0.0/16")).await;
    let mut both = pool("both", "10.2.0.0/16");
    both.metadata.owner_references =
        Some(vec![first.owner_ref(&kind).unwrap(), second.owner_ref(&kind).unwrap()]);
    create(both).await;
    let mut held = pool("held", "10.3.0.0/16");
    held.metadata.owner_references = Some(vec![first.owner_ref(&kind).unwrap()]);
    held.metadata.finalizers = Some(vec!["a.b/c".to_owned()]);
    create(held).await;

    pools.delete("first", &DeleteParams::default()).await.unwrap();
    eventually("the held one is terminating", async || {
        pools.get("held").await.unwrap().metadata.deletion_timestamp.is_some()
    })
    .await;
    assert!(pools.get_opt("both").await.unwrap().is_some(), "its second owner is still there");
    let freed = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    pools.patch("held", &PatchParams::default(), &freed).await.unwrap();
    assert!(pools.get_opt("held").await.unwrap().is_none());

    pools.delete("second", &DeleteParams::default()).await.unwrap();
    eventually("both is gone", async || pools.get_opt("both").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn an_owner_is_known_by_its_uid() {
    let world = World::new();
    let pools = world.pools();
    let owner = pools.create(&PostParams::default(), &pool("o", "10.0.0.0/16")).await.unwrap();
    let mut owned = pool("owned", "10.1.0.0/16");
    let mut reference = owner.owner_ref(&pool_resource()).unwrap();
    reference.uid = "11111111-2222-4333-8444-555555555555".to_owned();
    owned.metadata.owner_references = Some(vec![reference]);
    pools.create(&PostParams::default(), &owned).await.unwrap();
    eventually("the owned is gone", async || pools.get_opt("owned").await.unwrap().is_none()).await;
    assert!(pools.get_opt("o").await.unwrap().is_some());
}
