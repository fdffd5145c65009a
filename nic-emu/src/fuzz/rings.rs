//! Fuzz targets of what lies in rings: admin commands, and WQEs with their doorbells.
//!
//! Place: [`super::TARGETS`]. Source: docs/device.md, sections "Admin commands" and "Work queue elements".

use std::cell::RefCell;

use ring_proto::uar;

use super::rig::{BASE, DEPTH, QP_SLOT, REGION, RQ, Rig, SQ};

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Most entries of one input.
const ENTRIES: usize = 48;
const ENTRY: usize = 64;

/// Admin commands of 64 bytes on a function that has one of everything already. The last byte of a command, which is 0 in sound
/// ones, is taken out: its low bit rings the doorbell after this command, the next one picks the function, others move the clock.
pub fn admin(data: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        rig.restart();
        rig.connect();
        let mut side = 0;
        for chunk in data.chunks(ENTRY).take(ENTRIES) {
            let (mut entry, control) = take_control(chunk);
            entry[ENTRY - 1] = 0;
            side = usize::from(control >> 1 & 1);
            rig.post_command(side, &entry);
            if control & 1 != 0 {
                rig.ring_admin(side);
            }
            rig.advance(u64::from(control >> 2) * 1_000_000);
        }
        rig.ring_admin(side);
        // Every timer runs out.
        rig.advance(u64::from(u32::MAX) * 1_000);
        rig.check();
    });
}

/// Blocks of 64 bytes for the send and receive queues of two connected QPs. The last byte of a block, the top of the second SGE's
/// key, is taken out for control: bit 0 rings, bit 1 picks the function, bit 2 the receive queue, bit 3 a doorbell that lies, bit 4 puts
/// sound keys and addresses into the block, the top three move the clock.
pub fn wqe(data: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        rig.restart();
        let keys = rig.connect();
        let mut producers = [[0u32; 2]; 2];
        for chunk in data.chunks(ENTRY).take(ENTRIES) {
            let (mut entry, control) = take_control(chunk);
            let side = usize::from(control >> 1 & 1);
            let is_receive = control & 4 != 0;
            if control & 16 != 0 {
                make_sound(&mut entry, is_receive, keys[side], keys[1 - side]);
            }
            let producer = &mut producers[side][usize::from(is_receive)];
            let ring = if is_receive { RQ } else { SQ };
            rig.write(side, ring + 64 * u64::from(*producer % DEPTH), &entry);
            *producer = producer.wrapping_add(1);
            let mut claimed = *producer;
            if control & 8 != 0 {
                claimed = claimed.wrapping_add(u32::from(entry[4]) << 24 | u32::from(entry[5]));
            }
            let line = uar::line_offset(QP_SLOT) + if is_receive { 4 } else { 0 };
            if control & 1 != 0 {
                rig.write_bar(side, line, &claimed.to_le_bytes());
                rig.mark(side, QP_SLOT);
            }
            rig.advance(u64::from(control >> 5) * 10_000_000);
        }
        for side in 0..2 {
            rig.mark(side, QP_SLOT);
        }
        rig.advance(u64::from(u32::MAX) * 1_000);
        rig.check();
    });
}

/// A whole entry, and the byte that says what to do with it.
fn take_control(chunk: &[u8]) -> ([u8; ENTRY], u8) {
    let mut entry = [0; ENTRY];
    entry[..chunk.len()].copy_from_slice(chunk);
    (entry, entry[ENTRY - 1])
}

/// Replaces keys by living ones and the high halves of addresses by those of the regions, so that mutations get past the first checks.
fn make_sound(entry: &mut [u8; ENTRY], is_receive: bool, own: u32, peer: u32) {
    let region = BASE + REGION;
    let mut place = |at: usize, key_at: usize, key: u32| {
        // The low two bytes stay: offsets into the region.
        entry[at + 2..at + 8].copy_from_slice(&region.to_le_bytes()[2..]);
        entry[key_at..key_at + 4].copy_from_slice(&key.to_le_bytes());
    };
    if is_receive {
        place(16, 28, own);
        place(32, 44, own);
    } else {
        place(16, 24, peer);
        place(32, 44, own);
        place(48, 60, own);
    }
}
