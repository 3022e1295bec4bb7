//! One run of the lab from its start to its end.

use std::process::ExitCode;

use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::lab::Lab;
use crate::options::{Encap, LabOptions};
use crate::report::Report;
use crate::rows::{failure, model, network, size, tunnels};
use crate::workspace::{KUBECONFIG, Workspace};

/// Runs `cairn lab` and returns its exit code: 1 when a row failed and `--check` was given, 130 when
/// it was interrupted.
///
/// Must be called from the main thread before any other thread is started, because of signals and
/// of the processes that end with the thread which started them.
///
/// # Errors
/// When the lab cannot be built or a process of it ended by itself. Everything of it is gone then,
/// except for the logs.
pub fn run(options: LabOptions) -> Result<ExitCode, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let interrupt = Interrupt::install(options.patience)?;
    let mut report = Report::new(&options);
    let mut workspace = Workspace::open(&options.name)?;
    let ran = attempt(&options, &workspace, &interrupt, &mut report);
    match ran {
        Ok(()) => {}
        Err(Error::Interrupted) => report.say("interrupted; everything of the lab is removed"),
        // Whoever called says what it is.
        Err(_) => {}
    }
    let failed = !report.passed() && !matches!(ran, Err(Error::Interrupted));
    if failed && workspace.has_logs() {
        workspace.keep_logs();
        report.say(format!("logs are in {}", workspace.logs().display()));
    }
    match ran {
        Ok(()) if failed && options.check => Ok(ExitCode::FAILURE),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Error::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        Err(error) => Err(error),
    }
}

fn attempt(
    options: &LabOptions,
    workspace: &Workspace,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<(), Error> {
    let proved = prove(options, workspace, interrupt, report);
    let lab = match proved {
        Ok(lab) => lab,
        Err(error) => {
            if !report.is_empty() && !matches!(error, Error::Interrupted) {
                print(report)?;
            }
            return Err(error);
        }
    };
    print(report)?;
    if options.keep {
        say_what_to_try(&lab, workspace);
        interrupt.wait();
    }
    drop(lab);
    Ok(())
}

/// Builds the lab and adds every row; the lab is returned running.
fn prove(
    options: &LabOptions,
    workspace: &Workspace,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<Lab, Error> {
    report.say(format!("lab {}: {} nodes, two racks, one spine", options.name, options.nodes));
    let mut lab = Lab::build(options, workspace)?;
    report.phase("namespaces and API");
    interrupt.check()?;

    lab.start(workspace)?;
    let row = model::sessions(&mut lab, interrupt)?;
    report.row(row);
    report.phase("sessions");

    lab.add_pods(PODS_PER_NODE)?;
    for pod in &lab.pods {
        report.detail(format!("pod {}: {:?}", pod.name, pod.addresses));
    }
    report.phase("pods");

    report.row(model::blocks(&lab.centre, &lab.cluster, interrupt)?);
    report.row(model::paths(&lab.centre, &lab.cluster, options.encap)?);
    report.row(model::objects(&lab.centre, &lab.cluster, interrupt)?);
    report.row(model::reports(&lab, interrupt)?);
    let mut rows = network::network(&lab.centre, &lab.pods, interrupt)?;
    rows.extend(size::full_size(&lab.centre, &lab.pods, interrupt)?);
    if options.encap != Encap::None {
        rows.push(tunnels::addresses(&lab.centre, &lab.cluster)?);
        rows.extend(tunnels::fabric(&lab.centre, &lab.pods, interrupt)?);
    }
    rows.into_iter().for_each(|row| report.row(row));
    lab.check()?;
    report.phase("network model");

    failure::all(&mut lab, workspace, interrupt, report, options.rate)?;
    report.phase("failures");
    Ok(lab)
}

fn print(report: &Report) -> Result<(), Error> {
    report.print().map_err(Error::io("write the result"))
}

fn say_what_to_try(lab: &Lab, workspace: &Workspace) {
    let kubeconfig = workspace.user().join(KUBECONFIG);
    let kubeconfig = kubeconfig.display();
    let layout = &lab.centre.layout;
    let ends = [lab.pods.first(), lab.pods.last()].map(|pod| {
        pod.map(|pod| (pod.name.as_str(), pod.addresses.first().map(ToString::to_string)))
    });
    eprintln!("\nThe lab runs until Ctrl-C. Try in another terminal:");
    eprintln!("  kubectl --kubeconfig {kubeconfig} get ipblocks,bgpnodestatuses");
    eprintln!("  kubectl --kubeconfig {kubeconfig} get ipb -o wide -w");
    eprintln!("  cairn ipam check --kubeconfig {kubeconfig}");
    if let [Some((from, _)), Some((_, Some(to)))] = ends {
        eprintln!("  ip netns exec {} ping {to}", layout.namespace(from));
    }
    if let Some(node) = layout.nodes().find(|node| lab.centre.machine(&node.name()).is_some()) {
        let name = node.name();
        eprintln!("  ip netns exec {} ip route show proto 222", layout.namespace(&name));
        eprintln!("  cairn status --run-dir {}", workspace.run().join(&name).display());
        eprintln!("  tail -f {}", workspace.logs().join(format!("{name}.log")).display());
    }
}

const PODS_PER_NODE: usize = 2;
/// What a shell reports of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
