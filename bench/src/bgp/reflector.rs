//! `cairn-bench reflector`: one route reflector with many clients, from outside, beside BIRD 2.
//!
//! All clients are on one thread and connect in the same second, as nodes do after a power cut, and not in
//! the same moment: BIRD's queue of connections that wait to be accepted has room for eight. Each
//! announces its prefixes and waits for those of all others (*start*). Then one after the other announces
//! one prefix more, as a node that claims a block, and it is measured until the last client has it
//! (*block*); and once more while one client, which does not count, comes and goes without pause
//! (*flapping*). In the end the daemon is killed and started again, with graceful restart on both sides, and all
//! clients connect again, each once a second, until each has everything anew (*restart*). The generator shares the
//! machine with the daemon: it reads every octet, which is a part of what is measured, the same for all daemons.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use super::cell::{DAEMON_ADDRESS, DAEMON_ASN, DAEMON_PORT, peer_address};
use super::daemon::{BIRD, Daemon};
use super::generator::{KEEPALIVE, open_with};
use super::namespace;
use crate::Result;
use crate::process::Process;

#[derive(Clone, Debug)]
struct Options {
    runs: usize,
    clients: u32,
    daemons: Vec<Daemon>,
    /// In which all clients connect, spread evenly, and after which each tries again.
    within: Duration,
    patience: Duration,
    cairn: PathBuf,
}

/// Runs `cairn-bench reflector` with the arguments behind it.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    crate::command(Options::parse(arguments), USAGE, measure)
}

fn measure(options: &Options) -> Result<()> {
    println!(
        "| daemon | all up, s | all routes, s | refused | CPU, s | MB | block to last client, ms: p50 | \
         p99 | to each: p99 | flapping: p50 | p99 | flaps | CPU, s | restart: all routes, s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for _ in 0..options.runs {
        for daemon in options.daemons.iter().copied() {
            let options = options.clone();
            // Its namespace goes with it.
            let measuring = std::thread::spawn(move || {
                measure_once(daemon, &options).map_err(|error| error.to_string())
            });
            let row = measuring.join().map_err(|_| "the measuring thread panicked")?;
            match row {
                Ok(row) => println!("{row}"),
                // The others are measured all the same.
                Err(error) if daemon == Daemon::Bird => {
                    println!("| {} | not measured: {} |", daemon.name(), error.trim());
                }
                Err(error) => return Err(format!("{}: {error}", daemon.name()).into()),
            }
        }
    }
    Ok(())
}

fn measure_once(daemon: Daemon, options: &Options) -> Result<String> {
    namespace::enter()?;
    let count = options.clients;
    let directory = std::env::temp_dir().join(format!("cairn-reflector-{}", std::process::id()));
    let process = start(daemon, count, &options.cairn, &directory, false)?;
    until_listening()?;
    let told = |error| format!("{error}\nthe daemon said: {}", process.log());
    let cpu = process.cpu()?;
    let mut clients = Clients::new(options)?;
    let (up, routes) = clients.start().map_err(told)?;
    let start_cpu = process.cpu()? - cpu;
    let (_, peak) = process.memory()?;
    let refused = clients.refused;
    let mut calm = clients.blocks(None).map_err(told)?;
    let cpu = process.cpu()?;
    let mut flapping = clients.blocks(Some(count as usize - 1)).map_err(told)?;
    let flapping_cpu = process.cpu()? - cpu;
    let flaps = clients.flaps;
    let killed = Instant::now();
    drop(process);
    let process = start(daemon, count, &options.cairn, &directory, true)?;
    clients
        .again(killed)
        .map_err(|error| format!("{error}\nthe daemon said: {}", process.log()))?;
    let restart = killed.elapsed();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(format!(
        "| {} | {:.2} | {:.2} | {refused} | {:.2} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {flaps} | {:.2} | {:.2} |",
        daemon.name(),
        up.as_secs_f64(),
        routes.as_secs_f64(),
        start_cpu.as_secs_f64(),
        peak as f64 / 1e6,
        ms(share(&mut calm.last, 50)),
        ms(share(&mut calm.last, 99)),
        ms(share(&mut calm.each, 99)),
        ms(share(&mut flapping.last, 50)),
        ms(share(&mut flapping.last, 99)),
        flapping_cpu.as_secs_f64(),
        restart.as_secs_f64(),
    ))
}

