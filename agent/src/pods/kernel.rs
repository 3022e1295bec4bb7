//! What the pod network asks of the kernel: the seam below which the simulator puts its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use cairn_api::TunnelKind;
use cairn_cni::PodIdentity;
use cairn_ipam::AttachmentId;
use cairn_kernel::Error;
use cairn_kernel::pod::{AttachError, Attached, Difference, Expected, PodAttachment, PodSpec};
use futures::future::BoxFuture;
use ipnet::IpNet;

use super::PodsError;

/// The kernel of one node, as far as pods are concerned.
///
/// A future that is dropped stands for a process that ends: what the kernel has done by then stays,
/// and the rest is not done. For one interface of a container at most one call is under way at a
/// time; a listing may run beside others.
///
/// Two safety rules act below this seam and hold in the kernel's own code: `Rule::AliasFirst` (the
/// alias is there before host routes and before [`PodKernel::attach`] returns, and
/// [`PodKernel::read`] removes interfaces that have neither alias nor host route) and
/// `Rule::ExclusiveHostRoute` (an address that has a route, or that a link of the node holds, is
/// refused by [`AttachError::AddressInUse`]). An implementation for tests asks the switches of its
/// own `Rules` there. `Rule::OwnKernel` acts above: while it is off, what [`Found::foreign`] says is not
/// heard, and [`PodSpec::blocks`] is empty, so that only a route for exactly an address is noticed.
pub trait PodKernel: Send + Sync + 'static {
    /// A pod's network namespace, held open for as long as a value exists.
    type Netns: Clone + fmt::Debug + Send + Sync + 'static;

    /// Makes this the node's only agent for as long as the value or a call of it lives
    /// (`Rule::OneAgent`). Asked first, and not at all while the rule is off.
    ///
    /// # Errors
    /// Another agent serves the node.
    fn seize(&self) -> Result<(), PodsError>;

    /// Reads the node's pods and removes what an earlier agent left half done. Asked once, at the
    /// start.
    fn read(&self) -> BoxFuture<'static, Result<Found, Error>>;

    /// Makes the interface that `spec` describes, or completes one that is there.
    fn attach(
        &self,
        netns: Self::Netns,
        spec: PodSpec,
        pod: PodIdentity,
    ) -> BoxFuture<'static, Attachment>;

    /// Removes the interfaces of `ids`; one that does not exist is fine. Returns the outcome of each, in
    /// order.
    fn detach(&self, ids: Vec<AttachmentId>) -> BoxFuture<'static, Vec<Result<(), Error>>>;

    /// Compares both ends of an interface with what was answered, and returns the first difference.
    fn check(
        &self,
        netns: Self::Netns,
        expected: Expected,
    ) -> BoxFuture<'static, Result<Result<(), Difference>, Error>>;

    /// Reads the node's pods, puts back host routes that somebody took away, and finds out which
    /// foreign addresses are no longer in use.
    fn list(&self, question: Question) -> BoxFuture<'static, Result<Listed, Error>>;
}

/// What the kernel held at the start.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Pods' interfaces; none of them is half done.
    pub attachments: Vec<PodAttachment>,
    /// Addresses that the node has itself or of which it has permanent neighbours: somebody else's.
    pub foreign: BTreeSet<IpAddr>,
    /// Addresses of the node's own tunnel devices.
    pub tunnels: TunnelsFound,
}

/// The addresses that tunnel devices have.
pub type TunnelsFound = BTreeMap<TunnelKind, BTreeSet<IpAddr>>;

/// How an attempt to attach a pod ended.
#[derive(Debug)]
pub struct Attachment {
    /// What was made, or why not.
    pub outcome: Result<Attached, AttachError>,
    /// Whether the pod's host interface exists now, or may exist.
    pub remains: bool,
}

/// What a listing needs to know.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The node's addresses, the sources of host routes; without them none is put back.
    pub node_addresses: Option<Vec<IpAddr>>,
    /// Addresses of own blocks that something else held when it was last looked.
    pub foreign: Vec<IpAddr>,
    /// The own blocks.
    pub blocks: Vec<IpNet>,
}

/// What a listing found.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Pods' interfaces, half-done ones among them.
    pub attachments: Vec<PodAttachment>,
    /// Those of [`Question::foreign`] that the kernel no longer uses.
    pub freed: Vec<IpAddr>,
    /// As [`Found::foreign`].
    pub foreign: BTreeSet<IpAddr>,
    /// A host route is missing and could not be put back.
    pub incomplete: bool,
}
