//! A running lab: the data centre, the cluster's API, the processes and the pods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cairn_api::BGPNodeStatusSpec;
use ipnet::IpNet;

use crate::cluster::{API_PORT, Cluster, kubeconfig};
use crate::datacenter::{DataCenter, Layout, Node, Rack, Role, fabric, routers};
use crate::error::Error;
use crate::options::LabOptions;
use crate::pod::{Plugin, Pod};
use crate::process::Process;
use crate::rows::at_once;
use crate::status;
use crate::workspace::{KUBECONFIG, Workspace};

/// A running lab. Dropping it ends its processes, then removes pods, objects and namespaces.
pub struct Lab {
    processes: BTreeMap<String, Process>,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The objects.
    pub cluster: Cluster,
    /// The machines.
    pub centre: DataCenter,
    programs: Programs,
}

/// What the lab starts, and where it writes.
#[derive(Clone, Debug)]
struct Programs {
    cairn: PathBuf,
    plugin: PathBuf,
    logs: PathBuf,
    run: PathBuf,
    verbose: bool,
}

impl Lab {
    /// Builds the data centre and the cluster's objects; nothing of Cairn runs yet.
    ///
    /// # Errors
    /// What the kernel, the file system or the API refuse.
    pub fn build(options: &LabOptions, workspace: &Workspace) -> Result<Lab, Error> {
        let programs = Programs::find(options, workspace)?;
        let asn = options.asn_plan()?;
        let layout = Layout::new(options.name.as_str(), options.nodes, asn, options.families)
            .with_encap(options.encap)
            .with_patience(options.patience);
        let centre = DataCenter::build(layout)?;
        fabric::guard(&centre)?;
        let mut cluster = Cluster::start()?;
        cluster.populate(&centre.layout)?;
        for (name, machine) in centre.machines() {
            if machine.role == Role::Node {
                cluster.serve_in(name, &machine.netns)?;
            }
        }
        let outside = cluster.serve_host()?;
        workspace.write(workspace.user().join(KUBECONFIG), &kubeconfig(outside))?;
        let inside = kubeconfig(format_args!("127.0.0.1:{API_PORT}"));
        workspace.write(workspace.run().join(KUBECONFIG), &inside)?;
        Ok(Lab { processes: BTreeMap::new(), pods: Vec::new(), cluster, centre, programs })
    }

    /// Starts BFD on every machine, a speaker on every router and an agent on every node.
    ///
    /// # Errors
    /// [`Error::Io`] when a program cannot be started.
    pub fn start(&mut self, workspace: &Workspace) -> Result<(), Error> {
        let machines: Vec<String> = self.centre.machines().map(|(name, _)| name.into()).collect();
        machines.iter().try_for_each(|machine| self.start_bfd(machine, workspace))?;
        for (router, text) in routers::files(&self.centre.layout)? {
            workspace.write(workspace.machine(&router)?.join(SPEAKER_FILE), &text)?;
            self.start_speaker(&router, workspace)?;
        }
        let nodes: Vec<Node> = self.centre.layout.nodes().cloned().collect();
        nodes.iter().try_for_each(|node| self.start_agent(&node.name(), workspace))
    }

    fn start_bfd(&mut self, machine: &str, workspace: &Workspace) -> Result<(), Error> {
        let mut command = self.programs.cairn();
        command.arg("bfd").arg("--run-dir").arg(workspace.machine(machine)?);
        self.spawn(&bfd_of(machine), machine, command, workspace)
    }

    /// Takes the power of a rack's router.
    ///
    /// # Errors
    /// [`Error::Kernel`] when its links cannot be taken down.
    pub fn power_off(&mut self, rack: &Rack) -> Result<(), Error> {
        let tor = rack.tor();
        self.kill(&bfd_of(&tor));
        self.kill(&tor);
        self.centre.set_links(rack, false)
    }

