//! The plugins of a network configuration list, started as libcni starts them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Result;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The netlink requests alone.
    Floor,
    /// Our plugin.
    Cairn,
    /// Our plugin, then portmap, for a pod without host ports.
    CairnPortmap,
    /// ptp with host-local.
    Ptp,
    /// bridge with host-local.
    Bridge,
}

/// The plugins of a contender with their configurations.
#[derive(Debug)]
pub struct Chain(Vec<(PathBuf, Value)>);

/// One interface of one container, as the environment names it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// ADD or DEL.
    pub command: &'a str,
    /// The container.
    pub container: &'a str,
    /// The path of its network namespace.
    pub netns: &'a Path,
}

impl Contender {
    /// All of them; the one that the others are compared with comes first.
    pub const ALL: [Contender; 5] = [
        Contender::Floor,
        Contender::Cairn,
        Contender::CairnPortmap,
        Contender::Ptp,
        Contender::Bridge,
    ];

    /// As the table shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Contender::Floor => "floor: netlink alone",
            Contender::Cairn => "cairn",
            Contender::CairnPortmap => "cairn, portmap",
            Contender::Ptp => "ptp, host-local",
            Contender::Bridge => "bridge, host-local",
        }
    }

    /// Whether our agent serves it.
    pub const fn is_ours(self) -> bool {
        matches!(self, Contender::Cairn | Contender::CairnPortmap)
    }
}

impl Chain {
    /// The chain of `contender`, whose plugins keep what they keep under `directory`.
    ///
    /// # Errors
    /// A program is missing.
    pub fn new(contender: Contender, directory: &Path) -> Result<Chain> {
        let ours = json!({
            "type": "cairn-cni",
            "socket": directory.join("run/cni.sock"),
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {}},
        });
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{"subnet": "10.200.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": directory.join("host-local"),
        });
        let stages = match contender {
            Contender::Floor => Vec::new(),
            Contender::Cairn => vec![ours],
            Contender::CairnPortmap => vec![ours, json!({"type": "portmap", "snat": true})],
            Contender::Ptp => vec![json!({"type": "ptp", "mtu": 1500, "ipam": ipam})],
            Contender::Bridge => vec![json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "mtu": 1500, "ipam": ipam,
            })],
        };
        let mut chain = Vec::new();
        for mut configuration in stages {
            let kind = configuration["type"].as_str().unwrap_or_default().to_owned();
            let program = program(&kind)?;
            configuration["cniVersion"] = json!("1.0.0");
            configuration["name"] = json!("bench");
            chain.push((program, configuration));
        }
        Ok(Chain(chain))
    }

    /// Calls every plugin for ADD in order, for DEL in the other, each with the result before it.
    ///
    /// # Errors
    /// A plugin refuses: with what it printed.
    pub fn call(&self, call: Call<'_>, mut result: Option<Value>) -> Result<Option<Value>> {
        let adds = call.command == "ADD";
        let mut stages: Vec<_> = self.0.iter().collect();
        if !adds {
            stages.reverse();
        }
        for (program, configuration) in stages {
            let mut configuration = configuration.clone();
            if let Some(result) = &result {
                configuration["prevResult"] = result.clone();
            }
            let output = run(program, call, &configuration.to_string())?;
            if adds {
                result = Some(serde_json::from_slice(&output)?);
            }
        }
        Ok(result)
    }
}

/// Runs one plugin and returns what it printed.
fn run(program: &Path, call: Call<'_>, input: &str) -> Result<Vec<u8>> {
    let mut child = command(program, call).spawn()?;
    // As small as a pipe's buffer, so that this waits for nobody.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("{} {}: {said}", program.display(), call.command).into());
    }
    Ok(output.stdout)
}

/// A plugin as a runtime starts it.
pub fn command(program: &Path, call: Call<'_>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command.envs([
        ("CNI_COMMAND", call.command),
        ("CNI_CONTAINERID", call.container),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", DEBIANS),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod"),
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ]);
    command.env("CNI_NETNS", call.netns);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// Where the program of that name is: ours beside this one, others where Debian has them.
pub fn program(kind: &str) -> Result<PathBuf> {
    let path = match kind {
        "cairn-cni" => std::env::current_exe()?.with_file_name(kind),
        _ => Path::new(DEBIANS).join(kind),
    };
    match path.exists() {
        true => Ok(path),
        false => {
            Err(format!("{} is missing: start this by `make bench-cni`", path.display()).into())
        }
    }
}

const DEBIANS: &str = "/usr/lib/cni";
