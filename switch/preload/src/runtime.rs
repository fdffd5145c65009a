//! The library's state in this process, and how it begins.
//!
//! Place: the constructor below runs before `main`; every export asks [`get`] or [`TABLE`].
//! Invariants: the state is made once and never freed; without it the table is empty, so data calls need not ask for it. Fork
//! handlers are registered, not interposed: `daemon` and `forkpty` never enter an interposed `fork`. Locks at a fork, in this order:
//! epoll sets, the switch's gate.
//! Source: R-13 (what costs anything is done at the first stream socket). Leaves out: what belongs to a single call.
#![expect(
    unsafe_code,
    reason = "a constructor, the environment, and state behind a pointer"
)]

use core::ffi::{c_char, c_int};
use std::sync::Arc;

use driver::provider::{SanConfig, SanProvider};
use ring_proto::channel;
use ring_proto::sync::{AtomicPtr, Ordering};
use switch::config::Ungoverned;
use switch::estate::Estate;
use switch::place::Placement;
use switch::process::{Process, ProcessOpener};
use switch::readiness::Desk;
use switch::readiness::epoll::Sets;
use switch::readiness::sleeping::Early;
use switch::table::Table;
use switch::tcp::KernelTcp;
use switch::waiters::Waiters;
use switch::{Installed, NodeConfig, Switch};

use crate::audit;
use crate::calls::guarded;
use crate::calls::hosts::Hosts;
use crate::environment::{Environment, variable};
use crate::heir;
use crate::host::ProgramHost;
use crate::real;
use crate::role;
use crate::service::Service;
use crate::signals;

/// Id of the provider that is compiled in, as the emulator lists it.
const PROVIDER: &str = "5a1ab000-0000-4000-8000-000000000001";

/// What the library knows of descriptors.
pub(crate) static TABLE: Table = Table::new();
/// Vectors of sleeping threads.
pub(crate) static WAITERS: Waiters = Waiters::new();
/// Epoll sets that know sockets.
pub(crate) static SETS: Sets = Sets::new();
/// Threads that sleep on epoll sets that know none.
pub(crate) static EARLY: Early = Early::new();
/// The service thread.
pub(crate) static SERVICE: Service = Service::new();

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(core::ptr::null_mut());

/// State of a process that runs on a node.
pub(crate) struct Runtime {
    /// Kernel TCP.
    pub(crate) tcp: Arc<KernelTcp>,
    /// The process before the emulator.
    pub(crate) process: Arc<Process>,
    /// The switch.
    pub(crate) switch: Switch,
    /// The nodes' names.
    pub(crate) hosts: Hosts,
    /// What becomes of datagrams to other nodes.
    pub(crate) ungoverned: Ungoverned,
    /// What programs that this one starts inherit.
    pub(crate) environment: Environment,
    /// Whether this process is a pump, which must never start another one.
    pub(crate) is_pump: bool,
}

impl Runtime {
    /// What waiting needs.
    pub(crate) const fn desk(&'static self) -> Desk {
        Desk {
            switch: &self.switch,
            table: &TABLE,
            waiters: &WAITERS,
        }
    }
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
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char) = start;

/// Runs before the program's `main`. The C library passes what `main` gets.
extern "C" fn start(_count: c_int, arguments: *const *const c_char) {
    real::resolve();
    real::find_leak_checker();
    real::find_threads();
    let estate = heir::take_up();
    let Some(runtime) = from_environment(estate.as_ref()) else {
        return;
    };
    driver::sys::handlers_are_put_off_by(signals::is_inside);
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
    let Some(runtime) = get() else {
        return;
    };
    if let Some(estate) = &estate {
        guarded(|| heir::settle(runtime, estate));
    }
    #[cfg(not(test))]
    role::play(runtime, arguments);
    let is_audited = variable(channel::ENV_REPORT)
        .is_some_and(|value| value.to_bytes().ends_with(channel::REPORT_AUDIT.as_bytes()));
    if is_audited && runtime.process.telemetry.report.is_open() {
        audit::begin(runtime);
    }
    #[cfg(test)]
    let _ = arguments;
}

fn from_environment(estate: Option<&Estate>) -> Option<Runtime> {
    let environment = Environment::read()?;
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
    let tcp = Arc::new(KernelTcp::new(Placement::new(&addresses, nodes), &TABLE));
    let process = Arc::new(Process::new(channel));
    if let Some(estate) = estate {
        process.inherit(estate.life);
    }
    if let Some(report) = variable(channel::ENV_REPORT)
        && let Some(number) = report.to_bytes().split(|&byte| byte == b' ').next()
        && let Ok(number) = core::str::from_utf8(number).unwrap_or_default().parse()
    {
        // What is no report is left alone.
        process.join(number);
    }
    let mut installed = Vec::new();
    if process.has_channel() {
        let opener = Arc::new(ProcessOpener(Arc::clone(&process)));
        // the NIC owns the aliases too, where the node's own connections ride it.
        let aliases = config.aliases();
        let aliases = aliases.map(|a| [a.localhost, a.localhost_v6]);
        let nic = config.addresses.iter().map(|a| a.address);
        let san = SanConfig {
            addresses: nic.chain(aliases.into_iter().flatten()).collect(),
            connect_timeout_ms: u32::try_from(config.san_connect_limit_ms).unwrap_or(u32::MAX),
        };
        let sp = SanProvider::new(opener, san);
        if let Some(estate) = estate {
            // What cannot be taken up is not known to the provider, and its sockets are the kernel's alone.
            sp.inherit(&estate.words).ok();
        }
        installed.push(Installed {
            id: PROVIDER.to_owned(),
            sp: Arc::new(sp),
        });
    }
    let hosts = Hosts::new(&config);
    let ungoverned = config.ungoverned;
    let switch_tcp = Arc::<KernelTcp>::clone(&tcp);
    let switch = Switch::new(config, installed, switch_tcp, Arc::new(ProgramHost));
    Some(Runtime {
        tcp,
        process,
        switch,
        hosts,
        ungoverned,
        environment,
        is_pump: variable(channel::ENV_ROLE).is_some_and(|role| role::is_pump(role.to_bytes())),
    })
}

extern "C" fn before_fork() {
    if let Some(runtime) = get() {
        SETS.before_fork();
        runtime.switch.before_fork();
        runtime.process.before_fork();
        audit::forking(true);
    }
}

extern "C" fn after_fork_in_parent() {
    if let Some(runtime) = get() {
        audit::forking(false);
        runtime.process.after_fork_in_parent();
        // Whether the fork succeeded is not told; if not, the child's process socket hangs up and its holds with it.
        runtime.switch.after_fork_in_parent(true);
        SETS.after_fork(false);
    }
}

extern "C" fn after_fork_in_child() {
    if let Some(runtime) = get() {
        runtime.process.after_fork_in_child();
        WAITERS.after_fork_in_child();
        EARLY.after_fork_in_child();
        SERVICE.after_fork_in_child();
        runtime.switch.after_fork_in_child();
        SETS.after_fork(true);
        audit::after_fork_in_child();
    }
}

/// Whether the program may not see `fd`.
#[inline]
pub(crate) fn is_hidden(fd: c_int) -> bool {
    driver::sys::is_internal(fd)
}
