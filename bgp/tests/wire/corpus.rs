//! Messages recorded from other speakers, or put together by hand in the shapes that they send. They are the golden tests' input and
//! the seeds of the mutations.

const M: &str = "ffffffffffffffffffffffffffffffff";

/// OPEN in the shape of BIRD 2: one parameter with all capabilities; AS 65001, hold time 240,
/// identifier 10.0.0.1; IPv4 and IPv6, route refresh, extended messages, graceful restart for both
/// families, 4-octet AS, enhanced refresh, long-lived graceful restart (71).
pub const OPEN_BIRD: &str = "0045 01 04 fde9 00f0 0a000001 28 02 26
    0104 0001 00 01  0104 0002 00 01  0200  0600
    400a 0078 0001 01 00 0002 01 80  4104 0000fde9  4600  4700";

/// OPEN in the shape of FRR: a parameter for every capability, the 4-octet AS 4200000001 behind
/// AS_TRANS, ADD-PATH receive, host name (73).
pub const OPEN_FRR: &str = "0057 01 04 5ba0 00b4 0a000002 3a
    02 06 0104 0001 00 01
    02 06 0104 0002 00 01
    02 02 8000
    02 02 0200
    02 06 4104 fa56ea01
    02 06 4504 0001 01 01
    02 06 4904 026e3100
    02 04 4002 c078
    02 02 0600";

/// OPEN of an old speaker: no parameters at all.
pub const OPEN_PLAIN: &str = "001d 01 04 fde9 005a 0a000003 00";

/// OPEN with extended optional parameters (RFC 9072).
pub const OPEN_EXTENDED: &str = "0029 01 04 fde9 005a 0a000004 ff ff 0009 02 0006 4104 0000fde9";

/// OPEN recorded from BIRD 2.0.12: AS 4200000001, extended messages, IPv6 next hops for IPv4.
pub const BIRD_OPEN: &str = "0045 01 04 5ba0 00f0 0a090001 28 02 26
    0104 0001 00 01  0104 0002 00 01  0200  0506 0001 0001 0002  0600
    4002 0078  4104 fa56ea01  4600  4700";

/// UPDATE recorded from BIRD 2.0.12.
pub const BIRD_UPDATE_IPV4: &str = "0050 02 0000 0031
    400101 00  400206 0201fa56ea01  400304 0a090001  800404 00000032  c00804 fde90064
    c0200c 0000fde90000000100000002  00 100a01 180a0203";

/// UPDATE recorded from BIRD 2.0.12.
pub const BIRD_UPDATE_IPV6: &str = "0061 02 0000 004a
    900e 001c 0002 01 10 20010db8000000000000000000000001 00 30 20010db80001
    400101 00  400206 0201fa56ea01  800404 00000032  c00804 fde90064
    c0200c 0000fde90000000100000002";

/// UPDATE recorded from BIRD 2.0.12, to a peer with 2-octet AS numbers.
pub const BIRD_UPDATE_IPV4_AS2: &str = "0057 02 0000 0038
    400101 00  400204 02015ba0  400304 0a090001  800404 00000032  c00804 fde90064
    c01106 0201fa56ea01  c0200c 0000fde90000000100000002  00 100a01 180a0203";

/// UPDATE recorded from BIRD 2.0.12, to a peer with 2-octet AS numbers.
pub const BIRD_UPDATE_IPV6_AS2: &str = "0068 02 0000 0051
    900e 001c 0002 01 10 20010db8000000000000000000000001 00 30 20010db80001
    400101 00  400204 02015ba0  800404 00000032  c00804 fde90064
    c01106 0201fa56ea01  c0200c 0000fde90000000100000002";

/// UPDATE in the shape of BIRD 2: ORIGIN, AS_PATH 65001 65010, NEXT_HOP, MED 50, community 65001:100,
/// large community 65001:1:2; 10.1.0.0/16 and 10.2.3.0/24.
pub const UPDATE_IPV4: &str = "0053 02 0000 0035
    400101 00
    40020a 0202 0000fde9 0000fdf2
    400304 0a000001
    800404 00000032
    c00804 fde90064
    c0200c 0000fde9 00000001 00000002
    10 0a01  18 0a0203";

