//! `cairn bfd`: the process that notices dead paths, what it says of itself, and what an agent or a speaker asks
//! of it ([`follow`]).

pub mod follow;
mod text;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use cairn_bfd::control::{Client, Report, socket_path};
use cairn_bfd::daemon;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::control;
use crate::logging::Format;

/// Options of `cairn bfd`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where the socket is on which agent or speaker ask for sessions.
    #[arg(long, global = true, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Show the sessions of the running `cairn bfd`.
    Status {
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
}

impl Options {
    /// Whether this is the process itself, which logs.
    pub fn is_daemon(&self) -> bool {
        self.command.is_none()
    }
}

/// Runs BFD until SIGTERM or SIGINT, after which the peers are told that it is by an operator's will; or asks the
/// running one.
///
/// # Errors
/// Another one has the socket, the kernel refuses, or none answers.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    match &options.command {
        None => serve(&options).await?,
        Some(Command::Status { output }) => status(&options, *output)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The daemon has a thread of its own, which nothing else may hold up; this one waits for signals.
async fn serve(options: &Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = socket_path(&options.run_dir);
    let listener = control::bind_at(&path, "another `cairn bfd`")?;
    let (stop, stopped) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let (ended, end) = tokio::sync::oneshot::channel();
    let run = move || {
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
        let _ = ended.send(daemon::run(listener, OwnedFd::from(stopped), seed));
    };
    std::thread::Builder::new().name("bfd".into()).spawn(run).context("cannot start a thread")?;
    tracing::info!(socket = %path.display(), "BFD runs");
    let mut end = end;
    tokio::select! {
        ended = &mut end => return ended.context("the BFD thread ended")?.context("BFD ended"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(stop);
    end.await.context("the BFD thread ended")?.context("BFD ended")
}

fn status(options: &Options, output: Format) -> anyhow::Result<()> {
    let Report::Overview(overview) = Client::connect(&options.run_dir, PATIENCE)?.report()? else {
        bail!("`cairn bfd` does not begin with an overview: use equal versions of cairn");
    };
    let text = match output {
        Format::Text => text::overview(&overview),
        Format::Json => serde_json::to_string_pretty(&overview)? + "\n",
    };
    // Whoever has read enough closes the pipe.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// For an answer on this machine.
const PATIENCE: Duration = Duration::from_secs(5);
