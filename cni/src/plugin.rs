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

use crate::config::{self, CniVersion, NetworkConfig};
use crate::error::Error;
use crate::invocation::{Invocation, Target};
use crate::protocol::{self, AddRequest, DelRequest, ProtocolError, Request, Response};

/// How long the plugin waits for the agent. Runtimes give a plugin minutes, and kill what hangs.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For somebody to listen on the socket: an agent that restarts is back within this time.
    pub connect: Duration,
    /// For everything, from the first attempt to connect to the answer.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { connect: Duration::from_secs(5), total: Duration::from_secs(25) }
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
        Invocation::Check => since("CHECK", CniVersion::V0_4_0)?,
        Invocation::GarbageCollect => since("GC", CniVersion::V1_1_0)?,
        Invocation::Status => since("STATUS", CniVersion::V1_1_0)?,
        _ => {}
    }
    let config = match &invocation {
        // What was wrong with an ADD, or has been written into the configuration since, must not keep a pod
        // from ending.
        Invocation::Del { .. } => NetworkConfig::parse_removal(&input)?,
        _ => NetworkConfig::parse(&input)?,
    };
    match invocation {
        Invocation::Add { target, netns } => add(config, target, &netns, patience).map(Some),
        Invocation::Del { target } => del(&config, target, patience).map(|()| None),
        Invocation::Status => match ask(&config, &Request::Status, None, patience)? {
            Response::Done => Ok(None),
            other => Err(unexpected("STATUS", other)),
        },
        Invocation::Check => Err(Error::NotSupported("CHECK")),
        Invocation::GarbageCollect => Err(Error::NotSupported("GC")),
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
    patience: Patience,
) -> Result<Value, Error> {
    // Opened here and not by the agent: a path made after the agent's mount namespace cannot be
    // opened there.
    // Without blocking, as the path could be a FIFO's.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let namespace = rustix::fs::open(netns, flags, Mode::empty())
        .map_err(|errno| Error::NetNs { path: netns.into(), source: errno.into() })?;
    let Target { container_id, ifname, pod } = target;
    let request = Request::Add(AddRequest {
        container_id,
        ifname: ifname.clone(),
        network: config.name.clone(),
        pod,
        annotations: config.annotations.clone(),
        ips: Vec::new(),
        mac: None,
    });
    let added = match ask(&config, &request, Some(namespace.as_fd()), patience)? {
        Response::Added(added) => added,
        other => return Err(unexpected("ADD", other)),
    };
    let mut result = config.prev_result.unwrap_or_default();
    result.append(&added, ifname.as_str(), netns);
    if let Some(dns) = config.dns {
        result.dns = dns;
    }
    serde_json::to_value(result.in_version(config.version)).map_err(Error::DecodeConfig)
}

fn del(config: &NetworkConfig, target: Target, patience: Patience) -> Result<(), Error> {
    let request = Request::Del(DelRequest {
        container_id: target.container_id,
        ifname: target.ifname,
        network: config.name.clone(),
    });
    match ask(config, &request, None, patience)? {
        Response::Done => Ok(()),
        other => Err(unexpected("DEL", other)),
    }
}

fn unexpected(command: &'static str, response: Response) -> Error {
    match response {
        Response::Failed(failure) => Error::Refused(failure),
        Response::Added(_) | Response::Done => Error::WrongAnswer(command),
    }
}

fn ask(
    config: &NetworkConfig,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    patience: Patience,
) -> Result<Response, Error> {
    let start = Instant::now();
    let socket = connect(&config.socket, start, patience).map_err(|errno| Error::AgentAbsent {
        socket: config.socket.display().to_string(),
        reason: errno.to_string(),
        waited: start.elapsed(),
    })?;
    protocol::exchange(&socket, request, netns, start + patience.total)
        .map_err(|source| silent(&config.socket, source))
}

fn silent(socket: &Path, source: ProtocolError) -> Error {
    Error::AgentSilent { socket: socket.display().to_string(), source }
}

/// Connects to the agent, with patience for one that restarts.
fn connect(path: &Path, start: Instant, patience: Patience) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    loop {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let left = patience.connect.saturating_sub(start.elapsed()).max(RETRY);
        // Bounds the wait for a listener whose queue is full.
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)
                if start.elapsed() + RETRY < patience.connect => {}
            Err(errno) => return Err(errno),
        }
        thread::sleep(RETRY);
    }
}

/// A pod's annotations may have 256 KiB (Kubernetes' limit), and JSON may double that.
const CONFIG_MAX: u64 = 2 << 20;
const RETRY: Duration = Duration::from_millis(20);
