//! A real GoBGP.

use serde_json::Value;

use crate::daemon::{Announced, Daemon, HOLD_TIME_SECS, Learned, Parts, Setup, Transport, text};
use crate::link::{self, Link};

/// A running gobgpd.
#[derive(Debug)]
pub struct GoBgp {
    parts: Parts,
}

impl Daemon for GoBgp {
    fn start(link: &Link, setup: &Setup) -> GoBgp {
        link::need(GOBGPD, "gobgpd");
        let mut gobgp = GoBgp { parts: Parts::new(link, "gobgp", setup) };
        gobgp.run(&[]);
        gobgp
    }

    fn start_again(&mut self) {
        self.run(&["-r"]);
    }

    fn parts(&mut self) -> &mut Parts {
        &mut self.parts
    }

    fn seen(&self) -> &Parts {
        &self.parts
    }

    fn change(&mut self, new: &Setup) {
        let old = &self.parts.setup;
        let gone = old.routes.iter().filter(|route| !new.routes.contains(route));
        let come = new.routes.iter().filter(|route| !old.routes.contains(route));
        for route in gone {
            self.rib("del", route);
        }
        for route in come {
            self.rib("add", route);
        }
        if old.password != new.password {
            self.parts.write(FILE, &configuration(new));
            self.parts.signal(libc::SIGHUP);
        }
    }

    fn learned(&self, prefix: &str) -> Option<Learned> {
        let family = family_name(Transport::of(prefix));
        let remote = &self.parts.setup.remote;
        let answer = self.ask(&["neighbor", remote, "adj-in", prefix, "-a", family, "-j"])?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        let attributes = answer[prefix][0]["attrs"].as_array()?;
        let attribute = |code: u8| attributes.iter().find(|a| a["type"] == code);
        let segments = attribute(2).map(|path| path["as_paths"].clone()).unwrap_or_default();
        let path = segments.as_array().into_iter().flatten().map(|s| numbers(&s["asns"], " "));
        let reach = attribute(14).or(attribute(3));
        Some(Learned {
            next_hop: text(&reach?["nexthop"]),
            as_path: path.collect::<Vec<_>>().join(" "),
            local_pref: attribute(5).and_then(|a| a["value"].as_u64()?.try_into().ok()),
            communities: attribute(8).map(communities).unwrap_or_default(),
            large_communities: attribute(32).map(large_communities).unwrap_or_default(),
        })
    }

    fn is_established(&self) -> bool {
        self.neighbor()["state"]["session_state"] == ESTABLISHED
    }

    fn ask_again(&self) {
        let remote = &self.parts.setup.remote;
        for family in Transport::ALL.map(family_name) {
            let answer = self.ask(&["neighbor", remote, "softresetin", "-a", family]);
            assert!(answer.is_some(), "GoBGP refuses to ask for {family}");
        }
    }

    fn updates_received(&self) -> u64 {
        let neighbor = self.neighbor();
        text(&neighbor["state"]["messages"]["received"]["update"]).parse().unwrap_or_default()
    }

    fn updates_sent(&self) -> u64 {
        let neighbor = self.neighbor();
        text(&neighbor["state"]["messages"]["sent"]["update"]).parse().unwrap_or_default()
    }

    fn shut_down(&self, text: &str) {
        let answer =
            self.ask(&["neighbor", &self.parts.setup.remote, "shutdown", "--reason", text]);
        assert!(answer.is_some(), "GoBGP does not shut down");
    }

    fn state(&self) -> String {
        let [v4, v6] = ["ipv4", "ipv6"]
            .map(|family| self.ask(&["global", "rib", "-a", family]).unwrap_or_default());
        format!("{}\n{v4}\n{v6}", self.neighbor())
    }
}

