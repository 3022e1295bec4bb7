//! The custom resources of Cairn, group `cairn.network`, version `v1alpha1`.
//!
//! One file a kind, types and schema rules only. What a single object can say wrong is refused by
//! the schema with a sentence (CEL rules, enums, ranges); what needs other objects is a condition.
//! [`crds`] yields the definitions that `manifests/crds` holds.

// Two printer columns may show the same type.
#![allow(clippy::duplicated_attributes)]

mod advertisement;
mod bgpconfiguration;
mod bgpnode;
mod bgpnodestatus;
mod bgppeer;
mod bgppolicy;
mod common;
mod ipblock;
mod ippool;
mod ipreservation;
mod nodeconfiguration;

pub use advertisement::{BGPAdvertisement, BGPAdvertisementSpec, BGPAdvertisementStatus};
pub use bgpconfiguration::{
    AsTopology, BGPConfiguration, BGPConfigurationSpec, BGPConfigurationStatus, GracefulRestart,
    Multipath, Timers, Topology, TopologyMode, TopologyShape,
};
pub use bgpnode::{BGPNode, BGPNodeSpec, TunnelKind};
pub use bgpnodestatus::{
    BGPNodeStatus, BGPNodeStatusSpec, ChangeOver, DrainPhase, DrainStatus, FailedRoute,
    RepairsStatus, RoutesStatus, SessionStatus, SessionTurn,
};
pub use bgppeer::{
    AddPath, BGPPeer, BGPPeerSpec, BGPPeerStatus, Bfd, NextHop, PrefixesMaxAction, SecretKeyRef,
};
pub use bgppolicy::{
    Action, AsPathMatch, BGPPolicy, BGPPolicySpec, BGPPolicyStatus, CommunitiesSet,
    ExtendedCommunitiesSet, LargeCommunitiesSet, Match, Origin, PolicyRule, PrefixMatch, Prepend,
    Set, SetNextHop,
};
pub use common::{
    ANNOTATION_DRAIN, ANNOTATION_IPPOOLS, ANNOTATION_IPS, ANNOTATION_NODE_ADDRESSES, AddressFamily,
    Condition, ConditionStatus, GROUP, LABEL_ASN, LABEL_CHANGE_OVER, LABEL_ROUTE_REFLECTOR,
    LabelSelector, LabelSelectorRequirement, ObjectReference, Operator, VERSION, set_condition,
};
pub use ipblock::{
    Allocation, FINALIZER, IPBlock, IPBlockSpec, IPBlockStatus, block_name, block_range,
};
pub use ippool::{BlockAllocation, Encapsulation, IPPool, IPPoolSpec, IPPoolStatus, PoolUse};
pub use ipreservation::{IPReservation, IPReservationSpec};
pub use nodeconfiguration::{
    CompatMode, NextHopObjects, NodeAddress, NodeConfiguration, NodeConfigurationSpec,
    PodReadiness, Routes, Switch, Vxlan,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The definitions of every kind, in the order in which they are applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        IPPool::crd(),
        IPBlock::crd(),
        IPReservation::crd(),
        NodeConfiguration::crd(),
        BGPConfiguration::crd(),
        BGPNode::crd(),
        BGPPeer::crd(),
        BGPPolicy::crd(),
        BGPAdvertisement::crd(),
        BGPNodeStatus::crd(),
    ]
}
