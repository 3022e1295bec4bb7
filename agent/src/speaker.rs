//! `cairn speaker`: the BGP speaker of a router or route reflector, without Kubernetes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use cairn_api::{BGPNodeStatusSpec, RepairsStatus, RoutesStatus};
use cairn_bgp::speaker::{Shutdown, SpeakerHandle, SpeakerOptions};
use clap::Args;
use futures::FutureExt;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bfd::follow::{Follower, View};
use crate::control::Service;
use crate::disabled::DisabledPeers;
use crate::fib::{Fib, RouteSettings};
use crate::problems::ProblemLog;
use crate::report::{self, Report};
use crate::{bgp_thread, control, file, restart, until};

/// Options of `cairn speaker`.
#[derive(Args)]
pub struct Options {
    /// YAML documents of the kinds BGPConfiguration, BGPPeer, BGPPolicy and BGPAdvertisement.
    #[arg(short, long)]
    file: PathBuf,
    /// Write the best routes to the kernel.
    #[arg(long)]
    fib: bool,
    /// Where the socket for `cairn status` and `cairn bgp` goes, and what is remembered over a
    /// restart of the process. Without it /run/cairn, if that can be had.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// At SIGTERM keep the routes in the kernel and at the peers, for a restart with the same run
    /// directory (RFC 4724).
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
    let default_run_dir = Path::new(crate::DEFAULT_RUN_DIR);
    let (run_dir, control) = match &options.run_dir {
        Some(run_dir) => {
            (run_dir.as_path(), Some((control::bind(run_dir)?, DisabledPeers::open(run_dir))))
        }
        None => (default_run_dir, control_by_default(default_run_dir)),
    };
    // A directory that is another's holds nothing for this speaker.
    let run_dir = control.as_ref().map(|_| run_dir);
    let mut fib = None;
    if options.fib {
        let started = Fib::start(None).await?;
        started.settings.send_replace(Some(RouteSettings::default()));
        started.blocks.send_replace(Some(Default::default()));
        fib = Some(started);
    }
    let kept_by_peers = run_dir.is_some_and(restart::take_word);
    // A speaker that writes no routes has none to lose: whoever forwards went on without it, which is
    // what its operator says with --keep-routes (RFC 4724 section 4.1, "allowed via configuration").
    let preserved = fib.as_ref().map_or(kept_by_peers, |fib| fib.preserved);
    let speaker_options = SpeakerOptions {
        forwarding_preserved: preserved,
        restarting: preserved || kept_by_peers,
        disabled: control.as_ref().map(|(_, disabled)| disabled.names()).unwrap_or_default(),
    };
    let links = fib.as_ref().map(|fib| fib.underlay.clone());
    let (speaker, feed) = bgp_thread::start(config.clone(), speaker_options, links)?;
    // In a directory that is another's, its peers' sessions are not for this speaker to replace.
    let bfd = run_dir.map(Follower::start).transpose()?;
    match &bfd {
        Some(bfd) => bfd.want(&config, &BTreeMap::new(), &speaker),
        None if config.peers.values().any(|peer| peer.bfd.is_some()) => tracing::warn!(
            "BFD is wanted, and without a run directory of its own this speaker has none: give --run-dir"
        ),
        None => {}
    }
    let kernel = fib.as_ref().map(KernelSide::of);
    let mut kernel_problems = fib.as_ref().map(|fib| fib.problems.clone());
    match &mut fib {
        Some(fib) => fib.follow(feed),
        // Without a reader nothing is noted for one.
        None => drop(feed),
    }
    let (refused, refusal) = watch::channel(None);
    if let Some((listener, disabled)) = control {
        let reported = Reported {
            speaker: speaker.clone(),
            kernel,
            refusal,
            disabled: Arc::new(disabled),
            bfd: bfd.as_ref().map(|bfd| bfd.view.clone()),
        };
        let service = Service {
            speaker: watch::channel(Some(speaker.clone())).1,
            disabled: Arc::clone(&reported.disabled),
            kernel: fib.as_ref().map(|fib| fib.questions.clone()),
            report: Box::new(move || reported.clone().report().boxed()),
        };
        tokio::spawn(control::serve(listener, Arc::new(service)));
    }
    // On another thread than sessions and routes: a full table that has gone leaves much behind.
    tokio::spawn(crate::memory::give_back());
    let mut changes = speaker.changes();
    let (mut log, mut log_due) = (ProblemLog::default(), None);
    loop {
        if let Some(problems) = &mut kernel_problems {
            let due = log.log(Instant::now(), &problems.borrow_and_update());
            log_due = due.map(tokio::time::Instant::from_std);
        }
        tokio::select! {
            changed = changes.changed() => changed.context("the speaker ended")?,
            changed = changed(&mut kernel_problems) => changed.context("the kernel side ended")?,
            () = until(log_due) => {}
            _ = hangup.recv() => {
                refused.send_replace(reload(&options.file, &speaker, bfd.as_ref()));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let how = if options.keep_routes {
        match run_dir {
            Some(run_dir) => restart::leave_word(run_dir),
            None => tracing::warn!(
                "without a run directory the next start does not know that it is a restart: peers \
                 drop the routes once it connects; give --run-dir"
            ),
        }
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

async fn changed(
    problems: &mut Option<watch::Receiver<Vec<String>>>,
) -> Result<(), watch::error::RecvError> {
    match problems {
        Some(problems) => problems.changed().await,
        None => std::future::pending().await,
    }
}

/// Takes up the file as it is now; what is wrong with it, after which nothing has changed.
fn reload(path: &Path, speaker: &SpeakerHandle, bfd: Option<&Follower>) -> Option<String> {
    let taken_up = file::load(path).map_err(anyhow::Error::new).and_then(|config| {
        speaker.apply(config.clone())?;
        if let Some(bfd) = bfd {
            bfd.want(&config, &BTreeMap::new(), speaker);
        }
        Ok(())
    });
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

/// The control socket in the usual place, unless somebody else has that or it is not ours to have: a
/// speaker by the side of an agent, or of a user, works without.
fn control_by_default(run_dir: &Path) -> Option<(UnixListener, DisabledPeers)> {
    match control::bind(run_dir) {
        Ok(listener) => Some((listener, DisabledPeers::open(run_dir))),
        Err(error) => {
            tracing::info!("`cairn status` and `cairn bgp` cannot ask this speaker: {error:#}");
            None
        }
    }
}

/// What `cairn status` is answered from.
#[derive(Clone)]
struct Reported {
    speaker: SpeakerHandle,
    kernel: Option<KernelSide>,
    refusal: watch::Receiver<Option<String>>,
    disabled: Arc<DisabledPeers>,
    bfd: Option<watch::Receiver<View>>,
}

/// What the thread that writes to the kernel says of it.
#[derive(Clone)]
struct KernelSide {
    routes: watch::Receiver<RoutesStatus>,
    repairs: watch::Receiver<RepairsStatus>,
    problems: watch::Receiver<Vec<String>>,
}

impl KernelSide {
    fn of(fib: &Fib) -> KernelSide {
        KernelSide {
            routes: fib.state.clone(),
            repairs: fib.repairs.clone(),
            problems: fib.problems.clone(),
        }
    }
}

impl Reported {
    async fn report(self) -> Report {
        let bfd = self.bfd.as_ref().map(|bfd| bfd.borrow().clone()).unwrap_or_default();
        let (sessions, mut problems) = match self.speaker.snapshot().await {
            Ok(snapshot) => report::sessions(&snapshot, &bfd),
            Err(error) => (Vec::new(), vec![error.to_string()]),
        };
        problems.extend(self.refusal.borrow().clone());
        problems.extend(self.disabled.problem());
        problems.extend(bfd.problems);
        let (mut routes, mut repairs) = Default::default();
        if let Some(kernel) = self.kernel {
            routes = kernel.routes.borrow().clone();
            repairs = *kernel.repairs.borrow();
            problems.extend(kernel.problems.borrow().iter().cloned());
        }
        let peers = Report::established(&sessions);
        let bgp = BGPNodeStatusSpec {
            peers,
            sessions,
            routes,
            repairs,
            problems,
            ..BGPNodeStatusSpec::default()
        };
        Report { bgp, ..Report::default() }
    }
}
