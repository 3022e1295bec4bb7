//! TCP MD5 signatures (RFC 2385): keys of sockets, and what the kernel counts when they do not fit.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use socket2::SockAddr;

use super::socket::set_option;

/// Sets or removes the TCP MD5 key for an address or a range (RFC 2385; tcp(7), `TCP_MD5SIG`). Where several
/// fit, the kernel takes the longest.
pub(super) fn set_key(fd: RawFd, addresses: IpNet, key: Option<&str>) -> io::Result<()> {
    let key = key.unwrap_or_default().as_bytes();
    let mut signature = Md5Signature {
        // SAFETY: all zeroes is a valid sockaddr_storage.
        address: unsafe { MaybeUninit::zeroed().assume_init() },
        flags: 0,
        prefix_len: 0,
        key_len: 0,
        interface: 0,
        key: [0; MD5_KEY_OCTETS_MAX],
    };
    let Some(field) = signature.key.get_mut(..key.len()) else {
        let text = format!("the password is longer than {MD5_KEY_OCTETS_MAX} octets");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    field.copy_from_slice(key);
    signature.key_len = key.len() as u16;
    let is_range = addresses.prefix_len() < addresses.max_prefix_len();
    if is_range {
        (signature.flags, signature.prefix_len) = (MD5_FLAG_PREFIX, addresses.prefix_len());
    }
    let address = SockAddr::from(SocketAddr::new(addresses.addr(), 0));
    // SAFETY: a SockAddr is at most as long as the sockaddr_storage that it is copied into.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut signature.address).cast::<u8>(),
            (address.len() as usize).min(size_of::<libc::sockaddr_storage>()),
        );
    }
    let option = if is_range { libc::TCP_MD5SIG_EXT } else { libc::TCP_MD5SIG };
    match set_option(fd, libc::IPPROTO_TCP, option, &signature) {
        // There was no key to remove.
        Err(error) if key.is_empty() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// `addresses` but for link-local ones: who connects from these is known by an interface and has no password, and
/// no key of the kernel says that there is none.
pub(super) fn without_link_local(addresses: IpNet) -> Vec<IpNet> {
    let IpNet::V6(range) = addresses else { return vec![addresses] };
    let len = range.prefix_len();
    if len >= LINK_LOCAL_LEN || !range.contains(&LINK_LOCAL) {
        return vec![addresses];
    }
    // On the way to fe80::/10, the other half each time.
    let halves = (len + 1..=LINK_LOCAL_LEN).filter_map(|len| {
        let other = LINK_LOCAL.to_bits() ^ (1 << (128 - u32::from(len)));
        let other = Ipv6Net::new(Ipv6Addr::from_bits(other), len).ok()?;
        Some(IpNet::V6(other.trunc()))
    });
    halves.collect()
}

/// What the kernel has counted of segments with wrong signatures, in this network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// The signature does not fit the key (TCPMD5Failure).
    pub(super) wrong: u64,
    /// A signature was expected, none was there (TCPMD5NotFound).
    pub(super) missing: u64,
    /// None was expected, one was there (TCPMD5Unexpected).
    pub(super) unexpected: u64,
}

/// Compares the counters from time to time while a peer has no session: the kernel drops such
/// segments without a word, and the other side sees a timeout.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: Counters,
    next: Option<Instant>,
}

impl Watch {
    /// When [`Watch::look`] is due, while it is `wanted`.
    pub(super) fn next_deadline(&self, wanted: bool) -> Option<Instant> {
        self.next.filter(|_| wanted)
    }

    /// What has been counted since the last look; nothing at the first one after a rest.
    pub(super) fn look(&mut self, now: Instant, wanted: bool) -> Counters {
        if !wanted {
            self.next = None;
            return Counters::default();
        }
        if self.next.is_some_and(|next| next > now) {
            return Counters::default();
        }
        let counters = Counters::read();
        let known = std::mem::replace(&mut self.known, counters);
        match self.next.replace(now + LOOK_REST) {
            Some(_) => counters.since(known),
            None => Counters::default(),
        }
    }
}

impl Counters {
    fn read() -> Counters {
        // That of the thread: the process may be in several namespaces.
        let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
        Counters::parse(&text)
    }

