//! The router that is measured, in a network namespace of its own, linked to that of its peers.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cairn_bfd::control::{Client, Overview, Report};
use cairn_kernel::Netlink;
use cairn_kernel::link::{self, DuplicateDetection};
use cairn_tests::link::Link;
use cairn_tests::process::Scratch;
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use crate::Result;
use crate::bgp::cell::{DAEMON_ADDRESS, DAEMON_PORT};
use crate::process::Process;

/// Two namespaces with a link. Nothing of them is left behind, whatever happens.
pub struct Bed {
    link: Link,
    netlink: Netlink,
    uplink: u32,
    scratch: Scratch,
    cairn: PathBuf,
}

/// Where a process runs.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// In the namespace of the router, [`DAEMON_ADDRESS`].
    Router,
    /// In that of its peers, which is the calling thread's.
    Peers,
}

impl Bed {
    /// Moves the calling thread into a new network namespace, and links it to the router's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(cairn: &Path) -> Result<Bed> {
        let link = Link::without_addresses();
        link.inside(&format!("ip addr add {DAEMON_ADDRESS}/16 dev uplink"));
        link.here(&format!("ip addr add {NEAR_ADDRESS}/16 dev uplink"));
        let mut netlink = Netlink::open()?;
        let uplink = link::find(&mut netlink, "uplink")?.ok_or("the link is missing")?.index;
        let scratch = Scratch::new("cairn-bench-failures");
        let bed = Bed { link, netlink, uplink, scratch, cairn: cairn.to_owned() };
        for side in [Side::Router, Side::Peers] {
            std::fs::create_dir(bed.run_dir(side))?;
        }
        Ok(bed)
    }

    /// Gives the peers' side an address more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&mut self, address: Ipv4Addr) -> Result<()> {
        let detection = DuplicateDetection::Skip;
        Ok(link::add_address(&mut self.netlink, self.uplink, host(address), detection)?)
    }

    /// Takes it away: nothing can be sent from it any more, and what comes to it is dropped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, address: Ipv4Addr) -> Result<()> {
        Ok(link::delete_address(&mut self.netlink, self.uplink, host(address))?)
    }

    /// Starts `cairn bfd`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn bfd(&self, side: Side) -> Result<Process> {
        self.start(side, "bfd", &[])
    }

    /// Starts `cairn speaker` with these objects.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn speaker(&self, side: Side, objects: &str) -> Result<Process> {
        let file = self.run_dir(side).join("objects.yaml");
        std::fs::write(&file, objects)?;
        self.start(side, "speaker", &["-f", &file.display().to_string()])
    }

    fn start(&self, side: Side, what: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = match side {
            Side::Router => self.link.far().command(&self.cairn.display().to_string()),
            Side::Peers => Command::new(&self.cairn),
        };
        command.arg(what).arg("--run-dir").arg(self.run_dir(side)).args(arguments);
        command.env_remove("CAIRN_LOG");
        let directory = self.scratch.path().join(format!("{side:?}-{what}"));
        std::fs::create_dir_all(&directory)?;
        let started = Process::spawn(command, directory);
        Ok(started.map_err(|error| {
            let cairn = self.cairn.display();
            format!("{cairn}: {error}: build it, or name another one with --cairn")
        })?)
    }

    /// A client of the `cairn bfd` of a side, which may only just have been started, and what it says first.
    ///
    /// # Errors
    /// It does not answer.
    pub fn bfd_client(&self, side: Side, patience: Duration) -> Result<(Client, Overview)> {
        let began = Instant::now();
        loop {
            match Client::connect(&self.run_dir(side), patience) {
                Ok(mut client) => match client.report()? {
                    Report::Overview(overview) => return Ok((client, overview)),
                    other => return Err(format!("`cairn bfd` says first: {other:?}").into()),
                },
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(POLL_PAUSE),
            }
        }
    }

    /// What `cairn bgp peers` says on a side, a value for each peer; nothing while it does not answer.
    ///
    /// # Errors
    /// It cannot be started, or says what is no JSON.
    pub fn peers(&self, side: Side) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.cairn);
        command.args(["bgp", "peers", "-o", "json", "--run-dir"]).arg(self.run_dir(side));
        let output = String::from_utf8(command.output()?.stdout)?;
        Ok(output.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?)
    }

    fn run_dir(&self, side: Side) -> PathBuf {
        self.scratch.path().join(format!("{side:?}"))
    }
}

/// The objects of a speaker without its peers.
pub fn objects(asn: u32, address: Ipv4Addr, hold_time_secs: u16) -> String {
    format!(
        "apiVersion: cairn.network/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {asn}, routerID: {address}, listenAddresses: [{address}], listenPort: {DAEMON_PORT}, \
         topology: Disabled, timers: {{holdTimeSecs: {hold_time_secs}, connectRetrySecs: 1}}}}\n\
         ---\napiVersion: cairn.network/v1alpha1\nkind: BGPPolicy\nmetadata: {{name: all}}\n\
         spec: {{rules: [{{action: Accept}}]}}\n"
    )
}

/// Adds a peer that everything is told, with `more` in its specification.
pub fn add_peer(objects: &mut String, name: &str, address: Ipv4Addr, asn: u32, more: &str) {
    // Writing to a string cannot fail.
    let _ = write!(
        objects,
        "---\napiVersion: cairn.network/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
         spec: {{address: {address}, asn: {asn}, families: [IPv4Unicast], importPolicies: [all], \
         exportPolicies: [all]{more}}}\n"
    );
}

/// Waits until something holds.
///
/// # Errors
/// It never does, or cannot be asked.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > PATIENCE {
            return Err(format!("never: {what}").into());
        }
        std::thread::sleep(POLL_PAUSE);
    }
    Ok(())
}

fn host(address: Ipv4Addr) -> IpNet {
    Ipv4Net::from(address).into()
}

/// The peers' side's own address.
pub const NEAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// How long the daemons may take for what they have to come to.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL_PAUSE: Duration = Duration::from_millis(50);
