//! Atomics, memory windows, invalidation and shared receive queues through the verbs-like objects.

use std::sync::Arc;

use driver::cq::Wc;
use driver::error::PostError;
use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, AtomicWr, Cq, Mr, MwType, Pd, Qp, QpOptions, Srq};
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use ring_proto::status::{Opcode, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
    pd: Pd,
    function: Arc<Function>,
}

impl End {
    fn new(device: &EmbeddedDevice, node: ring_proto::ids::NodeId) -> Self {
        let function = Function::attach(Arc::new(device.attach(node).unwrap())).unwrap();
        let pd = Pd::new(&function).unwrap();
        let memory = pd.register(4096, Access::all()).unwrap();
        let mut cq = Cq::new(&function, 64).unwrap();
        let qp = Qp::new(&pd, &mut cq, QpOptions::default()).unwrap();
        Self {
            qp,
            cq,
            memory,
            pd,
            function,
        }
    }

    fn word(&self, offset: u32) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.memory.read(offset, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    fn done(&mut self) -> Wc {
        self.qp.ring();
        self.cq.poll().expect("a completion")
    }

    /// Reads 8 bytes of the peer by some key.
    fn read(&mut self, addr: u64, rkey: u32) -> (WcStatus, Syndrome) {
        let sges = [self.memory.sge(0, 8)];
        let wr = SendWr {
            remote_addr: addr,
            rkey,
            ..wr(9, Opcode::RDMA_READ, Payload::Sges(&sges))
        };
        self.qp.post_send(&wr).unwrap();
        let wc = self.done();
        (wc.status, wc.syndrome)
    }
}

fn ends() -> [End; 2] {
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
    let [mut a, mut b] = [(); 2].map(|()| End::new(&device, node));
    a.qp.connect(b.qp.address()).unwrap();
    b.qp.connect(a.qp.address()).unwrap();
    [a, b]
}

fn wr(wr_id: u64, opcode: Opcode, payload: Payload<'_>) -> SendWr<'_> {
    SendWr {
        wr_id,
        opcode,
        flags: WqeFlags::SIGNALED,
        imm: 0,
        payload,
        remote_addr: 0,
        rkey: 0,
    }
}

const DONE: (WcStatus, Syndrome) = (WcStatus::SUCCESS, Syndrome::NONE);

#[test]
fn atomics_change_the_peer_and_bring_the_original() {
    let [mut a, b] = ends();
    b.memory.write(64, &100_u64.to_le_bytes());
    let mut wr = AtomicWr {
        wr_id: 1,
        opcode: Opcode::ATOMIC_FETCH_AND_ADD,
        flags: WqeFlags::SIGNALED,
        original: a.memory.sge(8, 8),
        remote_addr: b.memory.addr() + 64,
        rkey: b.memory.rkey().0,
        compare_add: 11,
        swap: 0,
    };
    a.qp.post_atomic(&wr).unwrap();
    let wc = a.done();
    assert_eq!(
        (wc.wr_id, wc.status, wc.opcode, wc.byte_len),
        (1, WcStatus::SUCCESS, WcOpcode::FETCH_ADD, 8)
    );
    assert_eq!((a.word(8), b.word(64)), (100, 111));
    wr.opcode = Opcode::ATOMIC_CMP_AND_SWP;
    (wr.compare_add, wr.swap) = (111, 7);
    a.qp.post_atomic(&wr).unwrap();
    assert_eq!(a.done().opcode, WcOpcode::COMP_SWAP);
    assert_eq!((a.word(8), b.word(64)), (111, 7));
    wr.remote_addr += 1;
    a.qp.post_atomic(&wr).unwrap();
    let wc = a.done();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::REM_INV_REQ_ERR, Syndrome::ATOMIC_MISALIGNED)
    );
}

#[test]
fn a_full_queue_refuses_atomics_until_completions_are_polled() {
    let [mut a, b] = ends();
    let wr = AtomicWr {
        wr_id: 1,
        opcode: Opcode::ATOMIC_FETCH_AND_ADD,
        flags: WqeFlags::SIGNALED,
        original: a.memory.sge(0, 8),
        remote_addr: b.memory.addr(),
        rkey: b.memory.rkey().0,
        compare_add: 1,
        swap: 0,
    };
    for _ in 0..64 {
        a.qp.post_atomic(&wr).unwrap();
    }
    assert_eq!(a.qp.post_atomic(&wr), Err(PostError::QueueFull));
    a.done();
    a.qp.post_atomic(&wr).unwrap();
    assert_eq!(b.word(0), 64);
}

