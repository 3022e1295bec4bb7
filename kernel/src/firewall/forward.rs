//! The forward hook: what stands there in the way of pods, and our rules in iptables' FORWARD chain.
//!
//! Pure: what commands print goes in, what commands should do comes out. Our rules come last in the
//! chain: rules of a firewall or of network policies decide first, and ours only take the place of
//! the chain's policy.

use serde_json::Value;

use super::COMMENT;
use super::watch::{ChainName, ForwardChain};
use crate::route::Family;

/// Which way a packet goes: a rule of ours for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    FromPods,
    ToPods,
}

impl Way {
    const BOTH: [Way; 2] = [Way::FromPods, Way::ToPods];

    fn nft_key(self) -> &'static str {
        match self {
            Way::FromPods => "iifname",
            Way::ToPods => "oifname",
        }
    }

    fn iptables_option(self) -> &'static str {
        match self {
            Way::FromPods => "-i",
            Way::ToPods => "-o",
        }
    }
}

/// A chain's rules, as far as they concern us. `R` is what a rule is deleted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules<R> {
    /// Those that carry our comment, in order; without a way when they are not as we write them.
    pub(super) ours: Vec<(Option<Way>, R)>,
    /// Whether a rule of others, the last one before ours, drops or rejects everything.
    pub(super) ends_in_drop: bool,
}

/// What to do with our rules in a chain: what to delete, what to append.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edit<R> {
    pub(super) delete: Vec<R>,
    pub(super) append: Vec<Way>,
}

impl<R> Edit<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.append.is_empty()
    }
}

/// What to do so that there is one rule of ours each way, or none.
pub(super) fn edit<R: Clone>(rules: &Rules<R>, wanted: bool) -> Edit<R> {
    let mut edit = Edit { delete: Vec::new(), append: Vec::new() };
    let mut kept: Vec<Way> = Vec::new();
    for (way, rule) in &rules.ours {
        match way {
            Some(way) if wanted && !kept.contains(way) => kept.push(*way),
            _ => edit.delete.push(rule.clone()),
        }
    }
    if wanted {
        edit.append = Way::BOTH.into_iter().filter(|way| !kept.contains(way)).collect();
    }
    edit
}

/// Whether iptables made the chain, or somebody who follows its names.
pub(super) fn is_iptables(name: &ChainName) -> bool {
    matches!(name.family, "ip" | "ip6") && name.table == "filter" && name.chain == "FORWARD"
}

/// Whether the name can be an argument of nft as it stands. A name comes from outside, and nft would
/// take a semicolon in it for the end of a command.
pub(super) fn is_plain(name: &ChainName) -> bool {
    let plain = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
    };
    plain(&name.table) && plain(&name.chain)
}

/// Reads what `nft -j list chain` prints.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_nft(json: &str, pod_interfaces: &str) -> Result<Rules<u64>, String> {
    let listing: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let objects = listing["nftables"].as_array().ok_or("it is no list of objects")?;
    let mut rules = Rules { ours: Vec::new(), ends_in_drop: false };
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
        if rule["comment"] == COMMENT {
            let handle = rule["handle"].as_u64().ok_or("a rule has no handle")?;
            rules.ours.push((way_of(expressions, pod_interfaces), handle));
        } else if rules.ours.is_empty() {
            rules.ends_in_drop = drops_all(expressions);
        }
    }
    Ok(rules)
}

/// The way of a rule that is exactly as [`nft_script`] writes it.
fn way_of(expressions: &[Value], pod_interfaces: &str) -> Option<Way> {
    let [condition, counter, verdict] = expressions else { return None };
    let condition = condition.get("match")?;
    let fits = condition["op"] == "=="
        && condition["right"] == format!("{pod_interfaces}*")
        && counter.get("counter").is_some()
        && verdict.get("accept").is_some();
    let key = &condition["left"]["meta"]["key"];
    Way::BOTH.into_iter().find(|way| fits && *key == way.nft_key())
}

/// Whether a rule has no condition and ends in a drop.
fn drops_all(expressions: &[Value]) -> bool {
    let is = |expression: &Value, key| expression.get(key).is_some();
    let Some((verdict, rest)) = expressions.split_last() else { return false };
    let drops = is(verdict, "drop")
        || is(verdict, "reject")
        || matches!(verdict["xt"]["name"].as_str(), Some("REJECT" | "DROP"));
    let conditional = |expression: &&Value| {
        let harmless = is(expression, "counter")
            || is(expression, "log")
            || expression["xt"]["name"] == "comment";
        !harmless
    };
    drops && !rest.iter().any(|expression| conditional(&expression))
}

