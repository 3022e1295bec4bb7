//! From BGPPolicy objects to the speaker's rules.

use std::str::FromStr;
use std::sync::Arc;

use cairn_api::{
    AsPathMatch, BGPPolicySpec, Match as MatchSpec, Origin, PolicyRule, PrefixMatch, Set,
    SetNextHop,
};
use cairn_bgp::policy::{
    Action, AsPathPattern, Changes, CommunityChange, Match, MedChange, NextHopChange, Policy,
    PrefixList, PrefixRange, Prepend, RouteSort, Rule,
};

use super::{FieldError, asn, network};

/// A BGPPolicy as the speaker evaluates it.
///
/// # Errors
/// A field that cannot be: a prefix, a range of lengths, a community, an expression, an AS number.
pub fn policy(name: &str, spec: &BGPPolicySpec) -> Result<Policy, FieldError> {
    let rules = spec
        .rules
        .iter()
        .enumerate()
        .map(|(index, rule)| policy_rule(&format!("spec.rules[{index}]"), rule))
        .collect::<Result<_, _>>()?;
    Ok(Policy { name: format!("bgppolicy/{name}").into(), rules })
}

fn policy_rule(field: &str, rule: &PolicyRule) -> Result<Rule, FieldError> {
    let matches = match &rule.match_ {
        None => Match::default(),
        Some(wanted) => conditions(&format!("{field}.match"), wanted)?,
    };
    let set = match &rule.set {
        None => Changes::default(),
        Some(set) => changes(&format!("{field}.set"), set)?,
    };
    let action = match rule.action {
        cairn_api::Action::Accept => Action::Accept,
        cairn_api::Action::Reject => Action::Reject,
    };
    if action == Action::Reject && rule.set.is_some() {
        let problem = "a rule that rejects changes nothing: leave it out, or accept";
        return Err(FieldError::new(format!("{field}.set"), problem));
    }
    Ok(Rule { matches, action, set })
}

fn conditions(field: &str, wanted: &MatchSpec) -> Result<Match, FieldError> {
    let prefixes = each(&format!("{field}.prefixes"), &wanted.prefixes, prefix_range)?;
    let next_hops = each(&format!("{field}.nextHops"), &wanted.next_hops, |field, text| {
        network(field, text).map(PrefixRange::within)
    })?;
    let as_path = wanted.as_path.clone().unwrap_or_default();
    let AsPathMatch { length_min, length_max, origin_asns, neighbor_asns, regex } = as_path;
    if let (Some(min), Some(max)) = (length_min, length_max)
        && min > max
    {
        let problem = format!("{min} is above lengthMax, so that no path could match");
        return Err(FieldError::new(format!("{field}.asPath.lengthMin"), problem));
    }
    let asns = |name: &str, asns: &[u32]| {
        each(&format!("{field}.asPath.{name}"), asns, |field, number| asn(field, *number))
    };
    let as_path = regex.map(|text| {
        let error = |problem: cairn_bgp::policy::AsPathPatternError| {
            FieldError::new(format!("{field}.asPath.regex"), format!("\"{text}\": {problem}"))
        };
        AsPathPattern::new(&text).map_err(error)
    });
    Ok(Match {
        prefixes: listed(prefixes),
        sorts: wanted.origins.iter().map(|origin| route_sort(*origin)).collect(),
        // On a node a peer goes by the name of its object, in a file by the name alone.
        peers: wanted
            .peers
            .iter()
            .flat_map(|name| [name.as_str().into(), format!("bgppeer/{name}").into()])
            .collect::<Vec<Arc<str>>>(),
        next_hops: listed(next_hops),
        communities: each(&format!("{field}.communities"), &wanted.communities, parsed)?,
        extended_communities: each(
            &format!("{field}.extendedCommunities"),
            &wanted.extended_communities,
            parsed,
        )?,
        large_communities: each(
            &format!("{field}.largeCommunities"),
            &wanted.large_communities,
            parsed,
        )?,
        neighbour_as: asns("neighborASNs", &neighbor_asns)?,
        origin_as: asns("originASNs", &origin_asns)?,
        as_path_len_min: length_min,
        as_path_len_max: length_max,
        as_path: as_path.transpose()?,
    })
}

/// An empty list in an object asks nothing; one of the core holds nothing.
fn listed(ranges: Vec<PrefixRange>) -> Option<PrefixList> {
    (!ranges.is_empty()).then(|| ranges.into_iter().collect())
}

