//! Our rules in iptables' FORWARD chain, of both kinds of iptables, and what else stands at the
//! forward hook.

use std::collections::BTreeSet;
use std::fs;

use super::command::{CommandError, Commands, IP6TABLES_LEGACY, IPTABLES_LEGACY, NFT, Program};
use super::forward;
use super::watch::{ForwardChain, Seen, Watch};
use crate::error::Error;
use crate::netns::NetNs;
use crate::route::Family;

/// What a look is for.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) commands: &'a Commands,
    /// What the names of pods' host interfaces begin with.
    pub(super) pods: &'static str,
    /// Whether a chain that drops gets our rules; otherwise they go.
    pub(super) accept: bool,
    /// Whether something is written.
    pub(super) write: bool,
}

/// What a look found.
#[derive(Default)]
pub(super) struct Found {
    /// The chains whose rules were changed, or would be.
    pub(super) changed: Vec<String>,
    /// The chains that now have our rules.
    pub(super) accepting: BTreeSet<String>,
    /// What drops packets of pods and cannot be helped.
    pub(super) obstacles: Vec<String>,
    /// What others did meanwhile.
    pub(super) seen: Seen,
}

/// Looks at the base chains of nftables at the forward hook.
pub(super) async fn nftables(look: Look<'_>, watch: &mut Watch) -> Result<Found, CommandError> {
    let mut found = Found::default();
    for chain in watch.forward_chains()? {
        nft_chain(look, watch, &chain, &mut found).await?;
    }
    Ok(found)
}

async fn nft_chain(
    look: Look<'_>,
    watch: &mut Watch,
    chain: &ForwardChain,
    found: &mut Found,
) -> Result<(), CommandError> {
    let name = &chain.name;
    if !forward::is_plain(name) {
        found.obstacles.extend(forward::dropping(chain, false));
        return Ok(());
    }
    let arguments = ["-j", "list", "chain", name.family, &name.table, &name.chain];
    let rules = match look.commands.run(NFT, &arguments, "").await {
        // It went while it was asked for, which will be heard, or its name is a word of nft's own.
        Err(CommandError::Refused { .. }) => {
            found.obstacles.extend(forward::dropping(chain, false));
            return Ok(());
        }
        done => forward::read_nft(&done?.text, look.pods)
            .map_err(|text| CommandError::Unreadable { program: NFT.name, text })?,
    };
    if !forward::is_iptables(name) {
        found.obstacles.extend(forward::dropping(chain, rules.ends_in_drop));
        return Ok(());
    }
    if rules.ends_in_drop {
        let family = if name.family == "ip" { Family::V4 } else { Family::V6 };
        found.obstacles.push(forward::ends_early(family));
    }
    let title =
        format!("chain {} of the nftables table {} {}", name.chain, name.family, name.table);
    let wanted = look.accept && chain.drops;
    let edit = forward::edit(&rules, wanted);
    if !edit.is_empty() {
        if look.write {
            let script = forward::nft_script(name, &edit, look.pods);
            found.seen.add(watch.write(look.commands, &script).await?);
        }
        found.changed.push(title.clone());
    }
    if wanted {
        found.accepting.insert(title);
    }
    Ok(())
}

/// Looks at the legacy iptables, whose changes nobody reports.
pub(super) async fn legacy(look: Look<'_>) -> Result<Found, CommandError> {
    let mut found = Found::default();
    for (family, program) in [(Family::V4, IPTABLES_LEGACY), (Family::V6, IP6TABLES_LEGACY)] {
        if has_legacy_filter(look.commands.netns(), family)? {
            legacy_chain(look, family, program, &mut found).await?;
        }
    }
    Ok(found)
}

async fn legacy_chain(
    look: Look<'_>,
    family: Family,
    program: Program,
    found: &mut Found,
) -> Result<(), CommandError> {
    let list = ["-w", forward::LOCK_WAIT_SECS, "-S", "FORWARD"];
    let listing = look.commands.run(program, &list, "").await?.text;
    let (rules, drops) = forward::read_legacy(&listing, look.pods);
    if rules.ends_in_drop {
        found.obstacles.push(forward::ends_early(family));
    }
    let title = format!("chain FORWARD of {}", program.name);
    let wanted = look.accept && drops;
    let edit = forward::edit(&rules, wanted);
    if !edit.is_empty() {
        if look.write {
            for arguments in forward::legacy_commands(&edit, look.pods) {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                look.commands.run(program, &arguments, "").await?;
            }
        }
        found.changed.push(title.clone());
    }
    if wanted {
        found.accepting.insert(title);
    }
    Ok(())
}

/// Whether the legacy iptables has a filter table. Asking its command would make one.
fn has_legacy_filter(netns: Option<&NetNs>, family: Family) -> Result<bool, Error> {
    // Of the thread's namespace, not of the process's.
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let read = || fs::read_to_string(path);
    let names = match netns {
        None => read(),
        Some(netns) => netns.run(read)?,
    };
    match names {
        Ok(names) => Ok(names.lines().any(|name| name == "filter")),
        // A kernel without legacy tables.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("read {path}"), &error)),
    }
}
