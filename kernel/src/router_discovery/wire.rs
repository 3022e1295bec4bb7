//! Router solicitations and advertisements on the wire (RFC 4861 sections 4.1 and 4.2), and the question whether
//! an address is on the link (sections 4.3 and 4.4).

use std::net::Ipv6Addr;

use crate::link::Mac;

/// A valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody asks for advertisements.
    Solicitation,
    /// A router advertises itself.
    Advertisement {
        /// For how many seconds hosts may use it as default router; 0 is not at all.
        lifetime_secs: u16,
        /// The Ethernet address from which it says that it sends.
        mac: Option<Mac>,
    },
    /// An address is on the link.
    Present {
        /// That address.
        target: Ipv6Addr,
    },
}

/// Why a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It may come from anywhere: a router on the way has lowered the hop limit.
    #[error("its hop limit is not 255")]
    HopLimit,
    /// An advertisement comes from a link-local address.
    #[error("its source is not link-local")]
    Source,
    /// None of these.
    #[error("it has another type or code")]
    Type,
    /// It ends too early.
    #[error("it is too short")]
    Short,
    /// An option of length 0, one longer than the message, or one that may not be there.
    #[error("its options are malformed")]
    Options,
}

/// Reads a message, without the IPv6 header, that came from `source`. The kernel has verified its checksum.
///
/// # Errors
/// It has to be dropped without a word (RFC 4861 sections 6.1.1 and 6.1.2).
pub fn decode(octets: &[u8], source: Ipv6Addr, hop_limit: u8) -> Result<Message, Invalid> {
    if hop_limit != HOP_LIMIT {
        return Err(Invalid::HopLimit);
    }
    let fixed = match octets {
        [SOLICITATION, 0, ..] => SOLICITATION_OCTETS,
        [ADVERTISEMENT, 0, ..] => ADVERTISEMENT_OCTETS,
        [NEIGHBOUR_ADVERTISEMENT, 0, ..] => NEIGHBOUR_OCTETS,
        [SOLICITATION | ADVERTISEMENT | NEIGHBOUR_ADVERTISEMENT] | [] => {
            return Err(Invalid::Short);
        }
        _ => return Err(Invalid::Type),
    };
    let (head, options) = octets.split_at_checked(fixed).ok_or(Invalid::Short)?;
    let source_link = scan_options(options)?;
    match head {
        [SOLICITATION, ..] if source.is_unspecified() && source_link.is_some() => {
            Err(Invalid::Options)
        }
        [SOLICITATION, ..] => Ok(Message::Solicitation),
        _ if !source.is_unicast_link_local() => Err(Invalid::Source),
        [ADVERTISEMENT, _, _, _, _, _, high, low, ..] => Ok(Message::Advertisement {
            lifetime_secs: u16::from_be_bytes([*high, *low]),
            mac: source_link.and_then(|octets| octets.try_into().ok()).map(Mac),
        }),
        _ => {
            let target = head.last_chunk::<16>().ok_or(Invalid::Short)?;
            Ok(Message::Present { target: Ipv6Addr::from(*target) })
        }
    }
}

/// The source link-layer address among the options, which are not read further.
fn scan_options(mut octets: &[u8]) -> Result<Option<&[u8]>, Invalid> {
    let mut source_link = None;
    while let [kind, eights, ..] = octets {
        let length = usize::from(*eights) * 8;
        let option = octets.split_at_checked(length).filter(|_| length > 0);
        let (option, rest) = option.ok_or(Invalid::Options)?;
        if *kind == SOURCE_LINK_ADDRESS {
            source_link = option.get(2..);
        }
        octets = rest;
    }
    if octets.is_empty() { Ok(source_link) } else { Err(Invalid::Options) }
}

/// A router solicitation from a link with this Ethernet address. The kernel writes the checksum.
pub fn solicitation(mac: Option<Mac>) -> Vec<u8> {
    let mut octets = vec![0; SOLICITATION_OCTETS];
    octets[0] = SOLICITATION;
    push_source_link(&mut octets, mac);
    octets
}

/// An advertisement of lifetime 0 that leaves every value of hosts unspecified. The kernel writes the
/// checksum.
pub fn advertisement(mac: Option<Mac>) -> Vec<u8> {
    let mut octets = vec![0; ADVERTISEMENT_OCTETS];
    octets[0] = ADVERTISEMENT;
    push_source_link(&mut octets, mac);
    octets
}

/// The question whether `target` is on the link (RFC 4861 section 4.3). The kernel writes the checksum.
pub fn neighbour_solicitation(target: Ipv6Addr, mac: Option<Mac>) -> Vec<u8> {
    let mut octets = vec![0; NEIGHBOUR_OCTETS - 16];
    octets[0] = NEIGHBOUR_SOLICITATION;
    octets.extend(target.octets());
    push_source_link(&mut octets, mac);
    octets
}

fn push_source_link(octets: &mut Vec<u8>, mac: Option<Mac>) {
    if let Some(Mac(mac)) = mac {
        octets.extend([SOURCE_LINK_ADDRESS, 1]);
        octets.extend(mac);
    }
}

