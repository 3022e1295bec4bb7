//! Routing rules: which tables packets are routed by. Only read.

use crate::batch::{Batch, attributes, read_u32};
use crate::error::Error;
use crate::route::Family;
use crate::socket::Netlink;

/// Whether any rule of `family` leads to `table`. Rules for devices of virtual routing domains (VRF) lead
/// to the tables of all of them.
///
/// # Errors
/// Those of [`Netlink::dump`]. A kernel without rules routes by the tables main and default only.
pub fn leads_to(netlink: &mut Netlink, family: Family, table: u32) -> Result<bool, Error> {
    let mut header = [0; HEADER_BYTES];
    header[0] = match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    let mut batch = Batch::new();
    batch.begin(libc::RTM_GETRULE, 0, &header);
    let found = netlink.dump(&mut batch, |kind, body| match kind {
        libc::RTM_NEWRULE => parse(body).map(Some),
        _ => Ok(None),
    })?;
    Ok(found.into_iter().any(|rule| match rule {
        Rule::Table(to) => to == table,
        Rule::Domains => true,
        Rule::Other => false,
    }))
}

/// Where a rule leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Table(u32),
    /// To the table of the device's VRF.
    Domains,
    Other,
}

fn parse(body: &[u8]) -> Result<Rule, Error> {
    let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::Malformed("a short routing rule"));
    };
    let [_, _, _, _, table, _, _, action, ..] = *header;
    let mut rule = match action {
        FR_ACT_TO_TBL => Rule::Table(u32::from(table)),
        _ => Rule::Other,
    };
    for (kind, value) in attributes(rest) {
        match (kind, rule) {
            (FRA_TABLE, Rule::Table(short)) => {
                rule = Rule::Table(read_u32(value).unwrap_or(short));
            }
            (FRA_L3MDEV, Rule::Table(_)) if value.iter().any(|octet| *octet != 0) => {
                return Ok(Rule::Domains);
            }
            _ => {}
        }
    }
    Ok(rule)
}

/// `struct fib_rule_hdr`.
const HEADER_BYTES: usize = 12;
/// `FR_ACT_*` and `FRA_*` of linux/fib_rules.h.
const FR_ACT_TO_TBL: u8 = 1;
const FRA_TABLE: u16 = 15;
const FRA_L3MDEV: u16 = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_by_its_action_and_long_table() {
        let mut body = vec![0; HEADER_BYTES];
        body[4] = 254;
        assert_eq!(parse(&body).unwrap(), Rule::Other, "an action that is no table");
        body[7] = FR_ACT_TO_TBL;
        assert_eq!(parse(&body).unwrap(), Rule::Table(254));
        let attribute = |kind: u16, value: &[u8]| {
            let mut octets = (4 + value.len() as u16).to_ne_bytes().to_vec();
            octets.extend(kind.to_ne_bytes());
            octets.extend(value);
            octets.resize(octets.len().next_multiple_of(4), 0);
            octets
        };
        let long = [body.clone(), attribute(FRA_TABLE, &70_000_u32.to_ne_bytes())].concat();
        assert_eq!(parse(&long).unwrap(), Rule::Table(70_000));
        let domains = [long, attribute(FRA_L3MDEV, &[1])].concat();
        assert_eq!(parse(&domains).unwrap(), Rule::Domains);
        assert!(parse(&body[..8]).is_err());
    }
}
