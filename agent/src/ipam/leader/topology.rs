//! How the nodes of each AS peer: the leader chooses, records it in the status of the BGPConfiguration,
//! and ends a change-over when no node would lose a route (docs/adr/0016).
//!
//! ```text
//!  BGPNodes, Leases of reflectors ──► wanted() ──► step() ──► status.topologies
//!  labels of BGPNodeStatuses ──► Progress ───────────┘
//! ```
//!
//! A write carries the version that was read, so of two that lead for a moment one is refused. What a
//! leader waits for it has seen itself: another one waits anew.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_api::{
    ANNOTATION_DRAIN, AsTopology, BGPConfiguration, BGPConfigurationStatus, BGPNodeSpec,
    ChangeOver, Condition, ConditionStatus, LABEL_ROUTE_REFLECTOR, Topology, TopologyMode,
    set_condition,
};
use cairn_ipam::reflectors::{
    MESH_NODES_MAX, Member, Progress, Reflectors, Wish, reflectors_of, step, wanted,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use super::election::Leadership;
use super::lists::Lists;
use crate::ipam::error::{IpamError, call};
use crate::ipam::{Shared, reads};
use crate::view::ClusterView;

/// Keeps the record for as long as it is polled.
pub(super) async fn run(shared: Shared, lists: Lists, mut leadership: watch::Receiver<Leadership>) {
    let mut topologies = Topologies::new(shared.clone(), lists);
    let rest = (shared.options.offline / 20).clamp(LOOK_INTERVAL, REST_INTERVAL);
    let own = &shared.options.node;
    let mut view = shared.view.clone();
    let mut look = Look::default();
    let mut due = Duration::ZERO;
    loop {
        if !leadership.borrow_and_update().leads(shared.now()) {
            topologies.forget();
            shared.reports.report("topology", Vec::new());
            due = Duration::ZERO;
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        }
        if shared.now() >= due {
            look = Look::of(&view.borrow_and_update(), own);
            let (soon, problems) = match topologies.pass().await {
                Ok(passed) => passed,
                // Written by somebody else meanwhile: the next look shows it.
                Err(error) if error.is_conflict() => (Some(LOOK_INTERVAL), Vec::new()),
                Err(error) => (None, vec![error.to_string()]),
            };
            shared.reports.report("topology", problems);
            due = shared.now().saturating_add(soon.unwrap_or(rest));
        }
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() { return },
            () = differs(&mut view, &look, own) => due = Duration::ZERO,
            () = tokio::time::sleep(due.saturating_sub(shared.now())) => {}
        }
    }
}

/// What should not wait for the next round: what people want, and a reflector of this AS that is gone.
#[derive(Default, PartialEq, Eq)]
struct Look {
    generation: Option<i64>,
    gone: Vec<String>,
}

impl Look {
    fn of(view: &ClusterView, own: &str) -> Look {
        let configuration = view.bgp_configuration.as_ref();
        let status = configuration.and_then(|object| object.status.as_ref());
        let asn = crate::plan::own_asn(view, own);
        let records = status.into_iter().flat_map(|status| &status.topologies);
        let recorded = records.filter(|record| Some(record.asn) == asn);
        let reflectors = recorded.flat_map(|record| reflectors_of(&record.current));
        let is_gone = |name: &String| name != own && !view.peer_nodes.contains_key(name.as_str());
        Look {
            generation: configuration.and_then(|object| object.metadata.generation),
            gone: reflectors.filter(is_gone).collect(),
        }
    }
}

async fn differs(
    view: &mut watch::Receiver<std::sync::Arc<ClusterView>>,
    before: &Look,
    own: &str,
) {
    while view.changed().await.is_ok() {
        if Look::of(&view.borrow_and_update(), own) != *before {
            return;
        }
    }
    std::future::pending().await
}

struct Topologies {
    shared: Shared,
    configurations: Api<BGPConfiguration>,
    lists: Lists,
    /// The version of the Lease of each reflector, and of each that was one until it fell silent, and
    /// since when it has been that.
    leases: BTreeMap<String, (String, Duration)>,
    /// The revision to which each AS changes over, and since when this leader has seen it do so.
    changing: BTreeMap<u32, (i64, Duration)>,
}

impl Topologies {
    fn new(shared: Shared, lists: Lists) -> Topologies {
        let configurations = Api::all(shared.client.clone());
        let (leases, changing) = Default::default();
        Topologies { shared, configurations, lists, leases, changing }
    }

    /// Another one leads meanwhile: what was seen counts no more.
    fn forget(&mut self) {
        self.leases.clear();
        self.changing.clear();
    }