impl GoBgp {
    /// The answer to a `gobgp` command; `None` when it fails.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Option<String> {
        self.parts.far.ask(GOBGP, arguments)
    }

    /// Everything about the session; null while it does not answer.
    #[must_use]
    pub fn neighbor(&self) -> Value {
        let answer = self.ask(&["neighbor", &self.parts.setup.remote, "-j"]);
        serde_json::from_str(&answer.unwrap_or_default()).unwrap_or_default()
    }

    fn run(&mut self, more: &[&str]) {
        self.parts.write(FILE, &configuration(&self.parts.setup));
        let file = self.parts.path(FILE);
        let api = "127.0.0.1:50051";
        let arguments = ["-f", &file, "-p", "--pprof-disable", "--api-hosts", api];
        self.parts.spawn(GOBGPD, &[&arguments[..], more].concat());
        let answers = || {
            self.ask(&["neighbor"])
                .is_some_and(|text| text.contains("10.0.0.") || text.contains("fd00::"))
        };
        link::wait_for("gobgpd answers", answers, || self.log());
        for route in &self.parts.setup.routes {
            self.rib("add", route);
        }
    }

    fn rib(&self, command: &str, route: &Announced) {
        let family = family_name(Transport::of(&route.prefix));
        let next_hop = self.parts.setup.next_hop(&route.prefix);
        let [normal, large] = [&route.communities, &route.large_communities].map(|c| c.join(","));
        let mut arguments = vec!["global", "rib", command, &route.prefix, "nexthop", next_hop];
        arguments.extend(["origin", "igp", "-a", family]);
        let path: Vec<_> = route.as_path.iter().map(u32::to_string).collect();
        let path = path.join(" ");
        if !path.is_empty() {
            arguments.extend(["aspath", &path]);
        }
        if !normal.is_empty() {
            arguments.extend(["community", &normal]);
        }
        if !large.is_empty() {
            arguments.extend(["large-community", &large]);
        }
        assert!(self.ask(&arguments).is_some(), "GoBGP refuses {arguments:?}");
    }
}

/// A gobgpd that takes everything. What it announces comes by commands.
fn configuration(setup: &Setup) -> String {
    let families = Transport::ALL.map(|family| {
        format!(
            "[[neighbors.afi-safis]]
             [neighbors.afi-safis.config]
             afi-safi-name = \"{}-unicast\"
             [neighbors.afi-safis.mp-graceful-restart.config]
             enabled = {}
             [neighbors.afi-safis.prefix-limit.config]
             max-prefixes = {}\n",
            family_name(family),
            setup.graceful_restart,
            setup.prefixes_max.unwrap_or_default()
        )
    });
    format!(
        "[global.config]
         as = {asn}
         router-id = \"{router_id}\"
         port = 179
         local-address-list = [\"{local}\"]
         [[neighbors]]
         [neighbors.config]
         neighbor-address = \"{remote}\"
         peer-as = {our_asn}
         auth-password = \"{password}\"
         [neighbors.timers.config]
         connect-retry = 1
         idle-hold-time-after-reset = 1
         hold-time = {HOLD_TIME_SECS}
         keepalive-interval = 3
         [neighbors.transport.config]
         local-address = \"{local}\"
         remote-port = {port}
         passive-mode = {passive}
         [neighbors.ttl-security.config]
         enabled = {ttl_security}
         ttl-min = 255
         [neighbors.graceful-restart.config]
         enabled = {graceful_restart}
         restart-time = 20
         {more}
         {families}",
        asn = setup.asn,
        router_id = setup.router_id(),
        local = setup.local(),
        remote = setup.remote,
        port = setup.port,
        our_asn = setup.our_asn,
        password = setup.password.as_deref().unwrap_or_default(),
        passive = setup.passive,
        ttl_security = setup.ttl_security,
        graceful_restart = setup.graceful_restart,
        more = setup.more,
        families = families.concat(),
    )
}

fn communities(attribute: &Value) -> Vec<String> {
    let values = attribute["communities"].as_array().into_iter().flatten();
    let values = values.filter_map(Value::as_u64);
    values.map(|value| format!("{}:{}", value >> 16, value & 0xffff)).collect()
}

fn large_communities(attribute: &Value) -> Vec<String> {
    let values = attribute["value"].as_array().into_iter().flatten();
    let parts = |value: &Value| ["ASN", "LocalData1", "LocalData2"].map(|part| text(&value[part]));
    values.map(|value| parts(value).join(":")).collect()
}

fn numbers(values: &Value, between: &str) -> String {
    let values = values.as_array().into_iter().flatten();
    values.map(Value::to_string).collect::<Vec<_>>().join(between)
}

fn family_name(family: Transport) -> &'static str {
    match family {
        Transport::V4 => "ipv4",
        Transport::V6 => "ipv6",
    }
}

const FILE: &str = "gobgpd.toml";
/// Of its PeerState.SessionState.
const ESTABLISHED: u8 = 6;
/// From Debian's package gobgpd.
const GOBGPD: &str = "/usr/bin/gobgpd";
/// From Debian's package gobgpd.
const GOBGP: &str = "/usr/bin/gobgp";
