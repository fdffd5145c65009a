//! A client that flips random bits in everything it shares with the device, while its connection is in use.

use std::time::Instant;

use ring_proto::status::Opcode;
use ring_proto::uar;

use super::live::{HEAP, Live, LiveQp, MEMORY, Region, Trouble, everything, join, wqe};
use super::process::Emulator;
use super::traffic::{Pair, Traffic};
use super::{Dice, operations};

/// Two functions whose owner scribbles over both, with a connection between them.
struct Scribbler {
    ends: [(Live, LiveQp, Region); 2],
}

impl Scribbler {
    fn new(emulator: &Emulator) -> Self {
        let mut functions = ["a", "b"].map(|node| Live::attach(&emulator.device(node)));
        let parts = functions.each_mut().map(|live| {
            let qp = live.qp().unwrap();
            let region = live.region(0x8000, everything()).unwrap();
            (qp, region)
        });
        let [a, b] = functions;
        let [(qa, ra), (qb, rb)] = parts;
        let mut ends = [(a, qa, ra), (b, qb, rb)];
        connect(&mut ends).unwrap();
        Self { ends }
    }

    /// Starts both functions anew, with a new connection.
    fn renew(&mut self) -> Result<(), Trouble> {
        for (live, qp, region) in &mut self.ends {
            live.restart()?;
            *qp = live.qp()?;
            *region = live.region(0x8000, everything())?;
        }
        connect(&mut self.ends)
    }

    /// Keeps the queues of one end moving: a receive, and a WQE of some kind, with keys of the other end.
    fn post(&mut self, end: usize, dice: &mut Dice) {
        let (_, _, remote) = self.ends[1 - end];
        let (live, qp, local) = &mut self.ends[end];
        while live.poll(qp).is_some() {}
        let len = u32::try_from(dice.below(4096)).unwrap();
        live.post_recv(qp, dice.next(), local.sge(0x4000, 4096));
        let opcode = dice.pick(&[Opcode::SEND, Opcode::RDMA_WRITE, Opcode::RDMA_READ]);
        let mut wqe = wqe(opcode, dice.next(), local.sge(dice.below(0x2000), len));
        if opcode != Opcode::SEND {
            (wqe.remote_addr, wqe.rkey) = (remote.iova + dice.below(0x4000), remote.key);
        }
        live.post_send(qp, &wqe);
    }

    /// Flips one bit somewhere in what is shared, and tells the device that something is new.
    fn scribble(&mut self, end: usize, dice: &mut Dice) {
        let (live, qp, _) = &self.ends[end];
        let bit = u32::try_from(dice.below(8)).unwrap();
        match dice.below(16) {
            // Admin rings and event queue.
            0 => live.flip_memory(dice.below(0x400), bit),
            1 => live.flip_memory(0x1000 + dice.below(0x2000), bit),
            // The rings that the test made: SQ, RQ and CQ lie first.
            2..=7 => live.flip_memory(HEAP + dice.below(0x4000), bit),
            8..=9 => live.flip_memory(dice.below(MEMORY), bit),
            // Doorbells of the QP and its CQ, then anything in BAR2.
            10 => live.flip_bar(uar::line_offset(qp.slot) + dice.below(64), bit),
            11 => live.flip_bar(uar::line_offset(qp.cq_slot) + dice.below(64), bit),
            12 => live.flip_bar(uar::uar_offset(qp.slot) + dice.below(0x2000), bit),
            13 => live.flip_bar(dice.below(128), bit),
            14 => live.flip_bar(dice.below(uar::BAR2_LEN), bit),
            _ => {
                // A lie about which slot has news.
                live.mark(u32::try_from(dice.below(uar::SLOTS.into())).unwrap());
            }
        }
        if dice.below(4) == 0 {
            live.mark(qp.slot);
            live.mark(uar::ADMIN_SLOT);
            live.kick();
        }
    }
}

fn connect(ends: &mut [(Live, LiveQp, Region); 2]) -> Result<(), Trouble> {
    let [(a, qa, _), (b, qb, _)] = ends;
    join((a, qa.qpn), (b, qb.qpn), 4100)
}

#[test]
fn bits_flipped_in_all_shared_memory_harm_nobody_else() {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let mut scribbler = Scribbler::new(&emulator);
    let total = operations(50_000, 1_000_000);
    let mut dice = Dice(0x005c_121b_b1e5);
    let start = Instant::now();
    let mut renewals = 0u64;
    for operation in 0..total {
        let end = usize::from(dice.below(2) == 0);
        if dice.below(3) == 0 {
            scribbler.post(end, &mut dice);
        }
        scribbler.scribble(end, &mut dice);
        let is_over = scribbler.ends.iter().any(|(live, _, _)| live.is_failed());
        if is_over || operation % 512 == 511 {
            renewals += 1;
            // Nothing is scribbled on during a renewal, so it succeeds, whatever was done before.
            scribbler.renew().unwrap();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let rounds = traffic.finish();
    scribbler.renew().unwrap();
    drop(scribbler);
    Pair::new(&emulator, 4300).round(1);
    println!(
        "scribbler: {total} bit flips, {renewals} renewals, {seconds:.1} s; beside it {rounds} checked rounds of the other client"
    );
    emulator.end_unharmed();
}
