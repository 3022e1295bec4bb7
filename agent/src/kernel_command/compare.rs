//! Wanted against present, in words. Pure.

use std::collections::BTreeMap;

use cairn_kernel::POD_ROUTE_PROTOCOL;
use cairn_kernel::pod::PodAttachment;
use cairn_kernel::reconcile::Difference;
use cairn_kernel::route::{NextHop, Route, RouteKey, TABLE_MAIN, Target};
use ipnet::IpNet;
use serde::Serialize;

use super::record::{Origin, StuckRoute, WantedRoute, WriteFailure};

/// How a thing stands in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As wanted.
    Installed,
    /// Wanted, and not there.
    Missing,
    /// There, and not as wanted.
    Differs,
    /// There, with Cairn's mark, and nobody wants it.
    Extra,
}

/// A route of ours with its provenance.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The destination.
    pub prefix: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
    /// The protocol number.
    pub protocol: u8,
    /// How it stands.
    pub state: State,
    /// Where it leads in the kernel; where it should, when it is not there.
    pub to: String,
    /// Where it should lead, when it leads elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// Who wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Provenance>,
    /// Why it is not as wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The kernel's refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<WriteFailure>,
}

/// Who wants a route.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Provenance {
    /// A pod of this node.
    Pod(PodName),
    /// What the daemon says.
    #[serde(untagged)]
    Daemon(Origin),
}

/// A pod as its interface knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodName {
    /// The host's end of its interface.
    pub interface: String,
    /// Its container.
    pub container: Option<String>,
    /// Its UID.
    pub uid: Option<String>,
}

/// Something that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How it stands.
    pub state: State,
    /// What it is: route, pod route, device, address, neighbour, forwarding entry, next-hop object.
    pub what: String,
    /// Which one.
    pub name: String,
    /// What is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// What is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<String>,
    /// Why, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Parts of tunnels by what they are and their names, with what they do.
pub type Parts = BTreeMap<(String, String), String>;

/// The names of what the kernel numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Links by their indexes.
    pub links: BTreeMap<u32, String>,
    /// The next hops of next-hop objects by their numbers.
    pub objects: BTreeMap<u32, Vec<NextHop>>,
}

impl Names {
    /// Where a route leads, as `ip route` writes it.
    pub fn target(&self, target: &Target) -> String {
        match target {
            Target::Unicast(hops) => self.hops(hops),
            Target::Object(id) => match self.objects.get(id) {
                Some(hops) => format!("nhid {id} {}", self.hops(hops)),
                None => format!("nhid {id}"),
            },
            Target::Blackhole => "blackhole".into(),
            Target::Other(kind) => format!("of type {kind}"),
        }
    }

