//! Reads that a hand-out or a delete stands on: they leave the resourceVersion unset, so that the
//! answer is not older than the call (IPAM rule 2).

use std::fmt::Debug;

use cairn_ipam::{Rule, Rules};
use kube::api::{Api, GetParams, ListParams, VersionMatch};
use serde::de::DeserializeOwned;

/// What a list asks for.
pub(super) fn consistent(rules: Rules) -> ListParams {
    if rules.hold(Rule::ConsistentReads) {
        return ListParams::default();
    }
    ListParams::default().at("0").matching(VersionMatch::NotOlderThan)
}

/// The object of this name.
pub(super) async fn get<K>(api: &Api<K>, name: &str, rules: Rules) -> kube::Result<Option<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    if rules.hold(Rule::ConsistentReads) {
        return api.get_opt(name).await;
    }
    match api.get_with(name, &GetParams::any()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        found => found.map(Some),
    }
}
