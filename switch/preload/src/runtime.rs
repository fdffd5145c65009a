//! The library's state in this process, and how it begins.
//!
//! Place: the constructor below runs before `main`; every export asks [`get`] or [`TABLE`].
//! Invariants: the state is made once and never freed; without it the table is empty, so data calls need not ask for it. Fork
//! handlers are registered, not interposed: `daemon` and `forkpty` never enter an interposed `fork`.
//! Source: R-13 (what costs anything is done at the first stream socket). Leaves out: what belongs to a single call.
#![expect(
    unsafe_code,
    reason = "a constructor, the environment, and state behind a pointer"
)]

use core::ffi::{CStr, c_char, c_int};

use ring_proto::channel;
use ring_proto::sync::{AtomicPtr, Ordering};
use switch::NodeConfig;
use switch::place::Placement;
use switch::process::Process;
use switch::table::Table;
use switch::tcp::KernelTcp;

use crate::real;

/// What the library knows of descriptors.
pub(crate) static TABLE: Table = Table::new();

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(core::ptr::null_mut());

/// State of a process that runs on a node.
#[derive(Debug)]
pub(crate) struct Runtime {
    /// Kernel TCP.
    pub(crate) tcp: KernelTcp,
    /// The process before the emulator.
    pub(crate) process: Process,
}

/// The state, `None` in a process that does not run on a node.
#[inline]
pub(crate) fn get() -> Option<&'static Runtime> {
    // Acquire: pairs with `start`.
    let runtime = RUNTIME.load(Ordering::Acquire);
    // SAFETY: null, or stored by `start`, which never frees it.
    unsafe { runtime.as_ref() }
}

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

/// Runs before the program's `main`.
extern "C" fn start() {
    real::resolve();
    let Some(runtime) = from_environment() else {
        return;
    };
    let runtime = Box::into_raw(Box::new(runtime));
    // SAFETY: the handlers are functions of this library, which is never unloaded.
    let registered = unsafe {
        libc::pthread_atfork(
            Some(before_fork),
            Some(after_fork_in_parent),
            Some(after_fork_in_child),
        )
    };
    if registered == 0 {
        // Release: pairs with `get`.
        RUNTIME.store(runtime, Ordering::Release);
    }
}

fn from_environment() -> Option<Runtime> {
    let config = variable(channel::ENV_CONFIG)?;
    // What the launcher wrote it can read; anything else is no node, and there is nobody to tell.
    let config = NodeConfig::from_json(config.to_str().ok()?).ok()?;
    let addresses: Vec<_> = config
        .addresses
        .iter()
        .map(|a| (a.address, a.prefix))
        .collect();
    let nodes = config
        .nodes
        .iter()
        .map(|n| n.addresses.iter().map(|a| a.address).collect())
        .collect();
    let channel = variable(channel::ENV_CHANNEL).and_then(|v| v.to_str().ok()?.parse().ok());
    Some(Runtime {
        tcp: KernelTcp::new(Placement::new(&addresses, nodes), &TABLE),
        process: Process::new(&TABLE, channel),
    })
}

/// A variable of the environment. For the constructor only: later the program may be changing it.
fn variable(name: &str) -> Option<&'static CStr> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a C string; no other thread runs yet.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the environment holds C strings, which stay where they are while the constructor runs.
    Some(unsafe { CStr::from_ptr(value) })
}

extern "C" fn before_fork() {
    if let Some(runtime) = get() {
        runtime.process.before_fork();
    }
}

extern "C" fn after_fork_in_parent() {
    if let Some(runtime) = get() {
        runtime.process.after_fork_in_parent();
    }
}

extern "C" fn after_fork_in_child() {
    if let Some(runtime) = get() {
        runtime.process.after_fork_in_child();
    }
}

/// Whether the program may not see `fd`.
#[inline]
pub(crate) fn is_hidden(fd: c_int) -> bool {
    TABLE.kind(fd) == switch::table::Kind::Internal
}
