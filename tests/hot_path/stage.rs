//! Two connected queue pairs whose NIC works only when it is told to, and the operations that are measured.
//!
//! Place: every check of this program runs [`Stage::round`]. Invariants: after [`Stage::new`] and after each round everything posted is
//! complete and polled; while operations of the client run, the NIC shows itself awake and does nothing.

use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use driver::function::Function;
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::{Embedded, EmbeddedDevice};
use ring_proto::arm;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::index::Depth;
use ring_proto::shared::{Bar2, WqeRing};
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::uar;
use ring_proto::wqe::WqeFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Operations of one kind in a round.
pub(crate) const BATCH: u32 = 16;
/// RDMA WRITEs in a round: a send queue full of them.
pub(crate) const WRITES: u32 = 64;
/// Bytes of a message.
const LEN: u32 = 64;
/// A doorbell slot that no queue has: arming it wakes nobody.
const FREE_SLOT: u32 = 63;

/// An embedded function that counts kicks.
#[derive(Debug)]
struct Counted {
    embedded: Embedded,
    kicks: AtomicU64,
}

impl Attachment for Counted {
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        self.embedded.read_register(offset, len)
    }

    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError> {
        self.embedded.write_register(offset, len, value)
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        self.embedded.bar2()
    }

    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError> {
        self.embedded.dma_map(fd, offset, iova, len, writable)
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        self.embedded.dma_unmap(iova, len)
    }

    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError> {
        self.embedded.set_vector(index, eventfd)
    }

    fn kick(&self) {
        // Relaxed: counted and read by one thread.
        self.kicks.fetch_add(1, Ordering::Relaxed);
        self.embedded.kick();
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        self.embedded.hangup_fd()
    }
}

/// One end of the connection.
struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
    bar: Bar2,
    attachment: Arc<Counted>,
}

/// The two ends and the device between them.
pub(crate) struct Stage {
    device: EmbeddedDevice,
    near: End,
    far: End,
    bare: Bare,
}

/// Bare rings of elements as large as a WQE, which the NIC's cost per WQE is held against.
struct Bare {
    own: WqeRing,
    _memory: Box<[u64; 8 * WRITES as usize]>,
    position: u32,
    rtrb: (rtrb::Producer<[u64; 8]>, rtrb::Consumer<[u64; 8]>),
}

impl Bare {
    fn new() -> Self {
        let mut memory = Box::new([0; 8 * WRITES as usize]);
        let depth = Depth::new(WRITES).expect("a power of two");
        // SAFETY: 1. aligned, 64 blocks long, and kept as long as the view. 2. only the view touches it from now on.
        let own = unsafe { WqeRing::new(NonNull::from(&mut *memory).cast(), depth) };
        Self {
            own,
            _memory: memory,
            position: 0,
            rtrb: rtrb::RingBuffer::new(WRITES as usize),
        }
    }
}

impl Stage {
    /// Attaches and connects.
    pub(crate) fn new() -> Self {
        // The device's clock stands still: functions stay hot, however slow the machine is.
        let device = EmbeddedDevice::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        let node = device.add_node("a", &[[127, 77, 0, 1].into()]);
        let [mut near, mut far] = [(); 2].map(|()| {
            let attachment = Arc::new(Counted {
                embedded: device.attach(node).expect("room for a function"),
                kicks: AtomicU64::new(0),
            });
            End::new(attachment)
        });
        near.qp.connect(far.qp.address()).expect("a QP in INIT");
        far.qp.connect(near.qp.address()).expect("a QP in INIT");
        let mut stage = Self {
            device,
            near,
            far,
            bare: Bare::new(),
        };
        // Everything has run once: lazily bound functions, first pages.
        stage.round();
        stage
    }

    /// Posts, serves and polls a batch, by each of the measured operations.
    pub(crate) fn round(&mut self) {
        self.sends();
        self.writes();
        self.bare(true);
        self.bare(false);
    }

