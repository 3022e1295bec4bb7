//! The file of `cairn speaker -f`: documents of the same kinds as in the cluster.
//!
//! Every error names file, line and column and says what was expected; a file with one error is
//! refused as a whole, so that a speaker never runs on half of what was written.

mod secret;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use cairn_api::{
    BGPAdvertisementSpec, BGPConfigurationSpec, BGPPeerSpec, BGPPolicySpec, GROUP, Topology,
    VERSION,
};
use cairn_bgp::config::{PeerName, SpeakerConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::objects::{self, DefaultPolicies, FieldError, Passwords, Policies};

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It cannot be used.
    #[error("{path}:{line}:{column}: {message}")]
    At {
        /// The file.
        path: String,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong and what was expected.
        message: String,
    },
    /// Nothing in it is wrong, but something is missing.
    #[error("{path}: {message}")]
    Missing {
        /// The file.
        path: String,
        /// What is missing and what to write.
        message: String,
    },
}

/// Reads a speaker's configuration from a file.
///
/// # Errors
/// The file cannot be read, is no YAML, or says something that cannot be.
pub fn load(path: &Path) -> Result<SpeakerConfig, Error> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name, &text),
        Err(source) => Err(Error::Read { path: name, source }),
    }
}

/// Reads a speaker's configuration from `text`; `path` is for messages only.
///
/// # Errors
/// As for [`load`].
pub fn parse(path: &str, text: &str) -> Result<SpeakerConfig, Error> {
    let mut documents = Documents::default();
    for document in split(text) {
        documents.take(path, &document)?;
    }
    documents.speaker(path)
}

/// One YAML document: its text behind as many empty lines as precede it in the file, so that every
/// line number is the file's own.
struct Document {
    text: String,
    first_line: u64,
}

fn split(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut first_line = 1;
    let mut lines = 0u64;
    for line in text.lines() {
        lines += 1;
        if line == "---" || line.starts_with("--- ") {
            documents.push(Document { text: std::mem::take(&mut current), first_line });
            first_line = lines + 1;
            for _ in 0..lines {
                current.push('\n');
            }
        } else {
            current.push_str(line);
            current.push('\n');
        }
    }
    documents.push(Document { text: current, first_line });
    documents.retain(|document| {
        document.text.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        })
    });
    documents
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: S,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// An object with the line at which its document begins.
struct Placed<S> {
    line: u64,
    spec: S,
}

#[derive(Default)]
struct Documents {
    configuration: Option<Placed<BGPConfigurationSpec>>,
    peers: BTreeMap<String, Placed<BGPPeerSpec>>,
    policies: BTreeMap<String, Placed<BGPPolicySpec>>,
    advertisements: BTreeMap<String, Placed<BGPAdvertisementSpec>>,
    passwords: Passwords,
}

impl Documents {
    fn take(&mut self, path: &str, document: &Document) -> Result<(), Error> {
        let head: Head = decode(path, document)?;
        if (head.api_version.as_str(), head.kind.as_str()) == ("v1", "Secret") {
            return self.take_secret(path, document);
        }
        let expected = format!("{GROUP}/{VERSION}");
        if head.api_version != expected {
            return Err(at(
                path,
                document.first_line,
                format!("apiVersion is \"{}\", expected {expected}", head.api_version),
            ));
        }
        let line = document.first_line;
        match head.kind.as_str() {
            "BGPConfiguration" => {
                let object: Object<BGPConfigurationSpec> = decode(path, document)?;
                if self.configuration.is_some() {
                    return Err(at(path, line, "a second BGPConfiguration: there is one a file"));
                }
                self.configuration = Some(Placed { line, spec: object.spec });
                Ok(())
            }
            "BGPPeer" => insert(&mut self.peers, path, document),
            "BGPPolicy" => insert(&mut self.policies, path, document),
            "BGPAdvertisement" => insert(&mut self.advertisements, path, document),
            kind => Err(at(
                path,
                line,
                format!(
                    "kind \"{kind}\" is not for this file; expected BGPConfiguration, BGPPeer, \
                     BGPPolicy, BGPAdvertisement or Secret"
                ),
            )),
        }
    }

    fn take_secret(&mut self, path: &str, document: &Document) -> Result<(), Error> {
        let (name, values) = secret::take(path, document)?;
        match self.passwords.insert(name.clone(), values) {
            None => Ok(()),
            Some(_) => Err(at(path, document.first_line, format!("a second Secret \"{name}\""))),
        }
    }

