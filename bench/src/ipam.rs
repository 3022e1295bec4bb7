//! Addresses and blocks against bare collections.

use std::collections::HashMap;
use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

use cairn_ipam::addresses::{AddressBook, AttachmentId, Family, OwnedBlock};
use cairn_ipam::claims::{self, Pool};
use cairn_ipam::demand::{AddressRequest, Choice};
use ipnet::IpNet;

use crate::cpu_time::{cpu_time, nanos_each};
use crate::table::Row;
use crate::{Extent, Result};

/// Measures all rows of this group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let mut rows = vec![addresses(extent)?];
    rows.extend(blocks(extent)?);
    Ok(rows)
}

/// A node whose pods come and go.
fn addresses(extent: Extent) -> Result<Row> {
    let changes = extent.pick(100_000, 1000);
    let mut row =
        Row::new("ipam", "release and assign, both families", "ns/pod", "map remove and insert");
    let ids: Vec<AttachmentId> = (0..PODS + changes)
        .map(|number| AttachmentId {
            container_id: format!("{:064x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ifname: "eth0".into(),
        })
        .collect();
    let requests =
        FAMILIES.map(|family| AddressRequest { family, choice: Choice::Pools(vec![POOL.into()]) });
    for run in 0..extent.pick(9, 2) {
        let before = (run % 2 == 0).then(|| bare_changes(&ids));
        let mut book = AddressBook::new(COOLDOWN);
        book.set_blocks(own_blocks()?);
        // More than the cooldown passes until an address comes up again, as on a quiet node.
        let mut now = COOLDOWN;
        let (first, _) = ids.split_at(PODS);
        for id in first {
            book.assign(id, &requests, now)?;
        }
        let (time, outcome) = cpu_time(|| {
            for (gone, new) in ids.iter().zip(ids.iter().skip(PODS)) {
                now += Duration::from_secs(1);
                black_box(book.release(gone, now));
                black_box(book.assign(new, &requests, now)?);
            }
            Ok::<_, cairn_ipam::AssignError>(())
        });
        outcome?;
        let held = ids.iter().filter(|id| book.held(id).len() == FAMILIES.len()).count();
        if held != PODS {
            return Err(format!("{held} pods hold addresses, not {PODS}").into());
        }
        let bare = before.unwrap_or_else(|| bare_changes(&ids));
        row.push(nanos_each(time, changes), bare);
    }
    Ok(row)
}

/// The same changes without deciding anything, in nanoseconds each.
fn bare_changes(ids: &[AttachmentId]) -> f64 {
    let addresses = || vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([0u16; 8])];
    let (first, later) = ids.split_at(PODS.min(ids.len()));
    let mut map: HashMap<AttachmentId, Vec<IpAddr>> =
        first.iter().map(|id| (id.clone(), addresses())).collect();
    let (time, ()) = cpu_time(|| {
        for (gone, new) in ids.iter().zip(later) {
            black_box(map.remove(gone));
            map.insert(new.clone(), addresses());
        }
    });
    nanos_each(time, later.len())
}

/// A pool of which nearly everything is taken.
fn blocks(extent: Extent) -> Result<[Row; 2]> {
    // 2^20 blocks of 2^6 addresses, or 2^14 of them.
    let pool = pool(extent.pick("fd00:10:244::/102", "fd00:10:244::/108"))?;
    let empty = claims::free_index(&pool, []);
    let total = usize::try_from(empty.total())?;
    let (mut taken, mut bitmap) = (Vec::new(), vec![0u64; total.div_ceil(64)]);
    // Every hundredth block stays free; what is taken came in scattered order.
    for number in (0..total).map(|number| number.wrapping_mul(0x9e37_79b1) % total) {
        if number % 100 != 0 {
            taken.push(block(&pool, number)?);
            set_bit(&mut bitmap, number);
        }
    }
    let free = total - taken.len();
    let mut index_row = Row::new("ipam", "index of taken blocks", "ns/block", "bitmap");
    let mut find_row = Row::new("ipam", "find a free block, 99 % used", "ns", "bitmap scan");
    let attempts = extent.pick(20_000, 200);
    for _ in 0..extent.pick(5, 2) {
        let (time, index) = cpu_time(|| claims::free_index(&pool, &taken));
        if index.free() != free as u128 {
            return Err(format!("{} blocks are free, not {free}", index.free()).into());
        }
        let (bare_time, _) = cpu_time(|| {
            let mut bitmap = vec![0u64; total.div_ceil(64)];
            taken.iter().for_each(|block| set_bit(&mut bitmap, number_of(&pool, *block)));
            black_box(bitmap)
        });
        index_row.push(nanos_each(time, taken.len()), nanos_each(bare_time, taken.len()));

        let (time, found) = cpu_time(|| {
            (0..attempts)
                .filter(|attempt| {
                    black_box(claims::candidate("node-1", &pool, &index, *attempt)).is_some()
                })
                .count()
        });
        if found != attempts as usize {
            return Err(format!("a block was found {found} times of {attempts}").into());
        }
        let (bare_time, ()) = cpu_time(|| {
            for attempt in 0..attempts as usize {
                black_box(nth_clear(&bitmap, attempt.wrapping_mul(0x9e37_79b1) % free));
            }
        });
        let attempts = attempts as usize;
        find_row.push(nanos_each(time, attempts), nanos_each(bare_time, attempts));
    }
    Ok([index_row, find_row])
}

