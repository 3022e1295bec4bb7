//! What can go wrong in the plugin, and the CNI error code of each (CNI specification, "Error").

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::CniVersion;
use crate::names::InvalidName;
use crate::protocol::{Failure, ProtocolError};

/// A CNI error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum Code {
    /// 1: the plugin does not speak the configuration's `cniVersion`.
    IncompatibleVersion,
    /// 2: the configuration asks for something that the plugin does not do.
    UnsupportedField,
    /// 3: no such container; the runtime need not clean up.
    UnknownContainer,
    /// 4: a required environment variable is missing or wrong.
    InvalidEnvironment,
    /// 5: a file or socket could not be read or written.
    Io,
    /// 6: something is not the JSON it should be.
    Decode,
    /// 7: the network configuration is not valid.
    InvalidConfig,
    /// 8: CNI_NETNS is not a usable network namespace.
    InvalidNetNs,
    /// 11: a passing condition; the runtime should try again.
    TryAgainLater,
    /// 50: the plugin cannot serve ADD requests now (STATUS).
    NotAvailable,
    /// 51: as 50, and existing containers may have limited connectivity.
    LimitedConnectivity,
    /// 100: this version of the plugin does not implement the command.
    NotSupported,
    /// Any other code, as the agent sent it.
    Other(u32),
}

impl From<u32> for Code {
    fn from(number: u32) -> Code {
        match number {
            1 => Code::IncompatibleVersion,
            2 => Code::UnsupportedField,
            3 => Code::UnknownContainer,
            4 => Code::InvalidEnvironment,
            5 => Code::Io,
            6 => Code::Decode,
            7 => Code::InvalidConfig,
            8 => Code::InvalidNetNs,
            11 => Code::TryAgainLater,
            50 => Code::NotAvailable,
            51 => Code::LimitedConnectivity,
            100 => Code::NotSupported,
            other => Code::Other(other),
        }
    }
}

impl From<Code> for u32 {
    fn from(code: Code) -> u32 {
        match code {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::InvalidConfig => 7,
            Code::InvalidNetNs => 8,
            Code::TryAgainLater => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            Code::NotSupported => 100,
            Code::Other(number) => number,
        }
    }
}

/// Why the plugin did not do what the runtime asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names a CNI version that the plugin does not speak.
    #[error(
        "the network configuration has cniVersion {found:?}; this plugin speaks {}",
        List(&CniVersion::ALL.map(CniVersion::as_str))
    )]
    IncompatibleVersion {
        /// The version found, empty when there is none.
        found: String,
    },
    /// The command does not exist in the configuration's CNI version.
    #[error(
        "CNI_COMMAND {command} needs cniVersion {since} or later, the configuration has {found}"
    )]
    CommandTooNew {
        /// The command.
        command: &'static str,
        /// The first version that has it.
        since: CniVersion,
        /// The configuration's version.
        found: CniVersion,
    },
    /// CNI_COMMAND is none that the specification has.
    #[error("CNI_COMMAND is {0:?}; it must be ADD, DEL, CHECK, GC, STATUS or VERSION")]
    UnknownCommand(String),
    /// Required environment variables are not set.
    #[error(
        "CNI_COMMAND {command} needs {}, which the container runtime did not set",
        List(missing)
    )]
    MissingVariables {
        /// The command.
        command: &'static str,
        /// The variables.
        missing: Vec<&'static str>,
    },
    /// CNI_COMMAND itself is not set.
    #[error(
        "CNI_COMMAND is not set: this program is a CNI plugin and is started by a container runtime"
    )]
    NotInvokedAsPlugin,
    /// An environment variable has an impossible value.
    #[error("{variable} is not usable: {reason}")]
    InvalidVariable {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An identifier in an environment variable breaks its rules.
    #[error("{variable} is not usable: {source}")]
    InvalidName {
        /// The variable.
        variable: &'static str,
        /// The rule it breaks.
        source: InvalidName,
    },
    /// CNI_NETNS cannot be opened.
    #[error(
        "CNI_NETNS {path:?} cannot be opened: {source}; the pod's network namespace must exist \
         before ADD"
    )]
    NetNs {
        /// The path.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Standard input could not be read.
    #[error("the network configuration could not be read from standard input: {0}")]
    ReadConfig(io::Error),
    /// Standard input is not a network configuration.
    #[error("the network configuration on standard input is not valid: {0}")]
    DecodeConfig(serde_json::Error),
    /// A field of the configuration has an impossible value.
    #[error("the network configuration's {field:?} {reason}")]
    InvalidConfig {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration asks for what the plugin does not do.
    #[error(
        "the network configuration has {field} = {value}, which this plugin does not do: {remedy}"
    )]
    UnsupportedField {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Two places ask for different addresses.
    #[error("{first} and {second} ask for different addresses: leave one of them out")]
    Contradiction {
        /// One place.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Nobody listens on the agent's socket.
    #[error(
        "no Cairn agent answers on {socket} ({reason}, waited {waited:?}): check that the cairn pod \
         of this node is running; the request may be repeated"
    )]
    AgentAbsent {
        /// The socket's path.
        socket: String,
        /// The system's answer.
        reason: Errno,
        /// How long the plugin waited for a listener.
        waited: Duration,
    },
    /// Nobody listens on the agent's socket, and the plugin alone cannot end the pod.
    #[error(
        "no Cairn agent answers, and the pod's interface {interface} could not be removed without it: {source}; \
         the request may be repeated"
    )]
    Orphan {
        /// The interface on the node.
        interface: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// STATUS found that no ADD would be served.
    #[error(transparent)]
    Unavailable(Box<Error>),
    /// The agent took the request and did not answer it properly.
    #[error(
        "the Cairn agent on {socket} gave no usable answer: {source}; see the log of this node's \
         cairn pod; the request may be repeated"
    )]
    AgentSilent {
        /// The socket's path.
        socket: String,
        /// What was wrong.
        source: ProtocolError,
    },
    /// The agent refused.
    #[error("{}", .0.msg)]
    Refused(Failure),
    /// The agent's answer belongs to another request.
    #[error("the Cairn agent answered another request than {0}: plugin and agent do not match")]
    WrongAnswer(&'static str),
}

