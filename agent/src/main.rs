//! `cairn`: the agent of a node, a BGP speaker for routers, and the lab.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use cairn_agent::control::protocol::Ask;
use cairn_agent::report::Report;
use cairn_agent::{
    DEFAULT_RUN_DIR, agent, bfd, bgp, cleanup, control, drain_command, ipam_command,
    kernel_command, logging, memory, speaker,
};
use clap::{Parser, Subcommand};

/// A BGP pod network for Kubernetes.
#[derive(Parser)]
#[command(name = "cairn", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The form of log lines.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: logging::Format,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of a node.
    Agent(agent::Options),
    /// Run a BGP speaker from a file, without Kubernetes.
    Speaker(speaker::Options),
    /// Show sessions, blocks, routes and problems of the agent or speaker on this machine.
    Status {
        /// The run directory of the agent or speaker.
        #[arg(long, default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value = "text")]
        output: logging::Format,
    },
    /// Run BFD, which notices dead paths for the agent or speaker and outlives it; or show its sessions.
    Bfd(bfd::Options),
    /// Look into the BGP speaker of the agent or speaker on this machine, and operate it.
    Bgp(bgp::Options),
    /// Show who has which addresses, find leaks and conflicts, and release what a dead machine holds.
    Ipam(ipam_command::Options),
    /// Take a node out of use: its routes are announced to be used last, and then withdrawn.
    Drain(drain_command::Options),
    /// Show what Cairn has in the kernel of this machine, and whether it is what it wants.
    Kernel(kernel_command::Options),
    /// Remove what Cairn left on this machine: routes, tunnels, packet filter, network configuration.
    Cleanup(cleanup::Options),
    /// Print the custom resource definitions as YAML.
    Crds,
    /// Build a small data centre of network namespaces on this machine and prove that it works.
    #[cfg(feature = "lab")]
    Lab(cairn_lab::LabOptions),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    // SAFETY: there is no other thread.
    unsafe { memory::keep_little() };
    let cli = Cli::parse();
    let done = run(cli);
    logging::flush();
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cairn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Agent(options) => {
            logging::start(cli.log_format)?;
            block_on(agent::run(options))
        }
        Command::Speaker(options) => {
            logging::start(cli.log_format)?;
            block_on(speaker::run(options))
        }
        Command::Status { run_dir, output } => {
            let report: Report = control::ask(&run_dir, Ask::Status)?.only()?;
            match output {
                logging::Format::Text => print!("{}", report.to_text()),
                logging::Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Bfd(options) => {
            if options.is_daemon() {
                logging::start(cli.log_format)?;
            }
            block_on(bfd::run(options))
        }
        Command::Bgp(options) => bgp::run(options),
        Command::Ipam(options) => block_on(ipam_command::run(options)),
        Command::Drain(options) => block_on(drain_command::run(options)),
        Command::Kernel(options) => kernel_command::run(options),
        Command::Cleanup(options) => block_on(cleanup::run(options)),
        Command::Crds => {
            print!("{}", crds()?);
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "lab")]
        Command::Lab(options) => Ok(cairn_lab::run(options)?),
        Command::Version => {
            println!("cairn {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One thread for what a daemon has to plan, tell and answer: state has one owner. Sessions, routes, the
/// packet filter and pods, which must not wait for that, have threads of their own.
fn block_on<T>(daemon: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(daemon);
    // A daemon that has ended does not wait for a disk that does not answer.
    runtime.shutdown_background();
    done
}

fn crds() -> anyhow::Result<String> {
    let mut text = String::new();
    for crd in cairn_api::crds() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}