    fn writes(&mut self) {
        self.post_writes();
        self.serve_writes();
        self.take_writes();
    }

    /// Posts RDMA WRITEs of which the last alone is signaled.
    pub(crate) fn post_writes(&mut self) {
        self.awake();
        for wr_id in 1..=WRITES {
            let sges = [self.near.memory.sge(0, LEN)];
            let wr = SendWr {
                wr_id: wr_id.into(),
                opcode: Opcode::RDMA_WRITE,
                flags: if wr_id == WRITES {
                    WqeFlags::SIGNALED
                } else {
                    WqeFlags::empty()
                },
                imm: 0,
                payload: Payload::Sges(&sges),
                remote_addr: self.far.memory.addr(),
                rkey: self.far.memory.rkey().0,
            };
            self.near.qp.post_send(&wr).expect("room in the queue");
        }
        self.near.qp.ring();
    }

    /// The NIC's part of them.
    pub(crate) fn serve_writes(&self) {
        measured_serve_write(&self.device);
    }

    /// Their one completion.
    pub(crate) fn take_writes(&mut self) {
        let last = self.near.cq.poll().expect("the last one is signaled");
        assert_eq!(
            (last.status, last.wr_id),
            (WcStatus::SUCCESS, WRITES.into())
        );
        self.device.pump();
    }

    /// As many elements of the same size into and out of the two bare rings.
    pub(crate) fn bare(&mut self, of_ours: bool) {
        for _ in 0..WRITES {
            if of_ours {
                assert!(measured_ring(&mut self.bare), "what was written is there");
            } else {
                assert!(measured_rtrb(&mut self.bare), "what was pushed is there");
            }
        }
    }

    /// SENDs into posted receives, each signaled.
    fn sends(&mut self) {
        self.awake();
        let kicks = self.kicks();
        for wr_id in 0..BATCH {
            measured_post_recv(&mut self.far, wr_id.into());
        }
        for wr_id in 0..BATCH {
            if wr_id % 2 == 0 {
                measured_post_send(&mut self.near, wr_id.into());
            } else {
                measured_post_inline(&mut self.near, wr_id.into());
            }
        }
        for _ in 0..BATCH {
            measured_arm(&self.near);
        }
        assert_eq!(self.kicks(), kicks, "a NIC that is awake is not kicked");
        self.serve();
        self.awake();
        for _ in 0..BATCH {
            assert!(measured_poll(&mut self.near), "a send is complete");
            assert!(measured_poll(&mut self.far), "a message has come");
        }
        for _ in 0..BATCH {
            assert!(!measured_empty_poll(&mut self.near), "nothing is left");
        }
        assert_eq!(self.kicks(), kicks, "polling kicks nobody");
        // Asleep again: whatever comes next may wait for an answer.
        self.device.pump();
    }

    /// Client operations of a round alone, for a process that may do no system call. The NIC has work from now on.
    pub(crate) fn client_half(&mut self) {
        for wr_id in 0..BATCH {
            measured_post_recv(&mut self.far, wr_id.into());
            measured_post_send(&mut self.near, wr_id.into());
        }
        measured_arm(&self.near);
        measured_empty_poll(&mut self.near);
    }

    /// Posts a batch and lets the NIC serve it, without polling.
    pub(crate) fn leave_completions(&mut self) {
        self.client_half();
        self.serve();
        self.awake();
    }

    /// Polls what [`Stage::leave_completions`] left.
    pub(crate) fn take_completions(&mut self) {
        for _ in 0..BATCH {
            measured_poll(&mut self.near);
            measured_poll(&mut self.far);
        }
    }

    fn serve(&self) {
        measured_serve_send(&self.device);
    }

    /// Shows the NIC awake: the embedded one says that it sleeps whenever it does nothing.
    fn awake(&self) {
        for end in [&self.near, &self.far] {
            // Relaxed: one thread.
            end.bar.parked().store(0, Ordering::Relaxed);
        }
    }