/// The time that so many of a hundred do not exceed.
fn share(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(place).copied().unwrap_or_default()
}

fn start(
    daemon: Daemon,
    clients: u32,
    cairn: &Path,
    directory: &Path,
    again: bool,
) -> Result<Process> {
    std::fs::create_dir_all(directory)?;
    let file = directory.join("configuration");
    let mut command;
    if daemon == Daemon::Bird {
        let mut text = format!(
            "router id {DAEMON_ADDRESS};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n"
        );
        for client in 0..clients {
            let address = peer_address(client);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "protocol bgp p{client} {{ local {DAEMON_ADDRESS} port {DAEMON_PORT} as {DAEMON_ASN}; \
                 neighbor {address} as {DAEMON_ASN}; rr client; passive; graceful restart on; \
                 error wait time 1, 1; error forget time 1; connect retry time 1; connect delay time 1; \
                 ipv4 {{ import all; export where source = RTS_BGP; }}; }}"
            );
        }
        std::fs::write(&file, text)?;
        command = Command::new(BIRD);
        command.args(["-f", "-c"]).arg(&file);
        command.arg("-s").arg(directory.join("control"));
        command.arg("-P").arg(directory.join("pid"));
        command.args(again.then_some("-R"));
    } else {
        let mut text = format!(
            "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{asn: {DAEMON_ASN}, routerID: {DAEMON_ADDRESS}, listenAddresses: [{DAEMON_ADDRESS}], \
             listenPort: {DAEMON_PORT}, topology: Disabled}}\n"
        );
        for client in 0..clients {
            let address = peer_address(client);
            let _ = write!(
                text,
                "---\napiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: p{client}}}\n\
                 spec: {{address: {address}, asn: {DAEMON_ASN}, passive: true, \
                 routeReflectorClient: true, families: [IPv4Unicast]}}\n"
            );
        }
        std::fs::write(&file, text)?;
        command = Command::new(cairn);
        command.args(["speaker", "-f"]).arg(&file);
        command.arg("--run-dir").arg(directory);
    }
    Process::spawn(command, directory.to_owned())
}

