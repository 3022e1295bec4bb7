//! Deriving path attributes from others.

use std::marker::PhantomData;
use std::net::Ipv4Addr;

use super::attributes::{Community, LargeCommunity, Origin, PathAttributes};

/// Path attributes under change; what is not changed is borrowed.
#[derive(Clone, Debug)]
pub struct AttributesBuilder<'a>(PhantomData<&'a u8>);

impl AttributesBuilder<'_> {
    /// Sets ORIGIN.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        todo!("{origin:?}")
    }

    /// Puts `asn` in front of AS_PATH, `times` times.
    pub fn prepend(&mut self, asn: u32, times: u8) -> &mut Self {
        todo!("{asn} {times}")
    }

    /// Sets or removes LOCAL_PREF.
    pub fn local_pref(&mut self, local_pref: Option<u32>) -> &mut Self {
        todo!("{local_pref:?}")
    }

    /// Sets or removes MULTI_EXIT_DISC.
    pub fn med(&mut self, med: Option<u32>) -> &mut Self {
        todo!("{med:?}")
    }

    /// Adds communities that are not there yet.
    pub fn add_communities(&mut self, communities: &[Community]) -> &mut Self {
        todo!("{communities:?}")
    }

    /// Removes communities.
    pub fn remove_communities(&mut self, communities: &[Community]) -> &mut Self {
        todo!("{communities:?}")
    }

    /// Adds large communities that are not there yet.
    pub fn add_large_communities(&mut self, communities: &[LargeCommunity]) -> &mut Self {
        todo!("{communities:?}")
    }

    /// Sets or removes ORIGINATOR_ID (RFC 4456).
    pub fn originator_id(&mut self, originator_id: Option<Ipv4Addr>) -> &mut Self {
        todo!("{originator_id:?}")
    }

    /// Puts `cluster_id` in front of CLUSTER_LIST (RFC 4456).
    pub fn prepend_cluster(&mut self, cluster_id: Ipv4Addr) -> &mut Self {
        todo!("{cluster_id}")
    }

    /// Removes ORIGINATOR_ID and CLUSTER_LIST, which may not leave the AS (RFC 4456 section 8).
    pub fn remove_reflection(&mut self) -> &mut Self {
        todo!()
    }

    /// The new attributes.
    pub fn build(&self) -> PathAttributes {
        todo!()
    }
}
