//! Objects of a function: of each kind as many as announced, then a refusal with a status of its own, and all of them come back.

use ring_proto::admin::{
    AdminOp, AdminStatus, Body, CmListen, HoldClone, MrReg, MwAlloc, Named, QpCreate, QueueCreate,
    SrqCreate,
};
use ring_proto::{regs, uar};

use crate::live::{BASE, HEAP, Live, at, full, low};
use crate::operations;
use crate::process::Emulator;
use crate::traffic::{Pair, Traffic};

/// A kind of object.
struct Kind {
    create: AdminOp,
    /// What ends one; holder slots end with their process alone.
    destroy: Option<AdminOp>,
    /// The register with the limit, or the limit where there is none.
    limit: Limit,
    /// How many a fresh function has.
    present: u32,
    /// Body of the nth, given the CQN of a queue for those that need one.
    body: fn(&Live, n: u32, cqn: u32) -> Body,
    /// What answers one too many. Those that need a doorbell run out of doorbells first: all slots are taken.
    refusal: AdminStatus,
    /// So many are made in the short form too.
    is_quick: bool,
}

enum Limit {
    Register(u64),
    Fixed(u32),
}

/// A ring that any number of queues may be given: nothing is posted to them.
const RING: u64 = BASE + HEAP;

const KINDS: [Kind; 8] = [
    Kind {
        create: AdminOp::PD_ALLOC,
        destroy: Some(AdminOp::PD_FREE),
        limit: Limit::Register(regs::MAX_PD),
        present: 1,
        body: |_, _, _| Body::default(),
        refusal: AdminStatus::NO_RESOURCE,
        is_quick: true,
    },
    Kind {
        create: AdminOp::MR_REG,
        destroy: Some(AdminOp::MR_DEREG),
        limit: Limit::Register(regs::MAX_MR),
        present: 0,
        body: |live, _, _| {
            MrReg {
                addr: RING,
                len: 64,
                pdn: live.pdn(),
                access: full().bits(),
                ..MrReg::default()
            }
            .to_body()
        },
        refusal: AdminStatus::NO_RESOURCE,
        is_quick: false,
    },
    Kind {
        create: AdminOp::MW_ALLOC,
        destroy: Some(AdminOp::MW_DEALLOC),
        limit: Limit::Register(regs::MAX_MW),
        present: 0,
        body: |live, n, _| {
            MwAlloc {
                pdn: live.pdn(),
                kind: 1 + n % 2,
            }
            .to_body()
        },
        refusal: AdminStatus::NO_RESOURCE,
        is_quick: false,
    },
    Kind {
        create: AdminOp::CQ_CREATE,
        destroy: Some(AdminOp::CQ_DESTROY),
        limit: Limit::Register(regs::MAX_CQ),
        // The EQ has a doorbell of the same kind, and there is a CQ for the QPs.
        present: 2,
        body: |_, n, _| {
            QueueCreate {
                ring: RING,
                depth: 16,
                slot: slot(n),
            }
            .to_body()
        },
        refusal: AdminStatus::BUSY,
        is_quick: false,
    },
    Kind {
        create: AdminOp::SRQ_CREATE,
        destroy: Some(AdminOp::SRQ_DESTROY),
        limit: Limit::Register(regs::MAX_SRQ),
        present: 0,
        body: |live, n, _| {
            SrqCreate {
                ring: RING,
                depth: 16,
                pdn: live.pdn(),
                slot: slot(n),
                limit: 0,
            }
            .to_body()
        },
        refusal: AdminStatus::BUSY,
        is_quick: false,
    },
    Kind {
        create: AdminOp::QP_CREATE,
        destroy: Some(AdminOp::QP_DESTROY),
        limit: Limit::Register(regs::MAX_QP),
        present: 0,
        body: |live, n, cqn| {
            QpCreate {
                sq_ring: RING,
                rq_ring: RING,
                sq_depth: 16,
                rq_depth: 16,
                pdn: live.pdn(),
                send_cqn: cqn,
                recv_cqn: cqn,
                slot: slot(n),
                ..QpCreate::default()
            }
            .to_body()
        },
        refusal: AdminStatus::BUSY,
        is_quick: false,
    },
    Kind {
        create: AdminOp::CM_LISTEN,
        destroy: Some(AdminOp::CM_UNLISTEN),
        // A listener on each port.
        limit: Limit::Fixed(65_535),
        present: 0,
        body: |_, n, _| {
            let port = u16::try_from(n % 65_535 + 1).unwrap();
            CmListen {
                local: at(1, port).into(),
                backlog: 1,
                ..CmListen::default()
            }
            .to_body()
        },
        refusal: AdminStatus::BUSY,
        is_quick: false,
    },
    Kind {
        create: AdminOp::HOLD_CLONE,
        destroy: None,
        limit: Limit::Fixed(65_536),
        present: 1,
        body: |_, _, _| HoldClone::default().to_body(),
        refusal: AdminStatus::NO_RESOURCE,
        is_quick: false,
    },
];