    fn kicks(&self) -> u64 {
        // Relaxed: one thread.
        [&self.near, &self.far]
            .map(|end| end.attachment.kicks.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

impl End {
    fn new(attachment: Arc<Counted>) -> Self {
        let (fd, _) = attachment
            .bar2()
            .expect("embedded functions have doorbells");
        let len = usize::try_from(uar::BAR2_LEN).expect("8 MiB");
        // SAFETY: the descriptor stays open as long as the attachment, which is not dropped before this call returns.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of a sealed memfd of that length, at an address of the kernel's choice.
        let base = unsafe { mmap(ptr::null_mut(), len, rights, MapFlags::SHARED, fd, 0) }
            .expect("mapping the doorbells");
        let base = NonNull::new(base.cast()).expect("a mapping is never at 0");
        // SAFETY: 1. mapped above and never unmapped. 2. nothing forms references to it.
        let bar = unsafe { Bar2::new(base) };
        let function = Function::attach(Arc::clone(&attachment) as Arc<dyn Attachment>)
            .expect("our own device");
        let pd = Pd::new(&function).expect("a protection domain");
        let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let memory = pd.register(4096, rights).expect("memory");
        let mut cq = Cq::new(&function, 64).expect("a CQ");
        let qp = Qp::new(&pd, &mut cq, QpOptions::default()).expect("a QP");
        Self {
            qp,
            cq,
            memory,
            bar,
            attachment,
        }
    }

    fn send(&mut self, wr_id: u64, payload: Payload<'_>) {
        let wr = SendWr {
            wr_id,
            opcode: Opcode::SEND,
            flags: WqeFlags::SIGNALED,
            imm: 0,
            payload,
            remote_addr: 0,
            rkey: 0,
        };
        self.qp.post_send(&wr).expect("room in the queue");
        self.qp.ring();
    }
}

// Callgrind finds these by name, so none may be merged into its caller.

#[inline(never)]
fn measured_post_send(end: &mut End, wr_id: u64) {
    let sges = [end.memory.sge(0, LEN)];
    end.send(wr_id, Payload::Sges(&sges));
}

#[inline(never)]
fn measured_post_inline(end: &mut End, wr_id: u64) {
    end.send(wr_id, Payload::Inline(&[7; LEN as usize]));
}

#[inline(never)]
fn measured_post_recv(end: &mut End, wr_id: u64) {
    let sges = [end.memory.sge(LEN, LEN)];
    end.qp.post_recv(wr_id, &sges).expect("room in the queue");
    end.qp.ring();
}

#[inline(never)]
fn measured_poll(end: &mut End) -> bool {
    end.cq
        .poll()
        .is_some_and(|wc| wc.status == WcStatus::SUCCESS)
}

#[inline(never)]
fn measured_empty_poll(end: &mut End) -> bool {
    end.cq.poll().is_some()
}

#[inline(never)]
fn measured_arm(end: &End) {
    let line = end.bar.line(FREE_SLOT);
    arm::arm(line.arm_vectors(), line.arm_sequence(), 0, 1);
}

#[inline(never)]
fn measured_serve_send(device: &EmbeddedDevice) {
    device.pump();
}

#[inline(never)]
fn measured_serve_write(device: &EmbeddedDevice) -> u32 {
    device.pump();
    // Another answer than the function above has, so that the two are not merged into one.
    std::hint::black_box(WRITES)
}

#[inline(never)]
fn measured_ring(bare: &mut Bare) -> bool {
    let position = bare.position;
    bare.own.write(position, &[u64::from(position); 8]);
    bare.position = position.wrapping_add(1);
    bare.own.snapshot(position)[7] == u64::from(position)
}

#[inline(never)]
fn measured_rtrb(bare: &mut Bare) -> bool {
    let (producer, consumer) = &mut bare.rtrb;
    producer.push([7; 8]).is_ok() && consumer.pop().is_ok_and(|words| words[7] == 7)
}
