//! A real OpenBGPD.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::daemon::{Announced, Daemon, HOLD_TIME_SECS, Learned, Parts, Setup, text, texts};
use crate::link::{self, Link};

/// A running bgpd of OpenBSD.
#[derive(Debug)]
pub struct OpenBgpd {
    parts: Parts,
}

impl Daemon for OpenBgpd {
    // On Linux it takes ::1 for its own address of the other family.
    const PREPENDS_ANY: bool = false;
    const SENDS_OTHER_FAMILY_ON_EBGP: bool = false;

    fn start(link: &Link, setup: &Setup) -> OpenBgpd {
        link::need(BGPD, "openbgpd");
        let mut openbgpd = OpenBgpd { parts: Parts::new(link, "openbgpd-test", setup) };
        // Where its children lock themselves in; made by its unit elsewhere.
        let _ = openbgpd.parts.far.directory("openbgpd");
        openbgpd.run();
        openbgpd
    }

    fn start_again(&mut self) {
        self.run();
    }

    fn parts(&mut self) -> &mut Parts {
        &mut self.parts
    }

    fn seen(&self) -> &Parts {
        &self.parts
    }

    fn change(&mut self, new: &Setup) {
        self.write(new);
        let answer = self.ask(&["reload"]);
        assert!(answer.is_some(), "OpenBGPD does not reload: {}", self.log());
        if self.parts.setup.password != new.password {
            // It keeps the old one for the connection that there is.
            let answer = self.ask(&["neighbor", &new.remote, "clear"]);
            assert!(answer.is_some(), "OpenBGPD does not end its session");
        }
    }

    fn learned(&self, prefix: &str) -> Option<Learned> {
        let remote = &self.parts.setup.remote;
        let answer = self.ask(&["-j", "show", "rib", "detail", "neighbor", remote, prefix])?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        let route = answer["rib"].as_array()?.iter().find(|route| route["prefix"] == prefix)?;
        let communities = |name: &str| {
            let found = texts(&route[name]);
            found.iter().map(|value| value.replace(' ', "")).collect()
        };
        Some(Learned {
            next_hop: text(&route["exit_nexthop"]),
            as_path: text(&route["aspath"]),
            local_pref: route["localpref"].as_u64().and_then(|value| value.try_into().ok()),
            communities: communities("communities"),
            large_communities: communities("large_communities"),
        })
    }

    fn is_established(&self) -> bool {
        self.neighbor()["state"] == "Established"
    }

    fn ask_again(&self) {
        let answer = self.ask(&["neighbor", &self.parts.setup.remote, "refresh"]);
        assert!(answer.is_some(), "OpenBGPD refuses to ask");
    }

    fn updates_received(&self) -> u64 {
        let stats = &self.neighbor()["stats"];
        stats["update"]["received"]["updates"].as_u64().unwrap_or_default()
    }

    fn updates_sent(&self) -> u64 {
        let stats = &self.neighbor()["stats"];
        stats["update"]["sent"]["updates"].as_u64().unwrap_or_default()
    }

    fn shut_down(&self, text: &str) {
        let answer = self.ask(&["neighbor", &self.parts.setup.remote, "down", text]);
        assert!(answer.is_some(), "OpenBGPD does not shut down");
    }

    fn state(&self) -> String {
        let rib = self.ask(&["show", "rib", "detail"]).unwrap_or_default();
        format!("{}\n{rib}", self.neighbor())
    }
}

impl OpenBgpd {
    /// The answer to a `bgpctl` command; `None` when it fails.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Option<String> {
        let socket = self.parts.path(SOCKET);
        self.parts.far.ask(BGPCTL, &[&["-s", &socket], arguments].concat())
    }

    /// Everything about the session; null while it does not answer.
    #[must_use]
    pub fn neighbor(&self) -> Value {
        let answer = self.ask(&["-j", "show", "neighbor", &self.parts.setup.remote]);
        let answer: Value = serde_json::from_str(&answer.unwrap_or_default()).unwrap_or_default();
        answer["neighbors"][0].clone()
    }

    fn run(&mut self) {
        self.write(&self.parts.setup);
        let file = self.parts.path(FILE);
        self.parts.spawn(BGPD, &["-d", "-v", "-f", &file]);
        let answers = || self.neighbor()["state"].is_string();
        link::wait_for("OpenBGPD answers", answers, || self.log());
    }

    fn write(&self, setup: &Setup) {
        self.parts.write(FILE, &configuration(setup, &self.parts.path(SOCKET)));
        let path = self.parts.far.path(&self.parts.path(FILE));
        // It refuses a file that others may read.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the file");
    }
}

/// A bgpd that announces networks and takes everything.
fn configuration(setup: &Setup, socket: &str) -> String {
    let networks = setup.routes.iter().map(|route| network(route, setup.next_hop(&route.prefix)));
    let networks = networks.collect::<String>();
    let limit = setup.prefixes_max.map(|max| format!("max-prefix {max}"));
    let switch = |on| if on { "yes" } else { "no" };
    format!(
        "AS {asn}
         router-id {router_id}
         fib-update no
         socket \"{socket}\"
         listen on {local}
         {networks}
         neighbor {remote} {{
           remote-as {our_asn}
           port {port}
           local-address {local}
           holdtime {HOLD_TIME_SECS}
           announce IPv4 unicast
           announce IPv6 unicast
           announce as-4byte {as4}
           announce restart {restart}
           ttl-security {ttl_security}
           {passive}
           {limit}
           {password}
           {more}
         }}
         allow from any
         allow to any\n",
        asn = setup.asn,
        router_id = setup.router_id(),
        local = setup.local(),
        remote = setup.remote,
        port = setup.port,
        our_asn = setup.our_asn,
        as4 = switch(setup.four_octet_as),
        restart = switch(setup.graceful_restart),
        ttl_security = switch(setup.ttl_security),
        passive = if setup.passive { "passive" } else { "" },
        limit = limit.unwrap_or_default(),
        password = match &setup.password {
            Some(password) => format!("tcp md5sig password {password}"),
            None => String::new(),
        },
        more = setup.more,
    )
}

/// With its next hop, where OpenBGPD lets that stand: on iBGP.
fn network(route: &Announced, next_hop: &str) -> String {
    assert!(route.as_path.is_empty(), "OpenBGPD has only its own AS to prepend");
    let mut sets = format!(" nexthop {next_hop}");
    for value in &route.communities {
        sets += &format!(" community {value}");
    }
    for value in &route.large_communities {
        sets += &format!(" large-community {value}");
    }
    format!("network {} set {{{sets} }}\n", route.prefix)
}

const FILE: &str = "bgpd.conf";
const SOCKET: &str = "control";
/// From Debian's package openbgpd.
const BGPD: &str = "/usr/sbin/bgpd";
/// From Debian's package openbgpd.
const BGPCTL: &str = "/usr/sbin/bgpctl";