/// Doorbell slots from the top, below those that the client uses itself.
fn slot(n: u32) -> u32 {
    let slot = (uar::SLOTS - 1).saturating_sub(n);
    // One too many meets the last one.
    slot.max(1)
}

/// Makes objects of a kind until it is refused, or until there are `most`.
fn fill(live: &mut Live, kind: &Kind, cqn: u32, most: u32) -> Vec<u32> {
    let mut made = Vec::new();
    loop {
        let n = u32::try_from(made.len()).unwrap();
        if n == most {
            return made;
        }
        let body = (kind.body)(live, n, cqn);
        match live.answer(kind.create, body).unwrap() {
            (AdminStatus::OK, [number, _]) => made.push(low(number)),
            (status, _) => {
                assert_eq!(status, kind.refusal, "{} number {n}", kind.create);
                return made;
            }
        }
    }
}

/// Fills a function with one kind of object, empties it, and fills it again.
fn run_out(live: &mut Live, kind: &Kind) -> u32 {
    live.restart().unwrap();
    let queue = QueueCreate {
        ring: RING,
        depth: 16,
        slot: 2,
    };
    let cqn = low(live.admin(AdminOp::CQ_CREATE, queue.to_body()).unwrap()[0]);
    let limit = match kind.limit {
        Limit::Register(register) => live.raw.register(register),
        Limit::Fixed(limit) => limit,
    };
    let is_whole = kind.is_quick || operations(0, 1) == 1;
    let room = limit - kind.present;
    let most = if is_whole { u32::MAX } else { 500 };
    let made = fill(live, kind, cqn, most);
    let count = u32::try_from(made.len()).unwrap();
    assert_eq!(count, room.min(most), "{}", kind.create);
    if let Some(destroy) = kind.destroy {
        for id in made {
            let body = Named { id, reserved: 0 };
            live.admin(destroy, body.to_body()).unwrap();
        }
        let again = fill(live, kind, cqn, most);
        assert_eq!(
            again.len(),
            room.min(most) as usize,
            "{} again",
            kind.create
        );
    }
    count
}

#[test]
fn objects_run_out_at_the_announced_limits_for_their_function_alone() {
    let emulator = Emulator::start();
    let traffic = Traffic::start(&emulator, 4200);
    let mut pair = Pair::new(&emulator, 4300);
    let idle = emulator.counters("a");
    let mut greedy = Live::attach(&emulator.device("a"));
    for (n, kind) in (0..).zip(&KINDS) {
        let made = run_out(&mut greedy, kind);
        println!("{}: {made}", kind.create);
        pair.round(n);
        // The newcomer's port is free: the greedy one listens on node a alone.
        Pair::new(&emulator, 4400).round(n);
    }
    // Its next life starts from nothing, and its end leaves nothing.
    greedy.restart().unwrap();
    greedy.qp().unwrap();
    drop(greedy);
    let counters = || emulator.counters("a");
    crate::harness::eventually("given back", counters, |now| {
        (now.qps, now.cqs, now.mrs, now.windows, now.listeners)
            == (idle.qps, idle.cqs, idle.mrs, idle.windows, idle.listeners)
    });
    traffic.finish();
    emulator.end_unharmed();
}
