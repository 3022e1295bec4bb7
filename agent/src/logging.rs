//! Logs: quiet at the default level, one line a state change, to standard error.

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
    let filter = EnvFilter::builder()
        .with_env_var("CAIRN_LOG")
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().init(),
    }
}
