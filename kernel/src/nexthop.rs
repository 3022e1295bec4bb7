//! Next-hop objects: a way out that many routes share, so that one request moves all of them.
//!
//! The kernel deletes objects by their number alone, whoever made them, and it deletes them, with every
//! route through them and without a word, when their link goes down. So objects of ours are created
//! exclusively, replaced and deleted only where a dump showed them as ours, and stand only on links that
//! Cairn itself keeps up, and on others where that is asked for.

use rustix::io::Errno;

use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::Error;
use crate::route::{NextHop, RTNH_F_ONLINK, family_of};
use crate::socket::Netlink;

/// A next-hop object as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The number by which routes name it, unique in its namespace.
    pub id: u32,
    /// Who made it (`nh_protocol`), with the numbers of routes.
    pub protocol: u8,
    /// What it does with packets.
    pub way: Way,
}

/// What a next-hop object does with packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Sends them to one next hop, whose weight is 1. Through an IPv6 gateway it serves IPv4 routes too.
    Hop(NextHop),
    /// Spreads them over other objects, given by number and weight.
    Group(Vec<(u32, u16)>),
    /// Drops them silently.
    Blackhole,
    /// Something that Cairn never makes: with an encapsulation, or for FDB entries. Only read.
    Other,
}

/// Whether routes name next-hop objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectUse {
    /// They do: the kernel has them ([`supported`]).
    Objects,
    /// They name the next hops themselves.
    Plain,
}

/// Whether the kernel knows next-hop objects, as it does from version 5.3 on.
///
/// # Errors
/// Those of [`Netlink::query`].
pub fn supported(netlink: &mut Netlink) -> Result<bool, Error> {
    answers(netlink, RTM_GETNEXTHOP)
}

/// Whether the kernel knows requests of `kind` for one object by its number.
fn answers(netlink: &mut Netlink, kind: u16) -> Result<bool, Error> {
    let mut batch = Batch::new();
    batch.begin(kind, 0, &[0; HEADER_BYTES]).attr_u32(NHA_ID, u32::MAX);
    match netlink.query(&mut batch, || "ask for next-hop objects".into()) {
        Ok(_) => Ok(true),
        Err(error) => match error.errno() {
            Some(Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

/// All next-hop objects, ours and others'. A kernel without them has none.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub fn list(netlink: &mut Netlink) -> Result<Vec<Object>, Error> {
    let mut batch = Batch::new();
    batch.begin(RTM_GETNEXTHOP, 0, &[0; HEADER_BYTES]);
    let found = netlink.dump(&mut batch, |kind, body| {
        if kind == RTM_NEWNEXTHOP { parse(body).map(Some) } else { Ok(None) }
    });
    match found {
        Err(error) if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL)) => {
            Ok(Vec::new())
        }
        found => found,
    }
}

/// Requests about next-hop objects, as [`Netlink::execute`] sends them.
impl Batch {
    /// Creates `object`; refused with EEXIST when its number is taken.
    pub fn create_object(&mut self, object: &Object) -> &mut Batch {
        self.object(libc::NLM_F_CREATE as u16 | libc::NLM_F_EXCL as u16, object)
    }

    /// Replaces the object of the same number, whoever made it; refused with ENOENT when there is none.
    pub fn replace_object(&mut self, object: &Object) -> &mut Batch {
        self.object(libc::NLM_F_REPLACE as u16, object)
    }

    /// Deletes the object `id`, whoever made it, with every route through it.
    pub fn delete_object(&mut self, id: u32) -> &mut Batch {
        self.begin(RTM_DELNEXTHOP, 0, &[0; HEADER_BYTES]).attr_u32(NHA_ID, id)
    }

    fn object(&mut self, flags: u16, object: &Object) -> &mut Batch {
        let mut header = [0; HEADER_BYTES];
        header[2] = object.protocol;
        if object.way == Way::Blackhole {
            header[0] = libc::AF_INET as u8;
        }
        if let Way::Hop(hop) = &object.way {
            header[0] = hop.gateway.map_or(libc::AF_INET as u8, family_of);
            header[4..].copy_from_slice(
                &u32::from(if hop.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes(),
            );
        }
        self.begin(RTM_NEWNEXTHOP, flags, &header).attr_u32(NHA_ID, object.id);
        match &object.way {
            Way::Hop(hop) => {
                self.attr_u32(NHA_OIF, hop.ifindex);
                if let Some(gateway) = hop.gateway {
                    self.attr_ip(NHA_GATEWAY, gateway);
                }
                self
            }
            Way::Group(members) => {
                let mut bytes = Vec::with_capacity(members.len() * MEMBER_BYTES);
                for (id, weight) in members {
                    // The kernel counts weights from 0, and has their upper octet in a field of its own.
                    let [low, high] = weight.saturating_sub(1).to_le_bytes();
                    bytes.extend_from_slice(&id.to_ne_bytes());
                    bytes.extend_from_slice(&[low, high, 0, 0]);
                }
                self.attr(NHA_GROUP, &bytes)
            }
            Way::Blackhole => self.attr(NHA_BLACKHOLE, &[]),
            // Without any way out the kernel refuses it.
            Way::Other => self,
        }
    }
}

/// Reads the body of an RTM_NEWNEXTHOP or RTM_DELNEXTHOP message.
pub(crate) fn parse(body: &[u8]) -> Result<Object, Error> {
    let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::Malformed("a short next-hop object"));
    };
    let [_, _, protocol, _, flags @ ..] = *header;
    let mut hop = NextHop::link(0);
    hop.onlink = u32::from_ne_bytes(flags) & u32::from(RTNH_F_ONLINK) != 0;
    let (mut id, mut other) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            NHA_ID => id = read_u32(value),
            NHA_OIF => hop.ifindex = read_u32(value).unwrap_or(0),
            NHA_GATEWAY => hop.gateway = read_ip(value),
            NHA_GROUP => {
                let members = value.chunks_exact(MEMBER_BYTES).filter_map(|member| {
                    let weight = u16::from_le_bytes([*member.get(4)?, *member.get(5)?]);
                    Some((read_u32(member)?, weight.saturating_add(1)))
                });
                other = Some(Way::Group(members.collect()));
            }
            NHA_BLACKHOLE => other = Some(Way::Blackhole),
            NHA_ENCAP_TYPE | NHA_FDB => other = Some(Way::Other),
            _ => {}
        }
    }
    let id = id.ok_or(Error::Malformed("a next-hop object without a number"))?;
    Ok(Object { id, protocol, way: other.unwrap_or(Way::Hop(hop)) })
}

/// `struct nhmsg`: family, scope, protocol, padding, flags.
const HEADER_BYTES: usize = 8;
/// `struct nexthop_grp`.
const MEMBER_BYTES: usize = 8;
/// `RTM_*` and `NHA_*` of linux/rtnetlink.h and linux/nexthop.h.
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_FDB: u16 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_know_the_request_has_no_objects() {
        let mut netlink = Netlink::open().expect("a socket");
        // RTM_MAX is far below: the answer is what kernels before 5.3 give to RTM_GETNEXTHOP.
        assert!(!answers(&mut netlink, 2018).expect("an answer"));
        assert!(supported(&mut netlink).expect("an answer"), "the tests need Linux 5.3 or newer");
    }
}