    /// Looks at all nodes and brings the record up to date; returns when to look again, where that is
    /// soon, and what is wrong.
    async fn pass(&mut self) -> Result<(Option<Duration>, Vec<String>), IpamError> {
        let what = || "cannot list BGPConfigurations".to_owned();
        let params = reads::consistent(self.shared.options.rules);
        let Some(object) =
            call(what, self.configurations.list(&params)).await?.items.into_iter().next()
        else {
            self.forget();
            return Ok((None, self.unrecorded()));
        };
        let old = object.status.clone().unwrap_or_default();
        let wants_mesh = matches!(object.spec.topology, Topology::FullMesh | Topology::Disabled);
        if wants_mesh && old.topologies.is_empty() {
            return Ok((None, Vec::new()));
        }
        let members = self.members(&old.topologies).await?;
        let mut problems = Vec::new();
        let mut new = BGPConfigurationStatus { topologies: Vec::new(), ..old.clone() };
        let labels = match old.topologies.iter().any(|record| record.previous.is_some()) {
            true => self.lists.change_overs().await?,
            false => BTreeMap::new(),
        };
        let (mut waits, mut soon) = (Vec::new(), false);
        for (asn, members) in &members {
            let record = old.topologies.iter().find(|record| record.asn == *asn);
            let progress = record.map(|record| self.progress(record, members, &labels));
            let progress = progress.unwrap_or_default();
            let current = record.map(|record| reflectors_of(&record.current)).unwrap_or_default();
            let wanted = wanted(object.spec.topology, *asn, members, &current);
            problems.extend(unreflected(object.spec.topology, *asn, members, &wanted));
            let now = Timestamp::now().as_second();
            let next = step(*asn, record, &wanted, members, &progress, now);
            tell(*asn, record, next.as_ref(), &progress);
            let revision = |record: Option<&AsTopology>| record.map(|record| record.revision);
            let goes_on = revision(record) == revision(next.as_ref());
            // Of a choice that has just been made nobody has said anything.
            let progress = if goes_on { progress } else { Progress::default() };
            waits.extend(next.as_ref().and_then(|next| sentence(next, &progress)));
            let changes = next.as_ref().is_some_and(|next| next.previous.is_some());
            soon |= changes && !progress.waited;
            new.topologies.extend(next);
        }
        self.changing.retain(|asn, _| members.contains_key(asn));
        if !(new.topologies.is_empty() && old.topologies.is_empty()) {
            let generation = object.metadata.generation;
            set_condition(&mut new.conditions, settled(&waits, generation));
        }
        if new != old {
            self.write(&object, &new).await?;
        }
        Ok((soon.then_some(LOOK_INTERVAL), problems))
    }

    /// Without a BGPConfiguration there is no place for a record.
    fn unrecorded(&self) -> Vec<String> {
        let nodes = self.shared.view.borrow().peer_nodes.len().saturating_add(1);
        if nodes <= MESH_NODES_MAX {
            return Vec::new();
        }
        vec![format!(
            "{nodes} nodes of one AS peer each with each: create the BGPConfiguration default, so that \
             route reflectors can be chosen and recorded"
        )]
    }

    /// The nodes of each AS.
    async fn members(
        &mut self,
        records: &[AsTopology],
    ) -> Result<BTreeMap<u32, Vec<Member>>, IpamError> {
        let reflectors: Reflectors =
            records.iter().flat_map(|record| reflectors_of(&record.current)).collect();
        let mut silent = Reflectors::new();
        // One that was replaced for its silence does not come back by being forgotten.
        let known: Reflectors = reflectors.iter().chain(self.leases.keys()).cloned().collect();
        for name in known {
            // One that has none yet is as one that is heard.
            let Some(lease) = self.lists.lease(&name).await? else { continue };
            let now = self.shared.now();
            let (version, since) =
                self.leases.entry(name.clone()).or_insert_with(|| (lease.version.clone(), now));
            if *version != lease.version {
                (*version, *since) = (lease.version, now);
            }
            // A few renewals; see `lease`.
            let patience = (self.shared.options.offline / 6).clamp(SILENCE_MIN, SILENCE_MAX);
            if now.saturating_sub(*since) >= patience {
                silent.insert(name);
            }
        }
        let mut members: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
        let take = |name: String, spec: BGPNodeSpec| {
            let label = |key| spec.topology.get(key);
            let member = Member {
                zone: label(LABEL_ZONE).cloned(),
                wish: Wish::of_label(label(LABEL_ROUTE_REFLECTOR).map(String::as_str)),
                silent: silent.contains(&name),
                leaves: label(ANNOTATION_DRAIN).is_some(),
                name,
            };
            members.entry(spec.asn).or_default().push(member);
        };
        self.lists.bgp_nodes(take).await?;
        let is_there = |name: &String| members.values().flatten().any(|m| m.name == *name);
        self.leases
            .retain(|name, _| reflectors.contains(name) || silent.contains(name) && is_there(name));
        Ok(members)
    }

