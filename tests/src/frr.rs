//! A real FRR: its zebra and its bgpd.

use serde_json::Value;

use crate::daemon::{
    Announced, Daemon, HOLD_TIME_SECS, Learned, Parts, Setup, Transport, text, texts,
};
use crate::link::{self, Link};

/// A running FRR, integrated only as far as BGP needs it.
#[derive(Debug)]
pub struct Frr {
    parts: Parts,
}

impl Daemon for Frr {
    const ENHANCED_REFRESH: bool = true;
    // It takes our offer of 4-octet AS numbers for a session with them, though it made none.
    const MERGES_AS4_PATH: bool = false;

    fn start(link: &Link, setup: &Setup) -> Frr {
        link::need(ZEBRA, "frr");
        let mut frr = Frr { parts: Parts::new(link, "frr", setup) };
        // Both daemons become this user.
        let owned = frr.parts.far.ask("chown", &["frr:frr", &frr.parts.directory]);
        assert!(owned.is_some(), "there is no user frr: reinstall Debian's package frr");
        frr.run();
        frr
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
        let old = &self.parts.setup;
        let mut lines = vec!["configure terminal".to_owned()];
        lines.extend(new.routes.iter().flat_map(route_map));
        lines.push(format!("router bgp {}", new.asn));
        if old.password != new.password {
            lines.push(match &new.password {
                Some(password) => format!("neighbor {} password {password}", new.remote),
                None => format!("no neighbor {} password", new.remote),
            });
        }
        for family in Transport::ALL {
            lines.push(format!("address-family {}", family_name(family)));
            let gone = old.routes_of(family).filter(|route| !new.routes.contains(route));
            lines.extend(gone.map(|route| format!("no {}", network(route))));
            lines.extend(new.routes_of(family).map(network));
            lines.push("exit-address-family".into());
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(self.ask(&lines).is_some(), "FRR refuses {lines:?}");
    }

    fn learned(&self, prefix: &str) -> Option<Learned> {
        let family = family_name(Transport::of(prefix));
        let answer = self.json(&format!("show bgp {family} {prefix} json"));
        let from_us = |path: &&Value| {
            [&path["peer"]["peerId"], &path["peer"]["interface"]]
                .iter()
                .any(|us| **us == self.parts.setup.remote)
        };
        let path = answer["paths"].as_array()?.iter().find(from_us)?;
        Some(Learned {
            next_hop: text(&path["nexthops"][0]["ip"]),
            as_path: text(&path["aspath"]["string"]).replace("Local", ""),
            local_pref: path["locPrf"].as_u64().and_then(|value| value.try_into().ok()),
            communities: texts(&path["community"]["list"]),
            large_communities: texts(&path["largeCommunity"]["list"]),
        })
    }

    fn is_established(&self) -> bool {
        self.neighbor()["bgpState"] == "Established"
    }

    fn ask_again(&self) {
        for family in Transport::ALL.map(family_name) {
            let command = format!("clear bgp {family} {} soft in", self.parts.setup.remote);
            assert!(self.ask(&[&command]).is_some(), "FRR refuses {command}");
        }
    }

    fn updates_received(&self) -> u64 {
        self.neighbor()["messageStats"]["updatesRecv"].as_u64().unwrap_or_default()
    }

    fn has_told_all(&self) -> bool {
        let log = self.log();
        ["IPv4", "IPv6"].iter().all(|f| log.contains(&format!("send End-of-RIB for {f} Unicast")))
    }

    fn updates_sent(&self) -> u64 {
        self.neighbor()["messageStats"]["updatesSent"].as_u64().unwrap_or_default()
    }

    fn shut_down(&self, text: &str) {
        let Setup { asn, remote, .. } = &self.parts.setup;
        let router = format!("router bgp {asn}");
        let shutdown = format!("neighbor {remote} shutdown message {text}");
        let answer = self.ask(&["configure terminal", &router, &shutdown]);
        assert!(answer.is_some(), "FRR refuses {shutdown}");
    }

    fn state(&self) -> String {
        let questions = ["show bgp neighbors", "show bgp ipv4", "show bgp ipv6", "show ipv6 route"];
        let answers = questions.map(|question| self.ask(&[question]).unwrap_or_default());
        answers.join("\n")
    }
}

impl Frr {
    /// The answer to commands of `vtysh`, one after the other; `None` when one fails.
    #[must_use]
    pub fn ask(&self, commands: &[&str]) -> Option<String> {
        let sockets = self.parts.path("");
        let mut arguments = vec!["--vty_socket", &sockets];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        self.parts.far.ask(VTYSH, &arguments)
    }

