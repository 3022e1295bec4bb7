//! Kernels that lack something, as far as a namespace can show it. An interface kind that no kernel
//! has is asked for in the kernel crate's own tests.

use std::process::Command;

use cairn_kernel::sysctl;

use crate::api::{Cluster, NODE};
use crate::pods::until_attached;
use crate::site::{Site, cairn, configuration, refusal};

/// `command` with a shell line before it, in a mount namespace of its own.
fn after(line: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "sh", "-ec", &format!("{line}; exec \"$@\""), "sh"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_remove("KUBECONFIG").env_remove("CAIRN_LOG");
    wrapped
}

#[test]
fn pods_with_ipv4_need_no_ipv6() {
    // Off for every interface, and as a kernel that has none shows itself.
    let off = "for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done";
    let none = "mount -t tmpfs none /proc/sys/net/ipv6";
    for (line, told) in [(off, false), (none, true)] {
        let site = Site::new(&[NODE]);
        let cluster = Cluster::new(&site);
        cluster.pool("default", "10.244.0.0/20", 26);
        let mut agent = site.start("agent", after(line, &cluster.agent_command(&site, "n1")));
        let address = until_attached(&site, "c", &site.pod("p0"));
        assert!(address.starts_with("10.244."), "{address}");
        assert_eq!(agent.lines("this kernel has no IPv6").len(), usize::from(told), "{line}");
        assert_eq!(agent.lines("WARN"), Vec::<String>::new(), "{line}");
        assert!(agent.is_running());
    }
}

#[test]
fn settings_that_cannot_be_written_are_named() {
    let site = Site::new(&[NODE]);
    let cluster = Cluster::new(&site);
    site.netns
        .run(|| sysctl::write("ipv4/ip_forward", 0).expect("forwarding off"))
        .expect("entered");
    let read_only = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys";
    let address = NODE.parse().expect("an address");
    let file = site.write("a.yaml", &configuration(65001, address, &[]));
    let mut speaker = cairn(["speaker", "--fib", "-f"]);
    speaker.arg(&file);
    for command in [cluster.agent_command(&site, "n1"), speaker] {
        let text = refusal(&site.run(after(read_only, &command)));
        assert!(text.contains("cannot set /proc/sys/net/ipv4/ip_forward to 1"), "{text}");
        assert!(text.contains("mount /proc/sys writable"), "{text}");
    }
    // Set beforehand, it is enough.
    site.netns
        .run(|| {
            sysctl::enable_forwarding(cairn_kernel::route::Family::V4).expect("on");
            sysctl::enable_forwarding(cairn_kernel::route::Family::V6).expect("on");
        })
        .expect("entered");
    cluster.pool("default", "10.244.0.0/20", 26);
    let mut agent = site.start("agent", after(read_only, &cluster.agent_command(&site, "n1")));
    site.until_status("agent", "node n1");
    assert!(agent.is_running());
}
