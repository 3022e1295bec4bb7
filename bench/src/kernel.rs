//! The route reconciler against a bare netlink loop, in network namespaces of their own: the quick look
//! that `cairn-bench kernel` takes at length.

use cairn_kernel::route::Family;

use crate::cpu_time::nanos_each;
use crate::fib::bed::{self, Bed, Sample, Samples};
use crate::fib::cell::{Cell, Shape};
use crate::fib::{ours, raw};
use crate::table::Row;
use crate::{Extent, Result, feed};

/// Measures all rows of this group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    bed::remove_left_behind(bed::PREFIX)?;
    let routes = extent.pick(100_000, 2000);
    let mut rows = Vec::new();
    for (family, short) in Family::ALL.into_iter().zip(["IPv4", "IPv6"]) {
        let cell = Cell { family, shape: Shape::Plain, routes, hops: GATEWAYS };
        let row = |(action, reference)| {
            let name = format!("{action} {} {short}", feed::thousands(routes));
            Row::new("kernel", name, "ns/route", reference)
        };
        let mut of_cell =
            [("install", "bare netlink"), ("resync", "bare dump"), ("delete", "bare netlink")]
                .map(row);
        for run in 0..extent.pick(7, 1) {
            let before = if run % 2 == 0 { Some(raw::run(&Bed::new(cell)?)?) } else { None };
            let ours = ours::run(&Bed::new(cell)?)?;
            let bare = match before {
                Some(bare) => bare,
                None => raw::run(&Bed::new(cell)?)?,
            };
            let parts = |samples: Samples| [samples.install, samples.resync, samples.remove];
            for ((row, ours), bare) in of_cell.iter_mut().zip(parts(ours)).zip(parts(bare)) {
                let nanos = |sample: Sample| nanos_each(sample.cpu, routes as usize);
                if let (Some(ours), Some(bare)) = (ours, bare) {
                    row.push(nanos(ours), nanos(bare));
                }
            }
        }
        rows.extend(of_cell);
    }
    Ok(rows)
}

const GATEWAYS: u32 = 7;
