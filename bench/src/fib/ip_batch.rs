//! `ip -batch`, as a script would call it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cairn_kernel::route::Family;
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL};

use super::bed::{Bed, Sample, Samples};
use super::cell::{Load, Moment, Shape, object};
use crate::Result;

/// One run. The lines are written beforehand; starting the program counts.
pub fn run(bed: &Bed) -> Result<Samples> {
    let count = bed.load.prefixes.len();
    let install = batch(bed, &lines(&bed.load, "add", Moment::Before))?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let show = format!("route show proto {ROUTE_PROTOCOL}");
    let resync = ip(bed, show.split(' ').map(String::from).collect())?;
    let replace = batch(bed, &lines(&bed.load, "replace", Moment::After))?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let remove = batch(bed, &lines(&bed.load, "del", Moment::After))?;
    bed.expect_routes(ROUTE_PROTOCOL, 0)?;
    let [install, resync, replace, remove] = [install, resync, replace, remove].map(Some);
    Ok(Samples { install, resync, replace, remove })
}

fn lines(load: &Load, verb: &str, moment: Moment) -> String {
    let mut text = String::new();
    for (index, prefix) in load.prefixes.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "route {verb} {prefix} proto {ROUTE_PROTOCOL} metric {ROUTE_METRIC}");
        match load.cell.shape {
            _ if verb == "del" => {}
            Shape::Object => {
                let _ = write!(text, " nhid {}", object(load.hop(index, moment)));
            }
            Shape::Plain => {
                for gateway in load.gateways(index, moment) {
                    let _ = write!(text, " via {gateway} dev up");
                }
            }
            Shape::Ecmp => {
                for gateway in load.gateways(index, moment) {
                    let _ = write!(text, " nexthop via {gateway} dev up");
                }
            }
        }
        text.push('\n');
    }
    text
}

fn batch(bed: &Bed, lines: &str) -> Result<Sample> {
    let file = std::env::temp_dir().join(format!("{}.batch", bed.name));
    std::fs::write(&file, lines)?;
    let done =
        ip(bed, vec![PathBuf::from("-batch").display().to_string(), file.display().to_string()]);
    std::fs::remove_file(&file)?;
    done
}

fn ip(bed: &Bed, arguments: Vec<String>) -> Result<Sample> {
    let family = match bed.load.cell.family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let (began, before) = (Instant::now(), children()?);
    let mut command = Command::new("ip");
    command.arg(family).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = bed.netns.run(|| command.output())??;
    let sample = Sample { cpu: children()?.saturating_sub(before), wall: began.elapsed() };
    match output.status.success() {
        true => Ok(sample),
        false => Err(format!("ip: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// CPU time of all processes that this one has waited for.
fn children() -> Result<Duration> {
    // SAFETY: all zeros are a value of this structure of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes to the structure that it is given and to nothing else.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let time = |time: libc::timeval| {
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs() as u32 * 1000)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}
