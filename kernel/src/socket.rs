//! A synchronous rtnetlink socket.
//!
//! Requests leave in batches ([`Batch`]) by one `sendmsg`; answers are matched to requests by their
//! sequence numbers, so that a late answer to an earlier, timed-out request is never taken for
//! another's. A socket belongs for its whole life to the network namespace it was opened in,
//! whatever thread uses it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt,
};

use crate::batch::{Batch, attributes, read_str};
use crate::error::{Error, Refusal};
use crate::netns::NetNs;

/// A NETLINK_ROUTE socket with extended ACKs and strict checking of requests.
pub struct Netlink {
    fd: OwnedFd,
    port: u32,
    seq: u32,
    timeout: Duration,
    requests_max: usize,
    buffer: Vec<u8>,
}

/// Where the kernel acknowledges the requests of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// Each request has its own answer. For a few requests of different kinds.
    Each,
    /// Only the last of each run of requests; a refusal of any other is still answered. For bulk.
    Last,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel gives no socket.
    pub fn open() -> Result<Netlink, Error> {
        let fd = open_socket(SocketFlags::CLOEXEC)?;
        // Kernels before 4.20 lack it; they dump more than was asked for, which is sorted out here.
        let _ = set_option(&fd, libc::NETLINK_GET_STRICT_CHK, 1);
        Netlink::new(fd)
    }

    /// As [`Netlink::open`], a NETLINK_NETFILTER socket.
    pub(crate) fn open_netfilter() -> Result<Netlink, Error> {
        Netlink::new(open_netfilter_socket(SocketFlags::CLOEXEC)?)
    }

    fn new(fd: OwnedFd) -> Result<Netlink, Error> {
        let port = bind(&fd, 0)?;
        let buffer = vec![0; RECEIVE_BYTES];
        Ok(Netlink { fd, port, seq: 0, timeout: TIMEOUT, requests_max: REQUESTS_MAX, buffer })
    }

    /// Opens a socket in `netns`; the calling thread stays where it is.
    ///
    /// # Errors
    /// As [`Netlink::open`], and those of [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Netlink, Error> {
        netns.run(Netlink::open)?
    }

    /// The port of this socket, which the kernel writes into notifications of what it changed.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The index of the link `name`, if there is one: a tenth of the time of asking for the whole link.
    pub(crate) fn index_of(&self, name: &str) -> Option<u32> {
        rustix::net::netdevice::name_to_index(&self.fd, name).ok()
    }

    /// How long to wait for the kernel's answer to one run of requests. 10 s unless set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sets how many requests go into one `sendmsg`. 200 unless set.
    pub(crate) fn set_requests_max(&mut self, requests_max: usize) {
        self.requests_max = requests_max;
    }

    /// Asks for a receive buffer of `bytes`, also above the system's limit where the process may.
    /// Returns what the kernel granted, in bytes.
    ///
    /// # Errors
    /// [`Error::System`] when not even the limited size is granted.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<usize, Error> {
        force_receive_buffer(&self.fd, bytes)
    }

    /// Sends all requests and waits until the kernel has handled them all. Returns the refused ones
    /// in the order of the batch. Acts in the namespace of the socket.
    ///
    /// A batch of at most 200 requests and 64 KiB is one `sendmsg`: the kernel has either all of
    /// them or none, even when the process is killed.
    ///
    /// # Errors
    /// When the answers could not be read: then it is unknown which requests were carried out.
    pub fn execute(&mut self, batch: &mut Batch, ack: Acknowledge) -> Result<Vec<Refusal>, Error> {
        let total = batch.len();
        let first = self.take_seqs(total);
        batch.number(first);
        let mut refusals = Vec::new();
        let mut from = 0;
        while from < total {
            let end = batch.run_end(from, SEND_BYTES_MAX, self.requests_max);
            match ack {
                Acknowledge::Each => {
                    (from..end).for_each(|index| batch.add_flags(index, NLM_F_ACK));
                }
                Acknowledge::Last => batch.add_flags(end - 1, NLM_F_ACK),
            }
            self.send(batch.slice(from..end)?)?;
            self.await_answers(first, from, end, &mut refusals)?;
            from = end;
        }
        Ok(refusals)
    }

    /// Carries out a batch in which every request must succeed. `action` names it in the error.
    ///
    /// # Errors
    /// [`Error::Refused`] for the first refused request, and those of [`Netlink::execute`].
    pub fn request(
        &mut self,
        batch: &mut Batch,
        action: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let mut refusals = self.execute(batch, Acknowledge::Each)?;
        if refusals.is_empty() {
            return Ok(());
        }
        Err(Error::Refused { action: action(), refusal: refusals.swap_remove(0) })
    }

    /// Reads a whole table: sends the one request of `batch` as a dump, passes the type and body of
    /// each message to `parse` and collects what it returns. A dump that changed while it was read
    /// is read again. Acts in the namespace of the socket.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the table never stood still, [`Error::Refused`] when the kernel
    /// does not know the table, and those of `parse`.
    pub fn dump<T>(
        &mut self,
        batch: &mut Batch,
        mut parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, Error>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            if self.dump_once(batch, |kind, body| {
                found.extend(parse(kind, body)?);
                Ok(())
            })? {
                return Ok(found);
            }
        }
        Err(Error::Interrupted(DUMP_ATTEMPTS))
    }

    /// As [`Netlink::dump`], but passes each message to `each` as it is read, and is `false` when the
    /// table changed meanwhile.
    pub(crate) fn dump_once(
        &mut self,
        batch: &mut Batch,
        each: impl FnMut(u16, &[u8]) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        batch.add_flags(0, NLM_F_DUMP);
        let seq = self.take_seqs(1);
        batch.number(seq);
        self.send(batch.slice(0..1)?)?;
        self.await_dump(seq, each)
    }

    /// Reads one object: sends the one request of `batch` and returns the body of the answer, `None`
    /// when the object does not exist. Acts in the namespace of the socket.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other answer, and those of [`Netlink::execute`].
    pub fn query(
        &mut self,
        batch: &mut Batch,
        action: impl FnOnce() -> String,
    ) -> Result<Option<Vec<u8>>, Error> {
        let seq = self.take_seqs(1);
        batch.number(seq);
        self.send(batch.slice(0..1)?)?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let len = self.receive(deadline)?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                if message.kind != NLMSG_ERROR {
                    return Ok(Some(message.body.to_vec()));
                }
                let Some(refusal) = refusal(&message, 0)? else { continue };
                let error = Error::Refused { action: action(), refusal };
                return if error.is_absent() { Ok(None) } else { Err(error) };
            }
        }
    }

    fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.seq.wrapping_add(1);
        self.seq = self.seq.wrapping_add(count as u32);
        first
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel)
        })
        .map(|_| ())
        .map_err(|errno| Error::system("send a netlink request", errno))
    }

    /// Waits for the answer to request `end - 1`, collecting the refusals on the way.
    fn await_answers(
        &mut self,
        first: u32,
        from: usize,
        end: usize,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let len = self.receive(deadline)?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                let index = message.seq.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR || !(from..end).contains(&index) {
                    continue;
                }
                refusals.extend(refusal(&message, index)?);
                if index + 1 == end {
                    return Ok(());
                }
            }
        }
    }

    /// Reads a dump to its end; `false` when it was interrupted by a change.
    fn await_dump(
        &mut self,
        seq: u32,
        mut each: impl FnMut(u16, &[u8]) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut consistent = true;
        loop {
            let len = self.receive(Instant::now() + self.timeout)?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => {
                        let status = message.body.get(..4).map_or(0, read_i32);
                        return match errno(status) {
                            None => Ok(consistent),
                            Some(errno) => Err(dump_refused(errno, extended_text(&message, 4))),
                        };
                    }
                    NLMSG_ERROR => {
                        if let Some(refusal) = refusal(&message, 0)? {
                            return Err(dump_refused(refusal.errno, refusal.text));
                        }
                    }
                    kind if consistent => each(kind, message.body)?,
                    _ => {}
                }
            }
        }
    }

    /// Receives one datagram and returns its length, at most the buffer's.
    fn receive(&mut self, deadline: Instant) -> Result<usize, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout(self.timeout));
            }
            // The timeout is set only when the answer is not already there, which saves a system
            // call for every answer: the kernel handles requests within `send`.
            let wait = match rustix::net::recv(&self.fd, &mut self.buffer[..], DONT_WAIT) {
                Err(Errno::AGAIN) => {
                    sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(left))
                        .map_err(|errno| Error::system("set a netlink timeout", errno))?;
                    rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)
                }
                done => done,
            };
            match wait {
                Ok((_, len)) if len > self.buffer.len() => {
                    return Err(Error::Malformed("longer than the receive buffer"));
                }
                Ok((_, len)) => return Ok(len),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Err(Error::Overrun),
                Err(errno) => return Err(Error::system("receive a netlink answer", errno)),
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One received message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of one datagram.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Error>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(rest);
        rest = match &message {
            Ok((_, rest)) => rest,
            Err(_) => &[],
        };
        Some(message.map(|(message, _)| message))
    })
}

