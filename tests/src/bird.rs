//! A real BIRD 2.

use crate::daemon::{Announced, Daemon, HOLD_TIME_SECS, Learned, Parts, Setup, Transport};
use crate::link::{self, Link};

/// A running BIRD, whose session with us is the protocol `cairn`.
#[derive(Debug)]
pub struct Bird {
    parts: Parts,
}

impl Daemon for Bird {
    const ENHANCED_REFRESH: bool = true;

    fn start(link: &Link, setup: &Setup) -> Bird {
        link::need(BIRD, "bird2");
        let mut bird = Bird { parts: Parts::new(link, "bird", setup) };
        bird.run(&[]);
        bird
    }

    fn start_again(&mut self) {
        self.run(&["-R"]);
    }

    fn parts(&mut self) -> &mut Parts {
        &mut self.parts
    }

    fn seen(&self) -> &Parts {
        &self.parts
    }

    fn change(&mut self, new: &Setup) {
        self.parts.write(FILE, &configuration(new));
        let answer = self.ask("configure").unwrap_or_default();
        assert!(answer.contains("Reconfigur"), "{answer}");
    }

    fn learned(&self, prefix: &str) -> Option<Learned> {
        let answer = self.ask(&format!("show route {prefix} protocol cairn all"))?;
        answer.contains(prefix).then(|| {
            // A long one goes on in lines of its own.
            let attribute = |name: &str| {
                let value = answer.split(&format!("{name}:")).nth(1).unwrap_or_default();
                let value = value.split("\tBGP.").next().unwrap_or_default();
                value.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            Learned {
                // A link-local one may follow.
                next_hop: attribute("BGP.next_hop").split(' ').next().unwrap_or_default().into(),
                as_path: attribute("BGP.as_path"),
                local_pref: attribute("BGP.local_pref").parse().ok(),
                communities: tuples(&attribute("BGP.community")),
                large_communities: tuples(&attribute("BGP.large_community")),
            }
        })
    }

    fn is_established(&self) -> bool {
        self.protocol().contains("Established")
    }

    fn ask_again(&self) {
        let answer = self.ask("reload in cairn").unwrap_or_default();
        assert!(answer.contains("reloading"), "{answer}");
    }

    fn updates_received(&self) -> u64 {
        self.count("Import updates")
    }

    fn updates_sent(&self) -> u64 {
        self.count("Export updates")
    }

    fn shut_down(&self, text: &str) {
        let answer = self.ask(&format!("disable cairn \"{text}\"")).unwrap_or_default();
        assert!(answer.contains("disabled"), "{answer}");
    }

    fn state(&self) -> String {
        format!("{}\n{}", self.protocol(), self.ask("show route all").unwrap_or_default())
    }
}

impl Bird {
    /// The answer to a `birdc` command; `None` when BIRD does not answer.
    #[must_use]
    pub fn ask(&self, question: &str) -> Option<String> {
        let socket = self.parts.path(SOCKET);
        let arguments: Vec<&str> = ["-s", &socket].into_iter().chain(question.split(' ')).collect();
        self.parts.far.ask(BIRDC, &arguments)
    }

    /// Everything about the session.
    #[must_use]
    pub fn protocol(&self) -> String {
        self.ask("show protocols all cairn").unwrap_or_default()
    }

    /// The sum of a counter of routes over both channels, such as `Import updates`: the first
    /// column, of what came.
    #[must_use]
    pub fn count(&self, counter: &str) -> u64 {
        let text = self.protocol();
        let counts = text.lines().filter_map(|line| {
            let numbers = line.trim().strip_prefix(counter)?.strip_prefix(':')?;
            numbers.split_whitespace().next()?.parse::<u64>().ok()
        });
        counts.sum()
    }