fn own_blocks() -> Result<Vec<OwnedBlock>> {
    let cidrs = ["10.244.0.0/26", "10.244.7.64/26", "10.244.9.128/26", "10.244.12.192/26"]
        .into_iter()
        .chain(["fd00::/122", "fd00::1:0/122", "fd00::2:40/122", "fd00::3:80/122"]);
    let own = |cidr: &str| {
        Ok(OwnedBlock {
            cidr: cidr.parse()?,
            pool: POOL.into(),
            hand_out: true,
            until: Duration::MAX,
            revision: 0,
            newly_claimed: true,
        })
    };
    cidrs.map(own).collect()
}

fn pool(cidr: &str) -> Result<Pool> {
    Ok(Pool {
        name: "default".into(),
        uid: "7a0c2e52-7b0a-4a52-9f0e-6b1f5f0f8d11".into(),
        cidr: cidr.parse()?,
        block_size: 122,
        disabled: false,
        terminating: false,
        created: 0,
        max_blocks_per_node: None,
        for_pods: true,
        selected: true,
        allocation: Default::default(),
        namespaces: None,
        checked: true,
        held_back: None,
    })
}

fn block(pool: &Pool, number: usize) -> Result<IpNet> {
    let IpAddr::V6(base) = pool.cidr.network() else { return Err("the pool is IPv6".into()) };
    let base = base.to_bits() + ((number as u128) << (128 - pool.block_size));
    Ok(IpNet::new(IpAddr::from(base.to_be_bytes()), pool.block_size)?)
}

fn number_of(pool: &Pool, block: IpNet) -> usize {
    match (pool.cidr.network(), block.network()) {
        (IpAddr::V6(base), IpAddr::V6(block)) => {
            ((block.to_bits() - base.to_bits()) >> (128 - pool.block_size)) as usize
        }
        _ => 0,
    }
}

fn set_bit(bitmap: &mut [u64], number: usize) {
    if let Some(word) = bitmap.get_mut(number / 64) {
        *word |= 1 << (number % 64);
    }
}

/// The `n`-th clear bit.
fn nth_clear(bitmap: &[u64], n: usize) -> Option<usize> {
    let mut left = n;
    let (at, word) = bitmap.iter().enumerate().find(|(_, word)| {
        let clear = word.count_zeros() as usize;
        let here = left < clear;
        if !here {
            left -= clear;
        }
        here
    })?;
    let mut clear = !word;
    for _ in 0..left {
        clear &= clear - 1;
    }
    Some(at * 64 + clear.trailing_zeros() as usize)
}

/// The pods of a node that is as full as kubelet allows by default.
const PODS: usize = 110;
const POOL: &str = "default";
const COOLDOWN: Duration = Duration::from_secs(30);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_knows_the_free_blocks_in_order() {
        let mut bitmap = vec![0u64; 3];
        (0..150).filter(|number| number % 7 != 0).for_each(|n| set_bit(&mut bitmap, n));
        let free: Vec<usize> = (0..22).filter_map(|n| nth_clear(&bitmap, n)).collect();
        assert_eq!(free, (0..150).step_by(7).collect::<Vec<_>>());
        assert_eq!(nth_clear(&bitmap, 1000), None);
    }
}
