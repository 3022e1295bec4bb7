//! What a session is to be.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The interval where nothing is said, in milliseconds.
pub const INTERVAL_MS_DEFAULT: u32 = 300;

/// The shortest interval, in milliseconds: below it a busy machine's pauses end sessions.
pub const INTERVAL_MS_MIN: u32 = 50;

/// The longest interval, in milliseconds: above it other timers notice first.
pub const INTERVAL_MS_MAX: u32 = 60_000;

/// The detection multiplier where nothing is said.
pub const MULTIPLIER_DEFAULT: u8 = 3;

/// A session that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// Between whom.
    #[serde(flatten)]
    pub path: Path,
    /// The interval in which packets are sent and wanted, in milliseconds, from [`INTERVAL_MS_MIN`] to
    /// [`INTERVAL_MS_MAX`].
    pub interval_ms: u32,
    /// How many missing packets mean that the other side is gone, at least 1.
    pub multiplier: u8,
}

/// The two ends of a session. No two sessions have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// The other side's address.
    pub remote: IpAddr,
    /// The own address; without it the one that the kernel takes as source towards `remote`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// The interface that packets must take both ways; single hop only. Needed for a link-local remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Routers may be in between (RFC 5883); without it the other side is on the same link (RFC 5881).
    #[serde(default)]
    pub multihop: bool,
}

/// Why a session cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// See [`INTERVAL_MS_MIN`] and [`INTERVAL_MS_MAX`].
    #[error("an interval of {0} ms: it must be from {INTERVAL_MS_MIN} to {INTERVAL_MS_MAX} ms")]
    Interval(u32),
    /// See [`SessionSpec::multiplier`].
    #[error("a multiplier of 0: it must be at least 1")]
    Multiplier,
    /// Nobody has that address alone.
    #[error("{0} is no address of one machine")]
    Address(IpAddr),
    /// The ends are of different families.
    #[error("{local} and {remote} are of different families")]
    Families {
        /// See [`Path::local`].
        local: IpAddr,
        /// See [`Path::remote`].
        remote: IpAddr,
    },
    /// Which link is meant?
    #[error("{0} is link-local: name the interface")]
    LinkLocal(IpAddr),
    /// A multihop path has no interface.
    #[error("a multihop session has no interface, and no link-local address")]
    MultihopLink,
    /// Not a name that an interface can have.
    #[error("{0:?} is no name of an interface")]
    Interface(String),
}

impl SessionSpec {
    /// With the default interval and multiplier.
    pub fn new(path: Path) -> SessionSpec {
        SessionSpec { path, interval_ms: INTERVAL_MS_DEFAULT, multiplier: MULTIPLIER_DEFAULT }
    }

    /// The interval.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.into())
    }

    /// Checks what comes from elsewhere.
    ///
    /// # Errors
    /// Such a session cannot be.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&self.interval_ms) {
            return Err(SpecError::Interval(self.interval_ms));
        }
        if self.multiplier == 0 {
            return Err(SpecError::Multiplier);
        }
        self.path.check()
    }
}

impl Path {
    /// A single hop to `remote`.
    pub fn to(remote: IpAddr) -> Path {
        Path { remote, local: None, interface: None, multihop: false }
    }

    fn check(&self) -> Result<(), SpecError> {
        let Path { remote, local, interface, multihop } = self;
        for address in std::iter::once(remote).chain(local) {
            let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            if address.is_unspecified() || address.is_multicast() || broadcast || mapped {
                return Err(SpecError::Address(*address));
            }
            if *multihop && is_link_local(*address) {
                return Err(SpecError::MultihopLink);
            }
            if is_link_local(*address) && interface.is_none() {
                return Err(SpecError::LinkLocal(*address));
            }
        }
        match (local, interface) {
            (Some(local), _) if local.is_ipv4() != remote.is_ipv4() => {
                Err(SpecError::Families { local: *local, remote: *remote })
            }
            (_, Some(_)) if *multihop => Err(SpecError::MultihopLink),
            (_, Some(name)) if !is_interface_name(name) => {
                Err(SpecError::Interface(name.chars().take(INTERFACE_OCTETS_MAX).collect()))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.remote)?;
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        if let Some(local) = &self.local {
            write!(f, " from {local}")?;
        }
        if self.multihop { f.write_str(" (multihop)") } else { Ok(()) }
    }
}

/// Whether an IPv6 address is of one link alone. IPv4's are used like any other.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The kernel's own rule (dev_valid_name).
fn is_interface_name(name: &str) -> bool {
    let bad =
        |octet: u8| octet == b'/' || octet == b':' || octet.is_ascii_whitespace() || octet == 0;
    !name.is_empty()
        && name.len() <= INTERFACE_OCTETS_MAX
        && name != "."
        && name != ".."
        && !name.bytes().any(bad)
}

const INTERFACE_OCTETS_MAX: usize = 15;