fn split_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Error> {
    let header: &[u8; HEADER] =
        bytes.first_chunk().ok_or(Error::Malformed("shorter than its header"))?;
    let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let len = u32_at(0) as usize;
    let body = bytes.get(HEADER..len).ok_or(Error::Malformed("its length is wrong"))?;
    let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    let message =
        Message { kind: u16_at(4), flags: u16_at(6), seq: u32_at(8), port: u32_at(12), body };
    Ok((message, rest))
}

/// Opens a netlink socket that is not yet bound.
pub(crate) fn open_socket(flags: SocketFlags) -> Result<OwnedFd, Error> {
    open_socket_of(flags, None)
}

/// As [`open_socket`], of NETLINK_NETFILTER.
pub(crate) fn open_netfilter_socket(flags: SocketFlags) -> Result<OwnedFd, Error> {
    open_socket_of(flags, Some(rustix::net::netlink::NETFILTER))
}

fn open_socket_of(flags: SocketFlags, protocol: Option<Protocol>) -> Result<OwnedFd, Error> {
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
        .map_err(|errno| Error::system("open a netlink socket", errno))?;
    set_option(&fd, libc::NETLINK_EXT_ACK, 1)?;
    set_option(&fd, libc::NETLINK_CAP_ACK, 1)?;
    Ok(fd)
}

