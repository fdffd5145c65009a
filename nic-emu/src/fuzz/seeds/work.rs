//! Blocks of work queues.
//!
//! Place: [`super::seeds`]. Source: ours.

use ring_proto::status::Opcode;
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags};
use zerocopy::IntoBytes;

use super::Seed;

pub(super) fn wqe(seeds: &mut Vec<Seed>) {
    let sge = Sge {
        addr: 64,
        len: 100,
        lkey: 0,
    };
    let sound = 1 | 16;
    let mut receive = RqWqe {
        wr_id: 7,
        count: 1,
        ..RqWqe::default()
    };
    receive.sges[0] = Sge { len: 4096, ..sge };
    let mut receive = receive.as_bytes().to_vec();
    receive[63] = sound | 4 | 2;
    let send = |opcode: Opcode, flags: WqeFlags, count: u8, total: u32| {
        let mut wqe = SqWqe {
            opcode: opcode.0,
            flags: flags.bits(),
            blocks: 1,
            count,
            wr_id: 9,
            remote_addr: 128,
            total,
            ..SqWqe::default()
        };
        wqe.sges[0] = sge;
        let mut bytes = wqe.as_bytes().to_vec();
        bytes[63] = sound;
        bytes
    };
    let signaled = WqeFlags::SIGNALED;
    let mut all = receive.clone();
    for &opcode in Opcode::ALL {
        let bytes = send(opcode, signaled, 1, 100);
        all.extend_from_slice(&bytes);
        let name = opcode.to_string().to_lowercase();
        seeds.push(("wqe", name, [&receive[..], &bytes].concat()));
    }
    let inline = send(Opcode::SEND, signaled | WqeFlags::INLINE, 16, 16);
    seeds.push(("wqe", "inline".into(), [&receive[..], &inline].concat()));
    let mut lie = send(Opcode::SEND, signaled, 1, 100);
    lie[63] |= 8;
    lie[4] = 1;
    seeds.push(("wqe", "doorbell".into(), lie));
    let waits = send(Opcode::SEND, signaled | WqeFlags::FENCE, 1, 100);
    seeds.push(("wqe", "no_receive".into(), waits));
    seeds.push(("wqe", "all".into(), all.clone()));
    packets(seeds, &all);
}

/// The same work over links of several kinds, and packets that nobody sent.
fn packets(seeds: &mut Vec<Seed>, all: &[u8]) {
    for (name, link) in [
        ("slow", [1, 10, 0, 0, 0, 0]),
        ("lossy", [1, 1, 50, 50, 50, 50]),
        ("cut", [0; 6]),
    ] {
        seeds.push(("packets", name.into(), [&link[..], all].concat()));
    }
    let mut strangers = vec![1, 1, 0, 0, 0, 0];
    // Requests in the middle of nothing, answers to nothing, a NAK.
    for opcode in [1, 3, 5, 7, 0x80, 0x81, 0x82, 0x83] {
        let mut packet = [0; 64];
        packet[0] = opcode;
        packet[1] = 3;
        packet[63] = 8 | 2;
        strangers.extend(packet);
    }
    seeds.push(("packets", "strangers".into(), strangers));
}
