//! The network configuration that a runtime writes to the plugin's standard input.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::SOCKET_PATH;
use crate::asked::{Asked, agree};
use crate::error::Error;
use crate::names::{ContainerId, InterfaceName, MacAddress};
use crate::protocol::ValidAttachment;
use crate::result::NetworkResult;

/// A CNI specification version that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    V0_4_0,
    /// 1.0.0, the first without address families in results.
    V1_0_0,
    /// 1.1.0, the first with GC, STATUS and MTUs in results.
    V1_1_0,
}

impl CniVersion {
    /// Every version, in ascending order.
    pub const ALL: [CniVersion; 4] =
        [CniVersion::V0_3_1, CniVersion::V0_4_0, CniVersion::V1_0_0, CniVersion::V1_1_0];

    /// The newest version.
    pub const NEWEST: CniVersion = CniVersion::V1_1_0;

    /// The version as configurations write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            CniVersion::V0_3_1 => "0.3.1",
            CniVersion::V0_4_0 => "0.4.0",
            CniVersion::V1_0_0 => "1.0.0",
            CniVersion::V1_1_0 => "1.1.0",
        }
    }

    /// The version written as `text`.
    ///
    /// # Errors
    /// [`Error::IncompatibleVersion`] for any other.
    pub fn parse(text: &str) -> Result<CniVersion, Error> {
        let known = CniVersion::ALL.into_iter().find(|version| version.as_str() == text);
        known.ok_or_else(|| Error::IncompatibleVersion { found: text.into() })
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A network configuration for this plugin. Fields that belong to other plugins of the chain are
/// not looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// The version in which results are written.
    pub version: CniVersion,
    /// The network's name.
    pub name: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Cairn's annotations of the pod; `None` when the runtime passes no annotations at all, so that
    /// the pod may have some.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Addresses that `runtimeConfig` or `args` ask for.
    pub ips: Option<Asked<Vec<IpAddr>>>,
    /// An Ethernet address that `runtimeConfig` or `args` ask for.
    pub mac: Option<Asked<MacAddress>>,
    /// Name service settings, passed through to the result.
    pub dns: Option<Dns>,
    /// The result of the plugin before this one in the chain.
    pub prev_result: Option<NetworkResult>,
}

