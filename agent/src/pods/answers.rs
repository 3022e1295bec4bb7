//! What the plugin, and through it the container runtime, is told.

use std::net::IpAddr;

use cairn_cni::Code;
use cairn_cni::protocol::{Added, AddedAddress, Failure, Response};
use cairn_ipam::choice::ChoiceError;
use cairn_ipam::{AssignError, Demand};
use cairn_kernel::pod::{self, AttachError, Attached};

use super::calls::Reply;
use crate::readiness::{NO_CONFIG, NO_POOL, Verdict};

/// Why an ADD is not served for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum AddRefusal {
    #[error("the pod network is not ready: {0}; the request may be repeated")]
    NotReady(String),
    #[error("{NO_CONFIG}; the request may be repeated")]
    Unconfigured,
    #[error("{NO_POOL}; the request may be repeated")]
    Poolless,
    #[error("{0}")]
    Choice(#[from] ChoiceError),
    #[error("{0}; the request may be repeated")]
    Unassigned(AssignError),
    /// The owner of the blocks says that the block which is lacking cannot come.
    #[error("{lack}; no block can be claimed: {reason}")]
    Denied { lack: AssignError, reason: String },
    #[error(
        "the container runtime does not tell the pod's annotations (does the network configuration \
         declare the capability io.kubernetes.cri.pod-annotations?) and they cannot be read \
         otherwise: {0}; the request may be repeated"
    )]
    Unannotated(String),
    #[error("the ADD was given up, as a DEL for the interface came or the plugin has ended")]
    Abandoned,
}

impl AddRefusal {
    /// What has to come, if it is a block.
    pub(super) fn demand(&self) -> Option<Demand> {
        match self {
            AddRefusal::Unassigned(error) | AddRefusal::Denied { lack: error, .. } => {
                error.demand()
            }
            _ => None,
        }
    }

    /// Whether waiting a few seconds may help.
    pub(super) fn may_end_soon(&self) -> bool {
        match self {
            AddRefusal::NotReady(_) | AddRefusal::Unconfigured | AddRefusal::Poolless => true,
            AddRefusal::Choice(error) => error.may_end_soon(),
            // Its pod may be about to end, as when a pod is replaced by one with the same address.
            AddRefusal::Unassigned(AssignError::HeldBy { .. }) => true,
            AddRefusal::Unassigned(error) => error.demand().is_some(),
            AddRefusal::Denied { .. } | AddRefusal::Unannotated(_) | AddRefusal::Abandoned => false,
        }
    }

    /// Whether repeating the request is of no use before somebody changes an object.
    pub(super) fn needs_a_person(&self) -> bool {
        matches!(self, AddRefusal::Choice(error) if !error.may_end_soon())
            || matches!(self, AddRefusal::Unassigned(AssignError::Reserved { .. }))
    }
}

/// The answer to an ADD that succeeded.
pub(super) fn added(attached: &Attached, addresses: &[IpAddr]) -> Added {
    let with_gateway = |address: &IpAddr| {
        let gateway = pod::gateway_of(*address);
        let default_route = attached.gateways.contains(&gateway);
        AddedAddress { address: *address, gateway, default_route }
    };
    Added {
        host_interface: attached.host_ifname.clone(),
        host_mac: attached.host_mac.to_string(),
        pod_mac: attached.pod_mac.to_string(),
        mtu: attached.mtu,
        addresses: addresses.iter().map(with_gateway).collect(),
    }
}

/// The answer to STATUS. On a node that was once ready a full pool or a lost peer changes nothing: the
/// kubelet would take the node for not ready, and Kubernetes would end the pods that run there.
pub(super) fn status_of(readiness: &Verdict) -> Response {
    match readiness {
        Verdict::Ready => Response::Done,
        Verdict::NoAddress { reason, .. } => failed(Code::NotAvailable, reason.clone()),
        Verdict::NoRoutes(reason) => failed(Code::LimitedConnectivity, reason.clone()),
    }
}

/// The CNI error of a failed attachment.
pub(super) fn failure_of(error: &AttachError) -> Failure {
    let code = match error {
        AttachError::AddressInUse(_)
        | AttachError::RoutedElsewhere { .. }
        | AttachError::NodeAddressMissing(_) => Code::TryAgainLater,
        AttachError::PodInterfaceExists(_)
        | AttachError::Alias(_)
        | AttachError::UnusableMac(_) => Code::InvalidEnvironment,
        AttachError::NoIpv6 => Code::InvalidConfig,
        AttachError::HostInterfaceTaken { .. } | AttachError::Kernel(_) => INTERNAL,
    };
    Failure { code, msg: error.to_string(), details: None }
}

pub(super) fn failed(code: Code, msg: String) -> Response {
    Response::Failed(Failure { code, msg, details: None })
}

pub(super) fn answer(reply: Reply, response: Response) {
    // A plugin that no longer waits is followed by a DEL of its runtime.
    let _ = reply.send(response);
}

/// CNI's code for an error of the plugin itself.
pub(super) const INTERNAL: Code = Code::Other(999);