/// Binds to a free port and the legacy multicast `groups`; returns the port.
pub(crate) fn bind(fd: &OwnedFd, groups: u32) -> Result<u32, Error> {
    rustix::net::bind(fd, &SocketAddrNetlink::new(0, groups))
        .and_then(|()| rustix::net::getsockname(fd))
        .and_then(SocketAddrNetlink::try_from)
        .map(|address| address.pid())
        .map_err(|errno| Error::system("bind a netlink socket", errno))
}

/// Sets an integer option of the level SOL_NETLINK.
pub(crate) fn set_option(
    fd: &OwnedFd,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<(), Error> {
    // SAFETY: the descriptor is open, and pointer and length describe `value`, which outlives the
    // call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if status == 0 {
        return Ok(());
    }
    Err(Error::io("set a netlink socket option", &std::io::Error::last_os_error()))
}

/// Forces the receive buffer to `bytes`, or to the most that an unprivileged process may have.
pub(crate) fn force_receive_buffer(fd: &OwnedFd, bytes: usize) -> Result<usize, Error> {
    sockopt::set_socket_recv_buffer_size_force(fd, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, bytes))
        .and_then(|()| sockopt::socket_recv_buffer_size(fd))
        .map_err(|errno| Error::system("enlarge a netlink receive buffer", errno))
}

/// The refusal in an NLMSG_ERROR message; `None` when it is an acknowledgement.
fn refusal(message: &Message<'_>, index: usize) -> Result<Option<Refusal>, Error> {
    let status = message.body.get(..4).ok_or(Error::Malformed("an error without number"))?;
    // The error number is followed by the header of the refused request (NETLINK_CAP_ACK).
    Ok(errno(read_i32(status)).map(|errno| Refusal {
        index,
        errno,
        text: extended_text(message, 4 + HEADER),
    }))
}

fn dump_refused(errno: Errno, text: Option<Box<str>>) -> Error {
    Error::Refused {
        action: "read a kernel table".into(),
        refusal: Refusal { index: 0, errno, text },
    }
}

fn extended_text(message: &Message<'_>, at: usize) -> Option<Box<str>> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let (_, text) =
        attributes(message.body.get(at..)?).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
    Some(read_str(text).into_boxed_str())
}

fn read_i32(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |word| i32::from_ne_bytes(*word))
}

/// The error number of a status, which is zero or a negated error number.
fn errno(status: i32) -> Option<Errno> {
    match status.checked_neg() {
        Some(0) => None,
        Some(number @ 1..ERRNO_END) => Some(Errno::from_raw_os_error(number)),
        _ => Some(Errno::IO),
    }
}

const HEADER: usize = 16;
/// The largest part of a dump that the kernel puts into one datagram is 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;
const SEND_BYTES_MAX: usize = 64 << 10;
/// Bounds the refusals of one `sendmsg` to what fits a default receive buffer of 208 KiB, as each
/// costs about 1 KiB of it.
const REQUESTS_MAX: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump that changes while it is read is begun.
pub(crate) const DUMP_ATTEMPTS: u32 = 20;
const ERRNO_END: i32 = 4096;
const DONT_WAIT: RecvFlags = RecvFlags::TRUNC.union(RecvFlags::DONTWAIT);
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLMSGERR_ATTR_MSG: u16 = 1;
