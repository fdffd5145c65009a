//! Posting, ringing and polling, while the NIC is awake: no system call, no allocation.
//!
//! The device is pumped without rest by a thread of the test; a forked child works under a seccomp filter that kills it at the first
//! system call, and counts what the allocator is asked for.
#![expect(
    unsafe_code,
    reason = "forks, filters system calls and counts allocations"
)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use driver::function::Function;
use driver::opener::{Holding, Opener};
use driver::spi::{
    MEM_READ, MEM_WRITE, Overlapped, RdmaDescriptor, ServiceProvider, SpBuffer, SpSocket,
};
use driver::sq::{Payload, SendWr};
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use driver::wsa::WsaError;
use nic_emu::device::{Device, DeviceOptions, WindowRequest};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU64, Ordering};
use ring_proto::uar::BAR2_LEN;
use ring_proto::wqe::WqeFlags;

use support::{Host, connect, ip, plain};

/// Counts what it is asked for.
struct Counting;

static ASKED: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything through to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A device that is pumped without rest, so that it never parks.
#[derive(Clone)]
struct Awake {
    device: Arc<Mutex<Device>>,
    stop: Arc<AtomicU64>,
}

struct Pump(Awake, Option<JoinHandle<()>>);

impl Pump {
    fn start() -> Self {
        let awake = Awake {
            device: Arc::new(Mutex::new(Device::new(DeviceOptions {
                // Without a clock no function ever turns cold.
                virtual_time: true,
                ..DeviceOptions::default()
            }))),
            stop: Arc::new(AtomicU64::new(0)),
        };
        let pumped = awake.clone();
        let thread = std::thread::spawn(move || {
            while pumped.stop.load(Ordering::Relaxed) == 0 {
                let mut device = pumped.device.lock().unwrap();
                device.unpark();
                device.pump();
                drop(device);
                std::thread::yield_now();
            }
        });
        Self(awake, Some(thread))
    }

    fn attach(&self, node: NodeId) -> Attached {
        let function = self.0.device.lock().unwrap().attach(node).unwrap();
        Attached {
            awake: self.0.clone(),
            function,
        }
    }

    fn node(&self, k: u8) -> NodeId {
        let mut device = self.0.device.lock().unwrap();
        device.add_node(["a", "b"][usize::from(k) - 1], &[ip(k)])
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.stop.store(1, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

/// A function of the pumped device.
struct Attached {
    awake: Awake,
    function: FunctionId,
}

impl Attached {
    fn with<R>(
        &self,
        work: impl FnOnce(&mut Device) -> Result<R, nic_emu::device::DeviceError>,
    ) -> Result<R, AttachError> {
        work(&mut self.awake.device.lock().unwrap()).map_err(|error| AttachError::Refused {
            what: "device",
            errno: error.errno(),
        })
    }
}

impl Attachment for Attached {
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        self.with(|device| device.read_register(self.function, offset, len))
    }

    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError> {
        self.with(|device| device.write_register(self.function, offset, len, value))
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        let fd = self.with(|device| device.bar2(self.function).map(|fd| fd.as_raw_fd()))?;
        Ok((fd, BAR2_LEN))
    }

    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError> {
        // SAFETY: the caller's descriptor is open during the call.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let request = WindowRequest {
            fd: Some(fd.try_clone_to_owned().unwrap()),
            offset,
            iova,
            len,
            read: true,
            write: writable,
        };
        self.with(|device| device.map(self.function, request))
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        self.with(|device| device.unmap(self.function, iova, len))
    }

    fn set_vector(&self, _: u8, _: Option<RawFd>) -> Result<(), AttachError> {
        Ok(())
    }

    fn kick(&self) {
        // As a kick is one: an awake NIC needs none in the measured section.
        // SAFETY: a system call without arguments.
        unsafe { libc::syscall(libc::SYS_getpid) };
        self.awake.device.lock().unwrap().kicked(self.function);
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        None
    }
}

struct PumpOpener(Mutex<Option<Arc<dyn Attachment>>>);

impl std::fmt::Debug for PumpOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PumpOpener")
    }
}

impl Opener for PumpOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        Ok(self.0.lock().unwrap().take().unwrap())
    }

    fn hold(&self, _: Holding) -> Result<(), AttachError> {
        Ok(())
    }

    fn before_fork(&self, _: &[Holding]) -> Result<(), AttachError> {
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    fn after_fork_in_child(&self) {}
}

/// From now on any system call but `exit_group` kills this process.
fn forbid_system_calls() {
    let statement = |code: u32, k: u32, jt, jf| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let exit = u32::try_from(libc::SYS_exit_group).unwrap();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, exit, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_KILL_PROCESS,
            0,
            0,
        ),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the option takes no pointers.
    let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(set, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is valid and is copied by the kernel.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!(set, 0);
}

/// Round trips: the queues go round several times. Whoever may make no system call cannot yield either, so on a busy machine each trip
/// takes the time slices of everybody else.
const ROUNDS: u32 = 300;
/// After this the child hangs.
const PATIENCE_S: u32 = 600;

/// Runs `work` in a forked child that may make no system call; says how the child ended.
///
/// Exit status 0: all went well; 1: `work` failed; 2: it allocated.
fn measured(work: impl FnOnce() -> bool) -> WaitStatus {
    // SAFETY: the child ends by `_exit` and uses only memory.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            nix::unistd::alarm::set(PATIENCE_S);
            forbid_system_calls();
            let before = ASKED.load(Ordering::Relaxed);
            let is_right = work();
            let has_allocated = ASKED.load(Ordering::Relaxed) != before;
            let status = match (is_right, has_allocated) {
                (false, _) => 1,
                (true, true) => 2,
                (true, false) => 0,
            };
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
    }
}

