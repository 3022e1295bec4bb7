//! Hears what others change in nftables, and lists the base chains at the forward hook.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::command::{CommandError, Commands};
use super::conntrack::{self, Forgotten};
use super::{Firewall, TABLE};
use crate::batch::{Batch, attributes, read_str};
use crate::error::Error;
use crate::monitor::receive;
use crate::netns::NetNs;
use crate::socket::{self, Message, Netlink, messages};

/// A chain, as nftables names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChainName {
    pub(super) family: &'static str,
    pub(super) table: String,
    pub(super) chain: String,
}

/// A base chain at the forward hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ForwardChain {
    pub(super) name: ChainName,
    /// Whether its policy drops what no rule decides.
    pub(super) drops: bool,
}

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Something in our table.
    pub(super) table: bool,
    /// A base chain at the forward hook, or a rule in one.
    pub(super) forward: bool,
    /// Unknown: notifications were lost.
    pub(super) lost: bool,
}

impl Seen {
    pub(super) fn anything(self) -> bool {
        self.table || self.forward || self.lost
    }

    pub(super) fn add(&mut self, other: Seen) {
        self.table |= other.table;
        self.forward |= other.forward;
        self.lost |= other.lost;
    }
}

/// A subscription to the changes of nftables in one network namespace.
pub(super) struct Watch {
    fd: AsyncFd<OwnedFd>,
    netlink: Netlink,
    /// The chains at the forward hook when they were listed last: a rule's change names only these.
    forward_chains: BTreeSet<ChainName>,
    buffer: Vec<u8>,
}

impl Watch {
    /// Subscribes in `netns`, or in the namespace of the calling thread.
    pub(super) fn open(netns: Option<&NetNs>) -> Result<Watch, Error> {
        let open = || Ok((subscribe()?, Netlink::open_netfilter()?));
        let (fd, netlink) = match netns {
            None => open()?,
            Some(netns) => netns.run(open)??,
        };
        // SAFETY: an `OwnedFd` always gives the same descriptor, and it stays open until the
        // `AsyncFd`, which owns it, has deregistered it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| Error::io("watch a netlink socket", &error.into()))?;
        let buffer = vec![0; RECEIVE_BYTES];
        Ok(Watch { fd, netlink, forward_chains: BTreeSet::new(), buffer })
    }

    /// Waits until something changed that matters. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Seen, Error> {
        loop {
            let mut ready = self
                .fd
                .readable()
                .await
                .map_err(|error| Error::io("wait for nftables' notifications", &error))?;
            let (seen, drained) =
                drain(ready.get_inner(), &mut self.buffer, &self.forward_chains, None)?;
            if drained {
                ready.clear_ready();
            }
            if seen.anything() {
                return Ok(seen);
            }
        }
    }

    /// What has changed until now, except by the process `own`, whose transactions are over.
    pub(super) fn drain(&mut self, own: Option<u32>) -> Result<Seen, Error> {
        let mut all = Seen::default();
        for _ in 0..DRAINS_MAX {
            let (seen, drained) =
                drain(self.fd.get_ref(), &mut self.buffer, &self.forward_chains, own)?;
            all.add(seen);
            if drained {
                break;
            }
        }
        Ok(all)
    }

    /// Has nft carry out a script and returns what others did meanwhile: our own notifications have
    /// all come when it has ended.
    pub(super) async fn write(
        &mut self,
        commands: &Commands,
        script: &str,
    ) -> Result<Seen, CommandError> {
        let done = commands.nft(script).await?;
        Ok(self.drain(done.pid)?)
    }

    /// Has the kernel forget unanswered flows that show a source which `firewall` hides.
    pub(super) fn forget_shown(&mut self, firewall: &Firewall) -> Result<Forgotten, Error> {
        conntrack::forget_shown(&mut self.netlink, firewall)
    }

    /// Lists the base chains at the forward hook, except ours. Changes of these and of their rules
    /// are heard from now on.
    pub(super) fn forward_chains(&mut self) -> Result<Vec<ForwardChain>, Error> {
        let mut batch = Batch::new();
        batch.begin(NFTABLES | NFT_MSG_GETCHAIN, 0, &[0; 4]);
        let mut found = self.netlink.dump(&mut batch, |kind, body| {
            Ok((kind == NFTABLES | NFT_MSG_NEWCHAIN).then(|| forward_chain(body)).flatten())
        })?;
        found.retain(|chain| !is_ours(chain.name.family, &chain.name.table));
        found.sort_unstable();
        self.forward_chains = found.iter().map(|chain| chain.name.clone()).collect();
        Ok(found)
    }
}

