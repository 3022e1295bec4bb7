//! Whether an agent has served this node's pods lately, by what it leaves in its run directory.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Whether the pod network of the node has been ready in this boot, and an agent behind `socket` has served it
/// within [`AWAY_MAX`].
pub fn lately(socket: &Path) -> bool {
    let ready = || {
        let mut file = File::open(socket.with_file_name(READY_FILE)).ok()?;
        // In the future after a clock was set back, until an agent writes it anew.
        let age = SystemTime::now().duration_since(file.metadata().ok()?.modified().ok()?).ok()?;
        let mut text = Vec::new();
        file.by_ref().take(READY_BYTES_MAX).read_to_end(&mut text).ok()?;
        let ready: Ready = serde_json::from_slice(&text).ok()?;
        let boot_id = std::fs::read_to_string(BOOT_ID).ok()?;
        Some(age <= AWAY_MAX && ready.boot_id == boot_id.trim_end())
    };
    ready().unwrap_or(false)
}

/// What the agent writes when the node is ready for the first time in a boot, and whose time it keeps current.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ready {
    /// The form's version.
    pub version: u32,
    /// The boot's id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// The file's name, beside the socket.
pub const READY_FILE: &str = "ready.json";
/// How long an agent may be away: an upgrade pulls an image, and one that does not start must not have
/// Kubernetes move the pods of every node.
pub const AWAY_MAX: Duration = Duration::from_secs(300);
const READY_BYTES_MAX: u64 = 4096;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
