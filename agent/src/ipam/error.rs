//! Failures of calls to the API server.

use std::time::Duration;

/// A call to the API server that brought no result.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// No answer in time. Whether a write happened is not known.
    #[error("{what}: no answer from the API server within {} s", .after.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The answer was a refusal, or the connection broke.
    #[error("{what}: {}", sentence(source))]
    Api {
        /// What was asked.
        what: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// The node's Lease is another's, and the API server names another machine or Node.
    #[error("Lease {lease} is not taken over: the Node is of another machine")]
    NotOurs {
        /// The Lease.
        lease: String,
    },
    /// Others may hold what is asked for, and announce it unheard.
    #[error(
        "{what}: {why}, so that a machine that has pods in it may announce it unheard; mend the \
         sessions (cairn bgp peers){otherwise}"
    )]
    Deaf {
        /// What was wanted.
        what: String,
        /// Why hearing nothing says nothing.
        why: String,
        /// What else would end it, as a clause that goes on, or nothing.
        otherwise: String,
    },
    /// The node's Lease carries the mark that this machine is off.
    #[error("Lease {lease} says that this machine is off: nothing is written to it")]
    MarkedOff {
        /// The Lease.
        lease: String,
    },
}

impl IpamError {
    fn code(&self) -> Option<u16> {
        match self {
            IpamError::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Another write came first, or a precondition does not hold, or the name is taken.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether a write may have happened all the same, or may happen later.
    pub fn is_unclear(&self) -> bool {
        match self {
            IpamError::Silent { .. } => true,
            IpamError::Api { .. } => self.code().is_none_or(|code| code >= 500),
            IpamError::NotOurs { .. } | IpamError::MarkedOff { .. } | IpamError::Deaf { .. } => {
                false
            }
        }
    }
}

fn sentence(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Waits for a call, for [`CALL_TIMEOUT`] at most.
pub(super) async fn call<T>(
    what: impl Fn() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, IpamError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(IpamError::Api { what: what(), source: Box::new(source) }),
        Err(_) => Err(IpamError::Silent { what: what(), after: CALL_TIMEOUT }),
    }
}

/// Longer than a loaded server takes, shorter than a person waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
