//! `cairn cleanup`: removes what Cairn left on a machine, and nothing else.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use cairn_cni::served::READY_FILE;
use cairn_kernel::ROUTE_PROTOCOL;
use cairn_kernel::cleanup;
use cairn_kernel::firewall;
use cairn_kernel::pod::HOST_INTERFACE_PREFIX;
use cairn_kernel::route::RouteSocket;
use clap::Args;
use serde_json::Value;

use crate::fib::RouteMemory;
use crate::pods::Lock;
use crate::{control, ipam};

/// Options of `cairn cleanup`.
#[derive(Args)]
pub struct Options {
    /// Only print what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Also remove the interfaces of pods, which cuts off those that run, and with them the CNI plugin
    /// and the run directory.
    #[arg(long)]
    pods: bool,
    /// The run directory of the agent.
    #[arg(long, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The network configuration of the container runtime.
    #[arg(long, default_value = "/etc/cni/net.d/10-cairn.conflist")]
    cni_conf: PathBuf,
    /// The CNI plugin.
    #[arg(long, default_value = "/opt/cni/bin/cairn-cni")]
    cni_plugin: PathBuf,
    /// The protocol number of the routes; may be given several times. Without it, the numbers that the
    /// run directory names as those of routes since the last boot, or else 222.
    #[arg(long, value_parser = route_protocol)]
    route_protocol: Vec<u8>,
}

/// Removes and prints one thing after the other; what fails is told and does not stop the rest.
///
/// # Errors
/// An agent or speaker runs, or the kernel cannot be read.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    crate::require_net_admin("cairn cleanup")?;
    let _lock = refuse_beside_daemon(&options.run_dir)?;
    let mut outcome = Outcome { dry_run: options.dry_run, things: 0, failures: 0 };

    // First what makes a container runtime send pods here.
    if is_conflist_of_ours(&options.cni_conf, &mut outcome) {
        outcome.file("network configuration", &options.cni_conf);
    }
    // Without routes no node is ready: one on which Cairn is installed again begins anew.
    outcome.file("mark of a ready node", &options.run_dir.join(READY_FILE));
    let mut socket = RouteSocket::open()?;
    let of_pods = cleanup::find_pods(&mut socket);
    let mut remnants = cleanup::find(&mut socket, &protocols(&options)?)
        .context("cannot read what is in the kernel")?;
    let of_pods = of_pods.context("cannot read the pods' interfaces")?;
    let kept = if options.pods { 0 } else { of_pods.len() };
    if options.pods {
        remnants.extend(of_pods);
    }
    for remnant in &remnants {
        let removed = match options.dry_run {
            true => Ok(()),
            false => cleanup::remove(&mut socket, remnant),
        };
        outcome.tell(remnant, removed.map_err(|error| error.to_string()));
    }
    match firewall::remove(None, HOST_INTERFACE_PREFIX, options.dry_run).await {
        Ok(removed) => removed.iter().for_each(|thing| outcome.tell(thing, Ok(()))),
        Err(error) => outcome.failed(&format!("cannot remove packet filter rules: {error}")),
    }
    if options.pods {
        outcome.file("CNI plugin", &options.cni_plugin);
        outcome.file("CNI plugin", &options.cni_plugin.with_file_name("cairn-portmap"));
        outcome.directory(&options.run_dir);
    }
    if kept > 0 {
        println!("left: {kept} interfaces of pods or routes to them (--pods removes them)");
    }
    Ok(outcome.end())
}

/// The numbers of the agent's routes.
fn protocols(options: &Options) -> anyhow::Result<BTreeSet<u8>> {
    let mut protocols = options.route_protocol.clone();
    if protocols.is_empty() {
        let boot_id = ipam::boot_id().context("cannot read this machine's boot id")?;
        let storage = Arc::new(ipam::Directory::new(&options.run_dir));
        protocols = RouteMemory::new(storage, boot_id).read();
    }
    if protocols.is_empty() {
        protocols.push(ROUTE_PROTOCOL);
    }
    Ok(protocols.into_iter().collect())
}

/// A number that routes of ours can have.
fn route_protocol(text: &str) -> Result<u8, String> {
    let protocol: u8 = text.parse().map_err(|_| "write a number up to 255".to_owned())?;
    match cairn_api::Routes::is_taken(protocol) {
        true => Err("routes with this number are the kernel's or other programs'".into()),
        false => Ok(protocol),
    }
}

/// The lock that an agent holds while it runs; `None` when there is no run directory. A speaker has
/// routes of the same protocol and no lock, but answers on its socket.
fn refuse_beside_daemon(run_dir: &Path) -> anyhow::Result<Option<Lock>> {
    if UnixStream::connect(control::path(run_dir)).is_ok() {
        bail!(
            "an agent or speaker answers on {} and would write everything again: stop it first (of \
             an agent, delete the DaemonSet or keep it from this node)",
            control::path(run_dir).display()
        );
    }
    if !run_dir.exists() {
        return Ok(None);
    }
    Ok(Some(Lock::take(run_dir)?))
}

/// Whether the file names our plugin. One that cannot be read is told.
fn is_conflist_of_ours(path: &Path, outcome: &mut Outcome) -> bool {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        Err(error) => {
            outcome.failed(&format!("cannot read {}: {error}", path.display()));
            return false;
        }
    };
    let parsed: Value = serde_json::from_slice(&text).unwrap_or_default();
    let plugins = parsed["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    plugins.iter().any(|plugin| plugin["type"] == "cairn-cni")
}

/// What was done.
struct Outcome {
    dry_run: bool,
    things: usize,
    failures: usize,
}

impl Outcome {
    fn tell(&mut self, thing: &impl Display, removed: Result<(), String>) {
        match removed {
            Ok(()) => {
                self.things += 1;
                let verb = if self.dry_run { "would remove" } else { "removed" };
                println!("{verb} {thing}");
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, text: &str) {
        self.failures += 1;
        eprintln!("cairn: {text}");
    }

    fn file(&mut self, what: &str, path: &Path) {
        if path.symlink_metadata().is_ok() {
            let removed = if self.dry_run { Ok(()) } else { fs::remove_file(path) };
            let named = format!("{what} {}", path.display());
            let removed = removed.map_err(|error| format!("cannot remove {named}: {error}"));
            self.tell(&named, removed);
        }
    }

    /// Removes a directory with what is in it; the place of a mount stays, empty.
    fn directory(&mut self, path: &Path) {
        if !path.is_dir() {
            return;
        }
        let removed = if self.dry_run { Ok(()) } else { fs::remove_dir_all(path) };
        let removed = match removed {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(()),
            removed => removed,
        };
        let named = format!("run directory {}", path.display());
        let removed = removed.map_err(|error| format!("cannot remove {named}: {error}"));
        self.tell(&named, removed);
    }

    fn end(self) -> ExitCode {
        if self.things == 0 && self.failures == 0 {
            println!("nothing of Cairn is left here");
        }
        if self.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
