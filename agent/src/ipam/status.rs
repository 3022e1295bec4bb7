//! The status of this node's blocks: what each holds, for people and for the leader's sums.
//!
//! A pod start causes at most one write, of one object that no other agent watches. Writes of one
//! block are at least [`WRITE_INTERVAL`] apart; what changes meanwhile goes with the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_api::{
    Allocation, Condition, ConditionStatus, IPBlock, IPBlockStatus, block_name, set_condition,
};
use cairn_ipam::BlockUsage;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::error::{IpamError, call};
use super::history::{Kind, number};
use super::{Holdings, Shared, tell};
use crate::pods::Usage;

/// The allocations that a block's status lists at most, about 150 KB.
pub(super) const ALLOCATIONS_MAX: usize = 1024;

/// Writes the status of blocks whenever it differs from what the watch shows.
pub(super) async fn run(shared: Shared) {
    let api: Api<IPBlock> = Api::all(shared.client.clone());
    let mut view = shared.view.clone();
    let mut usage = shared.usage.clone();
    let mut holdings = shared.reports.holdings.subscribe();
    let mut drain = shared.drain.clone();
    let mut writes: BTreeMap<String, Write> = BTreeMap::new();
    let mut epoch = 0;
    loop {
        view.mark_unchanged();
        usage.mark_unchanged();
        holdings.mark_unchanged();
        drain.mark_unchanged();
        // Versions of an older history are higher than those that come, and would be waited for.
        let shown = view.borrow().epoch;
        if std::mem::replace(&mut epoch, shown) != shown {
            writes.clear();
        }
        let next = pass(&shared, &api, &mut writes).await;
        let wait = next.map_or(Duration::MAX, |at| at.saturating_sub(shared.now()));
        tokio::select! {
            biased;
            changed = view.changed() => if changed.is_err() { return },
            changed = usage.changed() => if changed.is_err() { return },
            changed = holdings.changed() => if changed.is_err() { return },
            // Without the rest of an agent there is none.
            Ok(()) = drain.changed() => {}
            () = tokio::time::sleep(wait.max(WAKE_MIN)), if next.is_some() => {}
        }
    }
}

/// The last write of a block's status.
struct Write {
    uid: Option<String>,
    status: IPBlockStatus,
    /// The version that the write made, empty if it failed.
    version: Option<String>,
    /// The version that the server did not have: while the watch shows no other, a further write is
    /// most likely refused like this one.
    outdated: Option<String>,
    /// Why it failed, told until the next attempt.
    problem: Option<String>,
    at: Duration,
}

impl Write {
    /// When the block may be written next, of which the watch shows `version`. One that stays at the
    /// version that was refused is tried again all the same: a definition that is created anew answers
    /// 404 for a moment, for objects that are there.
    fn next(&self, version: Option<&String>) -> Duration {
        let is_outdated = self.outdated.is_some() && self.outdated.as_ref() == version;
        self.at.saturating_add(if is_outdated { OUTDATED_RETRY } else { WRITE_INTERVAL })
    }
}