/// Name service settings; the plugin only passes them on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl NetworkConfig {
    /// Reads of a configuration what is needed to remove an attachment: nothing else in it can be wrong.
    ///
    /// # Errors
    /// [`Error::DecodeConfig`] for what is no JSON object, [`Error::InvalidConfig`] for a socket that is
    /// none.
    pub fn parse_removal(bytes: &[u8]) -> Result<NetworkConfig, Error> {
        let raw: RawRemoval = decode_object(bytes)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(NetworkConfig {
            version: text(&raw.cni_version)
                .and_then(|version| CniVersion::parse(&version).ok())
                .unwrap_or(CniVersion::NEWEST),
            name: text(&raw.name).unwrap_or_default(),
            socket: socket(text(&raw.socket))?,
            annotations: None,
            ips: None,
            mac: None,
            dns: None,
            prev_result: None,
        })
    }

    /// Reads of a configuration what GC needs, and the attachments that are still valid. The list has two
    /// names: what the specification says, and what it said before.
    ///
    /// # Errors
    /// As [`NetworkConfig::parse_removal`]; [`Error::InvalidConfig`] without a name or a list, and for a list
    /// that cannot be read: what is not known to be valid is removed.
    pub fn parse_collection(bytes: &[u8]) -> Result<(NetworkConfig, Vec<ValidAttachment>), Error> {
        let config = NetworkConfig::parse_removal(bytes)?;
        let raw: RawCollection = decode_object(bytes)?;
        check_name(&config.name)?;
        if raw.valid.is_none() && raw.valid_by_its_old_name.is_none() {
            return Err(invalid(VALID_ATTACHMENTS, "is missing: GC would not know what to spare"));
        }
        let mut valid = Vec::new();
        for list in [raw.valid, raw.valid_by_its_old_name].into_iter().flatten() {
            let entries = match list {
                // What Go makes of a list without any.
                Value::Null => continue,
                Value::Array(entries) => entries,
                _ => return Err(invalid(VALID_ATTACHMENTS, "must be an array")),
            };
            for entry in entries {
                let text = |key| entry.get(key).and_then(Value::as_str);
                let (Some(container_id), Some(ifname)) = (text("containerID"), text("ifname"))
                else {
                    let reason = "must hold objects with containerID and ifname";
                    return Err(invalid(VALID_ATTACHMENTS, reason));
                };
                // What breaks the rules of names was never attached.
                if let (Ok(container_id), Ok(ifname)) =
                    (ContainerId::parse(container_id), InterfaceName::parse(ifname))
                {
                    valid.push(ValidAttachment { container_id, ifname });
                }
            }
        }
        valid.sort_unstable();
        valid.dedup();
        Ok((config, valid))
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::DecodeConfig`] for what is not JSON or has a field of the wrong type, with line and
    /// column; [`Error::IncompatibleVersion`], [`Error::InvalidConfig`] and
    /// [`Error::UnsupportedField`] for values that cannot be served.
    pub fn parse(bytes: &[u8]) -> Result<NetworkConfig, Error> {
        // The version decides how the rest is to be read, so it is judged before the rest.
        let version = read_version(bytes)?;
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(Error::DecodeConfig)?;
        let name = raw.name.ok_or_else(|| invalid("name", "is missing"))?;
        check_name(&name)?;
        let socket = socket(raw.socket)?;
        refuse_if_set("ipam", &raw.ipam, "leave it out, the Cairn agent chooses addresses")?;
        refuse_if_set("ipMasq", &raw.ip_masq, "leave it out and set natOutgoing on the IPPool")?;
        let runtime = raw.runtime_config.unwrap_or_default();
        let args = raw.args.and_then(|args| args.cni).unwrap_or_default();
        Ok(NetworkConfig {
            version,
            name,
            socket,
            annotations: pod_annotations(&runtime)?,
            ips: agree([
                asked_ips("runtimeConfig.ips", runtime.get("ips"))?,
                asked_ips("args.cni.ips", args.get("ips"))?,
            ])?,
            mac: agree([
                asked_mac("runtimeConfig.mac", runtime.get("mac"))?,
                asked_mac("args.cni.mac", args.get("mac"))?,
            ])?,
            dns: raw.dns,
            prev_result: raw.prev_result,
        })
    }
}

/// Reads an object of which every field may be missing. Serde takes arrays for structures too.
fn decode_object<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Error> {
    let decoded = match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(bytes),
        Some(_) => Err(serde_json::Error::custom("it is no JSON object")),
    };
    decoded.map_err(Error::DecodeConfig)
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.len() {
        1..=NAME_MAX => Ok(()),
        _ => Err(invalid("name", "must have 1 to 255 bytes")),
    }
}

fn asked_ips(
    place: &'static str,
    value: Option<&Value>,
) -> Result<Option<Asked<Vec<IpAddr>>>, Error> {
    let list = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_array(),
    };
    let texts = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let texts = texts.ok_or_else(|| invalid(place, "must be an array of strings"))?;
    Asked::ips(place, texts).map_err(|reason| invalid(place, &reason))
}

fn asked_mac(
    place: &'static str,
    value: Option<&Value>,
) -> Result<Option<Asked<MacAddress>>, Error> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().ok_or_else(|| invalid(place, "must be a string"))?,
    };
    Asked::mac(place, text).map_err(|reason| invalid(place, &reason))
}

fn socket(configured: Option<String>) -> Result<PathBuf, Error> {
    let socket = configured.unwrap_or_else(|| SOCKET_PATH.into());
    let fits = Path::new(&socket).is_absolute() && socket.len() <= SOCKET_PATH_MAX;
    if !fits || socket.contains('\0') {
        return Err(invalid("socket", "must be an absolute path of at most 107 bytes"));
    }
    Ok(socket.into())
}

/// The `cniVersion` of a configuration, whatever else it holds. One without it is of version 0.1.0
/// (CNI specification), which no longer exists.
///
/// # Errors
/// [`Error::DecodeConfig`] and [`Error::IncompatibleVersion`].
pub fn read_version(bytes: &[u8]) -> Result<CniVersion, Error> {
    let raw: RawVersion = serde_json::from_slice(bytes).map_err(Error::DecodeConfig)?;
    CniVersion::parse(raw.cni_version.as_deref().unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVersion {
    cni_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    name: Option<String>,
    socket: Option<String>,
    dns: Option<Dns>,
    prev_result: Option<NetworkResult>,
    #[serde(default)]
    ipam: Value,
    #[serde(default)]
    ip_masq: Value,
    runtime_config: Option<serde_json::Map<String, Value>>,
    args: Option<RawArgs>,
}

#[derive(Deserialize)]
struct RawArgs {
    /// CNI conventions, "dynamic plugin specific fields": other keys are of other programs.
    cni: Option<serde_json::Map<String, Value>>,
}

/// Of whatever types: only what is text counts. Other fields are skipped, however deep they are.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRemoval {
    #[serde(default)]
    cni_version: Value,
    #[serde(default)]
    name: Value,
    #[serde(default)]
    socket: Value,
}

#[derive(Deserialize)]
struct RawCollection {
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "present")]
    valid: Option<Value>,
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "present")]
    valid_by_its_old_name: Option<Value>,
}

/// A null that is there is one, and not an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Cairn's part of the annotations that containerd and CRI-O pass to plugins which declare the
/// capability [`POD_ANNOTATIONS`].
fn pod_annotations(
    runtime: &serde_json::Map<String, Value>,
) -> Result<Option<BTreeMap<String, String>>, Error> {
    let all = match runtime.get(POD_ANNOTATIONS) {
        None => return Ok(None),
        // What Go makes of a pod without any.
        Some(Value::Null) => return Ok(Some(BTreeMap::new())),
        Some(Value::Object(all)) => all,
        Some(_) => return Err(invalid(POD_ANNOTATIONS, "must be an object of strings")),
    };
    let mut ours = BTreeMap::new();
    for (key, value) in all.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)) {
        let Value::String(value) = value else {
            return Err(invalid(POD_ANNOTATIONS, "must be an object of strings"));
        };
        if key.len() + value.len() > ANNOTATION_MAX || ours.len() >= ANNOTATIONS_MAX {
            let reason = format!(
                "holds more than {ANNOTATIONS_MAX} annotations of {ANNOTATION_PREFIX} or one of \
                 more than {ANNOTATION_MAX} bytes: shorten the pod's"
            );
            return Err(invalid(POD_ANNOTATIONS, &reason));
        }
        ours.insert(key.clone(), value.clone());
    }
    Ok(Some(ours))
}

fn invalid(field: &'static str, reason: &str) -> Error {
    Error::InvalidConfig { field, reason: reason.into() }
}

/// What a user asks for must not be ignored silently; empty values ask for nothing.
fn refuse_if_set(field: &'static str, value: &Value, remedy: &'static str) -> Result<(), Error> {
    let asks = match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    if asks {
        return Err(Error::UnsupportedField { field, value: value.to_string(), remedy });
    }
    Ok(())
}

/// The capability by which a plugin asks for the pod's annotations, and their key in runtimeConfig
/// (containerd's `annotations.PodAnnotations`, ocicni's `RuntimeConfig.PodAnnotations`).
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

const ANNOTATION_PREFIX: &str = "cairn.network/";
/// Annotations that are passed on.
const ANNOTATIONS_MAX: usize = 8;
/// The longest in bytes, with its name.
const ANNOTATION_MAX: usize = 4096;
const NAME_MAX: usize = 255;
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// `sun_path` has 108 bytes with its terminating zero.
const SOCKET_PATH_MAX: usize = 107;
