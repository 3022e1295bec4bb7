//! The text that a pod's host interface carries as its alias: the node's record of who holds which
//! address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::NetworkHash;

/// What the alias says: `cairn2 CONTAINER INTERFACE UID NETWORK ADDRESS[,ADDRESS]`, fields between
/// single spaces, `-` for no UID. The number is the form's version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alias {
    /// The container id of the pod's sandbox.
    pub container_id: String,
    /// The interface's name inside the pod.
    pub ifname: String,
    /// The pod's UID, where the runtime told it.
    pub pod_uid: Option<String>,
    /// The network configuration by which the interface was asked for.
    pub network: NetworkHash,
    /// The pod's addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

/// The longest alias that the kernel keeps, in bytes (`IFALIASZ` less one).
pub const ALIAS_MAX: usize = 255;

/// Why a text is no alias of ours, or an alias cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// The text does not begin with the version that this agent writes.
    #[error("it does not begin with {VERSION:?}")]
    Version,
    /// A field is missing, or there is one too many.
    #[error("it does not have six fields")]
    Fields,
    /// The network cannot be read.
    #[error("{0:?} does not stand for a network")]
    Network(String),
    /// An address cannot be read.
    #[error("{0:?} is not an address")]
    Address(String),
    /// A field is empty or holds white space.
    #[error("{0:?} cannot be a field of an interface's alias")]
    Unwritable(String),
    /// The text would be longer than the kernel keeps.
    #[error("it has {0} bytes, the kernel keeps {ALIAS_MAX}")]
    TooLong(usize),
}

impl Alias {
    /// The text.
    ///
    /// # Errors
    /// [`AliasError::Unwritable`] and [`AliasError::TooLong`].
    pub fn encode(&self) -> Result<String, AliasError> {
        let uid = self.pod_uid.as_deref().unwrap_or(NO_UID);
        for field in [self.container_id.as_str(), self.ifname.as_str(), uid] {
            if field.is_empty() || field.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(AliasError::Unwritable(field.into()));
            }
        }
        if self.addresses.is_empty() {
            return Err(AliasError::Fields);
        }
        let text = self.to_string();
        match text.len() {
            0..=ALIAS_MAX => Ok(text),
            length => Err(AliasError::TooLong(length)),
        }
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uid = self.pod_uid.as_deref().unwrap_or(NO_UID);
        let Alias { container_id, ifname, network, .. } = self;
        write!(f, "{VERSION} {container_id} {ifname} {uid} {network} ")?;
        for (position, address) in self.addresses.iter().enumerate() {
            let before = if position == 0 { "" } else { "," };
            write!(f, "{before}{address}")?;
        }
        Ok(())
    }
}

impl FromStr for Alias {
    type Err = AliasError;

    fn from_str(text: &str) -> Result<Alias, AliasError> {
        if text.len() > ALIAS_MAX {
            return Err(AliasError::TooLong(text.len()));
        }
        let mut fields = text.split(' ');
        if fields.next() != Some(VERSION) {
            return Err(AliasError::Version);
        }
        let mut field = || fields.next().filter(|field| !field.is_empty());
        let (Some(container_id), Some(ifname), Some(uid), Some(network), Some(addresses)) =
            (field(), field(), field(), field(), field())
        else {
            return Err(AliasError::Fields);
        };
        if fields.next().is_some() {
            return Err(AliasError::Fields);
        }
        let address = |text: &str| text.parse().map_err(|_| AliasError::Address(text.into()));
        Ok(Alias {
            container_id: container_id.into(),
            ifname: ifname.into(),
            pod_uid: (uid != NO_UID).then(|| uid.into()),
            network: network.parse()?,
            addresses: addresses.split(',').map(address).collect::<Result<_, _>>()?,
        })
    }
}

const VERSION: &str = "cairn2";
const NO_UID: &str = "-";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alias() -> impl Strategy<Value = Alias> {
        let address = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ];
        let fields = (
            "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}",
            "[!-.0-9;-~]{1,15}",
            proptest::option::of("[a-z0-9][a-z0-9-]{0,35}"),
            "[a-z]{1,9}",
            proptest::collection::vec(address, 1..=2),
        );
        fields.prop_map(|(container_id, ifname, pod_uid, network, addresses)| Alias {
            container_id,
            ifname,
            pod_uid,
            network: NetworkHash::of(&network),
            addresses,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(alias in alias()) {
            match alias.encode() {
                Ok(text) => {
                    prop_assert!(text.len() <= ALIAS_MAX);
                    prop_assert_eq!(text.parse::<Alias>(), Ok(alias));
                }
                Err(error) => prop_assert!(matches!(error, AliasError::TooLong(_)), "{error}"),
            }
        }

        #[test]
        fn whatever_is_read_does_no_harm(text in "(cairn2 )?[ a-f0-9:.,-]{0,300}") {
            if let Ok(alias) = text.parse::<Alias>() {
                prop_assert_eq!(alias.to_string().parse::<Alias>(), Ok(alias));
            }
        }
    }

    #[test]
    fn the_longest_identifiers_fit() {
        let alias = Alias {
            container_id: "c".repeat(128),
            ifname: "i".repeat(15),
            pod_uid: Some("u".repeat(40)),
            network: NetworkHash::of("cairn"),
            addresses: vec![
                "255.255.255.255".parse().unwrap(),
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(),
            ],
        };
        assert_eq!(alias.encode().unwrap().len(), ALIAS_MAX);
    }

    #[test]
    fn what_is_no_record_says_why() {
        for (text, error) in [
            ("", AliasError::Version),
            ("uplink to rack 7", AliasError::Version),
            ("cairn1 c eth0 - 10.0.0.1", AliasError::Version),
            ("cairn2", AliasError::Fields),
            ("cairn2 c eth0 - 10.0.0.1", AliasError::Fields),
            ("cairn2 c eth0 - 012abc", AliasError::Fields),
            ("cairn2 c  - 012abc 10.0.0.1", AliasError::Fields),
            ("cairn2 c eth0 - 012abc 10.0.0.1 x", AliasError::Fields),
            ("cairn2 c eth0 - cairn 10.0.0.1", AliasError::Network("cairn".into())),
            ("cairn2 c eth0 - 012abc 10.0.0.256", AliasError::Address("10.0.0.256".into())),
            ("cairn2 c eth0 - 012abc 10.0.0.1,", AliasError::Address(String::new())),
        ] {
            assert_eq!(text.parse::<Alias>(), Err(error), "{text:?}");
        }
        let good: Alias = "cairn2 c eth0 - 012abc 10.0.0.1".parse().unwrap();
        for (container_id, ifname) in [("a b", "eth0"), ("", "eth0"), ("c", "a\nb"), ("c", "")] {
            let bad =
                Alias { container_id: container_id.into(), ifname: ifname.into(), ..good.clone() };
            assert!(matches!(bad.encode(), Err(AliasError::Unwritable(_))), "{bad:?}");
        }
        assert_eq!(Alias { addresses: vec![], ..good }.encode(), Err(AliasError::Fields));
    }
}