    fn speaker(self, path: &str) -> Result<SpeakerConfig, Error> {
        let Some(Placed { line, spec: configuration }) = self.configuration else {
            return Err(Error::Missing {
                path: path.into(),
                message: "no BGPConfiguration: add one with spec.asn and spec.routerID".into(),
            });
        };
        let in_configuration =
            |error: FieldError| at(path, line, format!("BGPConfiguration default: {error}"));
        let asn = objects::asn("spec.asn", configuration.asn).map_err(in_configuration)?;
        let port = objects::port("spec.listenPort", configuration.listen_port)
            .map_err(in_configuration)?;
        objects::hold_time("spec.timers.holdTimeSecs", configuration.timers.hold_time_secs)
            .map_err(in_configuration)?;
        if !matches!(configuration.topology, Topology::Auto | Topology::Disabled) {
            return Err(in_configuration(field(
                "spec.topology",
                "a speaker outside of a cluster has no mesh: write Disabled or leave it out",
            )));
        }
        let router_id = router_id(configuration.router_id.as_deref()).map_err(in_configuration)?;
        let cluster_id = configuration.cluster_id.as_deref();
        let cluster_id = cluster_id.map(|text| identifier("spec.clusterID", text)).transpose();
        let cluster_id = cluster_id.map_err(in_configuration)?;
        let listen =
            listen_addresses(&configuration.listen_addresses, port).map_err(in_configuration)?;
        let policies = usable_policies(path, &self.policies)?;
        let none = DefaultPolicies { import: &[], export: &[] };
        let (mut peers, mut ranges) = (BTreeMap::new(), BTreeMap::new());
        let mut places = BTreeSet::new();
        for (name, Placed { line, spec }) in &self.peers {
            let in_peer = |error: FieldError| at(path, *line, format!("BGPPeer {name}: {error}"));
            let peer = objects::peer(spec, &configuration, &policies, &self.passwords, none)
                .map_err(in_peer)?;
            if let Some(addresses) = objects::range(spec) {
                let range = objects::peer_range(spec, addresses, peer);
                ranges.insert(PeerName::from(name.as_str()), range);
                continue;
            }
            if !places.insert((peer.address, peer.interface.clone())) {
                return Err(in_peer(match &peer.interface {
                    Some(interface) => field(
                        "spec.interface",
                        &format!("{interface} is the interface of another BGPPeer too"),
                    ),
                    None => field(
                        "spec.address",
                        &format!("{} is the address of another BGPPeer too", peer.address),
                    ),
                }));
            }
            peers.insert(PeerName::from(name.as_str()), peer);
        }
        let mut originate = BTreeMap::new();
        for (name, Placed { line, spec }) in &self.advertisements {
            originate.extend(
                objects::originations(name, spec).map_err(|error| {
                    at(path, *line, format!("BGPAdvertisement {name}: {error}"))
                })?,
            );
        }
        Ok(SpeakerConfig {
            origins: Default::default(),
            asn,
            router_id,
            cluster_id,
            listen,
            peers,
            ranges,
            originate,
            selection_deferral_secs: SELECTION_DEFERRAL_SECS,
            multipath: objects::multipath(configuration.multipath),
        })
    }
}

fn usable_policies(
    path: &str,
    policies: &BTreeMap<String, Placed<BGPPolicySpec>>,
) -> Result<Policies, Error> {
    policies
        .iter()
        .map(|(name, Placed { line, spec })| {
            objects::policy(name, spec)
                .map(|policy| (name.clone(), Arc::new(policy)))
                .map_err(|error| at(path, *line, format!("BGPPolicy {name}: {error}")))
        })
        .collect()
}

fn router_id(text: Option<&str>) -> Result<Ipv4Addr, FieldError> {
    let Some(text) = text else {
        return Err(field(
            "spec.routerID",
            "is missing: write an address of this router such as 192.0.2.1",
        ));
    };
    identifier("spec.routerID", text)
}

fn identifier(path: &'static str, text: &str) -> Result<Ipv4Addr, FieldError> {
    match text.parse::<Ipv4Addr>() {
        Ok(id) if !id.is_unspecified() => Ok(id),
        _ => Err(field(
            path,
            &format!("\"{text}\" is no BGP identifier: write an IPv4 address that is not 0.0.0.0"),
        )),
    }
}

fn listen_addresses(texts: &[String], port: u16) -> Result<Vec<SocketAddr>, FieldError> {
    if texts.is_empty() {
        return Ok(vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), port),
        ]);
    }
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            text.parse::<IpAddr>().map(|address| SocketAddr::new(address, port)).map_err(|_| {
                field(
                    &format!("spec.listenAddresses[{index}]"),
                    &format!("\"{text}\" is no IP address: write one such as 192.0.2.1"),
                )
            })
        })
        .collect()
}

fn insert<S: DeserializeOwned>(
    into: &mut BTreeMap<String, Placed<S>>,
    path: &str,
    document: &Document,
) -> Result<(), Error> {
    let object: Object<S> = decode(path, document)?;
    let name = object.metadata.name;
    let placed = Placed { line: document.first_line, spec: object.spec };
    match into.insert(name.clone(), placed) {
        None => Ok(()),
        Some(first) => Err(at(
            path,
            document.first_line,
            format!("the name \"{name}\" was used at line {} already", first.line),
        )),
    }
}

fn decode<T: DeserializeOwned>(path: &str, document: &Document) -> Result<T, Error> {
    serde_saphyr::from_str(&document.text).map_err(|error| {
        let text = error.without_snippet().to_string();
        placed(path, document, &error, explained(&text))
    })
}

/// A message at the place of a decoding error.
fn placed(path: &str, document: &Document, error: &serde_saphyr::Error, message: String) -> Error {
    let location = error.location();
    let (line, column) =
        location.as_ref().map_or((document.first_line, 1), |at| (at.line(), at.column()));
    Error::At { path: path.into(), line, column, message }
}

