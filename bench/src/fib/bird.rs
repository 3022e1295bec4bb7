//! BIRD 2's kernel protocol, fed by static routes.
//!
//! Two static protocols hold the same prefixes with different gateways, and the kernel protocol begins
//! disabled. Enabling it installs, `reload in` makes it read the kernel's table, disabling the preferred
//! static protocol replaces, disabling the kernel protocol removes. BIRD says nothing when it is done:
//! it is when the kernel has what it should and BIRD's CPU time stands still.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cairn_kernel::ROUTE_METRIC;
use cairn_kernel::route::Family;

use super::bed::{Bed, Sample, Samples};
use super::cell::{Load, Moment, Shape};
use crate::Result;
use crate::process::Process;

/// One run; `None` for objects, which BIRD 2 does not know.
pub fn run(bed: &Bed) -> Result<Option<Samples>> {
    if bed.load.cell.shape == Shape::Object {
        return Ok(None);
    }
    let count = bed.load.prefixes.len();
    let directory = std::env::temp_dir().join(&bed.name);
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("configuration"), configuration(&bed.load))?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &bed.name, "bird", "-f", "-c"]);
    command.arg(directory.join("configuration"));
    command.arg("-P").arg(directory.join("pid")).arg("-s").arg(directory.join(CONTROL));
    let bird =
        Bird { control: directory.join(CONTROL), process: Process::spawn(command, directory)? };
    bird.await_routes(2 * count)?;
    let install = bird.time("enable k", || bed.expect_routes(RTPROT_BIRD, count))?;
    let resync = bird.time("reload in k", || Ok(()))?;
    let replace = bird.time("disable s1", || bed.expect_routes(RTPROT_BIRD, count))?;
    let remove = bird.time("disable k", || bed.expect_routes(RTPROT_BIRD, 0))?;
    let [install, resync, replace, remove] = [install, resync, replace, remove].map(Some);
    Ok(Some(Samples { install, resync, replace, remove }))
}

struct Bird {
    process: Process,
    control: PathBuf,
}

impl Bird {
    /// Has it do something and waits until it is done.
    fn time(&self, order: &str, is_done: impl Fn() -> Result<()>) -> Result<Sample> {
        let (began, before) = (Instant::now(), self.process.cpu()?);
        self.order(order)?;
        loop {
            let (mut cpu, mut last) = (self.process.cpu()?, Instant::now());
            while last.elapsed() < STILL {
                std::thread::sleep(LOOK);
                let now = self.process.cpu()?;
                // It looks at its clock now and then.
                if now > cpu + NOTHING {
                    (cpu, last) = (now, Instant::now());
                }
            }
            match is_done() {
                Ok(()) => {
                    let wall = last.duration_since(began);
                    return Ok(Sample { cpu: cpu.saturating_sub(before), wall });
                }
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(format!("{order}: {error}\n{}", self.process.log()).into());
                }
                Err(_) => {}
            }
        }
    }

    /// Waits until the static routes are there.
    fn await_routes(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            // An error if it has ended, as after a look at its configuration.
            self.process.cpu()?;
            let said = self.order("show route count").unwrap_or_default();
            if said.contains(&format!("Total: {count} of {count} ")) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("BIRD says {said:?}\n{}", self.process.log()).into());
            }
            std::thread::sleep(STILL);
        }
    }

    fn order(&self, order: &str) -> Result<String> {
        let mut command = Command::new("birdc");
        let output = command.arg("-s").arg(&self.control).args(order.split(' ')).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(format!("birdc {order}: {said}").into()),
        }
    }
}

fn configuration(load: &Load) -> String {
    let channel = match load.cell.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let mut text = format!(
        "router id 192.0.2.1;\nprotocol device {{}}\nprotocol kernel k {{ disabled yes; learn yes; \
         scan time 3600; metric {ROUTE_METRIC}; {channel} {{ import none; export all; }}; }}\n"
    );
    for (name, preference, moment) in [("s1", 200, Moment::Before), ("s2", 100, Moment::After)] {
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "protocol static {name} {{ {channel} {{ preference {preference}; }};");
        for (index, prefix) in load.prefixes.iter().enumerate() {
            let _ = write!(text, "route {prefix}");
            for gateway in load.gateways(index, moment) {
                let _ = write!(text, " via {gateway}");
            }
            text.push_str(";\n");
        }
        text.push_str("}\n");
    }
    text
}

const CONTROL: &str = "control";
const RTPROT_BIRD: u8 = 12;
const LOOK: Duration = Duration::from_millis(10);
const STILL: Duration = Duration::from_millis(300);
const NOTHING: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(300);
