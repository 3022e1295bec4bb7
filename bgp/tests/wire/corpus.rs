//! The messages of `bgp/tests/corpus`: recorded from other speakers, put together by hand in the shapes
//! that they send, and those that once showed a mistake. They are the golden tests' input and the seeds
//! of the mutations.

pub const OPEN_BIRD: &str = include_str!("../corpus/open-bird.hex");
pub const OPEN_FRR: &str = include_str!("../corpus/open-frr.hex");
pub const OPEN_PLAIN: &str = include_str!("../corpus/open-plain.hex");
pub const OPEN_EXTENDED: &str = include_str!("../corpus/open-extended.hex");
pub const BIRD_OPEN: &str = include_str!("../corpus/bird-open.hex");
pub const BIRD_UPDATE_IPV4: &str = include_str!("../corpus/bird-update-ipv4.hex");
pub const BIRD_UPDATE_IPV6: &str = include_str!("../corpus/bird-update-ipv6.hex");
pub const BIRD_UPDATE_IPV4_AS2: &str = include_str!("../corpus/bird-update-ipv4-as2.hex");
pub const BIRD_UPDATE_IPV6_AS2: &str = include_str!("../corpus/bird-update-ipv6-as2.hex");
pub const UPDATE_IPV4: &str = include_str!("../corpus/update-ipv4.hex");
pub const UPDATE_IPV6: &str = include_str!("../corpus/update-ipv6.hex");
pub const WITHDRAW_IPV4: &str = include_str!("../corpus/withdraw-ipv4.hex");
pub const WITHDRAW_IPV6: &str = include_str!("../corpus/withdraw-ipv6.hex");
pub const END_OF_RIB_IPV4: &str = include_str!("../corpus/end-of-rib-ipv4.hex");
pub const END_OF_RIB_IPV6: &str = include_str!("../corpus/end-of-rib-ipv6.hex");
pub const END_OF_RIB_IPV6_EXTENDED: &str = include_str!("../corpus/end-of-rib-ipv6-extended.hex");
pub const UPDATE_AS2: &str = include_str!("../corpus/update-as2.hex");
pub const UPDATE_REFLECTED: &str = include_str!("../corpus/update-reflected.hex");
pub const UPDATE_EXTENDED_NEXT_HOP: &str = include_str!("../corpus/update-extended-next-hop.hex");
pub const NOTIFICATION_SHUTDOWN: &str = include_str!("../corpus/notification-shutdown.hex");
pub const NOTIFICATION_HARD_RESET: &str = include_str!("../corpus/notification-hard-reset.hex");
pub const KEEPALIVE: &str = include_str!("../corpus/keepalive.hex");
pub const ROUTE_REFRESH: &str = include_str!("../corpus/route-refresh.hex");
pub const REFRESH_BEGIN: &str = include_str!("../corpus/refresh-begin.hex");
pub const REFRESH_END: &str = include_str!("../corpus/refresh-end.hex");
pub const UPDATE_FOREIGN: &str = include_str!("../corpus/update-foreign.hex");
pub const UPDATE_COMMUNITIES: &str = include_str!("../corpus/update-communities.hex");
pub const REGRESSION_MP_REACH_OVERRUNS: &str =
    include_str!("../corpus/regression-mp-reach-overruns.hex");
pub const REGRESSION_MP_FLAGS: &str = include_str!("../corpus/regression-mp-flags.hex");
pub const REGRESSION_NEXT_HOP_IGNORED: &str =
    include_str!("../corpus/regression-next-hop-ignored.hex");
pub const REGRESSION_SEGMENT_OVERRUN: &str =
    include_str!("../corpus/regression-segment-overrun.hex");
pub const REGRESSION_AS4_PATH_SET: &str = include_str!("../corpus/regression-as4-path-set.hex");
pub const REGRESSION_EMPTY_ATTRIBUTES: &str =
    include_str!("../corpus/regression-empty-attributes.hex");
pub const REGRESSION_HARD_RESET_NESTED: &str =
    include_str!("../corpus/regression-hard-reset-nested.hex");
pub const REGRESSION_OPEN_EXTENDED_EMPTY: &str =
    include_str!("../corpus/regression-open-extended-empty.hex");
pub const REGRESSION_AS4_PATH_TWO_OCTET_AGGREGATOR: &str =
    include_str!("../corpus/regression-as4-path-two-octet-aggregator.hex");

/// The octets of a message of the corpus: hexadecimal digits, lines with `#` are for the reader.
pub fn octets(text: &str) -> Vec<u8> {
    let digits = text.lines().filter(|line| !line.starts_with('#')).collect::<String>();
    super::build::hex(&digits)
}

/// Every message.
pub const ALL: &[&str] = &[
    OPEN_BIRD,
    OPEN_FRR,
    OPEN_PLAIN,
    OPEN_EXTENDED,
    BIRD_OPEN,
    BIRD_UPDATE_IPV4,
    BIRD_UPDATE_IPV6,
    BIRD_UPDATE_IPV4_AS2,
    BIRD_UPDATE_IPV6_AS2,
    UPDATE_IPV4,
    UPDATE_IPV6,
    WITHDRAW_IPV4,
    WITHDRAW_IPV6,
    END_OF_RIB_IPV4,
    END_OF_RIB_IPV6,
    END_OF_RIB_IPV6_EXTENDED,
    UPDATE_AS2,
    UPDATE_REFLECTED,
    UPDATE_EXTENDED_NEXT_HOP,
    NOTIFICATION_SHUTDOWN,
    NOTIFICATION_HARD_RESET,
    KEEPALIVE,
    ROUTE_REFRESH,
    REFRESH_BEGIN,
    REFRESH_END,
    UPDATE_FOREIGN,
    UPDATE_COMMUNITIES,
    REGRESSION_MP_REACH_OVERRUNS,
    REGRESSION_MP_FLAGS,
    REGRESSION_NEXT_HOP_IGNORED,
    REGRESSION_SEGMENT_OVERRUN,
    REGRESSION_AS4_PATH_SET,
    REGRESSION_EMPTY_ATTRIBUTES,
    REGRESSION_HARD_RESET_NESTED,
    REGRESSION_OPEN_EXTENDED_EMPTY,
    REGRESSION_AS4_PATH_TWO_OCTET_AGGREGATOR,
];
