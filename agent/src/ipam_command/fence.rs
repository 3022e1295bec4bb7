//! `cairn ipam fence`: an operator says that a node's machine is off. The mark names the holder of
//! the node's Lease, one boot of one machine under one Node object, so it says nothing about a
//! machine that boots again, and it is written under the version of the Lease that was looked at,
//! so an agent that writes its Lease meanwhile refuses it.
//!
//! While a machine that had the Node before the holder may hand out, that one is meant: the holder
//! seems to live, and what it waits for is a word about the other. The holder is marked when nobody is
//! left before it.

use std::process::ExitCode;

use anyhow::bail;
use cairn_ipam::mark::{
    ANNOTATION_EARLIER_OFF, ANNOTATION_MACHINE_OFF, ANNOTATION_TAKEN_OVER, Holder,
};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::findings::SILENT_SECS;
use super::read::{self, call, lease_name};
use super::snapshot::LeaseSeen;
use super::text::{count, some, span};
use super::{Surroundings, snapshot::BlockSeen};

/// Options of `cairn ipam fence`.
#[derive(Args)]
pub(super) struct Options {
    /// The node whose machine is off. When another machine has taken the node over and the first one
    /// may still hand out addresses, the first one is marked, and the other goes on.
    node: String,
    /// Take back what was said.
    #[arg(long)]
    undo: bool,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Although the agent wrote its Lease a moment ago: the machine has been switched off since. Or,
    /// although two machines had the node and neither is heard: the earlier one is off.
    #[arg(long)]
    yes: bool,
    /// Every machine that had the node before the present one is off; the present one is not meant.
    #[arg(long, conflicts_with_all = ["undo", "yes"])]
    earlier: bool,
}

/// What is to be done with the mark.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The holder's machine is off.
    Holder(Holder),
    /// A machine that had the Node before the holder is off.
    Earlier(Holder),
    /// All that had it before the holder are off.
    AllEarlier(Holder),
    Remove,
    /// It is as wanted.
    None(String),
}

