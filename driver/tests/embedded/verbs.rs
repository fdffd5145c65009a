//! RC operations through the verbs-like objects.

use std::sync::Arc;

use driver::error::PostError;
use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use ring_proto::status::{Opcode, QpState, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
    pd: Pd,
}

/// Two connected QPs, each on a function and with 64 KiB of memory of its own.
fn ends() -> [End; 2] {
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
    let mut ends = [(); 2].map(|()| {
        let function = Function::attach(Arc::new(device.attach(node).unwrap())).unwrap();
        let pd = Pd::new(&function).unwrap();
        let memory = pd.register(65_536, Access::all()).unwrap();
        let mut cq = Cq::new(&function, 64).unwrap();
        let qp = Qp::new(&pd, &mut cq, QpOptions::default()).unwrap();
        End { qp, cq, memory, pd }
    });
    let [a, b] = &mut ends;
    a.qp.connect(b.qp.address()).unwrap();
    b.qp.connect(a.qp.address()).unwrap();
    ends
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

impl End {
    fn post(&mut self, wr: &SendWr<'_>) {
        self.qp.post_send(wr).unwrap();
        self.qp.ring();
    }

    fn receive(&mut self, wr_id: u64, len: u32) {
        let sge = self.memory.sge(0, len);
        self.qp.post_recv(wr_id, &[sge]).unwrap();
        self.qp.ring();
    }

    fn bytes(&self, offset: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.memory.read(offset, &mut bytes));
        bytes
    }
}

#[test]
fn immediate_data_arrives_with_the_message() {
    let [mut a, mut b] = ends();
    b.receive(1, 100);
    let mut send = wr(2, Opcode::SEND_WITH_IMM, Payload::Inline(b"with"));
    send.imm = 0xfeed;
    a.post(&send);
    let wc = b.cq.poll().unwrap();
    assert_eq!((wc.wr_id, wc.byte_len, wc.imm), (1, 4, Some(0xfeed)));
    assert_eq!((wc.status, wc.opcode), (WcStatus::SUCCESS, WcOpcode::RECV));
    assert_eq!(b.bytes(0, 4), b"with");
    assert_eq!(a.cq.poll().map(|wc| wc.wr_id), Some(2));
    assert_eq!(a.cq.poll(), None);
}

#[test]
fn inline_messages_of_every_block_count_arrive_through_many_laps() {
    let [mut a, mut b] = ends();
    for round in 0..200_u32 {
        let len = usize::try_from(round * 7 % 225).unwrap();
        let bytes: Vec<u8> = (0..len)
            .map(|i| u8::try_from((i + len) % 256).unwrap())
            .collect();
        b.receive(round.into(), 4096);
        a.post(&wr(round.into(), Opcode::SEND, Payload::Inline(&bytes)));
        let wc = b.cq.poll().unwrap();
        assert_eq!((wc.wr_id, wc.byte_len as usize), (u64::from(round), len));
        assert_eq!(b.bytes(0, len), bytes);
        assert_eq!(a.cq.poll().map(|wc| wc.wr_id), Some(round.into()));
    }
}

#[test]
fn a_gather_list_of_any_length_arrives_in_order() {
    let [mut a, mut b] = ends();
    for count in 1..=14_u32 {
        let sges: Vec<_> = (0..count).map(|i| a.memory.sge(i * 100, 3)).collect();
        for i in 0..count {
            assert!(a.memory.write(i * 100, &[u8::try_from(i).unwrap(); 3]));
        }
        b.receive(1, 4096);
        a.post(&wr(2, Opcode::SEND, Payload::Sges(&sges)));
        let expected: Vec<u8> = (0..count)
            .flat_map(|i| [u8::try_from(i).unwrap(); 3])
            .collect();
        assert_eq!(b.cq.poll().unwrap().byte_len, count * 3);
        assert_eq!(b.bytes(0, expected.len()), expected);
        assert!(a.cq.poll().is_some());
    }
}

#[test]
fn rdma_write_and_read_move_bytes_without_the_peer() {
    let [mut a, mut b] = ends();
    a.memory.write(0, b"written");
    let sges = [a.memory.sge(0, 7)];
    let mut write = wr(1, Opcode::RDMA_WRITE, Payload::Sges(&sges));
    write.remote_addr = b.memory.addr() + 1000;
    write.rkey = b.memory.rkey().0;
    a.post(&write);
    assert_eq!(b.bytes(1000, 7), b"written");
    assert_eq!(a.cq.poll().map(|wc| wc.opcode), Some(WcOpcode::RDMA_WRITE));

    b.memory.write(2000, b"fetched");
    let sges = [a.memory.sge(50, 7)];
    let mut read = wr(2, Opcode::RDMA_READ, Payload::Sges(&sges));
    read.remote_addr = b.memory.addr() + 2000;
    read.rkey = b.memory.rkey().0;
    a.post(&read);
    assert_eq!(
        a.cq.poll().map(|wc| (wc.wr_id, wc.status)),
        Some((2, WcStatus::SUCCESS))
    );
    assert_eq!(a.bytes(50, 7), b"fetched");
    assert_eq!(b.cq.poll(), None);
}

