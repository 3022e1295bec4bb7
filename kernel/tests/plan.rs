//! Plans and the reconciler against a model of the kernel's FIB. No root is needed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use cairn_kernel::reconcile::RouteReconciler;
use cairn_kernel::route::{self, Change, NextHop, Route, RouteEvent, RouteKey, TABLE_MAIN, Target};
use cairn_kernel::{Errno, Error, Refusal};
use proptest::prelude::*;

const OURS: u8 = 222;

/// A FIB as IPv4 has it: several routes may stand under one key, the first counts.
#[derive(Clone, Debug, Default)]
struct Fib {
    routes: Vec<Route>,
    /// Next hops through this interface are refused.
    dead_link: Option<u32>,
    writes: usize,
}

impl Fib {
    fn first(&self, key: RouteKey) -> Option<usize> {
        self.routes.iter().position(|route| route.key() == key)
    }

    fn refuses(&self, route: &Route) -> bool {
        let Target::Unicast(hops) = &route.target else { return false };
        hops.iter().any(|hop| Some(hop.ifindex) == self.dead_link)
    }

    fn write(&mut self, change: &Change) -> Result<(), Errno> {
        match change {
            Change::Create(route) | Change::Replace(route) if self.refuses(route) => {
                return Err(Errno::NETDOWN);
            }
            Change::Create(route) => {
                if self.first(route.key()).is_some() {
                    return Err(Errno::EXIST);
                }
                self.routes.push(route.clone());
            }
            Change::Replace(route) => {
                let at = self.first(route.key()).ok_or(Errno::NOENT)?;
                self.routes[at] = route.clone();
            }
            Change::Delete { key, protocol } => {
                let at = self
                    .routes
                    .iter()
                    .position(|route| route.key() == *key && route.protocol == *protocol)
                    .ok_or(Errno::SRCH)?;
                self.routes.remove(at);
            }
        }
        self.writes += 1;
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            if let Err(errno) = self.write(change) {
                refusals.push(Refusal { index, errno, text: None });
            }
        }
        refusals
    }

    fn foreign(&self) -> Vec<Route> {
        self.routes.iter().filter(|route| route.protocol != OURS).cloned().collect()
    }

    fn under(&self, key: RouteKey) -> Vec<&Route> {
        self.routes.iter().filter(|route| route.key() == key).collect()
    }
}

fn some_route(number: u8, metric: u32, ifindex: u32, protocol: u8) -> Route {
    Route {
        prefix: format!("10.0.{number}.0/24").parse().unwrap(),
        table: TABLE_MAIN,
        metric,
        protocol,
        target: Target::Unicast(vec![NextHop::link(ifindex)]),
        prefsrc: None,
    }
}

fn routes(protocols: impl Strategy<Value = u8>) -> impl Strategy<Value = Route> {
    (0..4u8, 198..200u32, 1..4u32, protocols).prop_map(|(number, metric, ifindex, protocol)| {
        some_route(number, metric, ifindex, protocol)
    })
}

fn one_per_key(routes: Vec<Route>) -> Vec<Route> {
    let mut kept: Vec<Route> = Vec::new();
    for route in routes {
        if kept.iter().all(|earlier| earlier.key() != route.key()) {
            kept.push(route);
        }
    }
    kept
}

