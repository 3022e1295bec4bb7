//! The node's own Lease: the sign that its agent may go on handing out addresses.
//!
//! One machine acts under one Node at a time. Which one the Node's bootID says; the Lease says which
//! one did before:
//!
//! ```text
//!  holder was        this boot ─────────────────────────► renew
//!                    of another Node object ────────────► take over (its blocks are not ours)
//!                    another boot, the same machine ────► take over: a reboot ended its pods
//!                    another boot, another machine ─────► take over; its blocks rest until 1.25 x
//!                                                         its promise has passed, or it is off,
//!                                                         and are then asked for one by one
//!  mark names this boot ────────────────────────────────► write nothing, hand out nothing
//! ```

use std::sync::Arc;
use std::time::Duration;

use cairn_ipam::fence::OwnFence;
use cairn_ipam::mark::{
    ANNOTATION_EARLIER_OFF, ANNOTATION_MACHINE, ANNOTATION_MACHINE_OFF, ANNOTATION_TAKEN_OVER,
    SEVERAL, is_off, others_rest,
};
use cairn_ipam::{Holder, Machine, Rule, Standing};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};

use super::Shared;
use super::disk::LeaseWrite;
use super::error::{IpamError, call};
use super::history::{Kind, number};
use super::reads;

/// The name of the Lease of a node.
pub(super) fn lease_name(node: &str) -> String {
    format!("{LEASE_PREFIX}{node}")
}

/// What the names of nodes' Leases begin with.
pub(super) const LEASE_PREFIX: &str = "cairn-node-";

/// What the Lease allows this node.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    /// Until when addresses may be handed out.
    pub(super) fence: OwnFence,
    /// An operator said that this machine is off.
    pub(super) marked_off: bool,
    /// What the Lease told when this process wrote it last. `None` until it has: an earlier process of
    /// this boot may have taken it over a moment before it ended.
    pub(super) told: Option<Told>,
}

/// What a write of the Lease told of other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// When its request left, or before. Of a machine that has taken the Lease over since it told
    /// nothing, nor of the blocks that this one has claimed.
    pub(super) sent: Duration,
    /// Whether another machine that had the Node may still hand out: blocks that this process did not
    /// claim rest then.
    pub(super) others_rest: bool,
    /// What an operator has said of other machines.
    pub(super) off: Off,
}

/// Which machines an operator says to be off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Off {
    #[default]
    None,
    /// That with this boot id.
    Boot(Arc<str>),
    /// All that had the Node before this one.
    Earlier,
}

impl Promise {
    /// What counts before the Lease was read.
    pub(super) fn new(fence: OwnFence) -> Promise {
        Promise { fence, marked_off: false, told: None }
    }

    /// Whether blocks that this process did not claim rest.
    pub(super) fn others_rest(&self) -> bool {
        self.told.as_ref().is_none_or(|told| told.others_rest)
    }
}

