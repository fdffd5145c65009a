//! What the device does not do per WQE: allocate, and call the kernel.
#![expect(
    unsafe_code,
    reason = "counts allocations and traps system calls of one thread"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ring_proto::status::{Opcode, WcStatus};
use ring_proto::sync::{AtomicU8, AtomicU32, Ordering};

use crate::client::{Pair, Region, Send, full, recv_wqe};

/// The system's allocator, with a count per thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// Every kind of message both ways, with a receiver that is late; nothing in here may allocate.
fn traffic(pair: &mut Pair, own: Region, remote: Region, sends: &[[u64; 8]], reads: &[[u64; 8]]) {
    for _ in 0..8 {
        pair.a.write_send(&mut pair.qa, sends);
        pair.a.write_send(&mut pair.qa, reads);
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.device.pump();
    for wr_id in 0..8 {
        let mut receive = recv_wqe(wr_id, &[]);
        receive.count = 1;
        receive.sges[0] = remote.sge(0, 256);
        pair.b.write_recv(&mut pair.qb, receive);
        pair.b.ring_qp(&mut pair.device, &pair.qb);
        while pair.device.pump().served != 0 {}
    }
    for _ in 0..16 {
        let wc = pair.a.poll(&mut pair.qa);
        assert!(wc.is_some_and(|wc| wc.status == WcStatus::SUCCESS));
    }
    for _ in 0..8 {
        assert!(pair.b.poll(&mut pair.qb).is_some());
    }
    let _ = own;
}

struct Scene {
    pair: Pair,
    own: Region,
    remote: Region,
    sends: Vec<[u64; 8]>,
    reads: Vec<[u64; 8]>,
}

impl Scene {
    fn new() -> Self {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, 4096, full());
        let remote = pair.b.region(&mut pair.device, 4096, full());
        let sends = Send::new(Opcode::SEND, 1, &[own.sge(0, 100), own.sge(200, 100)]).blocks();
        let reads = Send::new(Opcode::RDMA_READ, 2, &[own.sge(0, 64)])
            .remote(remote.iova, remote.key)
            .blocks();
        // Awake and warm: both functions are hot, the device's lists have their size.
        pair.device.kicked(pair.a.function);
        pair.device.kicked(pair.b.function);
        let mut scene = Self {
            pair,
            own,
            remote,
            sends,
            reads,
        };
        scene.run();
        scene
    }

    fn run(&mut self) {
        traffic(
            &mut self.pair,
            self.own,
            self.remote,
            &self.sends,
            &self.reads,
        );
    }
}

#[test]
fn traffic_allocates_nothing() {
    let mut scene = Scene::new();
    let before = allocations();
    for _ in 0..100 {
        scene.run();
    }
    assert_eq!(allocations() - before, 0);
}

/// 0: system calls pass; 1: they are trapped. Read by the kernel at every call of the thread.
static SELECTOR: AtomicU8 = AtomicU8::new(0);
static TRAPPED: AtomicU32 = AtomicU32::new(0);

/// prctl number and arguments. Source: include/uapi/linux/prctl.h.
const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
const PR_SYS_DISPATCH_OFF: libc::c_ulong = 0;
const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;

extern "C" fn trapped(_: libc::c_int) {
    // Relaxed: the same thread reads them, after the handler. The call that trapped fails; the test fails with it.
    SELECTOR.store(0, Ordering::Relaxed);
    TRAPPED.fetch_add(1, Ordering::Relaxed);
}

fn dispatch(mode: libc::c_ulong, selector: *const AtomicU8) -> bool {
    // SAFETY: the kernel reads one byte at `selector`, a static, at later system calls of this thread; nothing else is touched.
    unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, mode, 0, 0, selector) == 0 }
}

#[test]
fn traffic_makes_no_system_call() {
    let mut scene = Scene::new();
    let action = SigAction::new(
        SigHandler::Handler(trapped),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler touches two atomics only, and no other code of this process uses SIGSYS.
    unsafe { sigaction(Signal::SIGSYS, &action) }.unwrap();
    if !dispatch(PR_SYS_DISPATCH_ON, &SELECTOR) {
        eprintln!("skipped: this kernel cannot trap system calls for a thread");
        return;
    }
    // Proof of the trap itself.
    SELECTOR.store(1, Ordering::Relaxed);
    nix::unistd::getpid();
    let proven = TRAPPED.swap(0, Ordering::Relaxed);
    SELECTOR.store(1, Ordering::Relaxed);
    for _ in 0..100 {
        scene.run();
    }
    SELECTOR.store(0, Ordering::Relaxed);
    assert!(dispatch(PR_SYS_DISPATCH_OFF, std::ptr::null()));
    assert_eq!(proven, 1);
    assert_eq!(TRAPPED.load(Ordering::Relaxed), 0);
}
