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
use ring_proto::shared::Bar2;
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::uar;
use ring_proto::wqe::WqeFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Operations of one kind in a round.
pub(crate) const BATCH: u32 = 16;
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
        let mut stage = Self { device, near, far };
        // Everything has run once: lazily bound functions, first pages.
        stage.round();
        stage
    }

    /// Posts, serves and polls a batch, by each of the measured operations.
    pub(crate) fn round(&mut self) {
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
        measured_serve(&self.device);
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
        let memory = pd.register(4096, Access::LOCAL_WRITE).expect("memory");
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
fn measured_serve(device: &EmbeddedDevice) {
    device.pump();
}
