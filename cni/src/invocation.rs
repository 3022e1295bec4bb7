//! What the runtime's environment variables ask for (CNI specification, "Parameters").

use std::net::IpAddr;

use crate::asked::Asked;
use crate::error::Error;
use crate::names::{ContainerId, InterfaceName, InvalidName, MacAddress, PodIdentity};

/// A command with the variables that it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Make an interface.
    Add {
        /// Container and interface.
        target: Target,
        /// CNI_NETNS: the path of the container's network namespace.
        netns: String,
        /// CNI_ARGS.
        arguments: Arguments,
    },
    /// Remove an interface. Its namespace may be gone, so CNI_NETNS is not looked at; and what was wrong
    /// with CNI_ARGS must not keep a pod from ending.
    Del {
        /// Container and interface.
        target: Target,
    },
    /// Check an interface.
    Check {
        /// Container and interface.
        target: Target,
        /// CNI_NETNS: the path of the container's network namespace.
        netns: String,
    },
    /// Remove what no longer belongs to a container.
    GarbageCollect,
    /// Is the plugin ready?
    Status,
    /// Which versions does the plugin speak?
    Version,
}

/// One interface of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// CNI_CONTAINERID.
    pub container_id: ContainerId,
    /// CNI_IFNAME.
    pub ifname: InterfaceName,
}

/// What CNI_ARGS says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    /// The pod.
    pub pod: PodIdentity,
    /// Addresses, by `IP`.
    pub ips: Option<Asked<Vec<IpAddr>>>,
    /// An Ethernet address, by `MAC`.
    pub mac: Option<Asked<MacAddress>>,
}

impl Invocation {
    /// Reads the variables by `variable`, which returns `None` for one that is not set. An empty
    /// variable counts as not set.
    ///
    /// # Errors
    /// One sentence for whatever is missing or wrong.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Invocation, Error> {
        let variable = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let command = variable("CNI_COMMAND").ok_or(Error::NotInvokedAsPlugin)?;
        let require = |command, names: &[&'static str]| {
            let missing: Vec<_> =
                names.iter().copied().filter(|name| variable(name).is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            Err(Error::MissingVariables { command, missing })
        };
        let netns = || {
            let netns = variable("CNI_NETNS").unwrap_or_default();
            if !netns.starts_with('/') || netns.contains('\0') {
                let reason = format!("{netns:?} is not an absolute path");
                return Err(Error::InvalidVariable { variable: "CNI_NETNS", reason });
            }
            Ok(netns)
        };
        match command.as_str() {
            "ADD" => {
                require("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
                Ok(Invocation::Add {
                    target: Target::parse(variable)?,
                    netns: netns()?,
                    arguments: Arguments::parse(&variable("CNI_ARGS").unwrap_or_default())?,
                })
            }
            "DEL" => {
                require("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])?;
                Ok(Invocation::Del { target: Target::parse(variable)? })
            }
            "CHECK" => {
                require("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
                Ok(Invocation::Check { target: Target::parse(variable)?, netns: netns()? })
            }
            "GC" => Ok(Invocation::GarbageCollect),
            "STATUS" => Ok(Invocation::Status),
            "VERSION" => Ok(Invocation::Version),
            other => Err(Error::UnknownCommand(other.chars().take(40).collect())),
        }
    }
}

impl Target {
    fn parse(variable: impl Fn(&'static str) -> Option<String>) -> Result<Target, Error> {
        let value = |name| variable(name).unwrap_or_default();
        let named = |variable| move |source: InvalidName| Error::InvalidName { variable, source };
        Ok(Target {
            container_id: ContainerId::parse(&value("CNI_CONTAINERID"))
                .map_err(named("CNI_CONTAINERID"))?,
            ifname: InterfaceName::parse(&value("CNI_IFNAME")).map_err(named("CNI_IFNAME"))?,
        })
    }
}

impl Arguments {
    /// Reads CNI_ARGS: `KEY=value` pairs between semicolons. An unknown key is refused unless
    /// `IgnoreUnknown` is set, as other plugins have it.
    fn parse(args: &str) -> Result<Arguments, Error> {
        let refuse = |reason| Error::InvalidVariable { variable: "CNI_ARGS", reason };
        if args.len() > ARGS_MAX {
            return Err(refuse(format!("it has {} bytes, {ARGS_MAX} are allowed", args.len())));
        }
        let (mut namespace, mut name, mut uid) = (None, None, None);
        let (mut ips, mut mac) = (None, None);
        let mut unknown = None;
        let mut ignore_unknown = false;
        for pair in args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(refuse(format!("{pair:?} is not of the form KEY=value")));
            };
            match key {
                "IgnoreUnknown" => match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => ignore_unknown = true,
                    "0" | "false" => ignore_unknown = false,
                    _ => return Err(refuse(format!("IgnoreUnknown is {value:?}, not 1 or 0"))),
                },
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                "K8S_POD_UID" => uid = Some(value),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => {
                    let texts = value.split(',').filter(|text| !text.is_empty());
                    ips = Asked::ips(ARGS_IP, texts).map_err(|why| refuse(format!("IP {why}")))?;
                }
                "MAC" => {
                    mac =
                        Asked::mac(ARGS_MAC, value).map_err(|why| refuse(format!("MAC {why}")))?;
                }
                other => unknown = Some(other),
            }
        }
        if let (Some(key), false) = (unknown, ignore_unknown) {
            let reason = format!("the key {key:?} is unknown and IgnoreUnknown is not set");
            return Err(refuse(reason));
        }
        let pod = PodIdentity::parse(namespace, name, uid)
            .map_err(|source| Error::InvalidName { variable: "CNI_ARGS", source })?;
        Ok(Arguments { pod, ips, mac })
    }
}

const ARGS_MAX: usize = 4096;
const ARGS_IP: &str = "IP in CNI_ARGS";
const ARGS_MAC: &str = "MAC in CNI_ARGS";
