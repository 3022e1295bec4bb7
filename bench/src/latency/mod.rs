//! `cairn-bench latency`: from an UPDATE to its routes in the kernel, our speaker beside other daemons.
//!
//! ```text
//!  this process ──TCP, 10 routes each ms──► daemon ──netlink──► kernel of the daemon's namespace
//!       ▲                                                          │
//!       └────────────── notification of each route ◄───────────────┘
//! ```
//!
//! A route's latency is from the moment before the UPDATE with it is written to the socket to the moment
//! its notification is read, both on one clock. The load is steady, 10,000 routes a second, which every
//! daemon here can sustain: what is seen is how long a route waits, and not how fast the daemon is. The
//! daemons take turns. Times are those of this machine under whatever else runs on it: only what stands side by
//! side in one run means something.

mod daemon;
mod listen;
mod report;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cairn_kernel::link::{self, DuplicateDetection, Veth, VethEnd};
use cairn_kernel::{NetNs, Netlink};
use std::os::fd::AsFd;

use crate::bgp::generator::{KEEPALIVE, next_type, open};
use crate::fib::bed::remove_left_behind;
use crate::table::Format;
use crate::{Extent, Result};
use daemon::Daemon;
use listen::Listener;
use report::{Measured, Report};

/// The daemon's address, at the other end of a link to this process.
pub const DAEMON_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// This process's address, which is also the next hop of every route.
pub const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The daemon's AS.
pub const DAEMON_ASN: u32 = 65_000;
/// Ours.
pub const PEER_ASN: u32 = 65_001;

#[derive(Debug)]
struct Options {
    extent: Extent,
    runs: Option<usize>,
    cairn: PathBuf,
    format: Format,
}

/// Runs `cairn-bench latency` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, |options| {
        measure(options)?.print(options.format);
        Ok(())
    })
}

fn measure(options: &Options) -> Result<Report> {
    if !rustix::process::geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    remove_left_behind(PREFIX)?;
    let routes = options.extent.pick(50_000, 500);
    let runs = options.runs.unwrap_or(options.extent.pick(3, 1));
    let mut report = Report::new(options.extent);
    for run in 0..runs {
        for turn in 0..Daemon::ALL.len() {
            let daemon = Daemon::ALL[(run + turn) % Daemon::ALL.len()];
            eprintln!("run {}: {} ...", run + 1, daemon.name());
            let measured = measure_once(daemon, &options.cairn, routes)
                .map_err(|error| format!("{}: {error}", daemon.name()))?;
            report.push(daemon, measured);
        }
    }
    Ok(report)
}

fn measure_once(daemon: Daemon, cairn: &std::path::Path, routes: u32) -> Result<Measured> {
    let bed = Bed::new()?;
    let started = daemon.start(&bed.name, cairn)?;
    let told = |error| format!("{error}\nthe daemon said: {}", started.log());
    let mut session = bed.session().map_err(told)?;
    let mut listener = Listener::open(&bed.daemon)?;
    let before = started.cpu()?;
    let sent = send(&mut session, routes).map_err(told)?;
    let seen = listener.collect(routes, PATIENCE).map_err(told)?;
    let cpu = started.cpu()?.saturating_sub(before);
    let latencies = seen.iter().enumerate().map(|(route, at)| {
        // Every message has so many routes.
        at.saturating_duration_since(sent[route / ROUTES_A_MESSAGE as usize])
    });
    Ok(Measured::new(latencies.collect(), cpu))
}

/// Announces so many routes at a steady rate, and says when each message left.
fn send(session: &mut TcpStream, routes: u32) -> Result<Vec<Instant>> {
    let messages: Vec<Vec<u8>> = (0..routes / ROUTES_A_MESSAGE).map(update).collect();
    let mut sent = Vec::with_capacity(messages.len());
    let began = Instant::now();
    for (number, message) in messages.iter().enumerate() {
        let due = began + TICK * number as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        sent.push(Instant::now());
        session.write_all(message)?;
    }
    Ok(sent)
}

/// An UPDATE with attributes of its own (RFC 4271 section 4.3).
fn update(number: u32) -> Vec<u8> {
    let mut attributes = vec![0x40, 1, 1, 0];
    attributes.extend([0x40, 2, 10, 2, 2]);
    attributes.extend(PEER_ASN.to_be_bytes());
    attributes.extend((100_000 + number).to_be_bytes());
    attributes.extend([0x40, 3, 4]);
    attributes.extend(PEER_ADDRESS.octets());
    let mut body = vec![0, 0];
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    for route in number * ROUTES_A_MESSAGE..(number + 1) * ROUTES_A_MESSAGE {
        let [_, high, middle, low] = route.to_be_bytes();
        body.extend([24, 10 + high, middle, low]);
    }
    let mut message = vec![0xff; 16];
    message.extend((19 + body.len() as u16).to_be_bytes());
    message.push(2);
    message.extend(body);
    message
}

