//! What a kernel may lack: kinds of interfaces, and IPv6.
//!
//! It is asked before the first pod needs it, in a network namespace that ends with the question, so
//! that nothing of it is seen on the node.

use std::path::Path;

use rustix::io::Errno;

use crate::batch::Batch;
use crate::error::Error;
use crate::netns;
use crate::socket::Netlink;

/// Why a feature cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// The kernel has no such kind of interface and found no module for it.
    #[error(
        "this kernel cannot make {kind} interfaces: load its module with `modprobe {module}`, or \
         install the kernel package that has the module"
    )]
    NoLinkKind {
        /// The kind, as `ip link add type` takes it.
        kind: String,
        /// The module that brings it.
        module: String,
    },
    /// It could not be asked.
    #[error("cannot find out whether this kernel makes {kind} interfaces: {source}")]
    Unknown {
        /// The kind.
        kind: String,
        /// The kernel's answer.
        source: Error,
    },
}

/// Checks that the kernel makes interfaces of `kind` (`veth`, `vxlan`, as `ip link add type` takes
/// them), by making one in a namespace of its own. The kernel loads the module if there is one.
///
/// # Errors
/// [`FeatureError::NoLinkKind`] names the module; [`FeatureError::Unknown`] without the right to make
/// namespaces and interfaces.
pub fn probe(kind: &str) -> Result<(), FeatureError> {
    let made = netns::in_scratch(|| {
        let mut netlink = Netlink::open()?;
        let mut batch = Batch::default();
        batch.create_link(PROBE_NAME, kind);
        netlink.request(&mut batch, || format!("make a {kind} interface"))
    });
    match made.and_then(|made| made) {
        // EINVAL: the kind is known and wants more than a name.
        Ok(()) => Ok(()),
        Err(error) => match error.errno() {
            Some(Errno::INVAL) => Ok(()),
            Some(Errno::OPNOTSUPP) => {
                Err(FeatureError::NoLinkKind { kind: kind.into(), module: module_of(kind).into() })
            }
            _ => Err(FeatureError::Unknown { kind: kind.into(), source: error }),
        },
    }
}

/// Whether the kernel has IPv6 at all: not left out at its build, nor by `ipv6.disable=1` at boot.
/// Where an interface's own switch is off, it still has.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

fn module_of(kind: &str) -> &str {
    match kind {
        "ip6tnl" => "ip6_tunnel",
        kind => kind,
    }
}

const PROBE_NAME: &str = "cairn-probe";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link;

    #[test]
    fn a_kind_that_every_kernel_of_ours_has_is_found_and_leaves_nothing() {
        probe("veth").expect("the tests of this crate need veth, and root");
        let mut netlink = Netlink::open().expect("a socket");
        assert!(link::find(&mut netlink, PROBE_NAME).expect("the links").is_none());
    }

    #[test]
    fn a_kind_that_no_kernel_has_is_named_with_its_module_and_what_to_do() {
        let error = probe("cairn-flux").expect_err("there is no such kind");
        assert_eq!(
            error.to_string(),
            "this kernel cannot make cairn-flux interfaces: load its module with `modprobe \
             cairn-flux`, or install the kernel package that has the module"
        );
    }

    #[test]
    fn a_module_may_have_another_name_than_its_kind() {
        assert_eq!((module_of("ip6tnl"), module_of("veth")), ("ip6_tunnel", "veth"));
    }
}