fn assert_clean(end: WaitStatus) {
    assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}");
}

#[test]
fn the_filter_kills_at_the_first_system_call() {
    let end = measured(|| {
        // SAFETY: a system call without arguments.
        unsafe { libc::syscall(libc::SYS_getpid) >= 0 }
    });
    assert!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)),
        "{end:?}"
    );
    let end = measured(|| *std::hint::black_box(Box::new(7)) == 7);
    assert!(matches!(end, WaitStatus::Exited(_, 2)), "{end:?}");
}

struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
}

#[test]
fn verbs_objects_post_and_poll_without_system_call_and_allocation() {
    let pump = Pump::start();
    let node = pump.node(1);
    let mut ends = [(); 2].map(|()| {
        let function = Function::attach(Arc::new(pump.attach(node))).unwrap();
        let pd = Pd::new(&function).unwrap();
        let memory = pd.register(65_536, Access::all()).unwrap();
        let mut cq = Cq::new(&function, 64).unwrap();
        let qp = Qp::new(&pd, &mut cq, QpOptions::default()).unwrap();
        End { qp, cq, memory }
    });
    let [a, b] = &mut ends;
    a.qp.connect(b.qp.address()).unwrap();
    b.qp.connect(a.qp.address()).unwrap();
    assert_clean(measured(|| {
        for round in 0..u64::from(ROUNDS) {
            let into = [b.memory.sge(0, 65_536)];
            let out = [a.memory.sge(0, 1000), a.memory.sge(5000, 24)];
            let (inline, opcode) = ([7; 200], Opcode::SEND);
            let mut wr = SendWr {
                wr_id: round,
                opcode,
                flags: WqeFlags::SIGNALED,
                imm: 0,
                payload: Payload::Sges(&out),
                remote_addr: b.memory.addr(),
                rkey: b.memory.rkey().0,
            };
            match round % 4 {
                0 => wr.payload = Payload::Inline(&inline),
                1 => {}
                2 => wr.opcode = Opcode::RDMA_WRITE,
                _ => wr.opcode = Opcode::RDMA_READ,
            }
            if wr.opcode == Opcode::SEND {
                if b.qp.post_recv(round, &into).is_err() {
                    return false;
                }
                b.qp.ring();
            }
            if a.qp.post_send(&wr).is_err() {
                return false;
            }
            a.qp.ring();
            let sent = loop {
                if let Some(wc) = a.cq.poll() {
                    break wc;
                }
                std::hint::spin_loop();
            };
            if sent.status != WcStatus::SUCCESS || sent.wr_id != round {
                return false;
            }
            if wr.opcode == Opcode::SEND {
                let received = loop {
                    if let Some(wc) = b.cq.poll() {
                        break wc;
                    }
                    std::hint::spin_loop();
                };
                if received.status != WcStatus::SUCCESS {
                    return false;
                }
            }
        }
        true
    }));
}

/// What one end of the provider needs in the measured section, made before it.
struct Side<'a> {
    host: &'a Host,
    socket: SpSocket,
    slot: &'a Overlapped,
    buffer: SpBuffer,
    exposed: RdmaDescriptor,
}

impl<'a> Side<'a> {
    fn new(host: &'a Host, socket: SpSocket) -> Self {
        let memory = host.memory(socket, 8192);
        let provider = &host.provider;
        let access = MEM_READ | MEM_WRITE;
        Self {
            host,
            socket,
            slot: host.slot(socket),
            buffer: memory.buffer(0, 4096),
            exposed: provider
                .wsp_register_rdma_memory(socket, memory.address, 8192, access)
                .unwrap(),
        }
    }

    fn is_done(&self, bytes: u32) -> bool {
        loop {
            match self.host.result(self.socket, self.slot) {
                Err(WsaError::IoIncomplete) => std::hint::spin_loop(),
                done => return done.is_ok_and(|done| done.bytes == bytes),
            }
        }
    }
}

#[test]
fn the_provider_posts_and_completes_without_system_call_and_allocation() {
    let pump = Pump::start();
    let host = |k| {
        let attached: Arc<dyn Attachment> = Arc::new(pump.attach(pump.node(k)));
        Host::new(Arc::new(PumpOpener(Mutex::new(Some(attached)))), ip(k))
    };
    let (a, b) = (host(1), host(2));
    let (at_a, at_b) = connect(&a, &b, 4000, 5000);
    let (near, far) = (Side::new(&a, at_a), Side::new(&b, at_b));
    assert_clean(measured(|| {
        for round in 0..ROUNDS {
            let buffers = [near.buffer];
            let small = [plain(b"a small message")];
            let (provider, s) = (&a.provider, at_a);
            let expected = if round % 4 == 0 { 15 } else { 4096 };
            let posted = match round % 4 {
                0 | 1 => {
                    let into = b.recv(at_b, &[far.buffer], far.slot);
                    let what = if round % 4 == 0 { &small } else { &buffers };
                    into.and_then(|()| a.send(s, what, near.slot))
                }
                2 => provider.wsp_rdma_write(s, &buffers, &far.exposed, 100, near.slot, false),
                _ => provider.wsp_rdma_read(s, &buffers, &far.exposed, 0, near.slot, false),
            };
            if posted.is_err() || !near.is_done(expected) {
                return false;
            }
            if round % 4 < 2 && !far.is_done(expected) {
                return false;
            }
        }
        true
    }));
}
