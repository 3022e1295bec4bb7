//! What policies add to the cost of taking a table in.

use std::sync::Arc;
use std::time::Duration;

use cairn_bgp::policy::{Action, AsPathPattern, Changes, Match, Policy, PrefixRange, Rule};
use cairn_bgp::prefix::{Family, Ipv4Prefix, Prefix};
use cairn_bgp::wire::Community;

use crate::cpu_time::{cpu_time, nanos_each};
use crate::rib::{FEEDER_PATH, Speaker, announcements, join, peer};
use crate::table::Row;
use crate::{Extent, Result};

/// A condition that no route meets, and the row of rules that have it.
struct Condition {
    matches: Match,
    row: Row,
}

/// Measures these rows of the group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let routes = extent.pick(200_000, 2000);
    let entries = format!("import, a list of {ENTRIES} prefixes");
    let mut list = Row::new("rib", entries, "ns/prefix", "import without");
    let mut conditions = conditions()?;
    for run in 0..extent.pick(7, 1) {
        let time = |rules| import(routes, rules).map(|time| nanos_each(time, routes as usize));
        let alone = time(vec![accept(Match::default())])?;
        list.push(time(vec![prefix_list()])?, alone);
        // Backwards every other time.
        let mut order: Vec<&mut Condition> = conditions.iter_mut().collect();
        if run % 2 == 1 {
            order.reverse();
        }
        for Condition { matches, row } in order {
            let mut rules = vec![accept(matches.clone()); RULES];
            rules.push(accept(Match::default()));
            row.push(time(rules)?, alone);
        }
    }
    Ok([list].into_iter().chain(conditions.into_iter().map(|condition| condition.row)).collect())
}

fn conditions() -> Result<[Condition; 4]> {
    let condition = |name: &str, matches| {
        let name = format!("import, {RULES} rules on {name}");
        Condition { matches, row: Row::new("rib", name, "ns/prefix", "import without") }
    };
    let elsewhere = Prefix::V4(Ipv4Prefix::new(10 << 24, 8).ok_or("no prefix")?);
    let list = [PrefixRange::within(elsewhere)].into_iter().collect();
    let pattern = AsPathPattern::new("_65533_[0-9]+$")?;
    Ok([
        condition("a prefix", Match { prefixes: Some(list), ..Match::default() }),
        condition("a community", Match { communities: vec![Community(1)], ..Match::default() }),
        condition("the origin AS", Match { origin_as: vec![1], ..Match::default() }),
        condition("AS_PATH as text", Match { as_path: Some(pattern), ..Match::default() }),
    ])
}

/// The CPU time in which a RIB takes in a table through these rules; nobody is told of it.
fn import(routes: u32, rules: Vec<Rule>) -> Result<Duration> {
    let mut rib = Speaker::new().rib;
    let mut config = peer(FEEDER);
    config.import = vec![Arc::new(Policy { name: "measured".into(), rules })];
    let feeder = join(&mut rib, config, FEEDER);
    let mut total = Duration::ZERO;
    for batch in announcements(Family::Ipv4Unicast, 0..routes, &FEEDER_PATH) {
        let (time, taken) = cpu_time(|| rib.update(feeder, batch));
        taken?;
        total += time;
    }
    match rib.counts(feeder, Family::Ipv4Unicast).accepted {
        0 => Err("the policy accepts nothing".into()),
        _ => Ok(total),
    }
}

/// Networks of different lengths all over the table.
fn prefix_list() -> Rule {
    let entry = |number: u32| {
        let scattered = number.wrapping_mul(0x9e37_79b1) % (1 << 28);
        let network = Ipv4Prefix::new((20 << 24) + scattered, 14 + (number % 11) as u8)?;
        Some(PrefixRange::new(Prefix::V4(network), None, Some(24)))
    };
    let list = (0..ENTRIES).filter_map(entry).collect();
    accept(Match { prefixes: Some(list), ..Match::default() })
}

fn accept(matches: Match) -> Rule {
    Rule { matches, action: Action::Accept, set: Changes::default() }
}

const ENTRIES: u32 = 1000;
const RULES: usize = 20;
/// None of the first three.
const FEEDER: u8 = 5;