/// The script that carries out `edit` in an nftables chain.
pub(super) fn nft_script(chain: &ChainName, edit: &Edit<u64>, pod_interfaces: &str) -> String {
    let ChainName { family, table, chain } = chain;
    let mut script = String::new();
    for handle in &edit.delete {
        script.push_str(&format!("delete rule {family} {table} {chain} handle {handle}\n"));
    }
    for way in &edit.append {
        script.push_str(&format!(
            "add rule {family} {table} {chain} {} \"{pod_interfaces}*\" counter accept comment \
             \"{COMMENT}\"\n",
            way.nft_key()
        ));
    }
    script
}

/// Reads what `iptables-legacy -S FORWARD` prints; the second value says whether the policy drops.
/// A rule is deleted by its arguments.
pub(super) fn read_legacy(text: &str, pod_interfaces: &str) -> (Rules<Vec<String>>, bool) {
    let mut rules = Rules { ours: Vec::new(), ends_in_drop: false };
    let mut drops = false;
    for line in text.lines() {
        let words: Vec<String> =
            line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["-P", "FORWARD", policy] => drops = *policy == "DROP",
            ["-A", "FORWARD", rest @ ..] => {
                if rest.windows(2).any(|pair| pair == ["--comment", COMMENT]) {
                    let way = Way::BOTH
                        .into_iter()
                        .find(|way| rest == legacy_rule(*way, pod_interfaces).as_slice());
                    rules.ours.push((way, rest.iter().map(|word| (*word).to_owned()).collect()));
                } else if rules.ours.is_empty() {
                    rules.ends_in_drop = matches!(rest, ["-j", "DROP"] | ["-j", "REJECT", ..]);
                }
            }
            _ => {}
        }
    }
    (rules, drops)
}

/// The arguments of `iptables-legacy` that carry out `edit`, one command each.
pub(super) fn legacy_commands(edit: &Edit<Vec<String>>, pod_interfaces: &str) -> Vec<Vec<String>> {
    let command = |verb: &str, rule: &[String]| {
        ["-w", LOCK_WAIT_SECS, verb, "FORWARD"]
            .into_iter()
            .map(str::to_owned)
            .chain(rule.iter().cloned())
            .collect()
    };
    let deletions = edit.delete.iter().map(|rule| command("-D", rule));
    let additions = edit.append.iter().map(|way| command("-A", &legacy_rule(*way, pod_interfaces)));
    deletions.chain(additions).collect()
}

fn legacy_rule(way: Way, pod_interfaces: &str) -> Vec<String> {
    let interfaces = format!("{pod_interfaces}+");
    [way.iptables_option(), &interfaces, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]
        .map(str::to_owned)
        .to_vec()
}

/// What to tell of a chain of somebody else that drops what none of its rules accepts.
pub(super) fn dropping(chain: &ForwardChain, ends_in_drop: bool) -> Option<String> {
    let ChainName { family, table, chain: name } = &chain.name;
    let how = match (chain.drops, ends_in_drop) {
        (_, true) => "ends with a rule that drops or rejects everything",
        (true, false) => "has the policy drop",
        (false, false) => return None,
    };
    let advice = if table == "firewalld" {
        "firewall-cmd --permanent --zone=trusted --add-source=POOL for each pool, and \
         firewall-cmd --reload"
    } else {
        "accept in it what comes from and goes to the pools"
    };
    Some(format!(
        "the chain {name} of the nftables table {family} {table} {how}, so packets of pods may be \
         lost there, which Cairn cannot override: {advice}"
    ))
}

/// What to tell of a chain of the legacy iptables, or of iptables in nftables, whose own rules drop
/// before ours are reached.
pub(super) fn ends_early(family: Family) -> String {
    let command = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!(
        "the rules of {command} -S FORWARD end with one that drops or rejects everything, so packets \
         of pods are lost there: accept before it what comes from and goes to the pools"
    )
}

