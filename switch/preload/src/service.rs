//! The service thread: what must go on while the program is in no socket call.
//!
//! Place: one per process, made when the switch first asks for it; it runs `Switch::service_step` and sleeps as that says.
//! Invariants: it receives no signals; it exits never, and holds nothing that an exit of the process would miss. A child has none until it
//! asks for one. Source: R-26. Leaves out: what is to be done, which the switch knows.
#![expect(
    unsafe_code,
    reason = "makes a thread, and keeps a descriptor by number"
)]

use core::ffi::c_void;
use core::mem::MaybeUninit;
use std::os::fd::RawFd;

use driver::sys::{Fd, SignalsBlocked};
use ring_proto::sync::{AtomicI32, AtomicU32, Ordering};
use switch::outcome::now_ns;
use switch::sys;

use crate::calls::guarded;
use crate::runtime::{self, TABLE};

const STACK: usize = 512 * 1024;
const NONE: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;

/// The thread of this process.
#[derive(Debug)]
pub(crate) struct Service {
    state: AtomicU32,
    /// Eventfd that ends its sleep; -1 for none.
    wake: AtomicI32,
}

impl Service {
    /// No thread.
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU32::new(NONE),
            wake: AtomicI32::new(-1),
        }
    }

    /// Makes the thread look again; starts it if there is none. Without a thread to be had, connections are driven by calls alone.
    pub(crate) fn wake(&self) {
        // Acquire: the descriptor.
        match self.state.load(Ordering::Acquire) {
            RUNNING => sys::signal(self.wake.load(Ordering::Relaxed)),
            // It looks at everything when it begins.
            STARTING => {}
            _ => self.start(),
        }
    }

    /// Starts the thread if there is none: in a forked child, whose inherited connections may need it.
    #[inline]
    pub(crate) fn ensure(&self) {
        // Relaxed: `start` decides.
        if self.state.load(Ordering::Relaxed) == NONE {
            self.start();
        }
    }

    #[cold]
    fn start(&self) {
        let claimed =
            self.state
                .compare_exchange(NONE, STARTING, Ordering::Acquire, Ordering::Relaxed);
        if claimed.is_err() {
            return;
        }
        let Ok(wake) = driver::sys::eventfd() else {
            // Relaxed: nothing was made.
            self.state.store(NONE, Ordering::Relaxed);
            return;
        };
        self.wake.store(wake.raw(), Ordering::Relaxed);
        // Release: the descriptor.
        self.state.store(RUNNING, Ordering::Release);
        if spawn() {
            // Kept by number, see `after_fork_in_child`.
            core::mem::forget(wake);
        } else {
            self.wake.store(-1, Ordering::Relaxed);
            self.state.store(NONE, Ordering::Relaxed);
        }
    }

    /// The thread stayed in the parent.
    pub(crate) fn after_fork_in_child(&self) {
        // Relaxed: the child has one thread.
        let wake = self.wake.swap(-1, Ordering::Relaxed);
        if wake >= 0 {
            // SAFETY: kept by `start`; the child's copy of the number is this value's alone.
            drop(unsafe { Fd::from_raw(wake) });
        }
        self.state.store(NONE, Ordering::Relaxed);
    }
}

/// Makes the thread, detached, with all signals blocked.
fn spawn() -> bool {
    let _blocked = SignalsBlocked::new();
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: room for the attributes.
    if unsafe { libc::pthread_attr_init(attributes) } != 0 {
        return false;
    }
    // SAFETY: initialised above. A refused size leaves the default, which serves too.
    unsafe { libc::pthread_attr_setstacksize(attributes, STACK) };
    // SAFETY: initialised above.
    unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) };
    let mut thread = MaybeUninit::uninit();
    // SAFETY: room for the thread's number, initialised attributes, and a function of this library, which is never unloaded.
    let result = unsafe {
        libc::pthread_create(thread.as_mut_ptr(), attributes, run, core::ptr::null_mut())
    };
    // SAFETY: initialised above, and not used any more.
    unsafe { libc::pthread_attr_destroy(attributes) };
    result == 0
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    loop {
        let wake = runtime::SERVICE.wake.load(Ordering::Relaxed);
        guarded(|| step(wake));
    }
}

fn step(wake: RawFd) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    TABLE.reap();
    let plan = runtime.switch.service_step();
    let mut fds = plan.fds;
    fds.push(libc::pollfd {
        fd: wake,
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = match plan.deadline_ns {
        u64::MAX => None,
        deadline => Some(deadline.saturating_sub(now_ns())),
    };
    // EINTR cannot be: signals are blocked. Whatever comes, the next step looks at everything.
    sys::poll(&mut fds, timeout).ok();
    if fds.last().is_some_and(|f| f.revents != 0) {
        sys::drain(wake);
    }
}
