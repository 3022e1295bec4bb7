//! Identifiers that a container runtime hands to the plugin, checked once.
//!
//! The plugin parses them from its environment and the agent again from the socket, so that neither
//! depends on the other's care.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A container id: begins with a letter or digit, goes on with letters, digits, `_`, `.` and `-`
/// (CNI specification, `CNI_CONTAINERID`), at most [`CONTAINER_ID_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// The name of an interface inside a container: 1 to 15 bytes without `/`, `:` and white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// The Ethernet address of one interface: not zero and not of a group (IEEE 802, section 8.2), written
/// `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Which pod a container belongs to, as Kubernetes' runtimes say in CNI_ARGS. It names pods for people,
/// and its namespace chooses pools; outside Kubernetes every part is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPodIdentity", into = "RawPodIdentity")]
pub struct PodIdentity {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

/// The longest container id: with the longest interface name, pod UID and an address of each family
/// it must fit a link's alias of 255 bytes. Runtimes use 64.
pub const CONTAINER_ID_MAX: usize = 128;

/// The longest pod UID. Kubernetes uses 36 characters, 32 for static pods.
pub const POD_UID_MAX: usize = 40;

/// An identifier that breaks its rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {rule}")]
pub struct InvalidName {
    value: String,
    rule: &'static str,
}

impl ContainerId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidName`] with the rule that it breaks.
    pub fn parse(text: &str) -> Result<ContainerId, InvalidName> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let fits = text.len() <= CONTAINER_ID_MAX;
        match first && fits && text.bytes().all(rest) {
            true => Ok(ContainerId(text.into())),
            false => Err(refuse(
                text,
                "a container id: 1 to 128 letters, digits, '_', '.' and '-', the first a letter or \
                 digit",
            )),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl InterfaceName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidName`] with the rule that it breaks.
    pub fn parse(text: &str) -> Result<InterfaceName, InvalidName> {
        let plain = |c: char| !matches!(c, '/' | ':') && !c.is_whitespace() && !c.is_control();
        let fits = (1..=15).contains(&text.len()) && !matches!(text, "." | "..");
        match fits && text.chars().all(plain) {
            true => Ok(InterfaceName(text.into())),
            false => Err(refuse(
                text,
                "an interface name: 1 to 15 bytes without '/', ':' and white space, and neither \
                 '.' nor '..'",
            )),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MacAddress {
    /// Reads `text`, with `:` or `-` between the octets.
    ///
    /// # Errors
    /// [`InvalidName`] with the rule that it breaks.
    pub fn parse(text: &str) -> Result<MacAddress, InvalidName> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        let two_digits =
            |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        for octet in &mut octets {
            let part = parts.next().filter(two_digits);
            *octet = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| refuse(text, MAC_RULE))?;
        }
        let [first, ..] = octets;
        match parts.next().is_none() && first & 1 == 0 && octets != [0; 6] {
            true => Ok(MacAddress(octets)),
            false => Err(refuse(text, MAC_RULE)),
        }
    }

    /// The octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl PodIdentity {
    /// Checks the parts; an empty part counts as absent.
    ///
    /// # Errors
    /// [`InvalidName`] with the rule that a part breaks.
    pub fn parse(
        namespace: Option<&str>,
        name: Option<&str>,
        uid: Option<&str>,
    ) -> Result<PodIdentity, InvalidName> {
        let part = |value: Option<&str>, max: usize, rule: &'static str| match value {
            None | Some("") => Ok(None),
            Some(text) if text.len() <= max && text.bytes().all(in_object_name) => {
                Ok(Some(text.to_owned()))
            }
            Some(text) => Err(refuse(text, rule)),
        };
        Ok(PodIdentity {
            namespace: part(namespace, 63, "a namespace's name")?,
            name: part(name, 253, "a pod's name")?,
            uid: part(uid, POD_UID_MAX, "a pod's UID")?,
        })
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The pod's name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The pod's UID.
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }
}

impl fmt::Display for PodIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(f, "{namespace}/{name}"),
            (None, Some(name)) => f.write_str(name),
            _ => f.write_str("-"),
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<MacAddress, InvalidName> {
        MacAddress::parse(&text)
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<ContainerId, InvalidName> {
        ContainerId::parse(&text)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<InterfaceName, InvalidName> {
        InterfaceName::parse(&text)
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> String {
        name.0
    }
}

#[derive(Serialize, Deserialize)]
struct RawPodIdentity {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
}

impl TryFrom<RawPodIdentity> for PodIdentity {
    type Error = InvalidName;

    fn try_from(raw: RawPodIdentity) -> Result<PodIdentity, InvalidName> {
        PodIdentity::parse(raw.namespace.as_deref(), raw.name.as_deref(), raw.uid.as_deref())
    }
}

impl From<PodIdentity> for RawPodIdentity {
    fn from(pod: PodIdentity) -> RawPodIdentity {
        RawPodIdentity { namespace: pod.namespace, name: pod.name, uid: pod.uid }
    }
}

/// Runtimes outside Kubernetes put other names there than Kubernetes would allow, so this is wider
/// than DNS names.
fn in_object_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

fn refuse(text: &str, rule: &'static str) -> InvalidName {
    // What is wrong in a long value shows in its beginning or is its length.
    let value = match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    };
    InvalidName { value, rule }
}

const MAC_RULE: &str = "the Ethernet address of one interface: six pairs of hexadecimal digits with ':' between them, the \
     first pair even";
