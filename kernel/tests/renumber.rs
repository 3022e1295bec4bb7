//! Routes of a former protocol number: they are ours until none is left, and nobody else's ever is.

use std::time::Instant;

use cairn_kernel::ROUTE_PROTOCOL;
use cairn_kernel::reconcile::RouteReconciler;
use cairn_kernel::route::{Change, NextHop, Route, RouteEvent, TABLE_MAIN, Target};

const NEW: u8 = 150;

fn route(prefix: &str, protocol: u8) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        table: TABLE_MAIN,
        metric: 198,
        protocol,
        target: Target::Unicast(vec![NextHop::link(1)]),
        prefsrc: None,
    }
}

/// Carries out what is due, with the kernel's consent.
fn write(reconciler: &mut RouteReconciler) -> Vec<Change> {
    let now = Instant::now();
    let changes = reconciler.changes(now);
    reconciler.applied(now, Ok(Vec::new()));
    changes
}

#[test]
fn what_is_wanted_is_replaced_and_the_rest_removed_by_its_own_number() {
    let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    let (kept, stale) =
        (route("10.0.0.0/24", ROUTE_PROTOCOL), route("10.0.1.0/24", ROUTE_PROTOCOL));
    reconciler.resync([kept.clone(), stale.clone()]);
    reconciler.set(kept.key(), Some(kept.clone()));
    assert_eq!(write(&mut reconciler), []);

    reconciler.set_protocol(NEW);
    assert!(reconciler.needs_resync(), "routes with the new number were others' until now");
    let other = route("10.9.0.0/24", 12);
    reconciler.resync([kept.clone(), stale.clone(), other]);
    let renumbered = Route { protocol: NEW, ..kept.clone() };
    assert_eq!(write(&mut reconciler), [Change::Replace(renumbered.clone())]);
    assert_eq!(write(&mut reconciler), []);
    assert!(reconciler.is_installed(&kept.key()));
    assert!(!reconciler.forget_former(), "one is left");
    assert!(reconciler.is_ours(ROUTE_PROTOCOL));

    reconciler.allow_sweep();
    let delete = Change::Delete { key: stale.key(), protocol: ROUTE_PROTOCOL };
    assert_eq!(write(&mut reconciler), [delete]);
    assert!(reconciler.forget_former());
    assert_eq!(reconciler.protocols().collect::<Vec<_>>(), [NEW]);
    // From now on such routes are others'.
    let event = RouteEvent::Added { route: stale, replaced: false };
    assert!(!reconciler.observe(&event));
    assert_eq!(write(&mut reconciler), []);
}

#[test]
fn an_adopted_number_is_ours_as_the_current_one_is() {
    let mut reconciler = RouteReconciler::new(NEW);
    reconciler.adopt(ROUTE_PROTOCOL);
    let former = route("fd00::/64", ROUTE_PROTOCOL);
    let wanted = route("10.0.0.0/24", NEW);
    reconciler.set(wanted.key(), Some(wanted.clone()));
    let there = Route { protocol: ROUTE_PROTOCOL, ..wanted.clone() };
    reconciler.resync([former.clone(), there]);
    assert_eq!(write(&mut reconciler), [Change::Replace(wanted.clone())], "nothing is swept yet");
    // Somebody brings the former one back: it is ours, and repaired.
    let again = Route { protocol: ROUTE_PROTOCOL, ..wanted.clone() };
    let event = RouteEvent::Added { route: again, replaced: true };
    assert!(reconciler.observe(&event));
    assert_eq!(write(&mut reconciler), [Change::Replace(wanted)]);
    // Back to the number before: what was former is current, and the other way round.
    reconciler.set_protocol(ROUTE_PROTOCOL);
    assert_eq!(reconciler.protocols().collect::<Vec<_>>(), [ROUTE_PROTOCOL, NEW]);
}
