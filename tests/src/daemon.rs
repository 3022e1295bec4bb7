//! What a test asks of another BGP daemon, in words that all of them have.

use std::process::Child;
use std::sync::Arc;

use serde_json::Value;

use crate::link::{self, Far, Link};

/// A running daemon on the other side of a link. Killed when dropped, as by `kill -9`.
pub trait Daemon: Sized {
    /// Whether it logs the text of a shutdown (RFC 9003).
    const READS_SHUTDOWN_TEXT: bool = true;
    /// Whether it can put any AS numbers behind its own in what it announces.
    const PREPENDS_ANY: bool = true;
    /// Whether it finds AS numbers of four octets in AS4_PATH when its session has none (RFC 6793).
    const MERGES_AS4_PATH: bool = true;
    /// Whether it reads our AS number of four octets in our OPEN though it offers none itself.
    const READS_FOUR_OCTETS: bool = true;
    /// Whether it marks where routes that were asked for begin and end (RFC 7313).
    const ENHANCED_REFRESH: bool = false;
    /// Whether an eBGP session carries its routes of the family that the session does not run over
    /// with a next hop that can be used.
    const SENDS_OTHER_FAMILY_ON_EBGP: bool = true;

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// Without the program, or when it does not start.
    fn start(link: &Link, setup: &Setup) -> Self;

    /// What it does now, and how it is told the rest.
    fn parts(&mut self) -> &mut Parts;

    /// The same to look at.
    fn seen(&self) -> &Parts;

    /// Makes the running daemon do what `new` says. Routes and the password may differ.
    ///
    /// # Panics
    /// When the daemon refuses.
    fn change(&mut self, new: &Setup);

    /// What it has learned from us about a prefix.
    fn learned(&self, prefix: &str) -> Option<Learned>;

    /// Whether its session with us is established.
    fn is_established(&self) -> bool;

    /// Asks us for everything again (ROUTE-REFRESH), in both families.
    ///
    /// # Panics
    /// When the daemon refuses.
    fn ask_again(&self);

    /// How many routes, or UPDATE messages where it counts these, it has received in this session.
    fn updates_received(&self) -> u64;

    /// Whether the first round of routes is complete. FRR takes no request before its mark.
    fn has_told_all(&self) -> bool {
        true
    }

    /// How many routes, or UPDATE messages where it counts these, it has sent in this session.
    fn updates_sent(&self) -> u64;

    /// Ends the session with a text for us (RFC 9003).
    ///
    /// # Panics
    /// When the daemon refuses.
    fn shut_down(&self, text: &str);

    /// Everything that helps to see why a test failed.
    fn state(&self) -> String;

    /// Starts it again after [`Daemon::kill`], as one that recovers from a restart.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    fn start_again(&mut self);

    /// Ends it without giving it a moment.
    fn kill(&mut self) {
        self.parts().processes.clear();
    }

    /// Makes the running daemon do what a changed setup says.
    fn apply(&mut self, change: impl FnOnce(&mut Setup)) {
        let mut setup = self.seen().setup.clone();
        change(&mut setup);
        self.change(&setup);
        self.parts().setup = setup;
    }

    /// What it has logged.
    fn log(&self) -> String {
        self.seen().log()
    }

    /// Waits, without stopping the runtime, until `holds` is true.
    ///
    /// # Panics
    /// When it never is.
    #[allow(async_fn_in_trait)]
    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        link::until(what, || holds(self), || format!("{}\n{}", self.state(), self.log())).await;
    }

    /// Waits until it has learned a prefix, and returns what.
    #[allow(async_fn_in_trait)]
    async fn until_learned(&self, prefix: &str) -> Learned {
        let mut learned = None;
        self.until(&format!("{prefix} is learned"), |daemon| {
            learned = daemon.learned(prefix);
            learned.is_some()
        })
        .await;
        learned.unwrap_or_default()
    }
}

/// What every daemon here holds.
#[derive(Debug)]
pub struct Parts {
    /// The other side, which lives as long as a daemon does.
    pub far: Arc<Far>,
    /// What the daemon does now.
    pub setup: Setup,
    /// A directory of its own, as a path of the other side.
    pub directory: String,
    /// What runs, in the order of starting.
    pub processes: Vec<Process>,
}

/// A process, killed when dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Parts {
    /// Nothing runs yet.
    ///
    /// # Panics
    /// When a daemon of this name and host was there already.
    #[must_use]
    pub fn new(link: &Link, name: &str, setup: &Setup) -> Parts {
        let far = link.far();
        let directory = far.directory(&format!("{name}-{}", setup.router_id()));
        Parts { far, setup: setup.clone(), directory, processes: Vec::new() }
    }

    /// The path of a file in the daemon's directory, as the other side has it.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.directory)
    }

    /// Writes a file in the daemon's directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, file: &str, text: &str) {
        self.far.write(&self.path(file), text);
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.far.read(&self.path(LOG))
    }

    /// Starts a program whose standard output and error go to the log.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let (output, errors) = self.far.log(&self.path(LOG));
        let mut command = self.far.command(program);
        command.args(arguments).stdout(output).stderr(errors);
        self.processes.push(Process(self.far.spawn(&mut command)));
    }

    /// Sends a signal to what was started last, which is the daemon that speaks BGP.
    ///
    /// # Panics
    /// When nothing runs.
    pub fn signal(&self, signal: i32) {
        self.processes.last().expect("a running daemon").signal(signal);
    }
}