/// The library's sentence without the place, which stands in front of it already, and with types
/// in words.
fn explained(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.rsplit_once(" at line ").map_or(line, |(sentence, _)| sentence);
    match line {
        "invalid u8" => "expected a whole number from 0 to 255".into(),
        "invalid u16" => "expected a whole number from 0 to 65535".into(),
        "invalid u32" => "expected a whole number from 0 to 4294967295".into(),
        "invalid bool" | "invalid boolean" => "expected true or false".into(),
        other => other.to_owned(),
    }
}

fn at(path: &str, line: u64, message: impl fmt::Display) -> Error {
    Error::At { path: path.into(), line, column: 1, message: message.to_string() }
}

fn field(name: &str, problem: &str) -> FieldError {
    FieldError { field: name.into(), problem: problem.into() }
}

const SELECTION_DEFERRAL_SECS: u16 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65000, routerID: 10.99.0.1, listenAddresses: [10.99.0.1], listenPort: 1790, topology: Disabled}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPolicy
metadata: {name: all}
spec: {rules: [{action: Accept}]}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p1}
spec: {address: 10.99.1.1, asn: 65001, passive: true, multihop: 2, families: [IPv4Unicast, IPv6Unicast], importPolicies: [all], exportPolicies: [all]}
---
# a comment only
---
apiVersion: cairn.network/v1alpha1
kind: BGPAdvertisement
metadata: {name: rack}
spec: {cidrs: [172.31.1.0/24], communities: ['65000:7']}
";

    #[test]
    fn a_file_becomes_a_speaker() {
        let speaker = parse("f", GOOD).expect("the file is good");
        assert_eq!(speaker.asn, 65000);
        assert_eq!(speaker.listen, ["10.99.0.1:1790".parse().expect("an address")]);
        assert_eq!(speaker.cluster_id(), speaker.router_id);
        let in_cluster = GOOD.replace("asn: 65000,", "asn: 65000, clusterID: 192.0.2.1,");
        let in_cluster = parse("f", &in_cluster).expect("the file is good");
        assert_eq!(in_cluster.cluster_id().to_string(), "192.0.2.1");
        let peer = &speaker.peers["p1"];
        assert_eq!((peer.asn, peer.multihop, peer.import.len()), (65001, 2, 1));
        assert_eq!(speaker.originate.len(), 1);
    }

    /// Each mistake, made in the good file: old text, new text, where and what is said about it.
    #[test]
    fn every_mistake_is_placed_and_explained() {
        for (old, new, place, text) in [
            ("asn: 65000,", "asn: many,", "f:4:13", "expected a whole number from 0 to 4294967295"),
            ("asn: 65000,", "asn: 0,", "f:1:1", "spec.asn: 0 is reserved"),
            ("routerID: 10.99.0.1, ", "", "f:1:1", "spec.routerID: is missing"),
            ("routerID: 10.99.0.1,", "routerID: one,", "f:1:1", "no BGP identifier"),
            ("asn: 65000,", "asn: 65000, clusterID: 0.0.0.0,", "f:1:1", "spec.clusterID: "),
            ("[10.99.0.1]", "[ten]", "f:1:1", "spec.listenAddresses[0]"),
            ("passive: true", "passive: maybe", "f:14:", "expected true or false"),
            ("multihop: 2", "multihop: 300", "f:14:", "expected a whole number from 0 to 255"),
            ("multihop: 2", "multihops: 2", "f:14:", "multihops"),
            ("address: 10.99.1.1", "address: tor", "f:11:1", "spec.address"),
            (
                "importPolicies: [all]",
                "importPolicies: [al]",
                "f:11:1",
                "no usable BGPPolicy \"al\"",
            ),
            ("kind: BGPPeer", "kind: BGPPear", "f:11:1", "kind \"BGPPear\""),
            ("v1alpha1\nkind: BGPPeer", "v2\nkind: BGPPeer", "f:11:1", "apiVersion"),
            ("[{action: Accept}]", "[{action: Allow}]", "f:9:", "Allow"),
            ("{name: rack}", "{name: [}", "f:20:18", "mismatched bracket"),
            ("65000:7", "65000-7", "f:18:1", "no community"),
            (
                "kind: BGPAdvertisement\nmetadata: {name: rack}\nspec: {cidrs: [172.31.1.0/24], communities: ['65000:7']}",
                "kind: BGPPolicy\nmetadata: {name: all}\nspec: {rules: []}",
                "f:18:1",
                "used at line 6 already",
            ),
        ] {
            assert!(GOOD.contains(old), "{old}");
            let error = parse("f", &GOOD.replacen(old, new, 1)).expect_err(new).to_string();
            assert!(error.starts_with(place), "{new}: {error}");
            assert!(error.contains(text), "{new}: {error}");
        }
    }

    #[test]
    fn a_file_without_a_configuration_says_what_to_add() {
        let error = parse("f", "# nothing\n").expect_err("nothing in it").to_string();
        assert!(error.contains("add one with spec.asn and spec.routerID"), "{error}");
    }
}
