//! A real ExaBGP, with a process that hands it commands and writes down what it receives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use serde_json::Value;

use crate::daemon::{Announced, Daemon, HOLD_TIME_SECS, Learned, Parts, Setup, text, texts};
use crate::link::{self, Link};

/// A running ExaBGP.
#[derive(Debug)]
pub struct ExaBgp {
    parts: Parts,
}

impl Daemon for ExaBgp {
    const READS_FOUR_OCTETS: bool = false;
    // A text makes it answer with an error of its own: it adds octets and a string.
    const READS_SHUTDOWN_TEXT: bool = false;

    fn start(link: &Link, setup: &Setup) -> ExaBgp {
        link::need(EXABGP, "exabgp");
        let mut exabgp = ExaBgp { parts: Parts::new(link, "exabgp", setup) };
        exabgp.run();
        exabgp
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
        assert_eq!(old.password, new.password, "ExaBGP has to be started again for that");
        for route in old.routes.iter().filter(|route| !new.routes.contains(route)) {
            self.command(&format!("withdraw {}", self.route(route)));
        }
        for route in new.routes.iter().filter(|route| !old.routes.contains(route)) {
            self.command(&format!("announce {}", self.route(route)));
        }
    }

    fn learned(&self, prefix: &str) -> Option<Learned> {
        self.table().remove(prefix)
    }

    fn is_established(&self) -> bool {
        let states = self.events("state");
        states.last().is_some_and(|event| event["neighbor"]["state"] == "up")
    }

    fn ask_again(&self) {
        self.command("announce route-refresh ipv4 unicast");
        self.command("announce route-refresh ipv6 unicast");
    }

    fn updates_received(&self) -> u64 {
        self.announcements("receive")
    }

    fn updates_sent(&self) -> u64 {
        self.announcements("send")
    }

    fn shut_down(&self, text: &str) {
        panic!("ExaBGP has no command to say {text} with");
    }

    fn state(&self) -> String {
        format!("{:#?}\n{}", self.table(), self.received())
    }
}

impl ExaBgp {
    /// Gives it a command of its text interface.
    ///
    /// # Panics
    /// When the file of commands cannot be written.
    pub fn command(&self, command: &str) {
        let path = self.parts.far.path(&self.parts.path(COMMANDS));
        let mut file = File::options().append(true).open(path).expect("the file of commands");
        writeln!(file, "{command}").expect("the file of commands");
    }

    /// What it has reported of one sort, in order: `state`, `open`, `update`, `notification`.
    #[must_use]
    pub fn events(&self, sort: &str) -> Vec<Value> {
        let received = self.received();
        let events = received.lines().filter_map(|line| serde_json::from_str(line).ok());
        events.filter(|event: &Value| event["type"] == sort).collect()
    }

    /// How many UPDATE messages with announcements went in a direction.
    fn announcements(&self, direction: &str) -> u64 {
        let updates = self.events("update");
        let wanted = |event: &&Value| {
            event["neighbor"]["direction"] == direction
                && event["neighbor"]["message"]["update"]["announce"].is_object()
        };
        updates.iter().filter(wanted).count().try_into().unwrap_or_default()
    }

    fn received(&self) -> String {
        self.parts.far.read(&self.parts.path(RECEIVED))
    }

