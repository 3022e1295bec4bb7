//! One run of the plugin: from environment and standard input to what it prints.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt::Timeout,
    sockopt::set_socket_timeout,
};
use serde_json::{Value, json};

use crate::asked::agree;
use crate::config::{self, CniVersion, NetworkConfig};
use crate::error::Error;
use crate::invocation::{Arguments, Invocation, Target};
use crate::orphan;
use crate::protocol::{self, AddRequest, CheckRequest, DelRequest, GcRequest, Request, Response};
use crate::served;

/// How long the plugin waits for the agent. Runtimes give a plugin minutes, and kill what hangs.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For somebody to listen on the socket: an agent that restarts is back within this time.
    pub connect: Duration,
    /// The same of DEL, after which the plugin removes the pod's interface itself.
    pub connect_del: Duration,
    /// The same of STATUS. Without an agent it succeeds if one has served the node lately, so that the runtime
    /// does not tell Kubernetes at every upgrade that the node has no network.
    pub connect_status: Duration,
    /// For everything, from the first attempt to connect to the answer.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(5),
            connect_del: Duration::from_secs(1),
            connect_status: Duration::from_secs(1),
            total: Duration::from_secs(25),
        }
    }
}

/// What goes to standard output, and whether the run succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The JSON document to print, if the command has one.
    pub output: Option<Value>,
    /// The exit status is 0, else 1.
    pub success: bool,
}

/// Runs the plugin on the environment variables that `variable` reads and the configuration that
/// `input` holds.
pub fn run(
    variable: impl Fn(&str) -> Option<String>,
    input: impl Read,
    patience: Patience,
) -> Outcome {
    let mut version = CniVersion::NEWEST;
    match answer(variable, input, patience, &mut version) {
        Ok(output) => Outcome { output, success: true },
        Err(error) => Outcome { output: Some(error.to_json(version)), success: false },
    }
}

fn answer(
    variable: impl Fn(&str) -> Option<String>,
    input: impl Read,
    patience: Patience,
    version: &mut CniVersion,
) -> Result<Option<Value>, Error> {
    let invocation = Invocation::parse(variable)?;
    if invocation == Invocation::Version {
        // The answer depends on nothing, and some callers write nothing to standard input.
        return Ok(Some(versions()));
    }
    let input = read_all(input)?;
    *version = match (&invocation, config::read_version(&input)) {
        (Invocation::Del { .. }, Err(_)) => *version,
        (_, found) => found?,
    };
    let since = |command, since| match *version < since {
        true => Err(Error::CommandTooNew { command, since, found: *version }),
        false => Ok(()),
    };
    match &invocation {
        Invocation::Check { .. } => since("CHECK", CniVersion::V0_4_0)?,
        Invocation::GarbageCollect => since("GC", CniVersion::V1_1_0)?,
        Invocation::Status => since("STATUS", CniVersion::V1_1_0)?,
        _ => {}
    }
    match invocation {
        Invocation::Add { target, netns, arguments } => {
            add(NetworkConfig::parse(&input)?, target, &netns, arguments, patience).map(Some)
        }
        // What was wrong with an ADD, or has been written into the configuration since, must not keep a pod
        // from ending.
        Invocation::Del { target } => del(&NetworkConfig::parse_removal(&input)?, target, patience),
        Invocation::Check { target, netns } => {
            check(NetworkConfig::parse(&input)?, target, &netns, patience)
        }
        Invocation::GarbageCollect => collect(&input, patience),
        Invocation::Status => status(&NetworkConfig::parse(&input)?, patience),
        Invocation::Version => Ok(Some(versions())),
    }
}

fn versions() -> Value {
    json!({
        "cniVersion": CniVersion::NEWEST.as_str(),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    })
}

fn read_all(input: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    input.take(CONFIG_MAX + 1).read_to_end(&mut bytes).map_err(Error::ReadConfig)?;
    if bytes.len() as u64 > CONFIG_MAX {
        let reason = format!("is longer than {CONFIG_MAX} bytes");
        return Err(Error::InvalidConfig { field: "standard input", reason });
    }
    Ok(bytes)
}

fn add(
    config: NetworkConfig,
    target: Target,
    netns: &str,
    arguments: Arguments,
    patience: Patience,
) -> Result<Value, Error> {
    let ips = agree([config.ips, arguments.ips])?;
    let mac = agree([config.mac, arguments.mac])?;
    let namespace = open_namespace(netns)?;
    let request = Request::Add(AddRequest {
        container_id: target.container_id,
        ifname: target.ifname.clone(),
        network: config.name,
        pod: arguments.pod,
        annotations: config.annotations,
        ips: ips.map(|asked| asked.value).unwrap_or_default(),
        mac: mac.map(|asked| asked.value),
    });
    let call = Call { socket: &config.socket, connect: patience.connect, total: patience.total };
    let added = match call.ask(&request, Some(namespace.as_fd()))? {
        Response::Added(added) => added,
        other => return Err(unexpected("ADD", other)),
    };
    let mut result = config.prev_result.unwrap_or_default();
    result.append(&added, target.ifname.as_str(), netns);
    if let Some(dns) = config.dns {
        result.dns = dns;
    }
    serde_json::to_value(result.in_version(config.version)).map_err(Error::DecodeConfig)
}