/// Connects from an address that is no client's until the daemon takes it.
fn until_listening() -> Result<()> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(SocketAddr::from((DAEMON_ADDRESS, DAEMON_PORT))) {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// All clients of the reflector.
struct Clients {
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// The next prefix that nobody has announced.
    next: usize,
    refused: usize,
    flaps: usize,
    /// See [`Options`].
    within: Duration,
    patience: Duration,
}

struct Client {
    number: usize,
    stream: Option<TcpStream>,
    state: State,
    inbox: Vec<u8>,
    /// Prefixes that it has been told, one bit each.
    has: Vec<u64>,
    count: usize,
    /// When the prefix that is waited for came.
    came: Option<Instant>,
    up_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Down { until: Instant },
    Connecting,
    OpenSent,
    Up,
}

/// How long blocks took: to the last client, and to each.
#[derive(Default)]
struct Times {
    last: Vec<Duration>,
    each: Vec<Duration>,
}

impl Clients {
    fn new(options: &Options) -> Result<Clients> {
        let count = options.clients as usize;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let next = count * PREFIXES;
        let words = (next + 2 * BLOCKS).div_ceil(64);
        let client = |number| Client {
            number,
            stream: None,
            state: State::Down { until: Instant::now() },
            inbox: Vec::new(),
            has: vec![0; words],
            count: 0,
            came: None,
            up_at: None,
        };
        let clients = (0..count).map(client).collect();
        let (within, patience) = (options.within, options.patience);
        Ok(Clients { epoll, clients, next, refused: 0, flaps: 0, within, patience })
    }

    /// Connects all; returns when all sessions were up, and when all had all routes.
    fn start(&mut self) -> Result<(Duration, Duration)> {
        let started = Instant::now();
        self.close_all(started);
        self.until_complete(started)?;
        let routes = started.elapsed();
        let up = self.clients.iter().filter_map(|client| client.up_at).max().unwrap_or(started);
        Ok((up - started, routes))
    }

    /// Waits until all have all routes of another process of the daemon.
    fn again(&mut self, killed: Instant) -> Result<()> {
        self.close_all(killed);
        self.until_complete(killed)
    }

    /// Closes all, which connect one after the other from `since` on.
    fn close_all(&mut self, since: Instant) {
        let count = self.clients.len() as u32;
        for (client, place) in self.clients.iter_mut().zip(0..) {
            client.close(since + self.within * place / count);
        }
    }

    fn until_complete(&mut self, since: Instant) -> Result<()> {
        let wanted = (self.clients.len() - 1) * PREFIXES;
        while !self.clients.iter().all(|client| client.count >= wanted) {
            self.turn(usize::MAX)?;
            if since.elapsed() > self.patience {
                let up = self.clients.iter().filter(|client| client.state == State::Up).count();
                let least = self.clients.iter().map(|client| client.count).min();
                return Err(format!("{up} up, one has {least:?} of {wanted} prefixes").into());
            }
        }
        Ok(())
    }

    /// Announces one prefix after the other from one client after the other, while the client `flapping`
    /// comes and goes.
    fn blocks(&mut self, flapping: Option<usize>) -> Result<Times> {
        let mut times = Times::default();
        for round in 0..BLOCKS {
            let pause = Instant::now() + PAUSE;
            while Instant::now() < pause {
                self.flap(flapping)?;
                self.turn(usize::MAX)?;
            }
            let prefix = self.next;
            self.next += 1;
            let sender = (round * 37) % (self.clients.len() - 1);
            self.clients.iter_mut().for_each(|client| client.came = None);
            let started = Instant::now();
            if let Some(client) = self.clients.get_mut(sender) {
                client.announce(prefix..prefix + 1)?;
            }
            let counts =
                |client: &Client| client.number != sender && Some(client.number) != flapping;
            while self.clients.iter().any(|client| counts(client) && client.came.is_none()) {
                self.flap(flapping)?;
                self.turn(prefix)?;
                if started.elapsed() > self.patience {
                    return Err("a prefix does not arrive".into());
                }
            }
            let came = self.clients.iter().filter(|client| counts(client));
            let took: Vec<Duration> = came.filter_map(|c| c.came).map(|at| at - started).collect();
            times.last.extend(took.iter().max());
            times.each.extend(took);
        }
        Ok(times)
    }

    /// Ends the session of the client that flaps as soon as it has heard something on it.
    fn flap(&mut self, flapping: Option<usize>) -> Result<()> {
        let Some(client) = flapping.and_then(|number| self.clients.get_mut(number)) else {
            return Ok(());
        };
        if client.state == State::Up && client.count > 0 {
            client.close(Instant::now() + FLAP);
            self.flaps += 1;
        }
        Ok(())
    }

    /// Waits for sockets once. The time at which `awaited` comes is noted.
    fn turn(&mut self, awaited: usize) -> Result<()> {
        for client in &mut self.clients {
            if let State::Down { until } = client.state
                && until <= Instant::now()
            {
                client.connect(&self.epoll)?;
            }
        }
        let mut events = Vec::with_capacity(self.clients.len());
        let wait = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let number = event.data.u64() as usize;
            let Some(client) = self.clients.get_mut(number) else { continue };
            if client.handle(&self.epoll, awaited).is_err() {
                self.refused += 1;
                client.close(Instant::now() + self.within.max(RETRY_MIN));
            }
        }
        Ok(())
    }
}

