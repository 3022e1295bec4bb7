//! CHECK: is an interface what was answered when it was made?

use cairn_cni::Code;
use cairn_cni::protocol::{CheckRequest, Response};
use cairn_ipam::AttachmentId;
use cairn_kernel::pod::{Difference, Expected};
use futures::FutureExt;

use super::super::answers::{INTERNAL, answer, failed};
use super::super::calls::Reply;
use super::super::kernel::PodKernel;
use super::{Checked, Done, PodNetwork};

impl<K: PodKernel> PodNetwork<K> {
    /// Has the kernel compare both ends.
    pub(super) fn check(
        &mut self,
        id: AttachmentId,
        request: CheckRequest,
        netns: K::Netns,
        reply: Reply,
    ) {
        let CheckRequest { network, addresses, gateways, mtu, .. } = request;
        let (container_id, ifname) = (id.container_id.clone(), id.ifname.clone());
        let expected = Expected { container_id, ifname, network, addresses, gateways, mtu };
        let checking = self.kernel.check(netns, expected);
        self.work.push(checking.map(|outcome| Done::Checked { id, reply, outcome }).boxed());
    }

    pub(super) fn finish_check(&mut self, id: &AttachmentId, reply: Reply, outcome: Checked) {
        let response = match outcome {
            Ok(Ok(())) => Response::Done,
            Ok(Err(difference)) => {
                tracing::warn!(container = id.container_id, %difference, "CHECK");
                let code = match difference {
                    // It went with the node's address, and is written again.
                    Difference::NoRoute { .. } => {
                        self.request_listing();
                        Code::TryAgainLater
                    }
                    _ => INTERNAL,
                };
                failed(code, difference.to_string())
            }
            Err(error) => {
                failed(INTERNAL, format!("the pod's interface could not be looked at: {error}"))
            }
        };
        answer(reply, response);
        self.release_turn(id);
    }
}
