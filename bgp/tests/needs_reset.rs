//! Which differences between two configurations of a peer end its session: every field has its row.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use cairn_bgp::config::{
    ExportScope, NextHopMode, Password, PeerConfig, PrefixLimit, PrefixLimitAction, ResetReason,
};
use cairn_bgp::policy::Policy;
use cairn_bgp::prefix::{Families, Family};

fn base() -> PeerConfig {
    PeerConfig {
        password: Some(Password("one".into())),
        ..PeerConfig::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 65001)
    }
}

/// The new value's row; it compiles only while it names every field.
fn rows() -> Vec<(PeerConfig, Option<ResetReason>)> {
    let PeerConfig {
        address: _,
        port: _,
        asn: _,
        local_asn: _,
        source_address: _,
        passive: _,
        multihop: _,
        families: _,
        hold_time_secs: _,
        send_hold_time_secs: _,
        connect_retry_secs: _,
        graceful_restart_secs: _,
        password: _,
        ttl_security: _,
        route_reflector_client: _,
        next_hop: _,
        next_hop_ipv6: _,
        extended_next_hop: _,
        export_scope: _,
        enforce_first_as: _,
        own_as_max: _,
        as_path_len_max: _,
        remove_private_as: _,
        discard_attributes: _,
        prefix_limit: _,
        graceful_shutdown: _,
        import: _,
        export: _,
    } = base();
    let policy = || vec![Arc::new(Policy { name: "p".into(), rules: Vec::new() })];
    let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let transport = Some(ResetReason::Transport);
    let capabilities = Some(ResetReason::Capabilities);
    let decoding = Some(ResetReason::Decoding);
    let limit = PrefixLimit { prefixes_max: 1, action: PrefixLimitAction::Warn };
    vec![
        (PeerConfig { address: other, ..base() }, transport),
        (PeerConfig { port: 1790, ..base() }, transport),
        (PeerConfig { asn: 65002, ..base() }, transport),
        (PeerConfig { local_asn: Some(65003), ..base() }, transport),
        (PeerConfig { source_address: Some(other), ..base() }, transport),
        (PeerConfig { multihop: 2, ..base() }, transport),
        (PeerConfig { ttl_security: true, ..base() }, transport),
        (PeerConfig { password: None, ..base() }, Some(ResetReason::Password)),
        (PeerConfig { password: Some(Password("two".into())), ..base() }, None),
        (PeerConfig { families: Families::NONE.with(Family::Ipv4Unicast), ..base() }, capabilities),
        (PeerConfig { hold_time_secs: 30, ..base() }, capabilities),
        (PeerConfig { graceful_restart_secs: Some(60), ..base() }, capabilities),
        (PeerConfig { extended_next_hop: true, ..base() }, capabilities),
        (PeerConfig { next_hop_ipv6: Some(Ipv6Addr::LOCALHOST), ..base() }, capabilities),
        (PeerConfig { enforce_first_as: false, ..base() }, decoding),
        (PeerConfig { discard_attributes: BTreeSet::from([35]), ..base() }, decoding),
        (PeerConfig { passive: true, ..base() }, None),
        (PeerConfig { send_hold_time_secs: 0, ..base() }, None),
        (PeerConfig { connect_retry_secs: 1, ..base() }, None),
        (PeerConfig { route_reflector_client: true, ..base() }, None),
        (PeerConfig { next_hop: NextHopMode::SelfAddress, ..base() }, None),
        (PeerConfig { export_scope: ExportScope::OriginatedOnly, ..base() }, None),
        (PeerConfig { own_as_max: 1, ..base() }, None),
        (PeerConfig { as_path_len_max: Some(9), ..base() }, None),
        (PeerConfig { remove_private_as: true, ..base() }, None),
        (PeerConfig { prefix_limit: Some(limit), ..base() }, None),
        (PeerConfig { graceful_shutdown: true, ..base() }, None),
        (PeerConfig { import: policy(), ..base() }, None),
        (PeerConfig { export: policy(), ..base() }, None),
    ]
}

#[test]
fn every_field_resets_the_session_or_is_taken_up_by_it() {
    assert_eq!(base().needs_reset(&base()), None);
    for (new, expected) in rows() {
        assert_ne!(new, base(), "a row without a difference");
        assert_eq!(base().needs_reset(&new), expected, "{new:?}");
        assert_eq!(new.needs_reset(&base()), expected, "the way back: {new:?}");
    }
    let first = PeerConfig { password: None, ..base() };
    assert_eq!(first.needs_reset(&base()), Some(ResetReason::Password));
}