impl Client {
    fn connect(&mut self, epoll: &OwnedFd) -> Result<()> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        bind(&socket, &SocketAddr::from((peer_address(self.number as u32), 0)))?;
        match connect(&socket, &SocketAddr::from((DAEMON_ADDRESS, DAEMON_PORT))) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        let data = epoll::EventData::new_u64(self.number as u64);
        epoll::add(epoll, &stream, data, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
        (self.stream, self.state) = (Some(stream), State::Connecting);
        Ok(())
    }

    /// Ends the session until then.
    fn close(&mut self, until: Instant) {
        // A closed socket leaves epoll by itself.
        self.stream = None;
        self.state = State::Down { until };
        self.inbox.clear();
        self.has.fill(0);
        self.count = 0;
    }

    /// Does what the socket asks for.
    fn handle(&mut self, epoll: &OwnedFd, awaited: usize) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        if self.state == State::Connecting {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            let id = peer_address(self.number as u32);
            stream.write_all(&open_with(DAEMON_ASN, id, 0, &GRACEFUL_RESTART))?;
            let data = epoll::EventData::new_u64(self.number as u64);
            epoll::modify(epoll, &*stream, data, epoll::EventFlags::IN)?;
            self.state = State::OpenSent;
        }
        let mut buffer = [0; READ_OCTETS];
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(octets) => self.inbox.extend_from_slice(&buffer[..octets]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = inbox.as_slice();
        while let Some(&[high, low, code]) = rest.get(16..19) {
            let length = usize::from(u16::from_be_bytes([high, low])).max(19);
            let Some(message) = rest.get(..length) else { break };
            rest = &rest[length..];
            self.message(code, &message[19..], awaited)?;
        }
        self.inbox = rest.to_vec();
        Ok(())
    }

    fn message(&mut self, code: u8, body: &[u8], awaited: usize) -> io::Result<()> {
        match (code, self.state) {
            (1, State::OpenSent) => self.write(&KEEPALIVE),
            (4, State::OpenSent) => {
                self.state = State::Up;
                self.up_at = Some(Instant::now());
                let first = self.number * PREFIXES;
                self.announce(first..first + PREFIXES)?;
                self.write(&END_OF_RIB)
            }
            (2, State::Up) => {
                self.update(body, awaited);
                Ok(())
            }
            (3, _) => Err(io::Error::other(format!("NOTIFICATION {body:?}"))),
            _ => Ok(()),
        }
    }

    /// Takes in an UPDATE of IPv4 routes.
    fn update(&mut self, body: &[u8], awaited: usize) {
        let length = |at: usize| {
            let octets = body.get(at..at + 2).and_then(|octets| octets.try_into().ok());
            usize::from(u16::from_be_bytes(octets.unwrap_or_default()))
        };
        let withdrawn = 2 + length(0);
        let announced = withdrawn + 2 + length(withdrawn);
        for prefix in prefixes(body.get(2..withdrawn).unwrap_or_default()) {
            self.set(prefix, false);
        }
        for prefix in prefixes(body.get(announced..).unwrap_or_default()) {
            self.set(prefix, true);
            if prefix == awaited {
                self.came.get_or_insert_with(Instant::now);
            }
        }
    }

    fn set(&mut self, prefix: usize, told: bool) {
        let Some(word) = self.has.get_mut(prefix / 64) else { return };
        let bit = 1 << (prefix % 64);
        match (told, *word & bit != 0) {
            (true, false) => self.count += 1,
            (false, true) => self.count -= 1,
            _ => return,
        }
        *word ^= bit;
    }