    /// The routes that are left of the updates of the last session.
    fn table(&self) -> BTreeMap<String, Learned> {
        let mut table = BTreeMap::new();
        let received = self.received();
        for event in received.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if event["type"] == "state" && event["neighbor"]["state"] != "up" {
                table.clear();
            }
            if event["neighbor"]["direction"] == "send" {
                continue;
            }
            let update = &event["neighbor"]["message"]["update"];
            let attributes = &update["attribute"];
            for (_, routes) in update["withdraw"].as_object().into_iter().flatten() {
                for route in routes.as_array().into_iter().flatten() {
                    table.remove(&prefix(route));
                }
            }
            for (_, hops) in update["announce"].as_object().into_iter().flatten() {
                for (next_hop, routes) in hops.as_object().into_iter().flatten() {
                    for route in routes.as_array().into_iter().flatten() {
                        table.insert(prefix(route), learned(next_hop, attributes));
                    }
                }
            }
        }
        table
    }

    fn run(&mut self) {
        let Parts { setup, .. } = &self.parts;
        let routes = setup.routes.iter().map(|route| format!("{};\n", self.route(route)));
        let script = self.parts.path(SCRIPT);
        let configuration = configuration(setup, &script, &routes.collect::<String>());
        self.parts.write(FILE, &configuration);
        self.parts.write(COMMANDS, "");
        let [commands, received] = [COMMANDS, RECEIVED].map(|name| self.parts.path(name));
        let text = format!("tail -n +1 -f {commands} &\nexec cat >>{received}\n");
        self.parts.write(SCRIPT, &text);
        let local = format!("exabgp_tcp_bind={}", setup.local());
        let file = self.parts.path(FILE);
        // By env: what it reads of its environment must not be left to the machine's own settings.
        let arguments = [
            "exabgp_daemon_user=root",
            "exabgp_daemon_drop=false",
            "exabgp_api_cli=false",
            "exabgp_api_ack=false",
            "exabgp_log_destination=stdout",
            "exabgp_log_packets=false",
            "exabgp_tcp_delay=0",
            &local,
            EXABGP,
            &file,
        ];
        self.parts.spawn("env", &arguments);
        let ready = || self.log().contains("loaded new configuration");
        link::wait_for("ExaBGP has read its configuration", ready, || self.log());
    }

    fn route(&self, route: &Announced) -> String {
        let next_hop = self.parts.setup.next_hop(&route.prefix);
        let mut text = format!("route {} next-hop {next_hop} origin igp", route.prefix);
        if !route.as_path.is_empty() {
            let numbers: Vec<_> = route.as_path.iter().map(u32::to_string).collect();
            text += &format!(" as-path [ {} {} ]", self.parts.setup.asn, numbers.join(" "));
        }
        for (name, values) in
            [("community", &route.communities), ("large-community", &route.large_communities)]
        {
            if !values.is_empty() {
                text += &format!(" {name} [ {} ]", values.join(" "));
            }
        }
        text
    }
}

/// An ExaBGP that announces static routes and reports everything to a process.
fn configuration(setup: &Setup, script: &str, routes: &str) -> String {
    let switch = |on| if on { "enable" } else { "disable" };
    format!(
        "process api {{ run /bin/sh {script}; encoder json; }}
         neighbor {remote} {{
           router-id {router_id};
           local-address {local};
           local-as {asn};
           peer-as {our_asn};
           hold-time {HOLD_TIME_SECS};
           connect {port};
           {passive}
           {password}
           {ttl_security}
           family {{ ipv4 unicast; ipv6 unicast; }}
           capability {{
             asn4 {as4};
             route-refresh enable;
             extended-message {extended_messages};
             {restart}
           }}
           {more}
           static {{ {routes} }}
           api {{
             processes [api];
             neighbor-changes;
             receive {{ parsed; update; open; notification; }}
             send {{ parsed; update; }}
           }}
         }}\n",
        router_id = setup.router_id(),
        local = setup.local(),
        remote = setup.remote,
        port = setup.port,
        asn = setup.asn,
        our_asn = setup.our_asn,
        as4 = switch(setup.four_octet_as),
        extended_messages = switch(setup.extended_messages),
        restart = if setup.graceful_restart { "graceful-restart 20;" } else { "" },
        passive = if setup.passive { "passive true; listen 179;" } else { "" },
        password = match &setup.password {
            Some(password) => format!("md5-password \"{password}\";"),
            None => String::new(),
        },
        ttl_security = if setup.ttl_security { "outgoing-ttl 255; incoming-ttl 255;" } else { "" },
        more = setup.more,
    )
}

fn prefix(route: &Value) -> String {
    text(&route["nlri"])
}

fn learned(next_hop: &str, attributes: &Value) -> Learned {
    let joined = |values: &Value| {
        let parts = values.as_array().into_iter().flatten();
        parts.map(|value| texts(value).join(":")).collect::<Vec<_>>()
    };
    Learned {
        next_hop: next_hop.into(),
        as_path: texts(&attributes["as-path"]).join(" "),
        local_pref: attributes["local-preference"].as_u64().and_then(|v| v.try_into().ok()),
        communities: joined(&attributes["community"]),
        large_communities: joined(&attributes["large-community"]),
    }
}

const FILE: &str = "exabgp.conf";
const SCRIPT: &str = "api.sh";
const COMMANDS: &str = "commands";
const RECEIVED: &str = "received";
/// From Debian's package exabgp.
const EXABGP: &str = "/usr/sbin/exabgp";
