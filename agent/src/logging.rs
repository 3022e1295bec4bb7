//! Logs: quiet at the default level, one line a state change, to standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. The level is `info`, or what the variable `CAIRN_LOG` says, for example `debug`
/// or `cairn_bgp=trace,info`.
pub fn start(format: Format) {
    let wanted = std::env::var("CAIRN_LOG").unwrap_or_else(|_| QUIET.into());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(wanted))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().init(),
    }
}

/// The API client logs every request that fails; its callers log what that means, once.
const QUIET: &str = "info,kube_client=off,kube_runtime=off";