    /// How far the nodes of an AS are, by their labels.
    fn progress(
        &mut self,
        record: &AsTopology,
        members: &[Member],
        labels: &BTreeMap<String, String>,
    ) -> Progress {
        if record.previous.is_none() {
            self.changing.remove(&record.asn);
            return Progress::default();
        }
        let now = self.shared.now();
        let (revision, since) = self.changing.entry(record.asn).or_insert((record.revision, now));
        if *revision != record.revision {
            (*revision, *since) = (record.revision, now);
        }
        let label = |losing| ChangeOver { revision: record.revision, losing }.label();
        let (ready, losing) = (label(0), label(1));
        let waited = now.saturating_sub(*since) >= CHANGE_OVER_WAIT;
        let mut progress = Progress { waited, ..Progress::default() };
        for member in members {
            match labels.get(&member.name) {
                Some(said) if *said == ready => {}
                Some(said) if *said == losing => progress.losing.push(member.name.clone()),
                _ => progress.silent.push(member.name.clone()),
            }
        }
        progress
    }

    async fn write(
        &self,
        object: &BGPConfiguration,
        new: &BGPConfigurationStatus,
    ) -> Result<(), IpamError> {
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": {"conditions": new.conditions, "topologies": new.topologies},
        });
        let name = object.name_any();
        let what = || format!("cannot write the status of BGPConfiguration {name}");
        let params = PatchParams::default();
        call(what, self.configurations.patch_status(&name, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }
}

/// That reflectors are wanted, and every node says that it is none.
fn unreflected(
    topology: Topology,
    asn: u32,
    members: &[Member],
    wanted: &Reflectors,
) -> Option<String> {
    let all = members.iter().all(|member| member.wish == Wish::Never);
    let asked = topology == Topology::RouteReflectors
        || topology == Topology::Auto && members.len() > MESH_NODES_MAX;
    (all && asked && wanted.is_empty()).then(|| {
        format!(
            "AS {asn} has no route reflector, so each of its {} nodes peers with each: take the label \
             {LABEL_ROUTE_REFLECTOR}=false from some",
            members.len()
        )
    })
}

/// Tells the log what has changed.
fn tell(asn: u32, old: Option<&AsTopology>, new: Option<&AsTopology>, progress: &Progress) {
    let Some(new) = new else { return };
    if old.is_none_or(|old| old.revision != new.revision) {
        tracing::info!("AS {asn} {}", shape(new));
    } else if old.is_some_and(|old| old.previous.is_some()) && new.previous.is_none() {
        match progress.silent.is_empty() {
            true => tracing::info!("AS {asn} has changed over"),
            false => tracing::warn!(
                "AS {asn} has changed over; these nodes have not said whether they lose routes: {}",
                some_of(&progress.silent)
            ),
        }
    }
}

fn shape(record: &AsTopology) -> String {
    match record.current.mode {
        TopologyMode::FullMesh => "changes over to a full mesh".to_owned(),
        TopologyMode::RouteReflectors => {
            format!("peers with the route reflectors {}", record.current.reflectors.join(", "))
        }
    }
}

/// What is to be said of an AS that changes over. It changes seldom: every agent hears of it.
fn sentence(record: &AsTopology, progress: &Progress) -> Option<String> {
    record.previous.as_ref()?;
    let asn = record.asn;
    Some(match (progress.waited, progress.losing.is_empty()) {
        (true, false) => format!(
            "AS {asn} keeps the sessions of its topology before, without which {} would lose routes: \
             see whether their sessions with the reflectors are up",
            some_of(&progress.losing)
        ),
        _ => format!("AS {asn} {}", shape(record)),
    })
}

fn some_of(nodes: &[String]) -> String {
    let named: Vec<&str> = nodes.iter().take(NAMED_MAX).map(String::as_str).collect();
    match nodes.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn settled(waits: &[String], generation: Option<i64>) -> Condition {
    let settled = waits.is_empty();
    Condition {
        type_: "TopologySettled".to_owned(),
        status: if settled { ConditionStatus::True } else { ConditionStatus::False },
        reason: if settled { "Settled" } else { "ChangingOver" }.to_owned(),
        message: match settled {
            true => "nodes peer as recorded".to_owned(),
            false => waits.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; "),
        },
        last_transition_time: Time(Timestamp::now()),
        observed_generation: generation,
    }
}

const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// Between two looks while an AS changes over.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks otherwise.
const REST_INTERVAL: Duration = Duration::from_secs(60);
/// How long a node that says nothing is waited for: no agent runs there that could lose a route, or one
/// of a version that knows nothing of this.
const CHANGE_OVER_WAIT: Duration = Duration::from_secs(120);
/// A reflector whose Lease has not changed for so long is replaced: five renewals.
const SILENCE_MIN: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Nodes, and sentences, that are named.
const NAMED_MAX: usize = 5;
