//! Fuzz targets of work queue elements with their doorbells: over a perfect link, and as packets over one that is not.
//!
//! Place: [`super::TARGETS`]. Source: docs/device.md, section "Work queue elements".

use ring_proto::status::Opcode;
use ring_proto::uar;

use super::rig::{self, BASE, DEPTH, ENTRY, Keys, QP_SLOT, REGION, RQ, Rig, SQ, take_control};
use crate::device::LinkParameters;

/// Most entries of one input.
const ENTRIES: usize = 48;

/// Blocks of 64 bytes for the queues of two connected QPs, of which the second takes its receives from an SRQ. The last byte of a block,
/// the top of the second SGE's key, is taken out for control: bit 0 rings, bit 1 picks the function, bit 2 the receive queue, bit 3 a
/// doorbell that lies, bit 4 puts sound keys and addresses into the block, the top three move the clock.
pub fn wqe(data: &[u8]) {
    rig::with(|rig| {
        let keys = rig.connect();
        let mut queues = Queues::default();
        for chunk in data.chunks(ENTRY).take(ENTRIES) {
            let (entry, control) = take_control(chunk);
            let lie = if control & 8 == 0 {
                0
            } else {
                u32::from(entry[4]) << 24 | u32::from(entry[5])
            };
            queues.post(rig, entry, control, &keys, lie);
            rig.advance(u64::from(control >> 5) * 10_000_000);
        }
        for side in 0..2 {
            rig.mark(side, QP_SLOT);
        }
        rig.advance(u64::from(u32::MAX) * 1_000);
        rig.check();
    });
}

/// As [`wqe`], over links that the first bytes describe. Bit 3 of the control byte makes a packet of the block, which arrives with a
/// check that fits: its header, with the QPs' numbers put in, and what is left as its payload.
pub fn packets(data: &[u8]) {
    let Some((link, data)) = data.split_first_chunk::<6>() else {
        return;
    };
    // Of its own: the links draw their numbers one after the other, and another input must not change what this one meets.
    let mut rig = Rig::new();
    rig.restart();
    let keys = rig.connect();
    let rare = |byte: u8| u32::from(byte) * 1_000;
    rig.set_links(LinkParameters {
        up: link[0] != 0,
        latency_ns: u64::from(link[1]) * 10_000,
        loss_ppm: rare(link[2]),
        reorder_ppm: rare(link[3]),
        reorder_ns: 100_000,
        duplicate_ppm: rare(link[4]),
        corrupt_ppm: rare(link[5]),
        ..LinkParameters::default()
    });
    let mut queues = Queues::default();
    for chunk in data.chunks(ENTRY).take(ENTRIES) {
        let (mut entry, control) = take_control(chunk);
        if control & 8 == 0 {
            queues.post(&mut rig, entry, control, &keys, 0);
        } else {
            let from = usize::from(control >> 1 & 1);
            let (own, peer) = (rig.qp(from), rig.qp(1 - from));
            for (at, number) in [(8, own.0), (12, own.1), (16, peer.0), (20, peer.1)] {
                entry[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            rig.packet_arrives(&entry);
        }
        rig.advance(u64::from(control >> 5) * 100_000);
    }
    for side in 0..2 {
        rig.mark(side, QP_SLOT);
    }
    // Retries back off; each step lets the timers of one round run out.
    for _ in 0..64 {
        rig.advance(70_000_000);
    }
    rig.check();
}

/// Producers of the two functions: send and receive.
#[derive(Default)]
struct Queues([[u32; 2]; 2]);

impl Queues {
    /// Writes a block as its control byte says, and rings with a producer that lies by so much.
    fn post(&mut self, rig: &mut Rig, mut entry: [u8; ENTRY], control: u8, keys: &Keys, lie: u32) {
        let side = usize::from(control >> 1 & 1);
        let is_receive = control & 4 != 0;
        if control & 16 != 0 {
            if is_receive {
                make_receive_sound(&mut entry, keys.regions[side]);
            } else {
                make_send_sound(&mut entry, keys, side);
            }
        }
        let producer = &mut self.0[side][usize::from(is_receive)];
        let ring = if is_receive { RQ } else { SQ };
        rig.write(side, ring + 64 * u64::from(*producer % DEPTH), &entry);
        *producer = producer.wrapping_add(1);
        let claimed = producer.wrapping_add(lie);
        // The word of the SRQ's producer lies behind that of the CQ's consumer.
        let word = match (is_receive, side) {
            (false, _) => 0,
            (true, 0) => 4,
            (true, _) => 12,
        };
        if control & 1 != 0 {
            rig.write_bar(
                side,
                uar::line_offset(QP_SLOT) + word,
                &claimed.to_le_bytes(),
            );
            rig.mark(side, QP_SLOT);
        }
    }
}

/// Puts a living key at `key_at` and a region's address at `at`, whose low two bytes stay: offsets into the region.
fn place(entry: &mut [u8; ENTRY], at: usize, key_at: usize, key: u32) {
    entry[at + 2..at + 8].copy_from_slice(&(BASE + REGION).to_le_bytes()[2..]);
    entry[key_at..key_at + 4].copy_from_slice(&key.to_le_bytes());
}

fn make_receive_sound(entry: &mut [u8; ENTRY], own: u32) {
    place(entry, 16, 28, own);
    place(entry, 32, 44, own);
}

/// Replaces keys and the high halves of addresses by living ones, so that mutations get past the first checks.
fn make_send_sound(entry: &mut [u8; ENTRY], keys: &Keys, side: usize) {
    let (own, peer) = (keys.regions[side], keys.regions[1 - side]);
    let window = keys.windows[side];
    match Opcode(entry[0]) {
        Opcode::BIND_MW => {
            place(entry, 16, 24, window);
            entry[5..8].copy_from_slice(&window.to_le_bytes()[1..]);
            entry[34..40].fill(0);
            entry[40..44].copy_from_slice(&own.to_le_bytes());
            entry[48..].fill(0);
        }
        Opcode::LOCAL_INV => {
            let key = if entry[8] & 1 == 0 { own } else { window };
            // The tag of a window stays: it changes with each binding.
            let tag = if entry[8] & 1 == 0 {
                key.to_le_bytes()[0]
            } else {
                entry[4]
            };
            entry[4..8].copy_from_slice(&key.to_le_bytes());
            entry[4] = tag;
            entry[16..].fill(0);
        }
        Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => {
            place(entry, 16, 24, peer);
            place(entry, 32, 44, own);
        }
        opcode => {
            place(entry, 16, 24, peer);
            place(entry, 32, 44, own);
            place(entry, 48, 60, own);
            if opcode == Opcode::SEND_WITH_INV {
                entry[5..8].copy_from_slice(&keys.windows[1 - side].to_le_bytes()[1..]);
            }
        }
    }
}
