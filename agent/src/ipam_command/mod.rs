//! `cairn ipam`: what an operator sees of addresses and decides about them, from any machine that
//! reaches the API server.
//!
//! ```text
//!  API server ──read──► Snapshot ──findings()──► check
//!  kernel, speaker ──┘      └─────────────────► show
//!                                  fence, release ──► one object each, under preconditions
//! ```
//!
//! What is a finding and what speaks against a release are decided by functions of what was read.
//! Writes name the version that was looked at, so that whatever changes meanwhile refuses them.

mod check;
mod conflicts;
mod fence;
mod findings;
mod local;
mod read;
mod release;
mod show;
mod snapshot;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use kube::Client;

use crate::api_client;

pub(crate) use read::{CallError, call};

/// Options of `cairn ipam`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// How to reach the API server; without it KUBECONFIG, as a pod of the cluster, or
    /// ~/.kube/config.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Cairn's own namespace, where the nodes' Leases are.
    #[arg(long, global = true, default_value = "cairn-system")]
    namespace: String,
    /// The run directory of the agent on this machine, if there is one.
    #[arg(long, global = true, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Show pools and blocks, or who has an address.
    Show(show::Options),
    /// Compare the API, the kernel and BGP: leaks and conflicts, each with its remedy. The exit code
    /// is 0 when all is in order, 1 with findings, 2 when it could not look.
    Check(check::Options),
    /// Say that a node's machine is off, so that its blocks return without a wait.
    Fence(fence::Options),
    /// Delete a block whose owner is gone and that nothing else returns.
    Release(release::Options),
}

/// What every command needs.
struct Surroundings {
    client: Client,
    namespace: String,
    run_dir: PathBuf,
}

/// Reads and, where asked to, writes.
///
/// # Errors
/// The API server cannot be reached, or what is asked for is refused; the text says what to do.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Options { command, kubeconfig, namespace, run_dir } = options;
    let surroundings = match api_client::of_user(kubeconfig.as_deref()).await {
        Ok(client) => Surroundings { client, namespace, run_dir },
        Err(error) if matches!(command, Command::Check(_)) => {
            return Ok(check::could_not_look(&error));
        }
        Err(error) => return Err(error),
    };
    match command {
        Command::Show(options) => show::run(&surroundings, options).await,
        Command::Check(options) => Ok(check::run(&surroundings, options).await),
        Command::Fence(options) => fence::run(&surroundings, options).await,
        Command::Release(options) => release::run(&surroundings, options).await,
    }
}
