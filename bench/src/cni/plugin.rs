//! The plugin's program: how large it is, what it holds while it waits, and what its start takes.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::chain::{self, Call};
use crate::Result;
use crate::agent::Directory;
use crate::table::{median, sorted};

/// What was seen of the program.
#[derive(Debug, Serialize)]
pub struct Plugin {
    /// Of its file.
    pub octets: u64,
    /// While it waits for the agent.
    pub resident_octets: u64,
    /// From the start of the process to its end, for VERSION, which needs nobody.
    pub start_milliseconds: f64,
}

/// Looks at the program beside this one, of which the start is taken `runs` times.
///
/// # Errors
/// It is missing, or refuses.
pub fn measure(runs: usize) -> Result<Plugin> {
    let program = chain::program("cairn-cni")?;
    let octets = std::fs::metadata(&program)?.len();
    let call = Call { command: "VERSION", container: "c", netns: Path::new("/proc/self/ns/net") };
    let mut starts = Vec::new();
    for _ in 0..runs {
        let begin = Instant::now();
        let mut child = chain::command(&program, call).spawn()?;
        drop(child.stdin.take());
        let output = child.wait_with_output()?;
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        if !output.status.success() {
            return Err("VERSION fails".into());
        }
    }
    Ok(Plugin {
        octets,
        resident_octets: resident(&program)?,
        start_milliseconds: median(&sorted(starts.into_iter())),
    })
}

/// The most memory that it held, seen while an agent that does not answer lets it wait.
fn resident(program: &Path) -> Result<u64> {
    let directory = Directory::new()?;
    let socket = directory.0.join("silent.sock");
    let _listener = UnixListener::bind(&socket)?;
    let call = Call { command: "ADD", container: "c", netns: Path::new("/proc/self/ns/net") };
    let mut child = chain::command(program, call).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let input = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "cairn-cni", "socket": socket,
        });
        stdin.write_all(input.to_string().as_bytes())?;
    }
    // It connects at once, and sends its request.
    std::thread::sleep(Duration::from_millis(300));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    child.kill()?;
    child.wait()?;
    let status = status?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.ok_or("the plugin did not wait")? * 1024)
}