fn changes(field: &str, set: &Set) -> Result<Changes, FieldError> {
    let med = match (set.med, set.remove_med) {
        (Some(_), true) => {
            let problem = "contradicts med: write one of them";
            return Err(FieldError::new(format!("{field}.removeMED"), problem));
        }
        (Some(med), false) => Some(MedChange::Set(med)),
        (None, true) => Some(MedChange::Remove),
        (None, false) => None,
    };
    let prepend = set.prepend.map(|prepend| {
        let asn = asn(&format!("{field}.prepend.asn"), prepend.asn)?;
        match prepend.times {
            times @ 1..=PREPENDS_MAX => Ok(Prepend { asn, times }),
            times => Err(FieldError::new(
                format!("{field}.prepend.times"),
                format!("is {times}: write a number from 1 to {PREPENDS_MAX}"),
            )),
        }
    });
    let communities = set.communities.clone().unwrap_or_default();
    let extended = set.extended_communities.clone().unwrap_or_default();
    let large = set.large_communities.clone().unwrap_or_default();
    Ok(Changes {
        local_pref: set.local_pref,
        med,
        communities: community_change(
            &format!("{field}.communities"),
            communities.replace.as_deref(),
            &communities.remove,
            &communities.add,
        )?,
        extended_communities: community_change(
            &format!("{field}.extendedCommunities"),
            extended.replace.as_deref(),
            &extended.remove,
            &extended.add,
        )?,
        large_communities: community_change(
            &format!("{field}.largeCommunities"),
            large.replace.as_deref(),
            &large.remove,
            &large.add,
        )?,
        prepend: prepend.transpose()?,
        next_hop: set.next_hop.map(|next_hop| match next_hop {
            SetNextHop::SelfAddress => NextHopChange::SelfAddress,
            SetNextHop::Unchanged => NextHopChange::Unchanged,
        }),
    })
}

fn community_change<T>(
    field: &str,
    replace: Option<&[String]>,
    remove: &[String],
    add: &[String],
) -> Result<CommunityChange<T>, FieldError>
where
    T: FromStr<Err: std::fmt::Display>,
{
    let list = |name: &str, texts: &[String]| each(&format!("{field}.{name}"), texts, parsed);
    Ok(CommunityChange {
        replace: replace.map(|texts| list("replace", texts)).transpose()?,
        remove: list("remove", remove)?,
        add: list("add", add)?,
    })
}

/// Parses each entry of a list; an error names the entry.
fn each<T, U>(
    field: &str,
    entries: &[T],
    parse: impl Fn(&str, &T) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    entries.iter().enumerate().map(|(at, entry)| parse(&format!("{field}[{at}]"), entry)).collect()
}

pub(super) fn parsed<T>(field: &str, text: &impl AsRef<str>) -> Result<T, FieldError>
where
    T: FromStr<Err: std::fmt::Display>,
{
    text.as_ref().parse().map_err(|error: T::Err| FieldError::new(field, error.to_string()))
}

fn prefix_range(field: &str, entry: &PrefixMatch) -> Result<PrefixRange, FieldError> {
    let prefix = network(&format!("{field}.prefix"), &entry.prefix)?;
    let bits = prefix.family().bits();
    let ge = entry.ge.unwrap_or(prefix.len());
    let le = entry.le.unwrap_or(if entry.ge.is_some() { bits } else { prefix.len() });
    if ge < prefix.len() || le < ge || le > bits {
        return Err(FieldError::new(
            field,
            format!("it must hold that {} <= ge <= le <= {bits}", prefix.len()),
        ));
    }
    Ok(PrefixRange { prefix, len_min: ge, len_max: le })
}

fn route_sort(origin: Origin) -> RouteSort {
    match origin {
        Origin::Local => RouteSort::Originated,
        Origin::Internal => RouteSort::Ibgp,
        Origin::External => RouteSort::Ebgp,
    }
}

/// As in the schema: more has no use but to hurt.
const PREPENDS_MAX: u8 = 16;

#[cfg(test)]
mod tests {
    use cairn_bgp::wire::Community;

    use super::*;

    fn parse(rule: &str) -> Result<Rule, FieldError> {
        let spec = serde_saphyr::from_str(&format!("{{rules: [{{action: Accept}}, {rule}]}}"));
        let policy = policy("p", &spec.expect("a BGPPolicy spec"))?;
        Ok(policy.rules[1].clone())
    }

