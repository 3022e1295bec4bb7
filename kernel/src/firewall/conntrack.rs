//! Has the kernel forget flows that began before the rule that is for them.
//!
//! The kernel decides on a flow's addresses at its first packet and keeps to that. A pod that sent to
//! a node before the rule for that node was there goes on sending from its own address, which nobody
//! answers, for as long as it sends. What has no answer yet is forgotten, and its next packet is a
//! first one; what has one goes on as it is, for a change of its address would end it.

use std::net::IpAddr;

use super::Firewall;
use crate::batch::{Batch, attributes, read_ip};
use crate::error::Error;
use crate::socket::{Acknowledge, Netlink};

/// What a look at the flows did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forgotten {
    /// How many flows begin anew.
    pub(super) flows: usize,
    /// There are more: another look is due.
    pub(super) more: bool,
}

/// Forgets unanswered flows whose source `firewall` hides and that show it. Acts in the namespace of the
/// socket, which is one of NETLINK_NETFILTER.
///
/// # Errors
/// The kernel does not list connections (it lacks `nf_conntrack_netlink`), or refuses to forget one.
pub(super) fn forget_shown(netlink: &mut Netlink, firewall: &Firewall) -> Result<Forgotten, Error> {
    let mut ask = Batch::new();
    ask.begin(CONNTRACK | CT_GET, 0, &[0; 4]);
    let mut forget = Batch::new();
    let mut more = false;
    // A table that changes while it is read is nothing special, and says so to nobody.
    netlink.dump_once(&mut ask, |kind, body| {
        if kind == CONNTRACK | CT_NEW
            && let Some(flow) = Flow::read(body)
            && flow.is_shown()
            && firewall.hides(flow.source, flow.destination)
        {
            more = forget.len() >= FLOWS_MAX;
            if !more {
                flow.delete(&mut forget);
            }
        }
        Ok(())
    })?;
    if forget.is_empty() {
        return Ok(Forgotten::default());
    }
    let mut refusals = netlink.execute(&mut forget, Acknowledge::Last)?;
    // It ended by itself meanwhile.
    refusals.retain(|refusal| refusal.errno != rustix::io::Errno::NOENT);
    let asked = forget.len();
    let flows = asked - refusals.len();
    match refusals.pop() {
        None => Ok(Forgotten { flows, more }),
        Some(refusal) => Err(Error::Refused { action: "forget a connection".to_owned(), refusal }),
    }
}

/// A connection as the kernel lists it.
struct Flow<'a> {
    family: u8,
    /// What identifies it, as it was read.
    identity: [Option<(u16, &'a [u8])>; 3],
    source: IpAddr,
    /// Where its packets go, which is not what they were sent to if that is a Service.
    destination: IpAddr,
    status: u32,
}

impl<'a> Flow<'a> {
    /// `None` for what has no addresses, or is not understood.
    fn read(body: &'a [u8]) -> Option<Flow<'a>> {
        let (header, rest) = body.split_first_chunk::<4>()?;
        let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted);
        let original = find(CTA_TUPLE_ORIG)?;
        let status = find(CTA_STATUS)?.1.first_chunk()?;
        Some(Flow {
            family: header[0],
            identity: [Some(original), find(CTA_ZONE), find(CTA_ID)],
            source: source(original.1)?,
            destination: source(find(CTA_TUPLE_REPLY)?.1)?,
            status: u32::from_be_bytes(*status),
        })
    }

    /// Nobody answered it, and its source is not hidden.
    fn is_shown(&self) -> bool {
        self.status & (IPS_SEEN_REPLY | IPS_SRC_NAT) == 0
    }

    fn delete(&self, batch: &mut Batch) {
        batch.begin(CONNTRACK | CT_DELETE, 0, &[self.family, 0, 0, 0]);
        for (kind, value) in self.identity.into_iter().flatten() {
            batch.attr(kind, value);
        }
    }
}

/// Where the packets of one direction come from.
fn source(tuple: &[u8]) -> Option<IpAddr> {
    let (_, addresses) = attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_IP)?;
    let is_source = |kind: u16| matches!(kind, CTA_IP_V4_SRC | CTA_IP_V6_SRC);
    read_ip(attributes(addresses).find(|(kind, _)| is_source(*kind))?.1)
}

/// Flows that one look forgets at most: a megabyte of requests.
const FLOWS_MAX: usize = 10_000;
/// NFNL_SUBSYS_CTNETLINK, in the upper octet of a message's type.
const CONNTRACK: u16 = 1 << 8;
const CT_NEW: u16 = 0;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
/// `CTA_*` (linux/netfilter/nfnetlink_conntrack.h).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
/// `IPS_*` (linux/netfilter/nf_conntrack_common.h).
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_SRC_NAT: u32 = 1 << 4;