/// How long the legacy iptables waits for another one that writes.
pub(super) const LOCK_WAIT_SECS: &str = "5";

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "policy": "drop"}},
        {"rule": {"handle": 2, "expr": [{"xt": {"type": "match", "name": "conntrack"}},
            {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}}, RULES]}"#;

    fn rule(handle: u64, key: &str, name: &str) -> String {
        format!(
            r#"{{"rule": {{"handle": {handle}, "comment": "cairn.network", "expr": [
            {{"match": {{"op": "==", "left": {{"meta": {{"key": "{key}"}}}}, "right": "{name}"}}}},
            {{"counter": {{"packets": 7, "bytes": 8}}}}, {{"accept": null}}]}}}}"#
        )
    }

    fn read(rules: &[String]) -> Rules<u64> {
        let rules = if rules.is_empty() { "{}".to_owned() } else { rules.join(",") };
        read_nft(&CHAIN.replace("RULES", &rules), "cairn").unwrap()
    }

    fn chain() -> ChainName {
        ChainName { family: "ip", table: "filter".into(), chain: "FORWARD".into() }
    }

    #[test]
    fn one_rule_each_way_and_no_second_one() {
        let none = edit(&read(&[]), true);
        assert_eq!(
            nft_script(&chain(), &none, "cairn"),
            "add rule ip filter FORWARD iifname \"cairn*\" counter accept comment \"cairn.network\"\n\
             add rule ip filter FORWARD oifname \"cairn*\" counter accept comment \"cairn.network\"\n"
        );
        let both = [rule(3, "iifname", "cairn*"), rule(4, "oifname", "cairn*")];
        assert!(edit(&read(&both), true).is_empty());
        assert_eq!(edit(&read(&both), false), Edit { delete: vec![3, 4], append: vec![] });

        // One way is there twice, and a rule with our comment was changed to another interface.
        let odd = [
            rule(3, "iifname", "cairn*"),
            rule(4, "oifname", "eth*"),
            rule(5, "iifname", "cairn*"),
        ];
        let edit = edit(&read(&odd), true);
        assert_eq!(edit, Edit { delete: vec![4, 5], append: vec![Way::ToPods] });
        assert!(
            nft_script(&chain(), &edit, "cairn")
                .starts_with("delete rule ip filter FORWARD handle 4\n")
        );
    }

    #[test]
    fn a_chain_that_ends_in_a_reject_is_seen() {
        let last = |expressions: &str| {
            let rule = format!(r#"{{"rule": {{"handle": 9, "expr": [{expressions}]}}}}"#);
            read(&[rule, rule_of_ours()]).ends_in_drop
        };
        fn rule_of_ours() -> String {
            rule(10, "iifname", "cairn*")
        }
        assert!(last(r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#));
        assert!(last(r#"{"counter": null}, {"xt": {"type": "target", "name": "REJECT"}}"#));
        assert!(last(r#"{"drop": null}"#));
        assert!(!last(r#"{"match": {"op": "=="}}, {"drop": null}"#));
        assert!(!last(r#"{"xt": {"type": "match", "name": "tcp"}}, {"drop": null}"#));
        assert!(!last(r#"{"jump": {"target": "x"}}"#));
    }

    #[test]
    fn the_legacy_chain_is_read_as_its_tool_prints_it() {
        let text = "-P FORWARD DROP\n\
            -A FORWARD -i br0 -m comment --comment \"kube x\" -j ACCEPT\n\
            -A FORWARD -i cairn+ -m comment --comment \"cairn.network\" -j ACCEPT\n\
            -A FORWARD -i eth9 -m comment --comment cairn.network -j ACCEPT\n";
        let (rules, drops) = read_legacy(text, "cairn");
        assert!(drops && !rules.ends_in_drop);
        let commands = legacy_commands(&edit(&rules, true), "cairn");
        let commands: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            commands,
            [
                "-w 5 -D FORWARD -i eth9 -m comment --comment cairn.network -j ACCEPT",
                "-w 5 -A FORWARD -o cairn+ -m comment --comment cairn.network -j ACCEPT",
            ]
        );
        assert!(!read_legacy("-P FORWARD ACCEPT\n", "cairn").1);
        assert!(read_legacy("-A FORWARD -j REJECT --reject-with x\n", "cairn").0.ends_in_drop);
    }

    #[test]
    fn a_name_that_nft_would_not_take_as_one_word_is_not_passed_on() {
        assert!(is_plain(&chain()));
        for bad in ["a; flush ruleset", "", "1x", "a b", "a\nb", "ä"] {
            assert!(!is_plain(&ChainName { chain: bad.into(), ..chain() }), "{bad}");
        }
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        for text in ["", "{}", "[]", "{\"nftables\": 7}"] {
            assert!(read_nft(text, "cairn").is_err(), "{text}");
        }
    }
}