    #[test]
    fn every_part_of_a_rule_reaches_the_speaker() {
        let rule = parse(
            "{action: Accept, match: {prefixes: [{prefix: 10.0.0.0/8, le: 24}], communities: \
             ['65000:1', no-export], extendedCommunities: ['rt:65000:1'], largeCommunities: \
             ['1:2:3'], asPath: {lengthMin: 1, lengthMax: 9, originASNs: [65001], neighborASNs: \
             [65002], regex: '_65001$'}, nextHops: [192.0.2.0/24], peers: [tor], origins: \
             [External]}, set: {localPref: 200, med: 5, communities: {replace: [], remove: \
             ['65000:2'], add: [blackhole]}, extendedCommunities: {add: ['ro:65000:1']}, \
             largeCommunities: {remove: ['1:2:3']}, prepend: {asn: 65000, times: 2}, nextHop: \
             Self}}",
        )
        .expect("a usable rule");
        let Match { prefixes, next_hops, .. } = &rule.matches;
        assert!(prefixes.as_ref().is_some_and(|p| p.matches("10.1.0.0/16".parse().unwrap())));
        assert!(next_hops.as_ref().is_some_and(|p| p.matches("192.0.2.9/32".parse().unwrap())));
        assert_eq!(rule.matches.communities, [Community(65000 << 16 | 1), Community::NO_EXPORT]);
        assert_eq!(rule.matches.extended_communities, ["rt:65000:1".parse().unwrap()]);
        assert_eq!(rule.matches.large_communities, ["1:2:3".parse().unwrap()]);
        assert_eq!(rule.matches.sorts, [RouteSort::Ebgp]);
        assert_eq!(rule.matches.peers, ["tor".into(), "bgppeer/tor".into()]);
        assert_eq!(
            (rule.matches.as_path_len_min, rule.matches.as_path_len_max),
            (Some(1), Some(9))
        );
        assert_eq!(rule.matches.origin_as, [65001]);
        assert_eq!(rule.matches.neighbour_as, [65002]);
        assert_eq!(rule.matches.as_path.as_ref().map(AsPathPattern::as_str), Some("_65001$"));
        let expected = Changes {
            local_pref: Some(200),
            med: Some(MedChange::Set(5)),
            communities: CommunityChange {
                replace: Some(Vec::new()),
                remove: vec![Community(65000 << 16 | 2)],
                add: vec!["blackhole".parse().unwrap()],
            },
            extended_communities: CommunityChange::add(["ro:65000:1".parse().unwrap()]),
            large_communities: CommunityChange {
                remove: vec!["1:2:3".parse().unwrap()],
                ..CommunityChange::default()
            },
            prepend: Some(Prepend { asn: 65000, times: 2 }),
            next_hop: Some(NextHopChange::SelfAddress),
        };
        assert_eq!(rule.set, expected);
        let removes = parse("{action: Accept, set: {removeMED: true}}").expect("a usable rule");
        assert_eq!(removes.set.med, Some(MedChange::Remove));
        assert_eq!(parse("{action: Reject}").expect("a usable rule").matches, Match::default());
    }

    #[test]
    fn every_unusable_field_is_named() {
        for (rule, field) in [
            ("{action: Accept, match: {prefixes: [{prefix: x}]}}", "match.prefixes[0].prefix"),
            ("{action: Accept, match: {communities: ['1:1', '70000:1']}}", "match.communities[1]"),
            ("{action: Accept, match: {communities: [no-way]}}", "match.communities[0]"),
            (
                "{action: Accept, match: {extendedCommunities: ['rt:1']}}",
                "match.extendedCommunities[0]",
            ),
            ("{action: Accept, match: {largeCommunities: ['1:2']}}", "match.largeCommunities[0]"),
            ("{action: Accept, match: {nextHops: [10.0.0.1/40]}}", "match.nextHops[0]"),
            ("{action: Accept, match: {asPath: {regex: '('}}}", "match.asPath.regex"),
            ("{action: Accept, match: {asPath: {regex: 'x'}}}", "match.asPath.regex"),
            (
                "{action: Accept, match: {asPath: {originASNs: [1, 0]}}}",
                "match.asPath.originASNs[1]",
            ),
            (
                "{action: Accept, match: {asPath: {lengthMin: 2, lengthMax: 1}}}",
                "match.asPath.lengthMin",
            ),
            ("{action: Accept, set: {med: 1, removeMED: true}}", "set.removeMED"),
            ("{action: Accept, set: {communities: {add: ['x']}}}", "set.communities.add[0]"),
            (
                "{action: Accept, set: {largeCommunities: {replace: ['x']}}}",
                "set.largeCommunities.replace[0]",
            ),
            ("{action: Accept, set: {prepend: {asn: 0}}}", "set.prepend.asn"),
            ("{action: Accept, set: {prepend: {asn: 1, times: 17}}}", "set.prepend.times"),
            ("{action: Reject, set: {med: 1}}", "set"),
        ] {
            let error = parse(rule).expect_err(rule);
            assert_eq!(error.field, format!("spec.rules[1].{field}"), "{rule}");
        }
    }

    #[test]
    fn prefix_lengths_of_a_rule_are_ordered() {
        let range = |yaml: &str| {
            prefix_range("f", &serde_saphyr::from_str(yaml).expect("a prefix match"))
                .map(|r| (r.len_min, r.len_max))
        };
        assert_eq!(range("{prefix: 10.0.0.0/8}"), Ok((8, 8)));
        assert_eq!(range("{prefix: 10.0.0.0/8, ge: 16}"), Ok((16, 32)));
        assert_eq!(range("{prefix: 10.0.0.0/8, le: 24}"), Ok((8, 24)));
        assert!(range("{prefix: 10.0.0.0/8, ge: 7}").is_err());
        assert!(range("{prefix: 10.0.0.0/8, ge: 25, le: 24}").is_err());
        assert!(range("{prefix: 10.0.0.0/8, le: 33}").is_err());
    }
}