    /// The answer to a command that ends with `json`; null when there is none.
    #[must_use]
    pub fn json(&self, command: &str) -> Value {
        let answer = self.ask(&[command]).unwrap_or_default();
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Everything about the session.
    #[must_use]
    pub fn neighbor(&self) -> Value {
        let remote = &self.parts.setup.remote;
        self.json(&format!("show bgp neighbors {remote} json"))[remote].take()
    }

    fn run(&mut self) {
        self.parts.write(FILE, &configuration(&self.parts.setup));
        let [file, zserv, pid, bgp_pid, sockets] =
            [FILE, "zserv.api", "zebra.pid", "bgpd.pid", ""].map(|name| self.parts.path(name));
        let local = self.parts.setup.local().to_owned();
        let common = ["-z", &zserv, "--vty_socket", &sockets, "-P", "0", "--log", "stdout"];
        let zebra = [&common[..], &["-f", "/dev/null", "-i", &pid]].concat();
        let mut bgpd = [&common[..], &["-f", &file, "-i", &bgp_pid]].concat();
        if !self.parts.setup.is_unnumbered() {
            bgpd.extend(["-l", &local]);
        }
        let [bfd_pid, bfd_control] = ["bfdd.pid", "bfdd.ctl"].map(|name| self.parts.path(name));
        let bfdd = ["-f", "/dev/null", "-i", &bfd_pid, "--bfdctl", &bfd_control];
        let bfdd = [&common[..], &bfdd].concat();
        // Where the configuration speaks of BFD.
        let with_bfd = self.parts.setup.more.contains(" bfd ");
        for (program, arguments, socket) in [(ZEBRA, zebra, "zebra.vty")]
            .into_iter()
            .chain(with_bfd.then_some((BFDD, bfdd, "bfdd.vty")))
            .chain([(BGPD, bgpd, "bgpd.vty")])
        {
            let socket = self.parts.far.path(&self.parts.path(socket));
            // One that a killed daemon left.
            let _ = std::fs::remove_file(&socket);
            self.parts.spawn(program, &arguments);
            link::wait_for(&format!("{program} answers"), || socket.exists(), || self.log());
        }
        let question = ["show bgp summary json"];
        link::wait_for("bgpd answers", || self.ask(&question).is_some(), || self.log());
    }
}

/// A bgpd that announces networks and takes everything.
fn configuration(setup: &Setup) -> String {
    let remote = &setup.remote;
    let mut neighbor = match setup.is_unnumbered() {
        true => vec!["interface remote-as external".to_owned()],
        false => vec![
            format!("remote-as {}", setup.our_asn),
            format!("update-source {}", setup.local()),
            format!("port {}", setup.port),
        ],
    };
    neighbor.extend([
        format!("timers 3 {HOLD_TIME_SECS}"),
        format!("timers connect {}", setup.connect_retry_secs),
        "advertisement-interval 0".into(),
    ]);
    neighbor.extend(setup.password.as_ref().map(|text| format!("password {text}")));
    for (on, line) in [
        (setup.ttl_security, "ttl-security hops 1"),
        (setup.passive, "passive"),
        (setup.extended_next_hop, "capability extended-nexthop"),
        (!setup.four_octet_as, "dont-capability-negotiate"),
    ] {
        neighbor.extend(on.then(|| line.to_owned()));
    }
    let neighbor = neighbor.iter().map(|line| format!(" neighbor {remote} {line}\n"));
    // First: a network whose map comes later waits for the next look at maps, 5 s, while the end of
    // what there is to announce is told to the peer at once.
    let route_maps = setup.routes.iter().flat_map(route_map);
    let mut text = route_maps.map(|line| line + "\n").collect::<String>();
    text += &format!(
        "debug bgp neighbor-events\n\
         bgp route-map delay-timer 0\n\
         router bgp {}\n bgp router-id {}\n \
         bgp log-neighbor-changes\n no bgp suppress-duplicates\n \
         no bgp ebgp-requires-policy\n no bgp network import-check\n \
         no bgp default ipv4-unicast\n{}{}{}\n",
        setup.asn,
        setup.router_id(),
        if setup.graceful_restart {
            " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"
        } else {
            ""
        },
        neighbor.collect::<String>(),
        setup.more,
    );
    for family in Transport::ALL {
        text += &format!(" address-family {}\n  neighbor {remote} activate\n", family_name(family));
        if let Some(max) = setup.prefixes_max {
            text += &format!("  neighbor {remote} maximum-prefix {max}\n");
        }
        // It takes several paths from whoever offers them, as bgpd does by default.
        if setup.add_path && family == Transport::V4 {
            text += &format!("  neighbor {remote} addpath-tx-all-paths\n");
        }
        for route in setup.routes_of(family) {
            text += &format!("  {}\n", network(route));
        }
        text += " exit-address-family\n";
    }
    text
}

fn network(route: &Announced) -> String {
    format!("network {0} route-map {0}", route.prefix)
}

fn route_map(route: &Announced) -> Vec<String> {
    let mut lines = vec![format!("route-map {} permit 1", route.prefix), "on-match next".into()];
    let mut sequence = 2;
    if !route.as_path.is_empty() {
        let numbers: Vec<_> = route.as_path.iter().map(u32::to_string).collect();
        lines.push(format!("set as-path prepend {}", numbers.join(" ")));
    }
    for (name, values) in
        [("community", &route.communities), ("large-community", &route.large_communities)]
    {
        // A line has a longest length.
        for values in values.chunks(VALUES_MAX) {
            lines.push(format!("route-map {} permit {}", route.prefix, sequence));
            lines.push(format!("set {name} {} additive", values.join(" ")));
            lines.push("on-match next".into());
            sequence += 1;
        }
    }
    lines.push("exit".into());
    lines
}

fn family_name(family: Transport) -> &'static str {
    match family {
        Transport::V4 => "ipv4 unicast",
        Transport::V6 => "ipv6 unicast",
    }
}

/// Communities in one line of a route map.
const VALUES_MAX: usize = 100;
const FILE: &str = "bgpd.conf";
/// From Debian's package frr.
const ZEBRA: &str = "/usr/lib/frr/zebra";
/// From Debian's package frr.
const BGPD: &str = "/usr/lib/frr/bgpd";
/// From Debian's package frr.
const BFDD: &str = "/usr/lib/frr/bfdd";
/// From Debian's package frr.
const VTYSH: &str = "/usr/bin/vtysh";