    /// Boots a rack's router: its links first, then what runs on it.
    ///
    /// # Errors
    /// [`Error::Kernel`] or [`Error::Io`] for the part that does not start.
    pub fn power_on(&mut self, rack: &Rack, workspace: &Workspace) -> Result<(), Error> {
        let tor = rack.tor();
        self.centre.set_links(rack, true)?;
        self.start_bfd(&tor, workspace)?;
        self.start_speaker(&tor, workspace)
    }

    /// Makes the agent or the speaker of a machine stand still, or lets it go on.
    pub fn freeze(&self, machine: &str, still: bool) {
        if let Some(process) = self.processes.get(machine) {
            process.freeze(still);
        }
    }

    /// Starts the speaker of a router again, on the file that it had.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn start_speaker(&mut self, router: &str, workspace: &Workspace) -> Result<(), Error> {
        let directory = workspace.machine(router)?;
        let mut command = self.programs.cairn();
        command.arg("speaker").arg("-f").arg(directory.join(SPEAKER_FILE)).arg("--fib");
        command.arg("--run-dir").arg(directory);
        self.spawn(router, router, command, workspace)
    }

    /// Starts the agent of a node, for the first time or again.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn start_agent(&mut self, node: &str, workspace: &Workspace) -> Result<(), Error> {
        let directory = workspace.machine(node)?;
        let mut command = self.programs.cairn();
        command.args(["agent", "--node-name", node]);
        command.arg("--kubeconfig").arg(workspace.run().join(KUBECONFIG));
        command.arg("--run-dir").arg(directory);
        command.arg("--offline-secs").arg(self.centre.layout.offline_secs().to_string());
        self.spawn(node, node, command, workspace)
    }

    /// Kills the agent or the speaker of a machine as a crash would.
    pub fn kill(&mut self, machine: &str) {
        // Dropping waits for its end.
        drop(self.processes.remove(machine));
    }

    /// Takes a node away as if its cable was pulled and then its power: nothing can say goodbye.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the link cannot be cut.
    pub fn lose(&mut self, node: &Node) -> Result<(), Error> {
        self.centre.lose(node)?;
        let name = node.name();
        self.kill(&bfd_of(&name));
        self.kill(&name);
        self.pods.iter().filter(|pod| pod.node == name).for_each(|pod| self.cluster.hide(pod));
        self.pods.retain(|pod| pod.node != name);
        self.cluster.leave(&name);
        Ok(())
    }

    /// Looks whether all processes still run.
    ///
    /// # Errors
    /// [`Error::ProcessEnded`] for one that does not.
    pub fn check(&mut self) -> Result<(), Error> {
        self.processes.values_mut().try_for_each(Process::check)
    }

    /// How many sessions the agent or speaker of a machine says are established; none while it does
    /// not answer.
    pub fn established(&self, machine: &str) -> usize {
        self.report(machine).map_or(0, |report| status::established(&report))
    }

    /// What the agent or speaker of a machine says of itself, if it answers.
    pub fn report(&self, machine: &str) -> Option<BGPNodeStatusSpec> {
        status::ask(&self.programs.run.join(machine))
    }

    /// Whether the route of a machine to a block carries a community; `None` without a route.
    pub fn is_marked(&self, machine: &str, block: &IpNet, community: &str) -> Option<bool> {
        let communities = status::communities(&self.programs.run.join(machine), block)?;
        Some(communities.iter().any(|one| one == community))
    }

    /// How many session ends these machines say are established, together.
    pub fn established_on(&self, machines: &[String]) -> usize {
        machines.iter().map(|machine| self.established(machine)).sum()
    }

    /// Every established session of the machines, with when it came up.
    pub fn sessions(&self) -> BTreeSet<(String, String, String)> {
        let machines = self.centre.machines().map(|(name, _)| name.to_owned());
        let of = |machine: String| {
            let report = self.report(&machine).unwrap_or_default();
            let ups = status::ups(report);
            ups.into_iter().map(move |(peer, since)| (machine.clone(), peer, since))
        };
        machines.flat_map(of).collect()
    }

    /// The CNI plugin as the runtime of `node` calls it.
    pub fn plugin(&self, node: &str) -> Plugin {
        Plugin {
            path: self.programs.plugin.clone(),
            socket: self.programs.run.join(node).join(CNI_SOCKET),
        }
    }

    /// Makes `per_node` pods on each node, all at once.
    ///
    /// # Errors
    /// The first refusal of the plugin.
    pub fn add_pods(&mut self, per_node: usize) -> Result<(), Error> {
        let nodes: Vec<String> = self.centre.layout.nodes().map(Node::name).collect();
        let wanted =
            nodes.iter().flat_map(|node| (0..per_node).map(|_| node.clone())).collect::<Vec<_>>();
        self.add(&wanted)
    }

    /// Makes one pod for each name of a node in `on`, all at once. Where some are refused, the
    /// others are there.
    ///
    /// # Errors
    /// The first refusal of the plugin.
    pub fn add(&mut self, on: &[String]) -> Result<(), Error> {
        let mut first = Ok(());
        for pod in self.prepare(on) {
            first = first.and(self.keep(pod));
        }
        first
    }

    /// Makes pods as [`Lab::add`] does, to be passed to [`Lab::keep`].
    pub fn prepare(&self, on: &[String]) -> Vec<Result<Pod, Error>> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for pod in &self.pods {
            *counts.entry(pod.node.as_str()).or_default() += 1;
        }
        let mut wanted = Vec::new();
        for node in on {
            let count = counts.entry(node.as_str()).or_default();
            *count += 1;
            wanted.push((self.plugin(node), node.as_str(), format!("{node}-p{count}")));
        }
        let layout = &self.centre.layout;
        at_once(wanted, |(plugin, node, name)| plugin.add(&layout.namespace(&name), node, &name))
    }

    /// Takes a pod that was made, and shows it in the API.
    ///
    /// # Errors
    /// That which the plugin, or the API server, refused it with.
    pub fn keep(&mut self, pod: Result<Pod, Error>) -> Result<(), Error> {
        let pod = pod?;
        let shown = self.cluster.show(&pod);
        self.pods.push(pod);
        shown
    }

    /// The last pod made on a node.
    pub fn last_pod(&self, node: &str) -> Option<&Pod> {
        self.pods.iter().rev().find(|pod| pod.node == node)
    }

    /// Starts a process of a machine under a name of its own.
    fn spawn(
        &mut self,
        name: &str,
        machine: &str,
        command: Command,
        space: &Workspace,
    ) -> Result<(), Error> {
        let Some(place) = self.centre.machine(machine) else { return Ok(()) };
        let log = self.programs.logs.join(format!("{name}.log"));
        let process = Process::start(name, command, &place.netns, &log)?;
        space.remember(process.id())?;
        self.processes.insert(name.into(), process);
        Ok(())
    }
}

/// The name of a machine's BFD.
fn bfd_of(machine: &str) -> String {
    format!("{machine}-bfd")
}

impl Programs {
    fn find(options: &LabOptions, workspace: &Workspace) -> Result<Programs, Error> {
        let cairn = std::env::current_exe().map_err(Error::io("find this program"))?;
        let beside = cairn.parent().unwrap_or(Path::new("/")).join(PLUGIN);
        let plugin = options.cni_plugin.clone().unwrap_or(beside);
        if !plugin.is_file() {
            return Err(Error::NoPlugin { path: plugin });
        }
        Ok(Programs {
            cairn,
            plugin,
            logs: workspace.logs(),
            run: workspace.run().into(),
            verbose: options.verbose,
        })
    }

    fn cairn(&self) -> Command {
        let mut command = Command::new(&self.cairn);
        // The output is a file.
        command.env("NO_COLOR", "1");
        if self.verbose {
            command.env("CAIRN_LOG", "debug");
        }
        command
    }
}

const SPEAKER_FILE: &str = "speaker.yaml";
const PLUGIN: &str = "cairn-cni";
const CNI_SOCKET: &str = "cni.sock";