    fn hops(&self, hops: &[NextHop]) -> String {
        let texts = hops.iter().map(|hop| {
            let via = hop.gateway.map(|gateway| format!("via {gateway} ")).unwrap_or_default();
            let weight = match hops.len() {
                0 | 1 => String::new(),
                _ => format!(" weight {}", hop.weight),
            };
            let onlink = if hop.onlink { " onlink" } else { "" };
            format!("{via}dev {}{weight}{onlink}", self.link(hop.ifindex))
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    fn link(&self, index: u32) -> String {
        let gone = || format!("link {index} (gone)");
        self.links.get(&index).cloned().unwrap_or_else(gone)
    }

    fn route(&self, route: &Route) -> String {
        let target = self.target(&route.target);
        match route.prefsrc {
            Some(source) => format!("{target} src {source}"),
            None => target,
        }
    }
}

/// The row of a route that the daemon wants; `present` is what of ours is under its key.
pub fn row(wanted: &WantedRoute, protocol: u8, present: Option<&Route>, names: &Names) -> Row {
    let route = wanted.route(protocol).map(|route| Route {
        target: route.target.normalized(),
        prefix: route.prefix.trunc(),
        ..route
    });
    let state = match (&route, present) {
        (Some(route), Some(present)) if does_the_same(route, present) => State::Installed,
        (Some(_), Some(_)) => State::Differs,
        (None, Some(_)) => State::Extra,
        (_, None) => State::Missing,
    };
    let should = route.as_ref().map(|route| names.route(route));
    let to = present.map(|present| names.route(present)).or_else(|| should.clone());
    Row {
        prefix: wanted.prefix,
        table: wanted.table,
        metric: wanted.metric,
        protocol: present.map_or(protocol, |present| present.protocol),
        state,
        to: to.unwrap_or_else(|| "-".into()),
        wanted: should.filter(|_| state == State::Differs),
        origin: Some(Provenance::Daemon(wanted.origin.clone())),
        why: wanted.waits.clone(),
        failure: wanted.failure.clone(),
    }
}

fn does_the_same(wanted: &Route, present: &Route) -> bool {
    (&wanted.target, wanted.prefsrc, wanted.protocol)
        == (&present.target, present.prefsrc, present.protocol)
}

/// The row of a route of ours that nobody wants.
pub fn unexplained(present: &Route, stuck: Option<&StuckRoute>, names: &Names) -> Row {
    Row {
        prefix: present.prefix,
        table: present.table,
        metric: present.metric,
        protocol: present.protocol,
        state: State::Extra,
        to: names.route(present),
        wanted: None,
        origin: None,
        why: None,
        failure: stuck.map(|stuck| stuck.failure.clone()),
    }
}

/// The rows of routes to pods: those that are there, of which some may lead to no pod, and those that
/// should be.
pub fn pod_rows(routes: &[Route], pods: &[PodAttachment], names: &Names) -> Vec<Row> {
    let leads_to = |route: &Route, pod: &PodAttachment| match &route.target {
        Target::Unicast(hops) => hops.iter().any(|hop| hop.ifindex == pod.ifindex),
        _ => false,
    };
    let there = routes.iter().map(|route| {
        let pod = pods.iter().find(|pod| leads_to(route, pod));
        let mut row = unexplained(route, None, names);
        if let Some(pod) = pod {
            row.state = State::Installed;
            row.origin = Some(Provenance::Pod(PodName::of(pod)));
        }
        row
    });
    let missing = pods.iter().flat_map(|pod| {
        pod.missing_routes().into_iter().map(|address| Row {
            prefix: IpNet::from(address),
            table: TABLE_MAIN,
            metric: 0,
            protocol: POD_ROUTE_PROTOCOL,
            state: State::Missing,
            to: format!("dev {}", pod.host_ifname),
            wanted: None,
            origin: Some(Provenance::Pod(PodName::of(pod))),
            why: None,
            failure: None,
        })
    });
    there.chain(missing).collect()
}

impl PodName {
    fn of(pod: &PodAttachment) -> PodName {
        PodName {
            interface: pod.host_ifname.clone(),
            container: pod.alias.as_ref().map(|alias| alias.container_id.clone()),
            uid: pod.alias.as_ref().and_then(|alias| alias.pod_uid.clone()),
        }
    }
}

/// A route that is not as wanted; `why` is what the daemon says about its key.
pub fn route_finding(difference: &Difference, why: Option<String>, names: &Names) -> Finding {
    let Difference { key, wanted, present, copies, foreign } = difference;
    let state = match (wanted, present) {
        (Some(_), None) => State::Missing,
        (Some(_), Some(_)) => State::Differs,
        (None, _) => State::Extra,
    };
    let renumbered = wanted.as_ref().zip(present.as_ref());
    let renumbered =
        renumbered.is_some_and(|(wanted, present)| wanted.protocol != present.protocol);
    let words = |route: &Route| match renumbered {
        true => format!("{} proto {}", names.route(route), route.protocol),
        false => names.route(route),
    };
    let noted = match (foreign, copies) {
        (true, _) => Some("a route of another program is in its place".to_owned()),
        (false, 2..) => Some(format!("there are {copies} of it: another program has added some")),
        _ => None,
    };
    Finding {
        state,
        what: "route".into(),
        name: key.to_string(),
        wanted: wanted.as_ref().map(words),
        present: present.as_ref().map(words),
        why: why.or(noted),
    }
}

/// A learned route that leads nowhere yet.
pub fn waiting(key: &RouteKey, why: &str) -> Finding {
    Finding {
        state: State::Missing,
        what: "route".into(),
        name: key.to_string(),
        wanted: None,
        present: None,
        why: Some(why.into()),
    }
}

/// A route to a pod that is not as wanted.
pub fn pod_finding(row: &Row) -> Option<Finding> {
    let (wanted, present) = match row.state {
        State::Installed => return None,
        State::Missing | State::Differs => (Some(row.to.clone()), None),
        State::Extra => (None, Some(row.to.clone())),
    };
    let name = row.prefix.to_string();
    Some(Finding { state: row.state, what: "pod route".into(), name, wanted, present, why: None })
}

/// The parts of tunnels and the objects on uplinks that are not as wanted.
pub fn tunnel_findings(wanted: &Parts, present: &Parts) -> Vec<Finding> {
    let finding =
        |state, (what, name): &(String, String), wanted: Option<&String>, found| Finding {
            state,
            what: what.clone(),
            name: name.clone(),
            wanted: wanted.cloned(),
            present: Option::<&String>::cloned(found),
            why: None,
        };
    let not_as_wanted = wanted.iter().filter_map(|(key, words)| match present.get(key) {
        None => Some(finding(State::Missing, key, Some(words), None)),
        Some(found) if found != words => {
            Some(finding(State::Differs, key, Some(words), Some(found)))
        }
        Some(_) => None,
    });
    let extra = present.iter().filter(|(key, _)| !wanted.contains_key(*key));
    let extra = extra.map(|(key, words)| finding(State::Extra, key, None, Some(words)));
    not_as_wanted.chain(extra).collect()
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