/// Writes what is due; returns when the next write is.
async fn pass(
    shared: &Shared,
    api: &Api<IPBlock>,
    writes: &mut BTreeMap<String, Write>,
) -> Option<Duration> {
    if shared.membership().is_err() {
        return None;
    }
    let view = Arc::clone(&shared.view.borrow());
    let usage = shared.usage.borrow().clone();
    let holdings = Arc::clone(&shared.reports.holdings.borrow());
    writes.retain(|name, _| view.own_blocks.contains_key(name));
    let mut next: Option<Duration> = None;
    let mut problems = Vec::new();
    for owned in &holdings.blocks {
        let name = block_name(owned.cidr);
        let Some(block) = view.own_blocks.get(&name) else { continue };
        let Some(held) = usage.blocks.iter().find(|held| held.cidr == owned.cidr) else { continue };
        // What another machine may hold in it this one cannot say.
        let rests = shared.promise.borrow().others_rest() || holdings.found.contains(&owned.cidr);
        if rests && !owned.hand_out && !owned.newly_claimed {
            continue;
        }
        let mut wanted = status_of(held, &usage, &holdings);
        let announces = shared.drain.borrow().departure.announces(&owned.cidr);
        wanted.advertised = wanted.advertised.map(|advertised| advertised && announces);
        let shown = block.status.clone().unwrap_or_default();
        wanted.conditions = conditions(&shown, block, held, &usage, &holdings);
        let last = writes.get(&name).filter(|last| last.uid == block.metadata.uid);
        let is_written = last.is_some_and(|last| last.version.is_some() && last.status == wanted);
        // What was written may not be in the view yet; what is in the view may be another's edit.
        let behind = last.is_some_and(|last| {
            last.version.as_deref().map(number)
                > block.metadata.resource_version.as_deref().map(number)
        });
        if shown == wanted || (is_written && behind) {
            continue;
        }
        let now = shared.now();
        let version = block.metadata.resource_version.as_ref();
        let due = last.map_or(Duration::ZERO, |last| last.next(version));
        if now < due || behind {
            problems.extend(last.and_then(|last| last.problem.clone()));
            let due = due.max(now.saturating_add(WAKE_MIN));
            next = Some(next.map_or(due, |next| next.min(due)));
            continue;
        }
        let epoch = shared.history.epoch();
        let answer = write(api, &name, block, &wanted).await;
        let made =
            answer.as_ref().ok().and_then(|block| block.metadata.resource_version.as_deref());
        if let Some(made) = made.and_then(number) {
            shared.history.saw(Kind::Block, epoch, made);
        }
        let uid = block.metadata.uid.clone();
        let at = shared.now();
        let mut last =
            Write { uid, status: wanted, version: None, outdated: None, problem: None, at };
        match answer {
            Ok(written) => last.version = written.metadata.resource_version,
            Err(error) if error.is_conflict() || error.is_not_found() => {
                last.outdated = version.cloned();
            }
            Err(error) => last.problem = Some(error.to_string()),
        }
        if last.version.is_none() {
            let retry = last.next(version);
            next = Some(next.map_or(retry, |next| next.min(retry)));
        }
        problems.extend(last.problem.clone());
        writes.insert(name, last);
    }
    shared.reports.report("status", problems);
    next
}

async fn write(
    api: &Api<IPBlock>,
    name: &str,
    block: &IPBlock,
    status: &IPBlockStatus,
) -> Result<IPBlock, IpamError> {
    // A uid alone is accepted when it is wrong; the resourceVersion is what is checked.
    let patch = json!({
        "metadata": {"resourceVersion": block.metadata.resource_version},
        "status": {
            "used": status.used,
            "free": status.free,
            "advertised": status.advertised,
            "allocations": status.allocations,
            "conditions": status.conditions,
        },
    });
    let what = || format!("cannot write the status of block {}", block.spec.cidr);
    call(what, api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))).await
}

fn status_of(held: &BlockUsage, usage: &Usage, holdings: &Holdings) -> IPBlockStatus {
    // The leader looks for devices before a block returns: they stand within the bound.
    let (devices, pods): (Vec<_>, Vec<_>) =
        held.allocations.iter().partition(|(_, id)| id.device().is_some());
    let allocations = devices.into_iter().chain(pods).take(ALLOCATIONS_MAX);
    IPBlockStatus {
        used: Some(held.used.to_string()),
        free: Some(held.free.to_string()),
        advertised: Some(is_announced(holdings, held.cidr)),
        allocations: allocations
            .map(|(address, id)| Allocation {
                address: address.to_string(),
                pod: usage.pods.get(id).filter(|pod| pod.name().is_some()).map(|p| p.to_string()),
                container: id.device().is_none().then(|| id.container_id.clone()),
                device: id.device().map(str::to_owned),
            })
            .collect(),
        conditions: Vec::new(),
    }
}

