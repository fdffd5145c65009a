//! A client that flips random bits in everything it shares with the device, while its connection is in use.

use std::time::Instant;

use nic_emu::control::client;
use nic_emu::device::LinkParameters;
use ring_proto::admin::{Access, AdminOp, MwAlloc};
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::uar;
use ring_proto::wqe::{BindWqe, Sge, SqWqe};

use super::live::{HEAP, Live, MEMORY, RawQp, RawSrq, Region, Trouble, full, join, low, wqe};
use super::process::Emulator;
use super::traffic::{Pair, Traffic};
use super::{Dice, operations};

/// One end of the connection.
struct End {
    live: Live,
    qp: RawQp,
    /// Where its receives are, when they are shared.
    srq: Option<RawSrq>,
    region: Region,
    /// A memory window of type 2, by the key it has unless a flipped bit said otherwise.
    window: u32,
}

/// Bytes of each end's region.
const REGION: u64 = 0x8000;

impl End {
    fn new(mut live: Live, shares: bool) -> Result<Self, Trouble> {
        let (qp, srq) = if shares {
            let (qp, srq) = live.qp_on_srq()?;
            (qp, Some(srq))
        } else {
            (live.qp()?, None)
        };
        let region = live.region(REGION, full())?;
        let window = MwAlloc {
            pdn: live.pdn(),
            kind: 2,
        };
        let window = low(live.admin(AdminOp::MW_ALLOC, window.to_body())?[0]);
        Ok(Self {
            live,
            qp,
            srq,
            region,
            window,
        })
    }

    /// Posts a receive.
    fn receive(&mut self, wr_id: u64) {
        let sge = self.region.sge(0x4000, 4096);
        match &mut self.srq {
            Some(srq) => self.live.post_shared(srq, wr_id, sge),
            None => self.live.post_recv(&mut self.qp, wr_id, sge),
        }
    }
}

/// Two functions whose owner scribbles over both, with a connection between them. The second one's receives are shared.
struct Scribbler {
    ends: [End; 2],
    /// An operation ended with an error: the connection is in ERR.
    has_failed: bool,
}

impl Scribbler {
    fn new(emulator: &Emulator) -> Self {
        let ends = ["a", "b"].map(|node| Live::attach(&emulator.device(node)));
        Self::on(ends).unwrap()
    }

    /// New objects and a new connection on functions that have just started.
    fn on([a, b]: [Live; 2]) -> Result<Self, Trouble> {
        let mut ends = [End::new(a, false)?, End::new(b, true)?];
        let [a, b] = &mut ends;
        join((&mut a.live, a.qp.qpn), (&mut b.live, b.qp.qpn), 4100)?;
        Ok(Self {
            ends,
            has_failed: false,
        })
    }

    /// Starts both functions anew, whatever state they are in.
    fn renewed(self) -> Result<Self, Trouble> {
        let mut functions = self.ends.map(|end| end.live);
        for live in &mut functions {
            live.restart()?;
        }
        Self::on(functions)
    }

    /// Keeps the queues of one end moving: a receive, and a WQE of some kind, with keys of both ends.
    fn post(&mut self, at: usize, dice: &mut Dice) {
        let remote = self.ends[1 - at].region;
        let remote_window = self.ends[1 - at].window;
        let end = &mut self.ends[at];
        while let Some(wc) = end.live.take_wc(&mut end.qp) {
            self.has_failed |= wc.status != WcStatus::SUCCESS;
        }
        end.receive(dice.next());
        let opcode = dice.pick(&Opcode::ALL[1..]);
        let len = match opcode {
            Opcode::ATOMIC_CMP_AND_SWP | Opcode::ATOMIC_FETCH_AND_ADD => 8,
            _ => u32::try_from(dice.below(4096)).unwrap(),
        };
        let mut send = wqe(opcode, dice.next(), end.region.sge(dice.below(0x2000), len));
        match opcode {
            Opcode::SEND | Opcode::SEND_WITH_IMM => {}
            Opcode::SEND_WITH_INV => send.imm = remote_window,
            Opcode::LOCAL_INV => {
                send.sges = [Sge::default(); 2];
                (send.count, send.total, send.imm) = (0, 0, end.window);
            }
            Opcode::BIND_MW => send = bind(end, &send),
            _ => {
                send.remote_addr = (remote.iova + dice.below(0x4000)) & !7;
                send.rkey = if dice.below(4) == 0 {
                    remote_window
                } else {
                    remote.key
                };
            }
        }
        // The operands of an atomic stand where the second element would.
        if opcode == Opcode::ATOMIC_CMP_AND_SWP {
            send.sges[1].addr = dice.next();
        }
        end.live.post_send(&mut end.qp, &send);
    }

