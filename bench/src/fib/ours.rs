//! Our reconciler, from its first `set` to the last acknowledgement.

use std::time::Instant;

use cairn_kernel::ROUTE_PROTOCOL;
use cairn_kernel::reconcile::{Pass, RouteReconciler};
use cairn_kernel::route::{Route, RouteKey, RouteSocket};

use super::bed::{Bed, Samples, sample};
use super::cell::Moment;
use crate::Result;
use crate::memory::held_by;

/// One run.
pub fn run(bed: &Bed) -> Result<Samples> {
    let count = bed.load.prefixes.len();
    let mut socket = RouteSocket::open_in(&bed.netns)?;
    let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
    let now = Instant::now();
    let mut apply = |reconciler: &mut RouteReconciler, expected: Pass| -> Result<()> {
        let seen = reconciler.apply(&mut socket, now)?;
        match seen == expected {
            true => Ok(()),
            false => Err(format!("the reconciler did {seen:?}, not {expected:?}").into()),
        }
    };
    // What is handed to `set` is the caller's cost.
    let wanted = keyed(bed, Moment::Before);
    let keys: Vec<RouteKey> = wanted.iter().map(|(key, _)| *key).collect();
    let (install, ()) = sample(|| {
        wanted.into_iter().for_each(|(key, route)| reconciler.set(key, Some(route)));
        apply(&mut reconciler, Pass { resyncs: 1, created: count, ..Pass::default() })
    })?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let (resync, ()) = sample(|| {
        reconciler.request_resync();
        apply(&mut reconciler, Pass { resyncs: 1, ..Pass::default() })
    })?;
    let wanted = keyed(bed, Moment::After);
    let (replace, ()) = sample(|| {
        wanted.into_iter().for_each(|(key, route)| reconciler.set(key, Some(route)));
        apply(&mut reconciler, Pass { replaced: count, ..Pass::default() })
    })?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let (remove, ()) = sample(|| {
        keys.into_iter().for_each(|key| reconciler.set(key, None));
        apply(&mut reconciler, Pass { deleted: count, ..Pass::default() })
    })?;
    bed.expect_routes(ROUTE_PROTOCOL, 0)?;
    let [install, resync, replace, remove] = [install, resync, replace, remove].map(Some);
    Ok(Samples { install, resync, replace, remove })
}

fn keyed(bed: &Bed, moment: Moment) -> Vec<(RouteKey, Route)> {
    bed.load.routes(moment).into_iter().map(|route| (route.key(), route)).collect()
}

/// Octets a route that a reconciler holds when all routes are in the kernel, as after a restart.
pub fn octets_each(bed: &Bed) -> Result<f64> {
    let count = bed.load.prefixes.len();
    let mut socket = RouteSocket::open_in(&bed.netns)?;
    let now = Instant::now();
    let adopt = |socket: &mut RouteSocket| {
        let mut reconciler = RouteReconciler::new(ROUTE_PROTOCOL);
        for route in bed.load.routes(Moment::Before) {
            reconciler.set(route.key(), Some(route));
        }
        let pass = reconciler.apply(socket, now);
        (reconciler, pass)
    };
    // What the socket needs for writing is no part of it.
    let (first, pass) = adopt(&mut socket);
    pass?;
    drop(first);
    let (held, (reconciler, pass)) = held_by(|| adopt(&mut socket));
    if pass? != (Pass { resyncs: 1, ..Pass::default() }) || reconciler.counts().installed != count {
        return Err("a restart writes routes".into());
    }
    Ok(held as f64 / count as f64)
}
