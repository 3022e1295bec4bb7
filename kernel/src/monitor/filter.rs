//! A filter in the kernel (classic BPF) that keeps what we wrote ourselves out of a socket's buffer.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::Error;

/// Drops messages of these kinds that the sockets with these ports caused, before they take room in the
/// receive buffer of `fd`. Replaces an earlier filter.
///
/// # Errors
/// [`Error::System`] when the kernel refuses, as for more instructions than it allows.
pub(super) fn leave_out(fd: &OwnedFd, kinds: &[u16], ports: &[u32]) -> Result<(), Error> {
    let mut program = program(kinds, ports);
    let filter =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open, `filter` describes `program`, and the kernel copies both before
    // the call returns.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    match status {
        0 => Ok(()),
        _ => Err(Error::io("filter a netlink socket", &std::io::Error::last_os_error())),
    }
}

/// Two lists of comparisons: one that leads from a kind to the ports, one that leads from a port to the
/// end where the message is dropped.
fn program(kinds: &[u16], ports: &[u32]) -> Vec<libc::sock_filter> {
    let load = |size, at| step(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
    let give = |octets| step(libc::BPF_RET | libc::BPF_K, octets, 0, 0);
    let is = |value, yes, no| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let mut steps = vec![load(libc::BPF_H, KIND_AT)];
    for (at, kind) in kinds.iter().enumerate() {
        // The filter reads numbers in network byte order and headers have the host's.
        let kind = u16::from_be_bytes(kind.to_ne_bytes());
        steps.push(is(kind.into(), (kinds.len() - at) as u8, 0));
    }
    steps.push(give(ALL));
    steps.push(load(libc::BPF_W, PORT_AT));
    for (at, port) in ports.iter().enumerate() {
        steps.push(is(u32::from_be_bytes(port.to_ne_bytes()), (ports.len() - at) as u8, 0));
    }
    steps.push(give(ALL));
    steps.push(give(0));
    steps
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Where `struct nlmsghdr` has type and port.
const KIND_AT: u32 = 4;
const PORT_AT: u32 = 12;
const ALL: u32 = u32::MAX;