#[test]
fn a_message_waits_for_its_receive() {
    let [mut a, mut b] = ends();
    a.post(&wr(1, Opcode::SEND, Payload::Inline(b"early")));
    a.post(&wr(2, Opcode::SEND, Payload::Inline(b"later")));
    assert_eq!((a.cq.poll(), b.cq.poll()), (None, None));
    b.receive(7, 10);
    assert_eq!(b.cq.poll().map(|wc| (wc.wr_id, wc.byte_len)), Some((7, 5)));
    assert_eq!(b.bytes(0, 5), b"early");
    assert_eq!(a.cq.poll().map(|wc| wc.wr_id), Some(1));
    assert_eq!(a.cq.poll(), None);
    b.receive(8, 10);
    assert_eq!(a.cq.poll().map(|wc| wc.wr_id), Some(2));
    assert_eq!(b.bytes(0, 5), b"later");
}

#[test]
fn a_wrong_key_ends_both_queue_pairs_and_flushes_the_rest() {
    let [mut a, mut b] = ends();
    b.receive(7, 10);
    let sges = [a.memory.sge(0, 8)];
    let mut write = wr(1, Opcode::RDMA_WRITE, Payload::Sges(&sges));
    write.remote_addr = b.memory.addr();
    write.rkey = b.memory.rkey().0 ^ 1;
    a.qp.post_send(&write).unwrap();
    a.qp.post_send(&wr(2, Opcode::SEND, Payload::Inline(b"never")))
        .unwrap();
    a.qp.ring();
    let wc = a.cq.poll().unwrap();
    assert_eq!((wc.wr_id, wc.status), (1, WcStatus::REM_ACCESS_ERR));
    assert_eq!(wc.syndrome, Syndrome::RKEY_UNKNOWN);
    assert_eq!(
        a.cq.poll().map(|wc| (wc.wr_id, wc.status)),
        Some((2, WcStatus::WR_FLUSH_ERR))
    );
    assert_eq!(a.qp.state(), Ok(QpState::ERR));
    assert_eq!(b.qp.state(), Ok(QpState::ERR));
    assert_eq!(
        b.cq.poll().map(|wc| (wc.wr_id, wc.status)),
        Some((7, WcStatus::WR_FLUSH_ERR))
    );
    // What is posted later flushes too.
    a.post(&wr(3, Opcode::SEND, Payload::Inline(b"late")));
    assert_eq!(
        a.cq.poll().map(|wc| (wc.wr_id, wc.status)),
        Some((3, WcStatus::WR_FLUSH_ERR))
    );
}

#[test]
fn a_full_queue_is_a_value_and_ends_with_a_completion() {
    let [mut a, mut b] = ends();
    let mut posted = 0;
    while a
        .qp
        .post_send(&wr(posted, Opcode::SEND, Payload::Inline(&[0; 200])))
        .is_ok()
    {
        posted += 1;
    }
    assert_eq!(posted, 16);
    let more = wr(99, Opcode::SEND, Payload::Inline(b""));
    assert_eq!(a.qp.post_send(&more), Err(PostError::QueueFull));
    a.qp.ring();
    b.receive(1, 4096);
    assert_eq!(a.qp.post_send(&more), Err(PostError::QueueFull));
    assert!(a.cq.poll().is_some());
    assert_eq!(a.qp.post_send(&more), Ok(()));
}

#[test]
fn dropped_objects_leave_room_for_new_ones() {
    let [mut a, b] = ends();
    for _ in 0..3000 {
        let mr = a.pd.register(65_536, Access::LOCAL_WRITE).unwrap();
        assert!(mr.write(65_530, b"inside") && !mr.write(65_531, b"beyond"));
        drop(Qp::new(&a.pd, &mut a.cq, QpOptions::default()).unwrap());
    }
    assert_eq!(b.qp.state(), Ok(QpState::RTS));
}

#[test]
fn another_size_than_a_power_of_two_is_refused() {
    let [a, _b] = ends();
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
    let function = Function::attach(Arc::new(device.attach(node).unwrap())).unwrap();
    assert!(Cq::new(&function, 100).is_err());
    assert!(Cq::new(&function, 1 << 17).is_err());
    drop(a);
}