impl Error {
    /// The CNI error code: the one place where failures are mapped to it.
    pub fn code(&self) -> Code {
        match self {
            Error::IncompatibleVersion { .. } | Error::CommandTooNew { .. } => {
                Code::IncompatibleVersion
            }
            Error::UnknownCommand(_)
            | Error::MissingVariables { .. }
            | Error::NotInvokedAsPlugin
            | Error::InvalidVariable { .. }
            | Error::InvalidName { .. } => Code::InvalidEnvironment,
            Error::NetNs { .. } => Code::InvalidNetNs,
            Error::ReadConfig(_) => Code::Io,
            Error::DecodeConfig(_) => Code::Decode,
            Error::InvalidConfig { .. } | Error::Contradiction { .. } => Code::InvalidConfig,
            Error::UnsupportedField { .. } => Code::UnsupportedField,
            Error::AgentAbsent { .. }
            | Error::AgentSilent { .. }
            | Error::Orphan { .. }
            | Error::WrongAnswer(_) => Code::TryAgainLater,
            Error::Unavailable(_) => Code::NotAvailable,
            Error::Refused(failure) => failure.code,
        }
    }

    /// This error as the answer to STATUS: what would have every ADD tried again later means that there is no
    /// network for pods now.
    #[must_use]
    pub fn of_status(self) -> Error {
        match &self {
            Error::Refused(_) => self,
            _ if self.code() == Code::TryAgainLater => Error::Unavailable(Box::new(self)),
            _ => self,
        }
    }

    /// The JSON object that goes to standard output, in the form of CNI `version`.
    pub fn to_json(&self, version: CniVersion) -> serde_json::Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": u32::from(self.code()),
            "msg": self.to_string(),
        });
        if let (Error::Refused(Failure { details: Some(details), .. }), Some(fields)) =
            (self, object.as_object_mut())
        {
            fields.insert("details".into(), details.as_str().into());
        }
        object
    }
}

/// Names in a sentence: `A`, `A and B`, `A, B and C`.
struct List<'a>(&'a [&'a str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.len().saturating_sub(1);
        for (position, name) in self.0.iter().enumerate() {
            let before = match position {
                0 => "",
                _ if position == last => " and ",
                _ => ", ",
            };
            write!(f, "{before}{name}")?;
        }
        Ok(())
    }
}