/// Renews the Lease for as long as this agent may act for its Node, and raises the fence with each
/// write that succeeds.
pub(super) async fn run(shared: Shared) {
    let interval = (shared.options.offline / 30).clamp(INTERVAL_MIN, INTERVAL_MAX);
    let mut view = shared.view.clone();
    let mut found = shared.found.subscribe();
    let mut keeper = Keeper::new(shared.clone());
    loop {
        let mut problems = Vec::new();
        let sent = shared.now();
        let pause = match shared.member() {
            Ok(uid) => match keeper.write(&uid).await {
                Ok(()) => {
                    problems.extend(keeper.raise(sent));
                    interval
                }
                Err(error) => {
                    let marked_off = matches!(error, IpamError::MarkedOff { .. });
                    if marked_off || matches!(error, IpamError::NotOurs { .. }) {
                        problems.extend(keeper.lower(marked_off));
                        problems.extend(keeper.look().await.err().map(|e| e.to_string()));
                    }
                    // Said as what keeps blocks closed.
                    if !marked_off {
                        problems.push(error.to_string());
                    }
                    INTERVAL_MIN
                }
            },
            Err(_) => {
                problems.extend(keeper.look().await.err().map(|error| error.to_string()));
                interval
            }
        };
        shared.reports.report("lease", problems);
        let acted = shared.member();
        let changed = async {
            while view.changed().await.is_ok() {
                if shared.member() != acted {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        // A Node that appears or changes machine is acted on at once, other changes are not. Nor is a
        // block that waits while the Lease cannot be written.
        let is_written =
            shared.promise.borrow().told.as_ref().is_some_and(|told| told.sent == sent);
        tokio::select! {
            biased;
            () = changed => {}
            _ = found.wait_for(|at| *at > sent), if is_written => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Keeper {
    shared: Shared,
    leases: Api<Lease>,
    nodes: Api<Node>,
    /// The machine that had the Node before, as the Lease names it, and since when this process
    /// waits for the end of its promise. A restart begins the wait anew: it knows no earlier time.
    waits: Option<(String, Duration)>,
    /// What was written last still names that machine.
    others_rest: bool,
    /// What it says of an operator's word.
    off: Off,
    /// The version that the last write of which this node heard gave the Lease: this process's, or that
    /// of an earlier one of this boot. And the epoch in which it was written.
    wrote: Option<(u64, u64)>,
}

impl Keeper {
    fn new(shared: Shared) -> Keeper {
        Keeper {
            leases: Api::namespaced(shared.client.clone(), &shared.options.namespace),
            nodes: Api::all(shared.client.clone()),
            wrote: shared
                .disk
                .kept()
                .lease
                .and_then(|lease| Some((lease.version?, shared.history.epoch()))),
            shared,
            waits: None,
            others_rest: false,
            off: Off::None,
        }
    }

    /// Raises the fence after a write whose request left at `sent` or later. What a later process may
    /// stand on is on the disk first.
    fn raise(&self, sent: Duration) -> Option<String> {
        let shared = &self.shared;
        let mut fence = shared.promise.borrow().fence;
        fence.wrote(sent, shared.now());
        let version = self.wrote.map(|(version, _)| version);
        let lease = LeaseWrite { sent, promise: shared.options.offline, version };
        let kept = shared.disk.wrote_lease(lease, fence.term());
        let told = Some(Told { sent, others_rest: self.others_rest, off: self.off.clone() });
        shared.promise.send_replace(Promise { fence, marked_off: false, told });
        kept.err().map(|error| error.to_string())
    }

    fn lower(&self, marked_off: bool) -> Option<String> {
        self.shared.promise.send_modify(|promise| {
            promise.fence.lower();
            promise.marked_off = marked_off;
        });
        self.shared.disk.lost_lease().err().map(|error| error.to_string())
    }

    async fn write(&mut self, uid: &str) -> Result<(), IpamError> {
        let shared = self.shared.clone();
        let options = &shared.options;
        let name = lease_name(&options.node);
        let holder = Holder { node_uid: uid.to_owned(), boot_id: options.boot_id.clone() };
        let what = || format!("cannot write this node's Lease {name}");
        let mark = self.shared.history.mark(Kind::Lease);
        let old = call(what, self.leases.get_opt(&name)).await?;
        self.compare(old.as_ref());
        let annotation = |key| old.as_ref().and_then(|lease| lease.annotations().get(key).cloned());
        let off = annotation(ANNOTATION_MACHINE_OFF);
        if is_off(off.as_deref(), &holder) {
            return Err(IpamError::MarkedOff { lease: name });
        }
        let mut taken_over = annotation(ANNOTATION_TAKEN_OVER);
        let spec = old.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mut lease = old.clone().unwrap_or_default();
        lease.metadata.name = Some(name.clone());
        let now = MicroTime(Timestamp::now());
        let mut acquired = spec.acquire_time.clone();
        let mut transitions = spec.lease_transitions;
        let mut earlier_off =
            annotation(ANNOTATION_EARLIER_OFF).as_ref() == Some(&holder.to_string());
        if spec.holder_identity.as_deref() != Some(&holder.to_string()) {
            // Of those that had the Node since it was said it says nothing.
            earlier_off = false;
            lease.annotations_mut().remove(ANNOTATION_EARLIER_OFF);
            let machine = self.machine(&holder, &name).await?;
            let before = spec.holder_identity.as_deref().map(str::parse::<Holder>);
            let before = before.and_then(Result::ok).filter(|before| before.node_uid == uid);
            let was = annotation(ANNOTATION_MACHINE).map(|text| Machine::from(text.as_str()));
            let is_same = was.is_some_and(|was| was.is_certainly(&machine));
            taken_over = match before {
                None => None,
                Some(_) if is_same => taken_over,
                Some(before) if taken_over.is_none() => Some(before.to_string()),
                Some(_) => Some(SEVERAL.to_owned()),
            };
            lease.annotations_mut().insert(ANNOTATION_MACHINE.to_owned(), machine.to_string());
            acquired = Some(now.clone());
            let taken = i32::from(old.is_some());
            transitions = Some(transitions.unwrap_or(0).saturating_add(taken));
        }
        let own_secs = i32::try_from(options.offline.as_secs()).unwrap_or(i32::MAX);
        let old_secs = spec.lease_duration_seconds.unwrap_or(0);
        let rest =
            taken_over.filter(|from| !earlier_off && self.rests(from, off.as_deref(), old_secs));
        // The promise of the other machine has to stand there until it is over: a restart of this
        // process waits for it again. One that is longer than what is kept is always safe.
        let secs = if rest.is_some() { own_secs.max(old_secs) } else { own_secs };
        match &rest {
            Some(from) => {
                lease.annotations_mut().insert(ANNOTATION_TAKEN_OVER.to_owned(), from.clone())
            }
            None => lease.annotations_mut().remove(ANNOTATION_TAKEN_OVER),
        };
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_string()),
            lease_duration_seconds: Some(secs),
            acquire_time: acquired,
            renew_time: Some(now),
            lease_transitions: transitions,
            ..spec
        });
        let params = PostParams::default();
        let written = match old {
            None => call(what, self.leases.create(&params, &lease)).await?,
            // The resourceVersion that was read makes a lost race a conflict.
            Some(_) => call(what, self.leases.replace(&name, &params, &lease)).await?,
        };
        self.others_rest = rest.is_some();
        let boot = off.and_then(|mark| Some(mark.parse::<Holder>().ok()?.boot_id));
        self.off = match boot {
            _ if earlier_off => Off::Earlier,
            Some(boot) => Off::Boot(boot.into()),
            None => Off::None,
        };
        // The wait begins when the other machine can write the Lease no more.
        let since = self.shared.now();
        self.waits = rest.map(|from| match self.waits.take() {
            Some((known, since)) if known == from => (from, since),
            _ => (from, since),
        });
        let version = written.metadata.resource_version;
        self.shared.history.heard(mark, version.as_deref());
        let version = version.as_deref().and_then(number);
        self.wrote = version.map(|version| (version, self.shared.history.epoch()));
        Ok(())
    }

    /// Looks at history for an agent that may not write its Lease: what it takes for its Node may be of
    /// a history that is no more, and then no watch shows it the Node that there is.
    async fn look(&mut self) -> Result<(), IpamError> {
        if !self.shared.view.borrow().synced {
            return Ok(());
        }
        let name = lease_name(&self.shared.options.node);
        let what = || format!("cannot read this node's Lease {name}");
        let mark = self.shared.history.mark(Kind::Lease);
        // A list carries the server's version besides the Lease's.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        let found = call(what, self.leases.list(&params)).await?;
        // The leader deletes the Lease of a Node that is gone.
        if let Some(lease) = found.items.first() {
            self.compare(Some(lease));
        }
        self.shared.history.heard(mark, found.metadata.resource_version.as_deref());
        Ok(())
    }

    /// Compares the Lease with what this node wrote last. A write that it did not hear of, another
    /// machine, and an operator's mark made it newer; only a history that went backwards makes it older
    /// or gone.
    fn compare(&self, found: Option<&Lease>) {
        let version = found.and_then(|lease| lease.metadata.resource_version.as_deref());
        let history = &self.shared.history;
        // Of an older history that is known to have ended it tells nothing.
        let wrote = self.wrote.filter(|(_, epoch)| *epoch == history.epoch());
        if wrote.is_some_and(|(wrote, _)| is_older(version, wrote)) {
            history.lost_a_write();
        }
    }

    /// The machine that this is. Only the one that the Node object names now may take the Lease over;
    /// the view may be old.
    async fn machine(&self, holder: &Holder, lease: &str) -> Result<Machine, IpamError> {
        let options = &self.shared.options;
        let what = || format!("cannot read Node {}", options.node);
        let node = call(what, reads::get(&self.nodes, &options.node, options.rules)).await?;
        let member = node.as_ref().ok_or(Standing::NodeMissing);
        if member.and_then(|node| self.shared.member_uid(node)).as_ref() != Ok(&holder.node_uid) {
            return Err(IpamError::NotOurs { lease: lease.to_owned() });
        }
        let info = node.and_then(|node| node.status?.node_info);
        Ok(info.map_or_else(Machine::default, |info| Machine {
            machine_id: info.machine_id,
            system_uuid: info.system_uuid,
        }))
    }

    /// Whether the promise of the machine that `from` names may still stand.
    fn rests(&self, from: &str, off: Option<&str>, promise_secs: i32) -> bool {
        if !self.shared.options.rules.hold(Rule::OtherMachineWaits) {
            return false;
        }
        if !others_rest(Some(from), off) {
            return false;
        }
        let promise = Duration::from_secs(u64::try_from(promise_secs).unwrap_or_default());
        let wait = promise.saturating_add(promise / 4);
        let begun = self.waits.as_ref().filter(|(known, _)| known == from);
        begun.is_none_or(|(_, since)| self.shared.now() < since.saturating_add(wait))
    }
}

/// Whether `found`, the version of an object or `None` when there is none, lies before `wrote`.
fn is_older(found: Option<&str>, wrote: u64) -> bool {
    // What is no number cannot be compared.
    found.is_none_or(|found| number(found).is_some_and(|found| found < wrote))
}

/// Renewals of the shortest fence.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Renewals of the longest. Each is a write to etcd: of 5,000 nodes 83 a second, where kubelets' own
/// Leases are 500. The node notices within this time that history went backwards.
const INTERVAL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lease_that_is_gone_or_of_an_earlier_version_is_older_than_it_was_written() {
        let cases = [
            (None, true),
            (Some("99"), true),
            (Some("100"), false),
            (Some("101"), false),
            (Some("opaque"), false),
        ];
        for (found, expected) in cases {
            assert_eq!(is_older(found, 100), expected, "{found:?}");
        }
    }
}