#[test]
fn a_type_2_window_is_bound_used_and_invalidated() {
    let [mut a, mut b] = ends();
    let mut mw = b.pd.alloc_mw(MwType::Type2).unwrap();
    let flags = WqeFlags::SIGNALED;
    let first = mw.rkey();
    let bind = |b: &mut End, mw: &mut _| {
        let access = Access::REMOTE_READ;
        b.qp.post_bind(3, flags, mw, &b.memory, (1024, 64), access)
            .unwrap()
    };
    let key = bind(&mut b, &mut mw);
    assert_eq!(b.done().opcode, WcOpcode::BIND_MW);
    assert_eq!((mw.rkey(), key == first), (key, false));
    let addr = b.memory.addr() + 1024;
    assert_eq!(a.read(addr, key.0), DONE);
    b.qp.post_local_inv(4, flags, key).unwrap();
    let wc = b.done();
    assert_eq!(
        (wc.opcode, wc.status),
        (WcOpcode::LOCAL_INV, WcStatus::SUCCESS)
    );
    // Bound again, and now the peer ends it.
    let key = bind(&mut b, &mut mw);
    assert_eq!(b.done().status, WcStatus::SUCCESS);
    assert_eq!(a.read(addr, key.0), DONE);
    b.qp.post_recv(5, &[b.memory.sge(0, 64)]).unwrap();
    b.qp.ring();
    let send = SendWr {
        imm: key.0,
        ..wr(6, Opcode::SEND_WITH_INV, Payload::Inline(b"enough"))
    };
    a.qp.post_send(&send).unwrap();
    assert_eq!(a.done().opcode, WcOpcode::SEND_WITH_INV);
    let received = b.cq.poll().unwrap();
    assert_eq!(
        (received.wr_id, received.invalidated, received.imm),
        (5, Some(key), None)
    );
    assert_eq!(
        a.read(addr, key.0),
        (WcStatus::REM_ACCESS_ERR, Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn a_type_1_window_is_bound_by_command() {
    let [mut a, b] = ends();
    let mut mw = b.pd.alloc_mw(MwType::Type1).unwrap();
    let key = mw.bind(&b.memory, 0, 64, Access::REMOTE_READ).unwrap();
    assert_eq!(a.read(b.memory.addr(), key.0), DONE);
    let unbound = mw.unbind().unwrap();
    assert_eq!(mw.rkey(), unbound);
    assert_eq!(
        a.read(b.memory.addr(), unbound.0),
        (WcStatus::REM_ACCESS_ERR, Syndrome::KEY_INVALIDATED)
    );
}

#[test]
fn memory_that_a_window_still_shows_is_given_to_nobody_else() {
    let [mut a, b] = ends();
    let End { pd, .. } = &b;
    let memory = pd.register(4096, Access::all()).unwrap();
    let mut mw = pd.alloc_mw(MwType::Type1).unwrap();
    let access = Access::REMOTE_READ | Access::REMOTE_WRITE;
    let key = mw.bind(&memory, 0, 4096, access).unwrap();
    let addr = memory.addr();
    drop(memory);
    let others: Vec<_> = (0..64)
        .map(|_| pd.register(4096, Access::all()).unwrap())
        .collect();
    assert!(others.iter().all(|other| other.addr() != addr));
    // The peer reaches what it was given, and nobody's new memory.
    assert_eq!(a.read(addr, key.0), DONE);
}

/// An end with two QPs on one SRQ, connected to a QP each.
fn shared() -> ([End; 2], End, Srq, [Qp; 2]) {
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
    let mut senders = [(); 2].map(|()| End::new(&device, node));
    let mut server = End::new(&device, node);
    let srq = Srq::new(&server.pd, 8).unwrap();
    let mut qps = [(); 2]
        .map(|()| Qp::on_srq(&server.pd, &mut server.cq, &srq, QpOptions::default()).unwrap());
    for (sender, qp) in senders.iter_mut().zip(&mut qps) {
        sender.qp.connect(qp.address()).unwrap();
        qp.connect(sender.qp.address()).unwrap();
    }
    (senders, server, srq, qps)
}

#[test]
fn receives_of_an_srq_go_to_whoever_comes_first_for_many_laps() {
    let (mut senders, mut server, mut srq, qps) = shared();
    for round in 0..100_u64 {
        srq.post_recv(round, &[server.memory.sge(0, 64)]).unwrap();
        srq.ring();
        let index = usize::from(round % 3 == 0);
        let sender = &mut senders[index];
        let bytes = round.to_le_bytes();
        sender
            .qp
            .post_send(&wr(round, Opcode::SEND, Payload::Inline(&bytes)))
            .unwrap();
        assert_eq!(sender.done().status, WcStatus::SUCCESS);
        let wc = server.cq.poll().unwrap();
        assert_eq!((wc.wr_id, wc.qpn), (round, qps[index].address().qpn));
        assert_eq!(server.word(0), round);
    }
}

#[test]
fn an_srq_holds_as_many_receives_as_it_is_deep() {
    let (_senders, server, mut srq, mut qps) = shared();
    for wr_id in 0..8 {
        srq.post_recv(wr_id, &[server.memory.sge(0, 8)]).unwrap();
    }
    assert_eq!(srq.post_recv(8, &[]), Err(PostError::QueueFull));
    assert_eq!(srq.query().unwrap(), (0, 0), "nothing is rung yet");
    srq.ring();
    srq.arm_limit(5);
    assert_eq!(srq.query().unwrap(), (8, 5));
    let four = [server.memory.sge(0, 8); 4];
    assert_eq!(
        srq.post_recv(1, &four),
        Err(PostError::TooManySges { count: 4, limit: 3 })
    );
    let refused = qps[0].post_recv(1, &[]);
    assert_eq!(refused, Err(PostError::SharedReceives));
    drop(server.function);
}

#[test]
fn the_limit_is_disarmed_once_it_was_reached() {
    let (mut senders, mut server, mut srq, _qps) = shared();
    for wr_id in 0..4 {
        srq.post_recv(wr_id, &[server.memory.sge(0, 8)]).unwrap();
    }
    srq.ring();
    srq.arm_limit(4);
    assert_eq!(srq.query().unwrap(), (4, 4));
    for expected in [(3, 0), (2, 0)] {
        let send = wr(1, Opcode::SEND, Payload::Inline(b"x"));
        senders[0].qp.post_send(&send).unwrap();
        senders[0].done();
        assert!(server.cq.poll().is_some());
        assert_eq!(srq.query().unwrap(), expected);
    }
    // The same limit again is another arming.
    srq.arm_limit(2);
    assert_eq!(srq.query().unwrap(), (2, 2));
}