/// The number of the route with this prefix, as [`update`] numbers them.
fn number_of(network: Ipv4Addr) -> Option<u32> {
    let [high, middle, low, host] = network.octets();
    let high = high.checked_sub(10)?;
    (host == 0).then(|| u32::from_be_bytes([0, high, middle, low]))
}

/// A namespace for the daemon, linked to one for its peer.
struct Bed {
    daemon: NetNs,
    peer: NetNs,
    /// The name of the daemon's.
    name: String,
    peer_name: String,
}

impl Bed {
    fn new() -> Result<Bed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("{PREFIX}{}-{number}-{side}", std::process::id());
        let (name, peer_name) = (name("daemon"), name("peer"));
        let daemon = NetNs::create(&name)?;
        let peer = match NetNs::create(&peer_name) {
            Ok(peer) => peer,
            Err(error) => {
                NetNs::delete(&name)?;
                return Err(error.into());
            }
        };
        let bed = Bed { daemon, peer, name, peer_name };
        bed.link()?;
        Ok(bed)
    }

    fn link(&self) -> Result<()> {
        let mut netlink = Netlink::open_in(&self.daemon)?;
        let pair = Veth {
            end: VethEnd::named(LINK),
            peer: VethEnd::named(LINK),
            peer_netns: Some(self.peer.as_fd()),
            mtu: None,
        };
        link::create_veth(&mut netlink, &pair)?;
        for (netns, address) in [(&self.daemon, DAEMON_ADDRESS), (&self.peer, PEER_ADDRESS)] {
            let mut netlink = Netlink::open_in(netns)?;
            for name in [LINK, "lo"] {
                let link = link::find(&mut netlink, name)?;
                let index = link.ok_or_else(|| format!("the link {name} is missing"))?.index;
                link::set_up(&mut netlink, index)?;
                if name == LINK {
                    let address = format!("{address}/24").parse()?;
                    link::add_address(&mut netlink, index, address, DuplicateDetection::Skip)?;
                }
            }
        }
        Ok(())
    }

    /// A session with the daemon, which may only just have been started.
    fn session(&self) -> Result<TcpStream> {
        let began = Instant::now();
        loop {
            let done = self.peer.run(|| try_session().map_err(|error| error.to_string()))?;
            match done {
                Ok(session) => return Ok(session),
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in [&self.name, &self.peer_name] {
            if let Err(error) = NetNs::delete(name) {
                eprintln!("the namespace {name} stays behind: {error}");
            }
        }
    }
}

/// Connects, and goes on until nothing more comes: then the daemon has nothing else to do.
fn try_session() -> Result<TcpStream> {
    let mut stream = TcpStream::connect(SocketAddr::from((DAEMON_ADDRESS, 179)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&open(PEER_ASN, PEER_ADDRESS))?;
    let (mut seen, mut types) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let octets = match stream.read(&mut buffer) {
            Ok(0) => return Err("the daemon closed the connection".into()),
            Ok(octets) => octets,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        };
        seen.extend_from_slice(&buffer[..octets]);
        while let Some(code) = next_type(&mut seen) {
            types.push(code);
            if types.len() == 1 {
                stream.write_all(&KEEPALIVE)?;
            }
            if types.len() == 2 {
                stream.set_read_timeout(Some(QUIET))?;
            }
        }
    }
    if !matches!(types.as_slice(), [1, 4, ..]) {
        return Err(format!("messages of types {types:?} instead of OPEN and KEEPALIVE").into());
    }
    // We announce everything anew, and this is all there is from before.
    stream.write_all(&END_OF_RIB)?;
    Ok(stream)
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let cairn = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("cairn")));
        let mut options = Options {
            extent: Extent::Full,
            runs: None,
            cairn: cairn.unwrap_or_else(|| "cairn".into()),
            format: Format::Table,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.extent = Extent::Quick,
                "--runs" => {
                    let runs = arguments.next().and_then(|text| text.parse().ok());
                    options.runs =
                        Some(runs.filter(|runs| *runs > 0).ok_or("--runs takes a number")?);
                }
                "--cairn" => {
                    options.cairn = arguments.next().ok_or("--cairn takes a path")?.into();
                }
                "-o" | "--output" => {
                    options.format = Format::named(arguments.next().as_deref())?;
                }
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        Ok(Some(options))
    }
}

const USAGE: &str = "usage: cairn-bench latency [--quick] [--runs N] [--cairn PATH] [-o json]";
const PREFIX: &str = "bench-latency-";
const LINK: &str = "link";
const ROUTES_A_MESSAGE: u32 = 10;
const TICK: Duration = Duration::from_millis(1);
/// How long a daemon may take to start, and a route to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// A daemon that says nothing for so long has said what it has to at the beginning.
const QUIET: Duration = Duration::from_secs(1);
/// An UPDATE without anything, for IPv4 unicast (RFC 4724 section 2).
const END_OF_RIB: [u8; 23] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0, 23, 2, 0, 0, 0, 0,
];