    /// From the text of `/proc/net/netstat`: lines of names, each followed by one of values.
    fn parse(text: &str) -> Counters {
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            return Counters::default();
        };
        let value = |wanted: &str| {
            let mut pairs = names.split_whitespace().zip(values.split_whitespace());
            pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok())
        };
        Counters {
            wrong: value("TCPMD5Failure").unwrap_or(0),
            missing: value("TCPMD5NotFound").unwrap_or(0),
            unexpected: value("TCPMD5Unexpected").unwrap_or(0),
        }
    }

    fn since(self, before: Counters) -> Counters {
        Counters {
            wrong: self.wrong.saturating_sub(before.wrong),
            missing: self.missing.saturating_sub(before.missing),
            unexpected: self.unexpected.saturating_sub(before.unexpected),
        }
    }

    /// What they say about a peer without a session, with or without a password. The counters do not
    /// name the peer: `others` is how many peers it could be besides.
    pub(super) fn explain(self, has_password: bool, others: usize) -> Option<String> {
        let what = match (has_password, self) {
            (true, Counters { wrong: 1.., .. }) => {
                "segments arrive whose MD5 signature does not fit (TCPMD5Failure): set the same \
                 password on both sides"
            }
            (true, Counters { missing: 1.., .. }) => {
                "segments arrive without an MD5 signature (TCPMD5NotFound): the password is likely \
                 missing at the peer"
            }
            (false, Counters { unexpected: 1.., .. }) => {
                "segments arrive with an MD5 signature (TCPMD5Unexpected), but no password is \
                 configured here for this peer"
            }
            _ => return None,
        };
        let doubt = match others {
            0 => String::new(),
            others => format!(" (from this peer, or from one of {others} others that are down)"),
        };
        Some(format!("password differs or missing: {what}{doubt}"))
    }
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: libc::c_int,
    key: [u8; MD5_KEY_OCTETS_MAX],
}

/// `TCP_MD5SIG_MAXKEYLEN` of linux/tcp.h.
const MD5_KEY_OCTETS_MAX: usize = 80;
/// `TCP_MD5SIG_FLAG_PREFIX` of linux/tcp.h.
const MD5_FLAG_PREFIX: u8 = 1;
/// fe80::/10 (RFC 4291 section 2.5.6).
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const LINK_LOCAL_LEN: u8 = 10;
/// Time between two looks at the counters.
const LOOK_REST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_no_key_for_link_local_addresses() {
        let of = |text: &str| without_link_local(text.parse().expect("a network"));
        for text in ["10.0.0.0/8", "2001:db8::/32", "fd00::/8", "fec0::/10", "fe80::/64"] {
            assert_eq!(
                of(text),
                [text.parse().expect("a network")],
                "it has none, or nothing else"
            );
        }
        assert_eq!(of("fe00::/9").len(), 1);
        let all = of("::/0");
        assert_eq!(all.len(), 10);
        let holds = |address: &str| {
            let address: std::net::IpAddr = address.parse().expect("an address");
            all.iter().filter(|part| part.contains(&address)).count()
        };
        for address in ["::1", "2001:db8::1", "fd00::1", "fe7f::1", "fec0::1", "ff02::1"] {
            assert_eq!(holds(address), 1, "{address}");
        }
        assert_eq!((holds("fe80::1"), holds("febf:ffff::1")), (0, 0));
    }

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPx\n\
                    TcpExt: 5 1 2 3 9\nIpExt: TCPMD5Failure\nIpExt: 7\n";
        let counters = Counters::parse(text);
        assert_eq!(counters, Counters { wrong: 3, missing: 1, unexpected: 2 });
        assert_eq!(Counters::parse("TcpExt: a\n"), Counters::default());
    }

    #[test]
    fn each_side_is_told_what_it_can_see() {
        let counters = |wrong, missing, unexpected| Counters { wrong, missing, unexpected };
        let says = |counters: Counters, has_password| counters.explain(has_password, 0);
        assert!(says(counters(1, 0, 0), true).is_some_and(|t| t.contains("on both sides")));
        assert!(says(counters(0, 1, 0), true).is_some_and(|t| t.contains("at the peer")));
        assert!(says(counters(0, 0, 1), false).is_some_and(|t| t.contains("here")));
        assert_eq!(says(counters(1, 1, 0), false), None);
        assert_eq!(says(counters(0, 0, 1), true), None);
        assert_eq!(says(counters(0, 0, 0), true), None);
    }
}