/// What has not passed a router.
pub(super) const HOP_LIMIT: u8 = 255;
/// ICMPv6 types (RFC 4861 sections 4.1 and 4.2).
pub(super) const SOLICITATION: u8 = 133;
pub(super) const ADVERTISEMENT: u8 = 134;
/// RFC 4861 sections 4.3 and 4.4.
const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// RFC 4861 section 4.6.1.
const SOURCE_LINK_ADDRESS: u8 = 1;
/// Octets before the options.
const SOLICITATION_OCTETS: usize = 8;
const ADVERTISEMENT_OCTETS: usize = 16;
const NEIGHBOUR_OCTETS: usize = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn link_local() -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)
    }

    fn advertised(mac: Option<Mac>) -> Message {
        Message::Advertisement { lifetime_secs: 0, mac }
    }

    #[test]
    fn what_is_sent_is_what_the_rfc_has() {
        let octets = advertisement(Some(MAC));
        assert_eq!(octets[..16], [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(octets[16..], [1, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(solicitation(Some(MAC)), [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1]);
        for mac in [None, Some(MAC)] {
            assert_eq!(decode(&advertisement(mac), link_local(), 255), Ok(advertised(mac)));
            let solicited = decode(&solicitation(mac), link_local(), 255);
            assert_eq!(solicited, Ok(Message::Solicitation));
        }
    }

    /// As FRR 8.4 sends it: lifetime 0, an interval option and the source link-layer address.
    #[test]
    fn an_advertisement_of_frr() {
        let octets = [
            134, 0, 0x5a, 0x21, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0, 0, 0, 0, 0x27, 0x10,
            1, 1, 0x6a, 0xa5, 0x0e, 1, 2, 3,
        ];
        let mac = Some(Mac([0x6a, 0xa5, 0x0e, 1, 2, 3]));
        assert_eq!(decode(&octets, link_local(), 255), Ok(advertised(mac)));
    }

    #[test]
    fn an_address_is_asked_for_and_answers() {
        let target = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        let asked = neighbour_solicitation(target, Some(MAC));
        assert_eq!(asked[..9], [135, 0, 0, 0, 0, 0, 0, 0, 0xfe]);
        assert_eq!(asked[23..], [2, 1, 1, 2, 0, 0, 0, 0, 1]);
        // As Linux answers: solicited, with the target's link-layer address.
        let mut answer = vec![136, 0, 0x12, 0x34, 0x60, 0, 0, 0];
        answer.extend(target.octets());
        answer.extend([2, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(decode(&answer, target, 255), Ok(Message::Present { target }));
        assert_eq!(decode(&answer, target, 64), Err(Invalid::HopLimit));
        assert_eq!(decode(&answer[..20], target, 255), Err(Invalid::Short));
    }

    #[test]
    fn each_rule_of_validation_is_kept() {
        let good = advertisement(Some(MAC));
        let with = |at: usize, value: u8| {
            let mut octets = good.clone();
            octets[at] = value;
            octets
        };
        let global: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        for (octets, source, hop_limit, why) in [
            (good.clone(), link_local(), 254, Invalid::HopLimit),
            (good.clone(), global, 255, Invalid::Source),
            (good.clone(), Ipv6Addr::UNSPECIFIED, 255, Invalid::Source),
            (with(0, 135), link_local(), 255, Invalid::Type),
            (with(1, 1), link_local(), 255, Invalid::Type),
            (good[..15].to_vec(), link_local(), 255, Invalid::Short),
            (good[..1].to_vec(), link_local(), 255, Invalid::Short),
            (Vec::new(), link_local(), 255, Invalid::Short),
            (with(17, 0), link_local(), 255, Invalid::Options),
            (with(17, 2), link_local(), 255, Invalid::Options),
            (good[..17].to_vec(), link_local(), 255, Invalid::Options),
            (solicitation(Some(MAC)), Ipv6Addr::UNSPECIFIED, 255, Invalid::Options),
            (solicitation(None)[..7].to_vec(), link_local(), 255, Invalid::Short),
        ] {
            assert_eq!(decode(&octets, source, hop_limit), Err(why), "{octets:?}");
        }
        let unspecified = decode(&solicitation(None), Ipv6Addr::UNSPECIFIED, 255);
        assert_eq!(unspecified, Ok(Message::Solicitation), "a host that has no address yet");
    }

    proptest! {
        /// Whatever comes is read or dropped, and only what begins as a message of ours is read.
        #[test]
        #[test]
        fn any_octets(
            octets in proptest::collection::vec(any::<u8>(), 0..64),
            begins in prop_oneof![Just([133, 0]), Just([134, 0]), Just([136, 0]), any::<[u8; 2]>()],
            hop_limit in prop_oneof![Just(255_u8), any::<u8>()],
        ) {
            let octets: Vec<u8> = begins.into_iter().chain(octets).collect();
            if let Ok(message) = decode(&octets, link_local(), hop_limit) {
                prop_assert_eq!(hop_limit, 255);
                let (begins, length) = match message {
                    Message::Solicitation => (133, 8),
                    Message::Advertisement { .. } => (134, 16),
                    Message::Present { .. } => (136, 24),
                };
                prop_assert!(octets[0] == begins && octets[1] == 0 && octets.len() >= length);
                prop_assert_eq!(octets.len() % 8, 0);
            }
        }

        /// Options that are well-formed are passed over, whatever they are.
        #[test]
        #[test]
        fn unknown_options(kinds in proptest::collection::vec((any::<u8>(), 1_u8..4), 0..6)) {
            let mut octets = advertisement(Some(MAC));
            octets[6..8].copy_from_slice(&1800_u16.to_be_bytes());
            for (kind, eights) in kinds {
                octets.extend([kind, eights]);
                octets.extend(vec![0xa5; usize::from(eights) * 8 - 2]);
            }
            let message = decode(&octets, link_local(), 255);
            let is_as_sent =
                matches!(message, Ok(Message::Advertisement { lifetime_secs: 1800, .. }));
            prop_assert!(is_as_sent, "{message:?}");
        }
    }
}