fn subscribe() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket::open_netfilter_socket(flags)?;
    socket::force_receive_buffer(&fd, RECEIVE_BUFFER_BYTES)?;
    socket::bind(&fd, GROUP_NFTABLES)?;
    Ok(fd)
}

/// Reads notifications; the second value says whether there are no more.
fn drain(
    fd: &OwnedFd,
    buffer: &mut [u8],
    forward_chains: &BTreeSet<ChainName>,
    own: Option<u32>,
) -> Result<(Seen, bool), Error> {
    let mut all = Seen::default();
    for _ in 0..DATAGRAMS_MAX {
        let len = match receive(fd, buffer) {
            Ok(None) => return Ok((all, true)),
            Ok(Some(len)) => len,
            Err(Error::Overrun) => {
                all.lost = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        for message in messages(buffer.get(..len).unwrap_or_default()) {
            match message {
                Ok(message) if own.is_some_and(|own| own == message.port) => {}
                Ok(message) => all.add(notice(&message, forward_chains)),
                Err(_) => all.lost = true,
            }
        }
    }
    Ok((all, false))
}

/// What one notification says.
fn notice(message: &Message<'_>, forward_chains: &BTreeSet<ChainName>) -> Seen {
    let mut seen = Seen::default();
    // The end of a transaction, which names no table.
    if message.kind == NFTABLES | NFT_MSG_NEWGEN {
        return seen;
    }
    let Some((family, rest)) = family_of(message.body) else {
        return seen;
    };
    // In every kind of object the first attribute names the table.
    let Some(table) = text(rest, NFTA_TABLE) else {
        return seen;
    };
    if is_ours(family, &table) {
        seen.table = true;
        return seen;
    }
    let chain = match message.kind ^ NFTABLES {
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => text(rest, NFTA_RULE_CHAIN),
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => {
            seen.forward = forward_chain(message.body).is_some();
            text(rest, NFTA_CHAIN_NAME)
        }
        _ => None,
    };
    seen.forward |=
        chain.is_some_and(|chain| forward_chains.contains(&ChainName { family, table, chain }));
    seen
}

/// Reads a chain; `None` when it is not at the forward hook.
fn forward_chain(body: &[u8]) -> Option<ForwardChain> {
    let (family, rest) = family_of(body)?;
    let hook = attribute(rest, NFTA_CHAIN_HOOK)?;
    if number(attribute(hook, NFTA_HOOK_HOOKNUM)?)? != NF_INET_FORWARD {
        return None;
    }
    let drops = attribute(rest, NFTA_CHAIN_POLICY).and_then(number) == Some(NF_DROP);
    let name =
        ChainName { family, table: text(rest, NFTA_TABLE)?, chain: text(rest, NFTA_CHAIN_NAME)? };
    Some(ForwardChain { name, drops })
}

/// The family of a `struct nfgenmsg`, of those that see forwarded IP packets, and what follows.
fn family_of(body: &[u8]) -> Option<(&'static str, &[u8])> {
    let (header, rest) = body.split_first_chunk::<4>()?;
    let family = match header[0] {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        _ => return None,
    };
    Some((family, rest))
}

fn is_ours(family: &str, table: &str) -> bool {
    family == "inet" && table == TABLE
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn text(bytes: &[u8], wanted: u16) -> Option<String> {
    attribute(bytes, wanted).map(read_str)
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

const RECEIVE_BYTES: usize = 64 << 10;
/// kube-proxy may write tens of thousands of rules at once, each of which is reported. What is lost
/// costs one look at our table.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// The most datagrams that are read before the caller has its turn.
const DATAGRAMS_MAX: usize = 8192;
const DRAINS_MAX: usize = 8;
/// NFNLGRP_NFTABLES.
const GROUP_NFTABLES: u32 = 1 << 6;
/// NFNL_SUBSYS_NFTABLES, in the upper octet of a message's type.
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWGEN: u16 = 15;
const NFTA_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
