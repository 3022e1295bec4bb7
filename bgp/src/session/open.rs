//! What goes into our OPEN and what is demanded of the peer's (RFC 4271 section 6.2).

use crate::prefix::{Families, Family};
use crate::wire::{
    Capability, GracefulRestart, GracefulRestartFamily, Negotiated, Notification,
    NotificationError, Open, OpenError,
};

use super::{LocalAddresses, Restart, SessionConfig};

/// The OPEN for a connection whose local addresses are `addresses`. A family is offered when routes
/// of it can have a next hop of ours.
pub(super) fn local_open(
    config: &SessionConfig,
    addresses: LocalAddresses,
    restart: Restart,
) -> Open {
    let families: Families = config.families.iter().filter(|f| addresses.covers(*f)).collect();
    let mut capabilities: Vec<_> = families.iter().map(Capability::multiprotocol).collect();
    capabilities.push(Capability::RouteRefresh);
    if let Some(restart_time_secs) = config.graceful_restart_secs {
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarting: restart.restarting,
            notification: false,
            restart_time_secs: restart_time_secs.min(RESTART_TIME_SECS_MAX),
            families: families
                .iter()
                .map(|family| GracefulRestartFamily {
                    afi: family.afi(),
                    safi: family.safi(),
                    forwarding: restart.forwarding_preserved,
                })
                .collect(),
        }));
    }
    capabilities.push(Capability::FourOctetAs(config.local_asn));
    Open {
        asn: config.local_asn,
        hold_time_secs: config.hold_time_secs,
        router_id: config.router_id,
        capabilities,
    }
}

/// A peer's OPEN that cannot be accepted.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) notification: Notification,
    /// For the operator: what is wrong and what to do.
    pub(super) text: String,
}

/// Compares the peer's OPEN with the configuration.
pub(super) fn accept(
    config: &SessionConfig,
    local: &Open,
    peer: &Open,
) -> Result<Negotiated, Refusal> {
    if let Err(notification) = peer.check_peer(config.peer_asn, config.local_asn, config.router_id)
    {
        let text = match notification.error {
            NotificationError::Open(OpenError::BadPeerAs) => format!(
                "peer says AS {}, configured is {}: correct spec.asn of the BGPPeer or the peer",
                peer.asn, config.peer_asn
            ),
            NotificationError::Open(OpenError::BadIdentifier) => format!(
                "peer has our own BGP identifier {}: give one of both another router ID",
                config.router_id
            ),
            _ => format!("OPEN refused: {notification}"),
        };
        return Err(Refusal { notification, text });
    }
    let negotiated = Negotiated::new(local, peer);
    if negotiated.families.is_empty() {
        let names = |families: Families| match families.is_empty() {
            true => "none".to_owned(),
            false => families.iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", "),
        };
        let text = format!(
            "no address family in common: peer offers {}, we offer {}: correct families of the \
             BGPPeer or the peer{}",
            names(peer.families()),
            names(local.families()),
            if local.families() == config.families {
                ""
            } else {
                " (a family without a local address of its own on the session's interface is not offered)"
            }
        );
        let notification = OpenError::UnsupportedCapability.into();
        return Err(Refusal { notification, text });
    }
    Ok(negotiated)
}

/// Which connection survives when both sides connected at once (RFC 4271 section 6.8, RFC 6286
/// section 2.3): the one that the speaker with the higher identifier opened; among equal
/// identifiers the one of the higher AS number.
pub(super) fn keeps_outgoing(local: &Open, peer: &Open) -> bool {
    (local.router_id, local.asn) > (peer.router_id, peer.asn)
}

/// Families of the peer's graceful restart capability that are in use.
pub(super) fn restart_families(negotiated: Families, restart: &GracefulRestart) -> Families {
    listed(restart, |_| true).intersection(negotiated)
}

/// Families that the peer kept forwarding (F bit).
pub(super) fn forwarding_families(restart: &GracefulRestart) -> Families {
    listed(restart, |family| family.forwarding)
}

fn listed(restart: &GracefulRestart, wanted: impl Fn(&GracefulRestartFamily) -> bool) -> Families {
    let families = restart.families.iter().filter(|f| wanted(f));
    families.filter_map(|f| Family::from_afi_safi(f.afi, f.safi)).collect()
}

/// The field has 12 bits (RFC 4724 section 3).
const RESTART_TIME_SECS_MAX: u16 = 4095;
