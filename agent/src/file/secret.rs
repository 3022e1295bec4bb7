//! Secrets in a speaker's file. No message about one repeats what stands in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_bgp::config::Password;
use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StringDeserializer};

use super::{Document, Error, Metadata, at, placed};

/// A Secret as `kubectl create secret --dry-run=client -o yaml` prints it; values in `data` are in
/// base64.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Secret {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(rename = "type")]
    _type: Option<String>,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

/// The name of a Secret and its values that are text.
pub(super) fn take(
    path: &str,
    document: &Document,
) -> Result<(String, BTreeMap<String, Password>), Error> {
    let Secret { metadata, data, string_data, .. } = serde_saphyr::from_str(&document.text)
        .map_err(|error: serde_saphyr::Error| {
            // The library's own sentence may quote a value.
            let message = "this Secret cannot be read: write metadata.name, and text under the keys \
                           of data (in base64) or stringData";
            placed(path, document, &error, message.into())
        })?;
    let mut values = BTreeMap::new();
    for (key, encoded) in data {
        let encoded: StringDeserializer<ValueError> = encoded.into_deserializer();
        let octets = ByteString::deserialize(encoded).ok().map(|ByteString(octets)| octets);
        let text = octets.and_then(|octets| String::from_utf8(octets).ok()).ok_or_else(|| {
            let name = &metadata.name;
            let message = format!("Secret {name}: data.{key} is no text in base64");
            at(path, document.first_line, message)
        })?;
        values.insert(key, Password(Arc::from(text)));
    }
    values.extend(string_data.into_iter().map(|(key, text)| (key, Password(Arc::from(text)))));
    Ok((metadata.name, values))
}

#[cfg(test)]
mod tests {
    use cairn_bgp::config::{Password, SpeakerConfig};

    use crate::file::{Error, parse};

    const PEER: &str = "\
apiVersion: cairn.network/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {asn: 65000, routerID: 10.99.0.1}
---
apiVersion: cairn.network/v1alpha1
kind: BGPPeer
metadata: {name: p1}
spec: {address: 10.99.1.1, asn: 65001, passwordSecretRef: {name: keys, key: p1}}
";

    fn with(secret: &str) -> Result<SpeakerConfig, Error> {
        parse("f", &format!("{PEER}---\napiVersion: v1\nkind: Secret\n{secret}"))
    }

    #[test]
    fn a_password_is_text_or_base64() {
        for secret in [
            "metadata: {name: keys}\nstringData: {p1: cairn, p2: other}\n",
            "metadata: {name: keys}\ntype: Opaque\ndata: {p1: Y2Fpcm4=}\n",
            // As in the API, text wins.
            "metadata: {name: keys}\ndata: {p1: b3RoZXI=}\nstringData: {p1: cairn}\n",
        ] {
            let speaker = with(secret).expect(secret);
            let password = speaker.peers["p1"].password.clone();
            assert_eq!(password, Some(Password("cairn".into())), "{secret}");
            assert!(!format!("{speaker:?}").contains("cairn\""), "it stands in no log");
        }
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_quoting_it() {
        let long = "x".repeat(81);
        for (secret, place, said) in [
            ("metadata: {name: other}\n", "f:6:1", "there is no Secret \"keys\" to read"),
            ("metadata: {name: keys}\n", "f:6:1", "has no text under the key \"p1\""),
            (
                "metadata: {name: keys}\nstringData: {p1: ''}\n",
                "f:6:1",
                "\"p1\" of Secret \"keys\" is 0 octets long",
            ),
            (
                &format!("metadata: {{name: keys}}\nstringData: {{p1: {long}}}\n"),
                "f:6:1",
                "is 81 octets long: a TCP MD5 password has 1 to 80",
            ),
            (
                "metadata: {name: keys}\ndata: {p1: xxxx!}\n",
                "f:11:1",
                "Secret keys: data.p1 is no text in base64",
            ),
            ("metadata: {name: keys}\ndata: {p1: /w==}\n", "f:11:1", "no text in base64"),
            ("metadata: {name: keys}\nvalues: {p1: xxxx}\n", "f:", "this Secret cannot be read"),
            ("metadata: {name: keys}\nstringData: [xxxx]\n", "f:", "this Secret cannot be read"),
            (
                "metadata: {name: keys}\nstringData: {p1: xxxx}\n---\n\
                 apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\n",
                "f:16:1",
                "a second Secret \"keys\"",
            ),
        ] {
            let error = with(secret).expect_err(secret).to_string();
            assert!(error.starts_with(place) && error.contains(said), "{secret}: {error}");
            assert!(!error.contains("xxxx"), "{error}");
        }
        let error = parse("f", PEER).expect_err("no Secret").to_string();
        assert!(error.contains("there is no Secret \"keys\""), "{error}");
    }
}