    /// Flips one bit somewhere in what is shared, and tells the device that something is new.
    fn scribble(&mut self, at: usize, dice: &mut Dice) {
        let End { live, qp, .. } = &self.ends[at];
        let bit = u32::try_from(dice.below(8)).unwrap();
        match dice.below(16) {
            // Admin rings and event queue.
            0 => live.flip(dice.below(0x400), bit),
            1 => live.flip(0x1000 + dice.below(0x2000), bit),
            // The rings that the test made: SQ, RQ and CQ lie first.
            2..=7 => live.flip(HEAP + dice.below(0x4000), bit),
            8..=9 => live.flip(dice.below(MEMORY), bit),
            // Doorbells of the QP, its SRQ and its CQ, then anything in BAR2.
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

/// Binds the window of an end to its region, under its next key.
fn bind(end: &mut End, like: &SqWqe) -> SqWqe {
    let next = (end.window & !0xff) | (end.window.wrapping_add(1) & 0xff);
    let bind = BindWqe {
        opcode: like.opcode,
        flags: like.flags,
        blocks: 1,
        new_rkey: next,
        wr_id: like.wr_id,
        addr: end.region.iova,
        rkey: end.window,
        len: REGION,
        lkey: end.region.key,
        access: (Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).bits(),
        ..BindWqe::default()
    };
    end.window = next;
    zerocopy::transmute!(bind)
}

/// Flips so many bits beside another client's traffic; the figures.
fn scribble(emulator: Emulator, total: u64) -> String {
    let traffic = Traffic::start(&emulator, 4200);
    let mut scribbler = Scribbler::new(&emulator);
    let mut dice = Dice(0x005c_121b_b1e5);
    let start = Instant::now();
    let (mut renewals, mut failed, mut fresh) = (0u64, 0u64, 0u64);
    for _ in 0..total {
        let end = usize::from(dice.below(2) == 0);
        if dice.below(3) == 0 {
            scribbler.post(end, &mut dice);
        }
        scribbler.scribble(end, &mut dice);
        fresh += 1;
        let is_over = scribbler.ends.iter().any(|end| end.live.is_failed());
        failed += u64::from(is_over);
        // A connection in ERR is scribbled on for a while too.
        if is_over || fresh == 512 || (scribbler.has_failed && fresh.is_multiple_of(64)) {
            (renewals, fresh) = (renewals + 1, 0);
            // Nothing is scribbled on during a renewal, so it succeeds, whatever was done before.
            scribbler = scribbler.renewed().unwrap();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let rounds = traffic.finish();
    drop(scribbler.renewed().unwrap());
    Pair::new(&emulator, 4300).round(1);
    emulator.end_unharmed();
    format!(
        "{total} bit flips, {renewals} renewals, {failed} functions failed, {seconds:.1} s; \
         beside it {rounds} checked rounds of the other client"
    )
}

#[test]
fn bits_flipped_in_all_shared_memory_harm_nobody_else() {
    let emulator = Emulator::start();
    let told = scribble(emulator, operations(30_000, 1_000_000));
    println!("scribbler: {told}");
}

#[test]
fn bits_flipped_while_packets_get_lost_harm_nobody_else() {
    let emulator = Emulator::start();
    let parameters = LinkParameters {
        latency_ns: 1_000,
        loss_ppm: 500,
        reorder_ppm: 10_000,
        reorder_ns: 20_000,
        duplicate_ppm: 10_000,
        corrupt_ppm: 500,
        ..LinkParameters::default()
    };
    for (from, to) in [("a", "b"), ("b", "a")] {
        client::link(&emulator.control(), from, to, parameters).unwrap();
    }
    let told = scribble(emulator, operations(5_000, 250_000));
    println!("scribbler over packets: {told}");
}

#[test]
fn bits_flipped_under_the_validation_layer_harm_nobody_else() {
    let emulator = Emulator::validating();
    let told = scribble(emulator, operations(10_000, 250_000));
    println!("scribbler, validated: {told}");
}