fn del(config: &NetworkConfig, target: Target, patience: Patience) -> Result<Option<Value>, Error> {
    let Target { container_id, ifname } = target;
    let request = Request::Del(DelRequest {
        container_id: container_id.clone(),
        ifname: ifname.clone(),
        network: config.name.clone(),
    });
    let call =
        Call { socket: &config.socket, connect: patience.connect_del, total: patience.total };
    match call.ask(&request, None) {
        Ok(response) => done("DEL", response),
        // Nobody listens. An uninstalled agent, or one that cannot start, must not keep pods from ending.
        Err(Error::AgentAbsent { reason: Errno::NOENT | Errno::CONNREFUSED, .. }) => {
            orphan::remove(&container_id, &ifname).map(|()| None).map_err(|source| {
                let interface = orphan::host_interface_name(container_id.as_str(), ifname.as_str());
                Error::Orphan { interface, source }
            })
        }
        Err(error) => Err(error),
    }
}

fn check(
    config: NetworkConfig,
    target: Target,
    netns: &str,
    patience: Patience,
) -> Result<Option<Value>, Error> {
    let invalid = |reason: String| Error::InvalidConfig { field: "prevResult", reason };
    let result = config
        .prev_result
        .ok_or_else(|| invalid("is missing, with which CHECK compares the interface".into()))?;
    let attachment = result.attachment(target.ifname.as_str()).map_err(invalid)?;
    let namespace = open_namespace(netns)?;
    let request = Request::Check(CheckRequest {
        container_id: target.container_id,
        ifname: target.ifname,
        network: config.name,
        addresses: attachment.addresses,
        gateways: attachment.gateways,
        mtu: attachment.mtu,
    });
    let call = Call { socket: &config.socket, connect: patience.connect, total: patience.total };
    done("CHECK", call.ask(&request, Some(namespace.as_fd()))?)
}

fn collect(input: &[u8], patience: Patience) -> Result<Option<Value>, Error> {
    let (config, valid) = NetworkConfig::parse_collection(input)?;
    let request = Request::Gc(GcRequest { network: config.name, valid });
    let call = Call { socket: &config.socket, connect: patience.connect, total: patience.total };
    done("GC", call.ask(&request, None)?)
}

fn status(config: &NetworkConfig, patience: Patience) -> Result<Option<Value>, Error> {
    let call =
        Call { socket: &config.socket, connect: patience.connect_status, total: patience.total };
    match call.ask(&Request::Status, None) {
        Err(Error::AgentAbsent { .. }) if served::lately(&config.socket) => Ok(None),
        answered => {
            answered.and_then(|response| done("STATUS", response)).map_err(Error::of_status)
        }
    }
}

/// Opens the container's network namespace. Here and not by the agent: a path made after the agent's mount
/// namespace cannot be opened there.
fn open_namespace(netns: &str) -> Result<OwnedFd, Error> {
    // Without blocking, as the path could be a FIFO's.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(netns, flags, Mode::empty())
        .map_err(|errno| Error::NetNs { path: netns.into(), source: errno.into() })
}

/// The end of a command that prints nothing when it succeeds.
fn done(command: &'static str, response: Response) -> Result<Option<Value>, Error> {
    match response {
        Response::Done => Ok(None),
        other => Err(unexpected(command, other)),
    }
}

fn unexpected(command: &'static str, response: Response) -> Error {
    match response {
        Response::Failed(failure) => Error::Refused(failure),
        Response::Added(_) | Response::Done => Error::WrongAnswer(command),
    }
}

/// One question to the agent.
struct Call<'a> {
    socket: &'a Path,
    connect: Duration,
    total: Duration,
}

impl Call<'_> {
    fn ask(&self, request: &Request, netns: Option<BorrowedFd<'_>>) -> Result<Response, Error> {
        let start = Instant::now();
        let name = || self.socket.display().to_string();
        let socket = self.connect(start).map_err(|reason| Error::AgentAbsent {
            socket: name(),
            reason,
            waited: start.elapsed(),
        })?;
        protocol::exchange(&socket, request, netns, start + self.total)
            .map_err(|source| Error::AgentSilent { socket: name(), source })
    }

    /// Connects to the agent, with patience for one that restarts.
    fn connect(&self, start: Instant) -> Result<OwnedFd, Errno> {
        let address = SocketAddrUnix::new(self.socket)?;
        loop {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            let left = self.connect.saturating_sub(start.elapsed()).max(RETRY);
            // Bounds the wait for a listener whose queue is full.
            set_socket_timeout(&socket, Timeout::Send, Some(left))?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(socket),
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)
                    if start.elapsed() + RETRY < self.connect => {}
                Err(errno) => return Err(errno),
            }
            thread::sleep(RETRY);
        }
    }
}

/// A pod's annotations may have 256 KiB (Kubernetes' limit), and JSON may double that.
const CONFIG_MAX: u64 = 2 << 20;
const RETRY: Duration = Duration::from_millis(20);