/// What is not as it should be. A condition that never held is not there.
fn conditions(
    shown: &IPBlockStatus,
    block: &IPBlock,
    held: &BlockUsage,
    usage: &Usage,
    holdings: &Holdings,
) -> Vec<Condition> {
    let mut conditions = shown.conditions.clone();
    let conflict = holdings.conflicts.get(&held.cidr);
    let conflict = conflict
        .map(|with| tell::conflict(held.cidr, with, Some(held), &usage.pods, CONDITION_PODS_MAX));
    let is_reserved =
        |address: &IpAddr| holdings.reserved.iter().any(|reserved| reserved.contains(address));
    let reserved: Vec<String> = held
        .allocations
        .iter()
        .filter(|(address, _)| is_reserved(address))
        .take(CONDITION_PODS_MAX)
        .map(|(address, id)| match usage.pods.get(id).filter(|pod| pod.name().is_some()) {
            Some(pod) => format!("{address} ({pod})"),
            None => format!("{address} ({})", tell::holder(id)),
        })
        .collect();
    let reserved = (!reserved.is_empty())
        .then(|| format!("pods hold reserved addresses until they end: {}", reserved.join(", ")));
    let foreign: Vec<String> =
        held.foreign.iter().take(CONDITION_PODS_MAX).map(ToString::to_string).collect();
    let foreign = (!foreign.is_empty()).then(|| {
        let addresses = foreign.join(", ");
        format!("the node holds or routes elsewhere, and pods do not get: {addresses}")
    });
    let cases = [
        ("Conflict", "OwnedTwice", "Sole", conflict),
        ("ForeignInUse", "InUse", "Free", foreign),
        ("ReservedInUse", "InUse", "Free", reserved),
    ];
    for (type_, bad, good, message) in cases {
        if message.is_none() && !conditions.iter().any(|condition| condition.type_ == type_) {
            continue;
        }
        let holds = message.is_some();
        let condition = Condition {
            type_: type_.to_owned(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            reason: if holds { bad } else { good }.to_owned(),
            message: message.unwrap_or_default(),
            last_transition_time: Time(Timestamp::now()),
            observed_generation: block.metadata.generation,
        };
        set_condition(&mut conditions, condition);
    }
    conditions
}

fn is_announced(holdings: &Holdings, cidr: IpNet) -> bool {
    holdings.announced.binary_search(&cidr).is_ok()
}

/// The pods that one condition names at most, about 30 KB.
const CONDITION_PODS_MAX: usize = 256;
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Between a write that met another version, or no object, and the next while the watch shows the same.
const OUTDATED_RETRY: Duration = Duration::from_secs(30);
const WAKE_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_was_refused_is_written_again_when_the_watch_goes_on_or_after_a_while() {
        let [five, six] = ["5".to_owned(), "6".to_owned()];
        let at = Duration::from_secs(100);
        let (uid, status, problem) = (None, IPBlockStatus::default(), None);
        let mut last = Write { uid, status, version: None, outdated: None, problem, at };
        assert_eq!(last.next(Some(&five)), at + WRITE_INTERVAL);
        last.outdated = Some(five.clone());
        assert_eq!(last.next(Some(&five)), at + OUTDATED_RETRY);
        assert_eq!(last.next(Some(&six)), at + WRITE_INTERVAL);
    }

    #[test]
    fn addresses_that_others_hold_on_the_node_are_a_condition_until_they_go() {
        let spec = serde_json::json!({
            "cidr": "10.0.0.0/30",
            "range": "10.0.0.0/16",
            "pool": {"name": "p", "uid": "1"},
            "node": {"name": "n1", "uid": "2"},
        });
        let block: IPBlock = serde_json::from_value(serde_json::json!({
            "apiVersion": "cairn.network/v1alpha1",
            "kind": "IPBlock",
            "metadata": {"name": "10.0.0.0-30"},
            "spec": spec,
        }))
        .expect("a block");
        let mut book = cairn_ipam::AddressBook::new(Duration::ZERO);
        book.set_blocks(vec![cairn_ipam::OwnedBlock {
            cidr: "10.0.0.0/30".parse().expect("a network"),
            pool: "p".into(),
            hand_out: true,
            until: Duration::MAX,
            revision: 0,
            newly_claimed: true,
        }]);
        let (usage, holdings) = (Usage::default(), Holdings::default());
        let conditions = |book: &cairn_ipam::AddressBook, shown: Vec<Condition>| {
            let shown = IPBlockStatus { conditions: shown, ..IPBlockStatus::default() };
            let held = book.usage().remove(0);
            super::conditions(&shown, &block, &held, &usage, &holdings)
        };
        assert!(conditions(&book, Vec::new()).is_empty());
        let address = "10.0.0.2".parse().expect("an address");
        book.mark_foreign(address);
        let shown = conditions(&book, Vec::new());
        assert_eq!((shown.len(), shown[0].type_.as_str()), (1, "ForeignInUse"));
        assert_eq!(shown[0].status, ConditionStatus::True);
        assert!(shown[0].message.ends_with("10.0.0.2"), "{}", shown[0].message);
        book.clear_foreign(address, Duration::ZERO);
        assert_eq!(conditions(&book, shown)[0].status, ConditionStatus::False);
    }
}