/// What a kernel must hold under every key when nothing is left to do.
fn assert_settled(wanted: &[Route], fib: &Fib) {
    for number in 0..4 {
        for metric in 198..200 {
            let key = some_route(number, metric, 1, OURS).key();
            let present = fib.under(key);
            let ours: Vec<_> = present.iter().filter(|route| route.protocol == OURS).collect();
            match wanted.iter().find(|route| route.key() == key) {
                None => assert!(ours.is_empty(), "{key}: unwanted {ours:?}"),
                Some(_) if present.len() > ours.len() => {}
                Some(route) => assert_eq!(present, [route], "{key}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leads_where_it_should_and_nowhere_else(
        wanted in prop::collection::vec(routes(Just(OURS)), 0..8).prop_map(one_per_key),
        present in prop::collection::vec(routes(prop_oneof![Just(OURS), Just(77)]), 0..12),
    ) {
        let mut fib = Fib { routes: present, ..Fib::default() };
        let foreign = fib.foreign();
        let plan = route::plan(&wanted, &fib.routes, OURS);

        // The naive count of differing keys, where no key has two routes.
        let simple = one_per_key(fib.routes.clone()).len() == fib.routes.len();
        let differing = wanted.iter().filter(|route| fib.under(route.key()).is_empty()).count()
            + fib.routes.iter().filter(|present| {
                present.protocol == OURS
                    && wanted.iter().find(|route| route.key() == present.key()) != Some(present)
            }).count();
        if simple {
            prop_assert_eq!(plan.changes.len(), differing);
        }

        let refusals = fib.apply(&plan.changes);
        prop_assert_eq!(refusals, vec![]);
        prop_assert_eq!(fib.foreign(), foreign);
        assert_settled(&wanted, &fib);
        for key in &plan.clashes {
            prop_assert!(fib.under(*key).iter().any(|route| route.protocol != OURS));
        }
        prop_assert_eq!(route::plan(&wanted, &fib.routes, OURS).changes, vec![]);
    }
}

/// One thing that happens to a reconciler and its kernel.
#[derive(Clone, Debug)]
enum Step {
    Want(Route),
    Unwant(Route),
    /// Somebody adds a route behind or in place of the first; the watch says so, or does not.
    Add {
        route: Route,
        replace: bool,
        told: bool,
    },
    /// Somebody removes the first route of a key.
    Remove {
        key: RouteKey,
        told: bool,
    },
    DeadLink(Option<u32>),
    Resync,
    Wait(u64),
    /// Writes; `false`: the answers are lost.
    Write(bool),
    AllowSweep,
}

fn steps() -> impl Strategy<Value = Step> {
    let anybody = || routes(prop_oneof![Just(OURS), Just(77)]);
    prop_oneof![
        6 => routes(Just(OURS)).prop_map(Step::Want),
        3 => routes(Just(OURS)).prop_map(Step::Unwant),
        4 => (anybody(), any::<bool>(), any::<bool>())
            .prop_map(|(route, replace, told)| Step::Add { route, replace, told }),
        4 => (anybody(), any::<bool>())
            .prop_map(|(route, told)| Step::Remove { key: route.key(), told }),
        1 => prop::option::of(1..4u32).prop_map(Step::DeadLink),
        1 => Just(Step::Resync),
        2 => (0..40_000u64).prop_map(Step::Wait),
        8 => prop::bool::weighted(0.9).prop_map(Step::Write),
        1 => Just(Step::AllowSweep),
    ]
}

/// The reconciler's own loop, with the model in the kernel's place.
fn write(reconciler: &mut RouteReconciler, fib: &mut Fib, now: Instant, answered: bool) {
    for _ in 0..20 {
        if reconciler.needs_resync() {
            reconciler.resync(fib.routes.clone());
        }
        let changes = reconciler.changes(now);
        if changes.is_empty() && !reconciler.is_dirty() {
            return;
        }
        let refusals = fib.apply(&changes);
        let outcome = if answered { Ok(refusals) } else { Err(Error::Overrun) };
        reconciler.applied(now, outcome);
        if !answered {
            return;
        }
    }
    panic!("writing never ends");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_kernel_ends_as_wanted(
        history in prop::collection::vec(steps(), 1..60),
        present in prop::collection::vec(routes(prop_oneof![Just(OURS), Just(77)]), 0..6),
    ) {
        let mut fib = Fib { routes: present, ..Fib::default() };
        let mut reconciler = RouteReconciler::new(OURS);
        let mut wanted: Vec<Route> = Vec::new();
        let mut ever_wanted = HashSet::new();
        let mut now = Instant::now();
        let mut swept = false;
        for step in history {
            match step {
                Step::Want(route) => {
                    wanted.retain(|earlier| earlier.key() != route.key());
                    wanted.push(route.clone());
                    ever_wanted.insert(route.key());
                    reconciler.set(route.key(), Some(route));
                }
                Step::Unwant(route) => {
                    wanted.retain(|earlier| earlier.key() != route.key());
                    reconciler.set(route.key(), None);
                }
                // The kernel refuses a route that is there already in every respect.
                Step::Add { route, .. } if fib.routes.contains(&route) => {}
                Step::Add { route, replace, told } => {
                    let at = fib.first(route.key()).filter(|_| replace);
                    match at {
                        Some(at) => fib.routes[at] = route.clone(),
                        None => fib.routes.push(route.clone()),
                    }
                    if told {
                        reconciler.observe(&RouteEvent::Added { route, replaced: at.is_some() });
                    } else {
                        reconciler.request_resync();
                    }
                }
                Step::Remove { key, told } => {
                    if let Some(at) = fib.first(key) {
                        let route = fib.routes.remove(at);
                        if told {
                            reconciler.observe(&RouteEvent::Removed(route));
                        } else {
                            reconciler.request_resync();
                        }
                    }
                }
                Step::DeadLink(link) => fib.dead_link = link,
                Step::Resync => reconciler.request_resync(),
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Write(answered) => {
                    let foreign = fib.foreign();
                    let unwanted: Vec<Route> = fib.routes.iter().filter(|route| {
                        route.protocol == OURS
                            && wanted.iter().all(|wanted| wanted.key() != route.key())
                    }).cloned().collect();
                    write(&mut reconciler, &mut fib, now, answered);
                    prop_assert_eq!(fib.foreign(), foreign);
                    for route in unwanted {
                        let kept = fib.routes.contains(&route);
                        let withdrawn = ever_wanted.contains(&route.key());
                        prop_assert!(swept || kept || withdrawn, "swept early: {:?}", route);
                    }
                }
                Step::AllowSweep => {
                    swept = true;
                    reconciler.allow_sweep();
                }
            }
            // Every failure is due some day or waits for somebody else's route to go.
            for (key, failure) in reconciler.failures() {
                prop_assert!(failure.retry_at.is_some() || failure.errno == Errno::EXIST, "{}", key);
            }
        }
        let foreign = fib.foreign();
        fib.dead_link = None;
        reconciler.allow_sweep();
        now += Duration::from_secs(60);
        write(&mut reconciler, &mut fib, now, true);
        now += Duration::from_secs(60);
        write(&mut reconciler, &mut fib, now, true);
        assert_settled(&wanted, &fib);
        prop_assert_eq!(fib.foreign(), foreign);
        let writes = fib.writes;
        reconciler.request_resync();
        write(&mut reconciler, &mut fib, now, true);
        prop_assert_eq!(fib.writes, writes, "nothing differs, nothing is written");
        let clashes = reconciler.failures().count();
        prop_assert_eq!(reconciler.counts().installed + clashes, wanted.len());
        prop_assert_eq!(reconciler.next_deadline(), None);
    }
}

#[test]
fn backoff_doubles_to_its_limit_and_is_visible() {
    let start = Instant::now();
    let mut now = start;
    let mut fib = Fib { dead_link: Some(1), ..Fib::default() };
    let mut reconciler = RouteReconciler::new(OURS);
    let dead = some_route(1, 198, 1, OURS);
    let alive = some_route(2, 198, 2, OURS);
    reconciler.set(dead.key(), Some(dead.clone()));
    reconciler.set(alive.key(), Some(alive.clone()));
    let mut waits = Vec::new();
    for attempt in 1..=11 {
        write(&mut reconciler, &mut fib, now, true);
        let (key, failure) = reconciler.failures().next().unwrap();
        assert_eq!((*key, failure.errno, failure.attempts), (dead.key(), Errno::NETDOWN, attempt));
        assert_eq!(failure.since, start);
        let due = reconciler.next_deadline().unwrap();
        waits.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    assert!(reconciler.is_installed(&alive.key()), "one failure holds back nothing else");

    // Something else wanted under the key is tried at once.
    let other = some_route(1, 198, 2, OURS);
    reconciler.set(other.key(), Some(other.clone()));
    assert!(reconciler.is_dirty());
    assert_eq!(reconciler.failures().count(), 0);
    write(&mut reconciler, &mut fib, now, true);
    assert!(reconciler.is_installed(&other.key()));
}

#[test]
fn unanswered_writes_lead_to_a_dump() {
    let mut reconciler = RouteReconciler::new(OURS);
    reconciler.resync([]);
    let route = some_route(1, 198, 1, OURS);
    reconciler.set(route.key(), Some(route.clone()));
    let now = Instant::now();
    assert_eq!(reconciler.changes(now), [Change::Create(route.clone())]);
    assert_eq!(reconciler.changes(now), [], "the outcome of the first was never told");
    assert!(reconciler.needs_resync());
    reconciler.resync([route.clone()]);
    assert!(reconciler.is_installed(&route.key()));
    assert_eq!(reconciler.changes(now), []);
}

/// A node that dies while this agent starts must not leave its route here until every other input
/// has arrived.
#[test]
fn a_withdrawn_route_goes_before_the_sweep_and_an_unclaimed_one_stays() {
    let now = Instant::now();
    let route = |prefix: &str| Route {
        prefix: prefix.parse().expect("a network"),
        table: TABLE_MAIN,
        metric: 198,
        protocol: 222,
        target: Target::Blackhole,
        prefsrc: None,
    };
    let (kept, withdrawn) = (route("10.0.0.0/24"), route("10.0.1.0/24"));
    let mut reconciler = RouteReconciler::new(222);
    reconciler.resync([kept.clone(), withdrawn.clone()]);
    reconciler.set(withdrawn.key(), Some(withdrawn.clone()));
    assert_eq!(reconciler.changes(now), []);
    reconciler.set(withdrawn.key(), None);
    let delete = |route: &Route| Change::Delete { key: route.key(), protocol: 222 };
    let changes = reconciler.changes(now);
    assert_eq!(changes, [delete(&withdrawn)]);
    reconciler.applied(now, Ok(Vec::new()));
    reconciler.allow_sweep();
    assert_eq!(reconciler.changes(now), [delete(&kept)]);
}
