//! `cairn speaker`: the BGP speaker of a router or route reflector, without Kubernetes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cairn_api::{BGPNodeStatusSpec, RoutesStatus};
use cairn_bgp::speaker::{Shutdown, Speaker, SpeakerHandle, SpeakerOptions};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::fib::Fib;
use crate::report::{self, Report};
use crate::{control, file};

/// Options of `cairn speaker`.
#[derive(Args)]
pub struct Options {
    /// YAML documents of the kinds BGPConfiguration, BGPPeer, BGPPolicy and BGPAdvertisement.
    #[arg(short, long)]
    file: PathBuf,
    /// Write the best routes to the kernel.
    #[arg(long)]
    fib: bool,
    /// Where the socket for `cairn status` goes; without it there is none.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// At SIGTERM keep the routes in the kernel and at the peers, for a restart (RFC 4724).
    #[arg(long)]
    keep_routes: bool,
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the file again; a broken one changes nothing.
///
/// # Errors
/// The file cannot be used, or the kernel's routes cannot be written.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    // Taken first: a signal that nobody awaits yet would end the process.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = file::load(&options.file)?;
    if options.fib {
        crate::require_net_admin("cairn speaker --fib")?;
    }
    // Before anything is told to peers or kernel, as another speaker may have the directory.
    let listener = options.run_dir.as_deref().map(control::bind).transpose()?;
    let mut fib = None;
    if options.fib {
        let started = Fib::start(None).await?;
        started.blocks.send_replace(Some(Default::default()));
        fib = Some(started);
    }
    let preserved = fib.as_ref().is_some_and(|fib| fib.preserved);
    let speaker_options = SpeakerOptions {
        forwarding_preserved: preserved,
        restarting: preserved,
        ..SpeakerOptions::default()
    };
    let (speaker, feed) = Speaker::start(config, speaker_options)?;
    let routes = fib.as_ref().map(|fib| fib.state.clone());
    match &mut fib {
        Some(fib) => fib.follow(feed),
        None => drain(feed),
    }
    let (refused, refusal) = watch::channel(None);
    if let Some(listener) = listener {
        let speaker = speaker.clone();
        tokio::spawn(control::serve(listener, async move || {
            let refusal = refusal.borrow().clone();
            report(&speaker, routes.as_ref(), refusal).await
        }));
    }
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                refused.send_replace(reload(&options.file, &speaker));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let how = if options.keep_routes {
        Shutdown::KeepRoutes
    } else {
        Shutdown::Cease { text: "stopped by its operator".into() }
    };
    speaker.shutdown(how).await;
    if let Some(fib) = fib.filter(|_| !options.keep_routes) {
        fib.withdraw().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes up the file as it is now; what is wrong with it, after which nothing has changed.
fn reload(path: &Path, speaker: &SpeakerHandle) -> Option<String> {
    let taken_up =
        file::load(path).map_err(anyhow::Error::new).and_then(|config| Ok(speaker.apply(config)?));
    match taken_up {
        Ok(()) => {
            tracing::info!(file = %path.display(), "read again");
            None
        }
        Err(error) => {
            let problem = format!("{error:#}; the settings read before stay in force");
            tracing::error!("{problem}");
            Some(problem)
        }
    }
}

/// Without `--fib` nobody reads the routes, and nothing may wait for a reader.
fn drain(mut feed: cairn_bgp::speaker::FibFeed) {
    tokio::spawn(async move { while feed.recv().await.is_some() {} });
}

async fn report(
    speaker: &SpeakerHandle,
    routes: Option<&watch::Receiver<RoutesStatus>>,
    refusal: Option<String>,
) -> Report {
    let (sessions, mut problems) = match speaker.snapshot().await {
        Ok(snapshot) => report::sessions(&snapshot),
        Err(error) => (Vec::new(), vec![error.to_string()]),
    };
    problems.extend(refusal);
    let routes = routes.map(|routes| routes.borrow().clone()).unwrap_or_default();
    let peers = Report::established(&sessions);
    Report { bgp: BGPNodeStatusSpec { peers, sessions, routes, problems }, ..Report::default() }
}
