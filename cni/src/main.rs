//! The CNI plugin `cairn-cni`, started by container runtimes.

use std::io::Write;
use std::process::ExitCode;

use cairn_cni::plugin::{self, Patience};

fn main() -> ExitCode {
    let outcome =
        plugin::run(|name| std::env::var(name).ok(), std::io::stdin().lock(), Patience::default());
    if let Some(document) = outcome.output
        && let Err(error) = writeln!(std::io::stdout().lock(), "{document}")
    {
        eprintln!("cairn-cni: the answer could not be written to standard output: {error}");
        return ExitCode::FAILURE;
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
