//! Fuzz target of admin commands.
//!
//! Place: [`super::TARGETS`]. Source: docs/device.md, section "Admin commands".

use super::rig::{self, ENTRY, take_control};

/// Most commands of one input.
const COMMANDS: usize = 48;

/// Admin commands of 64 bytes on a function that has one of everything already. The last byte of a command, which is 0 in sound
/// ones, is taken out: its low bit rings the doorbell after this command, the next one picks the function, others move the clock.
pub fn admin(data: &[u8]) {
    rig::with(|rig| {
        rig.connect();
        let mut side = 0;
        for chunk in data.chunks(ENTRY).take(COMMANDS) {
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