/// UPDATE with MP_REACH_NLRI in front, extended length, next hop global and link-local, and
/// LOCAL_PREF 200: 2001:db8:1::/48 and ::/0.
pub const UPDATE_IPV6: &str = "005c 02 0000 0045
    900e 002d 0002 01 20
        20010db8000000000000000000000001 fe800000000000000000000000000001
        00 30 20010db80001 00
    400101 00
    400206 0201 0000fde9
    400504 000000c8";

/// UPDATE that withdraws 10.1.0.0/16 and 0.0.0.0/0.
pub const WITHDRAW_IPV4: &str = "001b 02 0004 10 0a01 00 0000";

/// UPDATE that withdraws 2001:db8:1::/48.
pub const WITHDRAW_IPV6: &str = "0024 02 0000 000d 800f 0a 0002 01 30 20010db80001";

/// End-of-RIB of IPv4 unicast.
pub const END_OF_RIB_IPV4: &str = "0017 02 0000 0000";

/// End-of-RIB of IPv6 unicast.
pub const END_OF_RIB_IPV6: &str = "001d 02 0000 0006 800f 03 0002 01";

/// The same with a length of two octets.
pub const END_OF_RIB_IPV6_EXTENDED: &str = "001e 02 0000 0007 900f 0003 0002 01";

/// UPDATE of a speaker with 2-octet AS numbers: AS_PATH 65001 AS_TRANS 65010, AS4_PATH 4200000001
/// 65010, AGGREGATOR AS_TRANS, AS4_AGGREGATOR 4200000001: 192.0.2.0/24.
pub const UPDATE_AS2: &str = "0052 02 0000 0037
    400101 02
    400208 0203 fde9 5ba0 fdf2
    400304 0a000001
    c00706 5ba0 0a000009
    c0110a 0202 fa56ea01 0000fdf2
    c01208 fa56ea01 0a000009
    18 c00002";

/// UPDATE of a route reflector: ORIGINATOR_ID and CLUSTER_LIST, an unknown optional transitive
/// attribute (99): 10.4.0.0/24.
pub const UPDATE_REFLECTED: &str = "0047 02 0000 002c
    400101 00
    400200
    400304 0a000001
    400504 00000064
    800904 0a000007
    800a08 0a0000c8 0a0000c9
    e0630200 01
    18 0a0400";

/// UPDATE of an unnumbered session (RFC 8950): IPv4 10.5.0.0/16 by an IPv6 next hop.
pub const UPDATE_EXTENDED_NEXT_HOP: &str = "003f 02 0000 0028
    800e 18 0001 01 10 fe800000000000000000000000000002 00 10 0a05
    400101 00
    400206 0201 0000fde9";

/// NOTIFICATION: administrative shutdown with a text.
pub const NOTIFICATION_SHUTDOWN: &str = "001e 03 06 02 08 7570 6772 6164 6521";

/// NOTIFICATION: hard reset that wraps an expired hold timer.
pub const NOTIFICATION_HARD_RESET: &str = "0017 03 06 09 04 00";

/// KEEPALIVE.
pub const KEEPALIVE: &str = "0013 04";

/// ROUTE-REFRESH of IPv6 unicast.
pub const ROUTE_REFRESH: &str = "0017 05 0002 00 01";

/// The octets of a message of this file.
pub fn octets(text: &str) -> Vec<u8> {
    super::build::hex(&[M, text].concat())
}

/// Every message of this file.
pub const ALL: &[&str] = &[
    OPEN_BIRD,
    OPEN_FRR,
    OPEN_PLAIN,
    OPEN_EXTENDED,
    UPDATE_IPV4,
    UPDATE_IPV6,
    WITHDRAW_IPV4,
    WITHDRAW_IPV6,
    END_OF_RIB_IPV4,
    END_OF_RIB_IPV6,
    END_OF_RIB_IPV6_EXTENDED,
    BIRD_OPEN,
    BIRD_UPDATE_IPV4,
    BIRD_UPDATE_IPV6,
    BIRD_UPDATE_IPV4_AS2,
    BIRD_UPDATE_IPV6_AS2,
    UPDATE_AS2,
    UPDATE_REFLECTED,
    UPDATE_EXTENDED_NEXT_HOP,
    NOTIFICATION_SHUTDOWN,
    NOTIFICATION_HARD_RESET,
    KEEPALIVE,
    ROUTE_REFRESH,
];
