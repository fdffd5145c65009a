//! Completion queues that are resized, moderated and armed through the verbs-like objects.

use std::os::fd::AsFd;
use std::sync::Arc;

use driver::error::{AdminError, FunctionError};
use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::admin::AdminStatus;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::wqe::WqeFlags;

/// A sender, and a receiver whose CQ is under test.
struct Scene {
    device: EmbeddedDevice,
    function: Arc<Function>,
    sender: Qp,
    sent: Cq,
    qp: Qp,
    cq: Cq,
    memory: Mr,
    next: u64,
}

impl Scene {
    fn new(entries: u32) -> Self {
        let device = EmbeddedDevice::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
        let [of_a, function] =
            [(); 2].map(|()| Function::attach(Arc::new(device.attach(node).unwrap())).unwrap());
        let pd = Pd::new(&of_a).unwrap();
        let mut sent = Cq::new(&of_a, 256).unwrap();
        let mut sender = Qp::new(&pd, &mut sent, QpOptions::default()).unwrap();
        let pd = Pd::new(&function).unwrap();
        let memory = pd.register(64, Access::LOCAL_WRITE).unwrap();
        let mut cq = Cq::new(&function, entries).unwrap();
        let mut qp = Qp::new(&pd, &mut cq, QpOptions::default()).unwrap();
        sender.connect(qp.address()).unwrap();
        qp.connect(sender.address()).unwrap();
        Self {
            device,
            function,
            sender,
            sent,
            qp,
            cq,
            memory,
            next: 0,
        }
    }

    /// Messages, received under ascending numbers.
    fn messages(&mut self, count: u64, flags: WqeFlags) {
        for _ in 0..count {
            let sge = self.memory.sge(0, 64);
            self.qp.post_recv(self.next, &[sge]).unwrap();
            self.qp.ring();
            self.sender
                .post_send(&SendWr {
                    wr_id: self.next,
                    opcode: Opcode::SEND,
                    flags: WqeFlags::SIGNALED | flags,
                    imm: 0,
                    payload: Payload::Inline(b"x"),
                    remote_addr: 0,
                    rkey: 0,
                })
                .unwrap();
            self.sender.ring();
            let wc = self.sent.poll().expect("a send completes at once");
            assert_eq!(wc.status, WcStatus::SUCCESS);
            self.next += 1;
        }
    }

    /// Takes everything; the numbers are these.
    fn taken(&mut self, wanted: std::ops::Range<u64>) {
        let seen: Vec<_> = std::iter::from_fn(|| self.cq.poll())
            .map(|wc| wc.wr_id)
            .collect();
        assert_eq!(seen, wanted.collect::<Vec<_>>());
    }

    /// An eventfd on a vector.
    fn vector(&self, number: u8) -> EventFd {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = EventFd::from_value_and_flags(0, flags).unwrap();
        self.function
            .connect_vector(number, Some(eventfd.as_fd()))
            .unwrap();
        eventfd
    }
}

/// How often a vector fired since the last look.
fn fired(eventfd: &EventFd) -> u64 {
    match eventfd.read() {
        Ok(times) => times,
        Err(Errno::EAGAIN) => 0,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn a_cq_grows_and_shrinks_with_what_is_in_it() {
    let mut scene = Scene::new(16);
    scene.messages(10, WqeFlags::empty());
    scene.cq.resize(64).unwrap();
    scene.messages(40, WqeFlags::empty());
    scene.taken(0..50);
    scene.messages(5, WqeFlags::empty());
    scene.cq.resize(8).unwrap();
    scene.messages(3, WqeFlags::empty());
    scene.taken(50..58);
    // Laps of the smaller ring.
    for _ in 0..10 {
        let from = scene.next;
        scene.messages(7, WqeFlags::empty());
        scene.taken(from..from + 7);
    }
}

#[test]
fn a_ring_too_small_for_what_waits_is_refused_and_changes_nothing() {
    let mut scene = Scene::new(64);
    scene.messages(9, WqeFlags::empty());
    let refused = scene.cq.resize(8).unwrap_err();
    let status = match refused {
        FunctionError::Admin(AdminError::Refused { status, .. }) => status,
        other => panic!("{other}"),
    };
    assert_eq!(status, AdminStatus::INVALID);
    for entries in [0, 48, 1 << 17] {
        let refused = scene.cq.resize(entries);
        assert!(matches!(refused, Err(FunctionError::Invalid { .. })));
    }
    scene.messages(20, WqeFlags::empty());
    scene.taken(0..29);
}

#[test]
fn rings_that_a_cq_left_are_used_again() {
    let mut scene = Scene::new(64);
    // 2 MiB each, more than the arena could hold, were they kept.
    for _ in 0..520 {
        scene.cq.resize(1 << 16).unwrap();
    }
    scene.messages(3, WqeFlags::empty());
    scene.taken(0..3);
}

#[test]
fn an_armed_cq_fires_once_and_stays_armed_through_a_resize() {
    let mut scene = Scene::new(16);
    let vector = scene.vector(7);
    scene.cq.arm(7);
    scene.cq.resize(32).unwrap();
    assert_eq!(fired(&vector), 0);
    scene.messages(3, WqeFlags::empty());
    assert_eq!(fired(&vector), 1);
    scene.taken(0..3);
    // Taken away, it is silent.
    scene.function.connect_vector(7, None).unwrap();
    scene.cq.arm(7);
    scene.messages(1, WqeFlags::empty());
    assert_eq!(fired(&vector), 0);
}

#[test]
fn a_solicited_arm_waits_for_a_solicited_message_or_an_error() {
    let mut scene = Scene::new(64);
    let vector = scene.vector(63);
    scene.cq.arm_solicited(63);
    scene.messages(3, WqeFlags::empty());
    assert_eq!(fired(&vector), 0);
    scene.messages(1, WqeFlags::SOLICITED);
    assert_eq!(fired(&vector), 1);
    scene.taken(0..4);

    scene.cq.arm_solicited(63);
    let sge = scene.memory.sge(0, 64);
    scene.qp.post_recv(99, &[sge]).unwrap();
    scene.qp.ring();
    // Its peer goes: what is posted flushes.
    let Scene { sender, cq, .. } = scene;
    drop(sender);
    assert_eq!(fired(&vector), 1);
    let mut cq = cq;
    assert_eq!(cq.poll().unwrap().status, WcStatus::WR_FLUSH_ERR);
}

#[test]
fn a_moderated_cq_fires_after_its_count_or_its_period() {
    let mut scene = Scene::new(64);
    let vector = scene.vector(0);
    scene.cq.moderate(4, 100).unwrap();
    scene.cq.arm(0);
    scene.messages(3, WqeFlags::empty());
    assert_eq!(fired(&vector), 0);
    scene.messages(1, WqeFlags::empty());
    assert_eq!(fired(&vector), 1);

    scene.cq.arm(0);
    scene.messages(1, WqeFlags::empty());
    scene.device.advance(99_999);
    assert_eq!(fired(&vector), 0);
    scene.device.advance(1);
    assert_eq!(fired(&vector), 1);

    // Off: at once again.
    scene.cq.moderate(0, 0).unwrap();
    scene.cq.arm(0);
    scene.messages(1, WqeFlags::empty());
    assert_eq!(fired(&vector), 1);

    let refused = scene.cq.moderate(4, 0).unwrap_err();
    assert_eq!(refused.status(), Some(AdminStatus::INVALID));
    scene.taken(0..6);
}

#[test]
#[should_panic(expected = "vectors are numbered")]
fn a_vector_that_no_function_has_is_a_fault_of_the_caller() {
    Scene::new(16).cq.arm(64);
}
