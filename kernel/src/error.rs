//! What can go wrong between Cairn and the kernel.

use std::fmt;

use rustix::io::Errno;

/// A failure of something that this crate asked the kernel to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel answered a netlink request with an error.
    #[error("cannot {action}: {refusal}")]
    Refused {
        /// What was asked for, as a verb and its object.
        action: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// A system call failed.
    #[error("cannot {action}: {}", Reason(*errno))]
    System {
        /// What was attempted, as a verb and its object.
        action: String,
        /// The error number.
        errno: Errno,
    },
    /// The kernel did not answer a netlink request in time.
    #[error("the kernel did not answer a netlink request within {0:?}")]
    Timeout(std::time::Duration),
    /// Messages of the kernel did not fit the socket's receive buffer and are lost (ENOBUFS). What
    /// they said can only be learned by reading the whole state again.
    #[error("netlink messages were lost because the receive buffer was full")]
    Overrun,
    /// A dump changed while it was read, as often as it was tried.
    #[error("a netlink dump was interrupted by changes {0} times in a row")]
    Interrupted(u32),
    /// A message of the kernel does not have the form that its type promises.
    #[error("a netlink message cannot be understood: {0}")]
    Malformed(&'static str),
    /// A request does not fit a netlink message.
    #[error("cannot ask the kernel: {0}")]
    Unencodable(&'static str),
    /// A descriptor or path is something else than a network namespace.
    #[error("{0} is not a network namespace")]
    NotNetNs(String),
    /// A namespace name that cannot be a file name in the directory of namespaces.
    #[error("{0:?} cannot name a network namespace: it must be a plain file name")]
    InvalidName(String),
    /// A value under /proc/sys is not what can be written or read there.
    #[error("{path} holds {value:?}, which is not a number")]
    NotANumber {
        /// The file.
        path: String,
        /// Its content.
        value: String,
    },
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { refusal, .. } => Some(refusal.errno),
            Error::System { errno, .. } => Some(*errno),
            Error::Overrun => Some(Errno::NOBUFS),
            _ => None,
        }
    }

    /// Whether the object that the request named does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL)
        )
    }

    /// Whether the object that the request would create is already there.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    pub(crate) fn system(action: impl Into<String>, errno: Errno) -> Error {
        Error::System { action: action.into(), errno }
    }

    pub(crate) fn io(action: impl Into<String>, error: &std::io::Error) -> Error {
        Error::system(action, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }
}

/// The kernel's refusal of one request of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The position of the request in its batch, from 0.
    pub index: usize,
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words, if it gave any (extended ACK).
    pub text: Option<Box<str>>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{text} ({})", Reason(self.errno)),
            None => write!(f, "{}", Reason(self.errno)),
        }
    }
}

/// An error number in words, with what to do about it where that is known.
pub(crate) struct Reason(pub(crate) Errno);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.0 {
            Errno::PERM | Errno::ACCESS => f.write_str(
                "; run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN",
            ),
            Errno::OPNOTSUPP => f.write_str("; this kernel lacks the feature or its module"),
            Errno::ROFS => {
                f.write_str("; mount /proc/sys writable, as a privileged container has it")
            }
            Errno::NETUNREACH => {
                f.write_str("; the gateway is not on a connected subnet of that interface")
            }
            Errno::NOBUFS | Errno::NOMEM => f.write_str("; the memory limit may be too low"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do() {
        let refusal = Refusal { index: 0, errno: Errno::PERM, text: None };
        let error = Error::Refused { action: "create the bridge br0".into(), refusal };
        assert_eq!(
            error.to_string(),
            "cannot create the bridge br0: Operation not permitted (os error 1); run as root, or \
             with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN"
        );
        let text = Some("Nexthop has invalid gateway".into());
        let refusal = Refusal { index: 3, errno: Errno::NETUNREACH, text };
        assert!(refusal.to_string().starts_with("Nexthop has invalid gateway ("), "{refusal}");
    }
}