    fn run(&mut self, more: &[&str]) {
        self.parts.write(FILE, &configuration(&self.parts.setup));
        let [file, socket, pid] = [FILE, SOCKET, "pid"].map(|name| self.parts.path(name));
        // One that a killed BIRD left would be waited for.
        let _ = std::fs::remove_file(self.parts.far.path(&socket));
        let mut arguments = vec!["-f", "-c", &file, "-s", &socket, "-P", &pid];
        arguments.extend(more);
        self.parts.spawn(BIRD, &arguments);
        link::wait_for("BIRD answers", || self.ask("show status").is_some(), || self.log());
    }
}

/// A BIRD that announces static routes and takes everything.
fn configuration(setup: &Setup) -> String {
    let statics = |family, again: bool| {
        let routes: Vec<&Announced> = setup.routes_of(family).collect();
        let is_again = |at: usize| routes[..at].iter().any(|r| r.prefix == routes[at].prefix);
        let chosen = (0..routes.len()).filter(|at| is_again(*at) == again);
        chosen.map(|at| route(routes[at])).collect::<Vec<_>>().join(" ")
    };
    let (restart, offer) = match setup.graceful_restart {
        true => ("graceful restart wait 10;", "graceful restart on;"),
        false => ("", "graceful restart off;"),
    };
    let password = setup.password.as_ref();
    let limit = setup.prefixes_max.map(|max| format!("import limit {max} action disable;"));
    let switch = |on| if on { "on" } else { "off" };
    format!(
        "log stderr all;
         router id {router_id};
         {restart}
         protocol device {{ scan time 1; }}
         protocol static s4 {{ ipv4; {statics4} }}
         protocol static s6 {{ ipv6; {statics6} }}
         protocol static again4 {{ ipv4; {again4} }}
         protocol bgp cairn {{
           debug {{ states, events, packets }};
           local {local} as {asn};
           neighbor {remote} port {port} as {our_asn};
           strict bind on;
           hold time {HOLD_TIME_SECS};
           connect delay time 1; connect retry time {connect_retry_secs}; error wait time 1, 1;
           {offer}
           {password}
           ttl security {ttl_security};
           passive {passive};
           enable as4 {as4};
           enable extended messages {extended_messages};
           ipv4 {{
             import all; export all; {limit} extended next hop {extended_next_hop}; {add_paths}
             next hop address {next_hop4};
           }};
           ipv6 {{ import all; export all; {limit} next hop address {next_hop6}; }};
           {more}
         }}",
        router_id = setup.router_id(),
        statics4 = statics(Transport::V4, false),
        statics6 = statics(Transport::V6, false),
        again4 = statics(Transport::V4, true),
        add_paths = if setup.add_path { "add paths on;" } else { "" },
        local = setup.local(),
        asn = setup.asn,
        remote = setup.remote,
        port = setup.port,
        our_asn = setup.our_asn,
        limit = limit.unwrap_or_default(),
        password = password.map(|text| format!("password \"{text}\";")).unwrap_or_default(),
        ttl_security = switch(setup.ttl_security),
        passive = switch(setup.passive),
        connect_retry_secs = setup.connect_retry_secs,
        as4 = switch(setup.four_octet_as),
        extended_messages = switch(setup.extended_messages),
        extended_next_hop = switch(setup.extended_next_hop),
        next_hop4 = setup.next_hop("0.0.0.0"),
        next_hop6 = setup.next_hop("::"),
        more = setup.more,
    )
}

fn route(route: &Announced) -> String {
    let add = |list: &str, values: &[String]| {
        let add = |value: &String| format!("{list}.add(({}));", value.replace(':', ","));
        values.iter().map(add).collect::<String>()
    };
    format!(
        "route {} blackhole {{ {} {} {} }};",
        route.prefix,
        route
            .as_path
            .iter()
            .rev()
            .map(|asn| format!("bgp_path.prepend({asn});"))
            .collect::<String>(),
        add("bgp_community", &route.communities),
        add("bgp_large_community", &route.large_communities)
    )
}

/// `(65001,7) (65001,8)` as `65001:7` and `65001:8`.
fn tuples(text: &str) -> Vec<String> {
    let inner = text.split('(').filter_map(|part| part.split_once(')'));
    inner.map(|(values, _)| values.replace(", ", ":").replace(',', ":")).collect()
}

const FILE: &str = "bird.conf";
const SOCKET: &str = "bird.ctl";
/// From Debian's package bird2.
const BIRD: &str = "/usr/sbin/bird";
/// From Debian's package bird2.
const BIRDC: &str = "/usr/sbin/birdc";
