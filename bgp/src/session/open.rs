//! What goes into our OPEN and what is demanded of the peer's (RFC 4271 section 6.2).

use crate::config::AddPath;
use crate::prefix::{Families, Family};
use crate::wire::{
    AddPathMode, Capability, ExtendedNextHop, GracefulRestart, GracefulRestartFamily,
    LongLivedFamily, Negotiated, Notification, NotificationError, Open, OpenError,
};

use super::{LeftOut, LocalAddresses, Restart, SessionConfig};

/// The OPEN for a connection whose local addresses are `addresses`. A family is offered when routes
/// of it can have a next hop of ours.
pub(super) fn local_open(
    config: &SessionConfig,
    addresses: LocalAddresses,
    restart: Restart,
) -> Open {
    let covers = |family: &Family| addresses.covers(*family, config.extended_next_hop);
    let families: Families = config.families.iter().filter(covers).collect();
    let mut capabilities: Vec<_> = families.iter().map(Capability::multiprotocol).collect();
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    capabilities.push(Capability::ExtendedMessage);
    if config.extended_next_hop && families.contains(Family::Ipv4Unicast) {
        let ipv4 = Family::Ipv4Unicast;
        capabilities.push(Capability::ExtendedNextHop(vec![ExtendedNextHop {
            afi: ipv4.afi(),
            safi: ipv4.safi().into(),
            next_hop_afi: Family::Ipv6Unicast.afi(),
        }]));
    }
    if let Some(mode) = add_path_mode(config.add_path) {
        let entries = families.iter().map(|family| (family.afi(), family.safi(), mode));
        capabilities.push(Capability::AddPath(entries.collect()));
    }
    if let Some(graceful) = &config.graceful_restart {
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarting: restart.restarting,
            notification: graceful.notification,
            restart_time_secs: graceful.restart_time_secs.min(RESTART_TIME_SECS_MAX),
            families: families
                .iter()
                .map(|family| GracefulRestartFamily {
                    afi: family.afi(),
                    safi: family.safi(),
                    forwarding: restart.forwarding_preserved,
                })
                .collect(),
        }));
        if let Some(long_lived) = &graceful.long_lived {
            let long_lived = families.iter().map(|family| LongLivedFamily {
                afi: family.afi(),
                safi: family.safi(),
                forwarding: restart.forwarding_preserved,
                stale_time_secs: long_lived.stale_time_secs,
            });
            let capability = Capability::LongLivedGracefulRestart(long_lived.collect());
            capabilities.push(capability);
        }
    }
    capabilities.push(Capability::FourOctetAs(config.local_asn));
    Open {
        asn: config.local_asn,
        hold_time_secs: config.hold_time_secs,
        router_id: config.router_id,
        capabilities,
    }
}

/// What an entry of the ADD-PATH capability says, if there is to be one.
fn add_path_mode(config: AddPath) -> Option<AddPathMode> {
    match (config.receive, config.send_max > 0) {
        (false, false) => None,
        (true, false) => Some(AddPathMode::Receive),
        (false, true) => Some(AddPathMode::Send),
        (true, true) => Some(AddPathMode::Both),
    }
}

/// What follows from a peer's OPEN.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) negotiated: Negotiated,
    /// Configured families that are not in use.
    pub(super) left_out: Vec<(Family, LeftOut)>,
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
    addresses: LocalAddresses,
    local: &Open,
    peer: &Open,
) -> Result<Accepted, Refusal> {
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
    let mut negotiated = Negotiated::new(local, peer);
    let in_use = |family: &Family| addresses.covers(*family, negotiated.extended_next_hop);
    let families: Families = negotiated.families.iter().filter(in_use).collect();
    negotiated.families = families;
    negotiated.add_path.receive = negotiated.add_path.receive.intersection(families);
    negotiated.add_path.send = negotiated.add_path.send.intersection(families);
    let left_out = config.families.iter().filter_map(|family| {
        let reason = match () {
            () if negotiated.families.contains(family) => return None,
            () if !local.families().contains(family) => LeftOut::NoNextHop,
            () if !peer.families().contains(family) => LeftOut::NotOffered,
            () => LeftOut::NoExtendedNextHop,
        };
        Some((family, reason))
    });
    let left_out: Vec<_> = left_out.collect();
    if negotiated.families.is_empty() {
        let names = |families: Families| match families.is_empty() {
            true => "none".to_owned(),
            false => families.iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", "),
        };
        let reasons: Vec<_> = left_out.iter().map(|(f, why)| format!("{f}: {why}")).collect();
        let text = format!(
            "no address family in common: peer offers {}, we offer {} ({})",
            names(peer.families()),
            names(local.families()),
            reasons.join("; ")
        );
        // RFC 5492 section 5: what is missed, as it would stand in an OPEN.
        let missed: Vec<_> = config.families.iter().map(Capability::multiprotocol).collect();
        let error = NotificationError::Open(OpenError::UnsupportedCapability);
        let notification = Notification::with_data(error, Capability::encode_all(&missed));
        return Err(Refusal { notification, text });
    }
    Ok(Accepted { negotiated, left_out })
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