/// Writes or removes the mark.
pub(super) async fn run(from: &Surroundings, options: Options) -> anyhow::Result<ExitCode> {
    let node = &options.node;
    let name = lease_name(node);
    let leases: Api<Lease> = Api::namespaced(from.client.clone(), &from.namespace);
    let Some(lease) = call(&format!("cannot read Lease {name}"), leases.get_opt(&name)).await?
    else {
        bail!(
            "node {node} has no Lease {name} in namespace {}: no agent has acted for it, or its Lease \
             was deleted; a block of it is returned by `cairn ipam release`",
            from.namespace
        );
    };
    let seen = read::lease(&lease);
    let fields = format!("spec.node.name={node}");
    let blocks = read::blocks(from, &fields, &mut Vec::new()).await?;
    let now_secs = read::now_secs();
    println!("{}", describe(node, &seen, now_secs));
    let step = match decide(&options, &seen, now_secs) {
        Ok(Step::None(why)) => {
            println!("{why}");
            return Ok(ExitCode::SUCCESS);
        }
        Ok(step) => step,
        Err(why) => bail!("{why}"),
    };
    match &step {
        Step::Holder(holder) => {
            println!("{}", consequence(node, holder, &blocks));
            let running: Vec<_> = read::pods(from, &format!("spec.nodeName={node}"))
                .await?
                .into_iter()
                .filter(|pod| pod.running && blocks.iter().any(|block| pod.is_in(block)))
                .collect();
            if !running.is_empty() {
                println!(
                    "{} of {node} run by the word of the API server, and lose their addresses: {}",
                    count(running.len(), "pod"),
                    some(running.iter().map(|pod| &pod.name))
                );
            }
        }
        Step::Earlier(machine) => println!("{}", consequence_of_earlier(node, Some(machine))),
        Step::AllEarlier(_) => println!("{}", consequence_of_earlier(node, None)),
        Step::Remove | Step::None(_) => {}
    }
    let patch = patch(&lease, &seen, &step);
    if options.dry_run {
        println!("would patch Lease {}/{name}: {patch}", from.namespace);
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("cannot mark Lease {name}");
    let params = PatchParams::default();
    match call(&what, leases.patch(&name, &params, &Patch::Merge(&patch))).await {
        Ok(_) => {}
        Err(error)
            if error.code == Some(409)
                && matches!(step, Step::Earlier(_) | Step::AllEarlier(_)) =>
        {
            bail!(
                "the agent of {node} has written its Lease since it was read: nothing was marked, \
                 try again"
            )
        }
        Err(error) if error.code == Some(409) => bail!(
            "the agent of {node} has written its Lease since it was read: the machine is on, and \
             nothing was marked"
        ),
        Err(error) => return Err(error.into()),
    }
    match step {
        Step::Holder(_) => println!("marked: machine of node {node} is off"),
        Step::Earlier(machine) => println!(
            "marked: the machine that had node {node} before is off (boot id {})",
            machine.boot_id
        ),
        Step::AllEarlier(_) => {
            println!("noted: every machine that had node {node} before the present one is off")
        }
        _ => println!(
            "the mark of node {node} is removed; blocks that were taken up on its word stay where they are"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be done, or why it is refused.
fn decide(options: &Options, lease: &LeaseSeen, now_secs: i64) -> Result<Step, String> {
    let node = &options.node;
    if options.undo {
        return Ok(match lease.off.as_ref().or(lease.earlier_off.as_ref()) {
            Some(_) => Step::Remove,
            None => Step::None(format!("node {node} is not marked: nothing to take back")),
        });
    }
    let Some(holder) = &lease.holder else {
        return Err(format!(
            "the Lease of node {node} names no holder of the form NODE_UID/BOOT_ID: no agent holds \
             it, so there is nobody to be marked"
        ));
    };
    if options.earlier {
        return Ok(match lease.earlier_off.as_ref() == Some(holder) {
            true => Step::None(format!("that is said already of node {node}, held by {holder}")),
            false => Step::AllEarlier(holder.clone()),
        });
    }
    if lease.is_off() {
        return Ok(Step::None(format!("node {node} is marked already: {holder}")));
    }
    if let Some(from) = &lease.taken_over
        && let Some(step) = earlier(options, lease, holder, from, now_secs)?
    {
        return Ok(step);
    }
    let age = lease.age_secs(now_secs);
    if options.yes || options.dry_run || is_silent(age) {
        return Ok(Step::Holder(holder.clone()));
    }
    Err(format!(
        "the agent of {node} wrote its Lease {}: it seems to live. Its blocks would go to other \
         nodes while its pods run. Switch the machine off and try again in {SILENT_SECS} s; or \
         add --yes if it has been off since",
        age.map_or("at a time unknown".to_owned(), |age| format!("{} ago", span(age)))
    ))
}

fn is_silent(age_secs: Option<i64>) -> bool {
    age_secs.is_some_and(|age| age >= SILENT_SECS)
}

/// What is to be done while the Lease names `from`, from whom its holder has taken it over; `None` when
/// it is the holder's turn.
fn earlier(
    options: &Options,
    lease: &LeaseSeen,
    holder: &Holder,
    from: &str,
    now_secs: i64,
) -> Result<Option<Step>, String> {
    let node = &options.node;
    let age = lease.age_secs(now_secs);
    let silent = is_silent(age);
    let Ok(machine) = from.parse::<Holder>() else {
        if age.zip(lease.wait_secs()).is_some_and(|(age, wait)| age >= wait) {
            return Ok(None);
        }
        return Err(format!(
            "more than one machine had node {node} before the present one, each may have pods in what \
             it has claimed, and a mark speaks of one. If all of them are off, say --earlier; or wait \
             {}: then blocks that no BGP peer announces are used or returned. The blocks that the \
             present machine has claimed are not concerned",
            lease.wait_secs().map_or("the end of the fence".to_owned(), span)
        ));
    };
    if lease.off.as_ref() == Some(&machine) {
        return Ok((!silent).then(|| {
            Step::None(format!(
                "the machine that had node {node} before is marked already: {machine}; the present \
                 one, {holder}, seems to live, and uses the blocks of both once it has written its \
                 Lease"
            ))
        }));
    }
    if silent && !options.yes && !options.dry_run {
        return Err(format!(
            "two machines had node {node} and neither is heard: {machine}, and after it {holder}. \
             Both have to be marked, the earlier one first: add --yes if that one is off, and run \
             it once more for the later one"
        ));
    }
    Ok(Some(Step::Earlier(machine)))
}

fn describe(node: &str, lease: &LeaseSeen, now_secs: i64) -> String {
    let holder = lease.holder.as_ref().map_or("nobody".to_owned(), Holder::to_string);
    match lease.age_secs(now_secs) {
        Some(age) => {
            format!(
                "the Lease of node {node}, held by {holder}, was last written {} ago",
                span(age)
            )
        }
        None => format!("the Lease of node {node}, held by {holder}, was never written"),
    }
}

/// What the mark of a machine that had the Node before will do, or the word about all of them.
fn consequence_of_earlier(node: &str, machine: Option<&Holder>) -> String {
    let (before, its) = match machine {
        Some(machine) => {
            (format!("Marked is the one before it, with the boot id {}", machine.boot_id), "its")
        }
        None => ("All that had it before are taken to be off".to_owned(), "their"),
    };
    format!(
        "another machine has taken node {node} over, and is not marked: it goes on. {before}: {its} \
         blocks are the present one's as soon as that writes its Lease, and what still runs there \
         loses its addresses"
    )
}

/// What the mark will do.
fn consequence(node: &str, holder: &Holder, blocks: &[BlockSeen]) -> String {
    let own = blocks.iter().filter(|block| block.node.uid == holder.node_uid);
    let own: Vec<&BlockSeen> = own.collect();
    if own.is_empty() {
        return format!("the holder has no block: the mark only speeds up what node {node} leaves");
    }
    let used = own.iter().filter_map(|block| block.used).fold(0, u128::saturating_add);
    format!(
        "{} of it with {} in use return as soon as nobody announces them: {}",
        count(own.len(), "block"),
        count(usize::try_from(used).unwrap_or(usize::MAX), "address"),
        some(own.iter().map(|block| block.cidr))
    )
}

/// The patch under the version of the Lease that was read.
fn patch(lease: &Lease, seen: &LeaseSeen, step: &Step) -> Value {
    let mut annotations = match step {
        Step::Holder(machine) | Step::Earlier(machine) => {
            json!({ANNOTATION_MACHINE_OFF: machine.to_string()})
        }
        Step::AllEarlier(holder) => json!({ANNOTATION_EARLIER_OFF: holder.to_string()}),
        Step::Remove | Step::None(_) => {
            json!({ANNOTATION_MACHINE_OFF: null, ANNOTATION_EARLIER_OFF: null})
        }
    };
    // What the mark says of the earlier machine is overwritten. Without such a word the Lease goes on
    // naming that one, and the leader waits for the end of its promise by its own clock.
    if matches!(step, Step::Holder(_)) && seen.taken_over.is_some() && !seen.others_rest() {
        annotations[ANNOTATION_TAKEN_OVER] = Value::Null;
    }
    json!({"metadata": {
        "uid": lease.metadata.uid,
        "resourceVersion": lease.metadata.resource_version,
        "annotations": annotations,
    }})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options(words: &[&str]) -> Options {
        let has = |word: &str| words.contains(&word);
        Options {
            node: "n1".to_owned(),
            undo: has("undo"),
            dry_run: has("dry-run"),
            yes: has("yes"),
            earlier: has("earlier"),
        }
    }

    fn holder() -> Holder {
        Holder { node_uid: "u1".into(), boot_id: "b1".into() }
    }

    #[test]
    fn a_machine_whose_agent_wrote_a_moment_ago_is_not_marked_without_a_yes() {
        let lease =
            |secs| LeaseSeen { holder: Some(holder()), renewed_secs: secs, ..LeaseSeen::default() };
        let write = Ok(Step::Holder(holder()));
        // Age, words, whether it is written.
        #[rustfmt::skip]
        let rows: [(Option<i64>, &[&str], bool); 7] = [
            (Some(179), &[], false), (Some(180), &[], true), (Some(179), &["yes"], true),
            (Some(179), &["dry-run"], true), (None, &[], false), (None, &["yes"], true),
            // A clock that runs ahead of this one.
            (Some(-30), &[], false),
        ];
        for (age, words, written) in rows {
            let step = decide(&options(words), &lease(age.map(|age| 1000 - age)), 1000);
            assert_eq!(step == write, written, "{age:?} {words:?}: {step:?}");
        }
    }

    #[test]
    fn a_mark_names_the_holder_and_is_taken_back() {
        let renewed_secs = Some(0);
        let marked =
            |off| LeaseSeen { holder: Some(holder()), off, renewed_secs, ..LeaseSeen::default() };
        let said = decide(&options(&[]), &marked(Some(holder())), 1000);
        assert!(matches!(&said, Ok(Step::None(why)) if why.contains("already")), "{said:?}");
        // Of an earlier boot: it says nothing about this one.
        let earlier = Holder { boot_id: "b0".into(), ..holder() };
        assert_eq!(decide(&options(&[]), &marked(Some(earlier)), 1000), Ok(Step::Holder(holder())));
        assert_eq!(decide(&options(&["undo"]), &marked(Some(holder())), 1), Ok(Step::Remove));
        let nothing = decide(&options(&["undo"]), &marked(None), 1);
        assert!(matches!(nothing, Ok(Step::None(_))), "{nothing:?}");
        let nobody = decide(&options(&["yes"]), &LeaseSeen::default(), 1);
        assert!(nobody.is_err_and(|why| why.contains("nobody to be marked")));
    }

    #[test]
    fn the_machine_before_the_holder_is_meant_while_it_may_hand_out() {
        let before = Holder { boot_id: "b0".into(), ..holder() };
        #[derive(Debug, PartialEq)]
        enum Is {
            Holder,
            Earlier,
            AllEarlier,
            Nothing,
            Refused,
        }
        use Is::{AllEarlier, Earlier, Nothing, Refused};
        // From whom it was taken over, who is marked, age (the wait is 1000 s), words.
        type Row = (&'static str, Option<&'static str>, i64, &'static [&'static str], Is);
        #[rustfmt::skip]
        let rows: [Row; 19] = [
            ("u1/b0", None, 1, &[], Earlier),
            ("u1/b0", None, 1, &["yes"], Earlier),
            ("u1/b0", Some("b1"), 1, &[], Earlier),
            ("u1/b0", Some("b0"), 1, &[], Nothing),
            // Whoever runs it twice does not mean the one that lives.
            ("u1/b0", Some("b0"), 1, &["yes"], Nothing),
            ("u1/b0", Some("b0"), 180, &[], Is::Holder),
            ("u1/b0", None, 180, &[], Refused),
            ("u1/b0", None, 180, &["dry-run"], Earlier),
            ("u1/b0", None, 180, &["yes"], Earlier),
            ("u1/b0", None, 999, &[], Refused),
            // Clocks may differ: the earlier one is never passed over by them.
            ("u1/b0", None, 1000, &[], Refused),
            ("several", None, 1, &["yes"], Refused),
            ("several", Some("b1"), 999, &["yes"], Refused),
            ("several", None, 1000, &[], Is::Holder),
            ("several", Some("b1"), 1000, &[], Is::Holder),
            ("several", None, 1, &["earlier"], AllEarlier),
            ("several", None, 1000, &["earlier"], AllEarlier),
            ("u1/b0", None, 999, &["earlier"], AllEarlier),
            ("", None, 999, &["earlier"], AllEarlier),
        ];
        for (from, off, age, words, expected) in rows {
            let lease = LeaseSeen {
                holder: Some(holder()),
                renewed_secs: Some(2000 - age),
                promise: Some(Duration::from_secs(800)),
                off: off.map(|boot| Holder { boot_id: boot.into(), ..holder() }),
                taken_over: Some(from.to_owned()).filter(|from| !from.is_empty()),
                earlier_off: None,
            };
            let is = match decide(&options(words), &lease, 2000) {
                Ok(Step::Holder(machine)) if machine == holder() => Is::Holder,
                Ok(Step::Earlier(machine)) if machine == before => Earlier,
                Ok(Step::AllEarlier(machine)) if machine == holder() => AllEarlier,
                Ok(Step::None(_)) => Nothing,
                Err(_) => Refused,
                Ok(other) => panic!("{from} {off:?} {age} {words:?}: {other:?}"),
            };
            assert_eq!(is, expected, "{from} {off:?} {age} {words:?}");
        }
    }
}
