//! What the plugin, and through it the container runtime, is told.

use std::net::IpAddr;

use cairn_cni::Code;
use cairn_cni::protocol::{Added, AddedAddress, Failure, Response};
use cairn_ipam::choice::ChoiceError;
use cairn_ipam::{AssignError, Demand};
use cairn_kernel::pod::{self, AttachError, Attached};

use super::calls::Reply;

/// Why an ADD is not served for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum AddRefusal {
    #[error("{NO_CONFIG}")]
    Unconfigured,
    #[error("{NO_POOL}")]
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
            AddRefusal::Unconfigured | AddRefusal::Poolless => true,
            AddRefusal::Choice(error) => error.may_end_soon(),
            // Its pod may be about to end, as when a pod is replaced by one with the same address.
            AddRefusal::Unassigned(AssignError::HeldBy { .. }) => true,
            AddRefusal::Unassigned(error) => error.demand().is_some(),
            AddRefusal::Denied { .. } | AddRefusal::Unannotated(_) => false,
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

pub(super) const NO_CONFIG: &str = "the Cairn agent does not know its node's addresses yet: it waits for its \
                         Node object (is the API server reachable?); the request may be repeated";
pub(super) const NO_POOL: &str = "no IPPool gives this node's pods addresses: create one, or see why the \
                       existing ones are not ready (kubectl get ippools); the request may be repeated";
/// CNI's code for an error of the plugin itself.
const INTERNAL: Code = Code::Other(999);