impl Process {
    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: i32) {
        let id = self.0.id().try_into().expect("the id of a process");
        // SAFETY: kill takes no memory; the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0, "the process has ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a daemon is to do.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the TCP connection runs over.
    pub transport: Transport,
    /// The daemon's address of each family: of [`link::FAR_HOST`], or of one of [`Link::host`].
    pub addresses: [String; 2],
    /// The next hop of its routes of each family.
    pub next_hops: [String; 2],
    /// Our address, or the name of the daemon's interface that we are on.
    pub remote: String,
    /// Our port.
    pub port: u16,
    /// Its AS number.
    pub asn: u32,
    /// The AS number that it expects of us.
    pub our_asn: u32,
    /// What it announces.
    pub routes: Vec<Announced>,
    /// TCP MD5 key.
    pub password: Option<String>,
    /// Prefixes of a family that it takes from us.
    pub prefixes_max: Option<u32>,
    /// Generalized TTL security.
    pub ttl_security: bool,
    /// Wait between its attempts to connect, where it can be told.
    pub connect_retry_secs: u8,
    /// Waits for us to connect.
    pub passive: bool,
    /// IPv4 routes with IPv6 next hops.
    pub extended_next_hop: bool,
    /// Several paths to a prefix both ways (RFC 7911); a prefix may then stand twice in `routes`.
    pub add_path: bool,
    /// Messages of up to 65,535 octets, where the daemon has a choice.
    pub extended_messages: bool,
    /// 4-octet AS numbers.
    pub four_octet_as: bool,
    /// Offers graceful restart.
    pub graceful_restart: bool,
    /// Further lines for the session, in the daemon's own language.
    pub more: String,
}

/// What a TCP connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A route that a daemon announces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The prefix.
    pub prefix: String,
    /// AS numbers behind the daemon's own.
    pub as_path: Vec<u32>,
    /// COMMUNITIES such as `65001:7`.
    pub communities: Vec<String>,
    /// LARGE_COMMUNITY such as `65001:1:2`.
    pub large_communities: Vec<String>,
}

/// A route as the other side of a session sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// NEXT_HOP.
    pub next_hop: String,
    /// AS_PATH, numbers with spaces in between.
    pub as_path: String,
    /// LOCAL_PREF, where it came with the route.
    pub local_pref: Option<u32>,
    /// COMMUNITIES.
    pub communities: Vec<String>,
    /// LARGE_COMMUNITY.
    pub large_communities: Vec<String>,
}

impl Setup {
    /// A session with nothing special, over `transport`.
    #[must_use]
    pub fn new(transport: Transport, asn: u32, our_asn: u32) -> Setup {
        Setup {
            transport,
            addresses: Transport::ALL.map(|family| family.address(link::FAR_HOST)),
            next_hops: Transport::ALL.map(|family| family.address(link::FAR_HOST)),
            remote: transport.address(OUR_HOST),
            port: 179,
            asn,
            our_asn,
            routes: Vec::new(),
            password: None,
            prefixes_max: None,
            ttl_security: false,
            connect_retry_secs: 1,
            passive: false,
            extended_next_hop: false,
            add_path: false,
            extended_messages: false,
            four_octet_as: true,
            graceful_restart: false,
            more: String::new(),
        }
    }

    /// The same with routes to announce that have nothing special.
    #[must_use]
    pub fn announcing(mut self, prefixes: &[&str]) -> Setup {
        self.routes.extend(prefixes.iter().copied().map(Announced::from));
        self
    }

    /// The same with another host's addresses, which [`Link::host`] has to make.
    #[must_use]
    pub fn at(mut self, host: u8) -> Setup {
        self.addresses = Transport::ALL.map(|family| family.address(host));
        self.next_hops = self.addresses.clone();
        self
    }

    /// Whether the daemon knows us by its interface, and learns our address.
    #[must_use]
    pub fn is_unnumbered(&self) -> bool {
        self.remote.parse::<std::net::IpAddr>().is_err()
    }

    /// The address of the session on the daemon's side.
    #[must_use]
    pub fn local(&self) -> &str {
        of(&self.addresses, self.transport)
    }

    /// The daemon's identifier.
    #[must_use]
    pub fn router_id(&self) -> &str {
        of(&self.addresses, Transport::V4)
    }

    /// The daemon's own next hop for a prefix.
    #[must_use]
    pub fn next_hop(&self, prefix: &str) -> &str {
        match self.extended_next_hop {
            true => of(&self.next_hops, Transport::V6),
            false => of(&self.next_hops, Transport::of(prefix)),
        }
    }

    /// Its routes of one family.
    pub fn routes_of(&self, family: Transport) -> impl Iterator<Item = &Announced> {
        self.routes.iter().filter(move |route| Transport::of(&route.prefix) == family)
    }
}

fn of([v4, v6]: &[String; 2], family: Transport) -> &str {
    match family {
        Transport::V4 => v4,
        Transport::V6 => v6,
    }
}

impl Transport {
    /// Both.
    pub const ALL: [Transport; 2] = [Transport::V4, Transport::V6];

    /// The family of a prefix or address.
    #[must_use]
    pub fn of(prefix: &str) -> Transport {
        if prefix.contains(':') { Transport::V6 } else { Transport::V4 }
    }

    /// The address on the link with this last part.
    #[must_use]
    pub fn address(self, host: u8) -> String {
        match self {
            Transport::V4 => format!("10.0.0.{host}"),
            Transport::V6 => format!("fd00::{host}"),
        }
    }
}

impl From<&str> for Announced {
    fn from(prefix: &str) -> Announced {
        Announced { prefix: prefix.into(), ..Announced::default() }
    }
}

/// Texts of a JSON array; of a single text its words.
#[must_use]
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        Value::String(words) => words.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// A JSON text without its quotes, or a number as text.
#[must_use]
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What daemons write goes to this file of their directory.
const LOG: &str = "log";
/// Last part of our own addresses.
pub const OUR_HOST: u8 = 1;
/// Hold time that the daemons offer, in seconds.
pub const HOLD_TIME_SECS: u16 = 9;