    fn announce(&mut self, prefixes: std::ops::Range<usize>) -> io::Result<()> {
        let next_hop = peer_address(self.number as u32).octets();
        // ORIGIN, an empty AS_PATH, NEXT_HOP, LOCAL_PREF.
        let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4];
        attributes.extend(next_hop);
        attributes.extend([0x40, 5, 4, 0, 0, 0, 100]);
        let mut body = vec![0, 0];
        body.extend((attributes.len() as u16).to_be_bytes());
        body.extend(attributes);
        for prefix in prefixes {
            let [_, high, middle, low] = (prefix as u32).to_be_bytes();
            body.extend([24, FIRST_OCTET + high, middle, low]);
        }
        let mut message = vec![0xff; 16];
        message.extend((19 + body.len() as u16).to_be_bytes());
        message.push(2);
        message.extend(body);
        self.write(&message)
    }

    /// Little enough for an empty socket.
    fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.stream.as_mut().map_or(Ok(()), |stream| stream.write_all(octets))
    }
}

/// The numbers of the /24 prefixes in a field of prefixes.
fn prefixes(field: &[u8]) -> impl Iterator<Item = usize> {
    let number = |octets: &[u8]| match octets {
        [24, first, middle, low] => {
            let high = first.wrapping_sub(FIRST_OCTET);
            u32::from_be_bytes([0, high, *middle, *low]) as usize
        }
        _ => usize::MAX,
    };
    field.chunks(4).map(number)
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let own = std::env::current_exe().unwrap_or_default();
        let cairn = own.with_file_name("cairn");
        let mut options = Options {
            runs: 3,
            clients: CLIENTS,
            daemons: vec![Daemon::Bird, Daemon::Cairn],
            within: Duration::from_secs(1),
            patience: PATIENCE,
            cairn,
        };
        let number = |text: String, option: &str| {
            text.parse::<u64>().map_err(|_| format!("{option} takes a number"))
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
            match argument.as_str() {
                "--quick" => (options.clients, options.runs) = (20, 1),
                "--clients" => {
                    let clients = value()?.parse().ok();
                    let clients = clients.filter(|clients| (3..=CLIENTS).contains(clients));
                    options.clients = clients.ok_or("--clients takes a number from 3 to 1000")?;
                }
                "--runs" => {
                    let runs = value()?.parse().ok().filter(|runs| (1..=1000).contains(runs));
                    options.runs = runs.ok_or("--runs takes a number from 1 on")?;
                }
                "--daemon" => {
                    options.daemons = match value()?.as_str() {
                        "bird" => vec![Daemon::Bird],
                        "cairn" => vec![Daemon::Cairn],
                        _ => return Err("--daemon takes bird or cairn".into()),
                    };
                }
                "--within-ms" => {
                    options.within = Duration::from_millis(number(value()?, "--within-ms")?);
                }
                "--patience" => {
                    options.patience = Duration::from_secs(number(value()?, "--patience")?);
                }
                "--cairn" => options.cairn = PathBuf::from(value()?),
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        Ok(Some(options))
    }
}

/// RFC 4724: 120 s, IPv4 unicast, forwarding goes on.
const GRACEFUL_RESTART: [u8; 8] = [64, 6, 0, 120, 0, 1, 1, 0x80];
/// Of IPv4.
const END_OF_RIB: [u8; 23] = {
    let mut message = [0xff; 23];
    [message[16], message[17], message[18]] = [0, 23, 2];
    [message[19], message[20], message[21], message[22]] = [0; 4];
    message
};
const CLIENTS: u32 = 1000;
/// Of each client.
const PREFIXES: usize = 20;
/// Prefixes that are announced one by one, with and without a client that flaps.
const BLOCKS: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);
/// Of a client that flaps, and of all that try again.
const FLAP: Duration = Duration::from_millis(20);
const RETRY_MIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(120);
const READ_OCTETS: usize = 64 * 1024;
/// Prefixes are 20.0.0.0/24 and those after it.
const FIRST_OCTET: u8 = 20;

const USAGE: &str = "usage: cairn-bench reflector [--quick] [--clients N] [--runs N] [--daemon bird|cairn] [--within-ms N] \
                     [--patience SECONDS] [--cairn PATH]";
