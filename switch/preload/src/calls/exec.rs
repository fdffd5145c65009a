//! Starting other programs: what their images need of this one.
//!
//! Place: `exports::programs` asks for a [`Plan`] before the real `exec` or `posix_spawn`, and undoes it when that returns.
//! Invariants: a program that can carry the library gets it, also where the caller has cleared the environment, and with it every SAN
//! socket whose descriptor crosses. One that cannot, or from which the caller has taken the library on purpose (its `LD_PRELOAD`
//! without us, our other variables kept), gets kernel sockets with somebody pumping behind them. In a `vfork` child, whose memory is
//! its parent's, nothing is changed but the child's descriptors; there and under `posix_spawn` an image of ours goes in between and
//! does the rest in a process of its own.
//! Source: execve(2), posix_spawn(3), vfork(2). Leaves out: `system` and `popen`, whose shells get no SAN sockets.
#![expect(unsafe_code, reason = "reads the program's argument vectors")]

use core::cell::RefCell;
use core::ffi::{CStr, c_char, c_int};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ring_proto::channel;
use ring_proto::telemetry::{ROAD_TCP, Reason};
use switch::report::Side;
use switch::{Stage, program, sys};

use crate::calls::pump;
use crate::environment::PRELOAD;
use crate::heir::{self, Bundle, Carried};
use crate::role;
use crate::runtime::{self, Runtime, TABLE};

/// How a program is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// This image is replaced.
    Exec,
    /// A child of the C library's making, whose descriptors it may have changed before.
    Spawn {
        /// Whether it is told to.
        has_actions: bool,
    },
}

/// What the real function is called with.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Another file than the caller's.
    path: Option<CString>,
    /// Another environment than the caller's.
    environment: Option<Block>,
    /// What crosses.
    bundle: Option<Bundle>,
}

/// A null-terminated vector of C strings.
#[derive(Debug)]
struct Block {
    pointers: Vec<*const c_char>,
    /// Keeps those that are ours.
    _strings: Vec<CString>,
}

thread_local! {
    /// The last plan of this thread. A `vfork` child runs on its parent's memory and never returns from a successful `exec`: what it
    /// made here goes with the next one.
    static LAST: RefCell<Option<Plan>> = const { RefCell::new(None) };
}

/// Arguments of the real function.
#[derive(Clone, Copy)]
pub(crate) struct Arguments {
    /// The file.
    pub(crate) path: *const c_char,
    /// Whether it is another one than the caller's.
    pub(crate) is_redirected: bool,
    /// The environment.
    pub(crate) envp: *const *const c_char,
}

/// Prepares the start of `file`, which is searched for in PATH if `is_searched`.
///
/// # Safety
/// `file` is null or a C string, `envp` null or a null-terminated vector of C strings; both stay until [`undo`], or for good.
pub(crate) unsafe fn prepare(
    way: Way,
    file: *const c_char,
    is_searched: bool,
    envp: *const *const c_char,
) -> Arguments {
    let unchanged = Arguments {
        path: file,
        is_redirected: false,
        envp,
    };
    let Some(runtime) = runtime::get() else {
        return unchanged;
    };
    if file.is_null() {
        return unchanged;
    }
    // SAFETY: by the caller's promise.
    let name = OsStr::from_bytes(unsafe { CStr::from_ptr(file) }.to_bytes());
    let path = if is_searched && !name.as_bytes().contains(&b'/') {
        program::find_in_path(name).unwrap_or_else(|| PathBuf::from(name))
    } else {
        PathBuf::from(name)
    };
    // SAFETY: by the caller's promise.
    let plan = unsafe { plan(runtime, way, &path, envp) };
    let arguments = Arguments {
        path: plan.path.as_ref().map_or(file, |path| path.as_ptr()),
        is_redirected: plan.path.is_some(),
        envp: plan
            .environment
            .as_ref()
            .map_or(envp, |block| block.pointers.as_ptr()),
    };
    if let Some(bundle) = &plan.bundle {
        bundle.cross(true);
    }
    LAST.with(|last| drop(last.replace(Some(plan))));
    arguments
}

/// After the real function returned: the descriptors are this process's alone again.
pub(crate) fn undo() {
    let plan = LAST.with(RefCell::take);
    if let Some(bundle) = plan.and_then(|plan| plan.bundle) {
        bundle.cross(false);
        bundle.close();
    }
}

/// # Safety
/// As of [`prepare`].
unsafe fn plan(
    runtime: &'static Runtime,
    way: Way,
    path: &Path,
    envp: *const *const c_char,
) -> Plan {
    // SAFETY: by the caller's promise.
    let entries = unsafe { entries_of(envp) };
    let preload = value_of(&entries, PRELOAD).unwrap_or_default();
    let is_told = value_of(&entries, channel::ENV_CONFIG).is_some();
    let own = &runtime.environment;
    if value_of(&entries, channel::ENV_CONFIG).is_some_and(|config| !own.is_own_node(config)) {
        // On its way to another node, by our launcher: what it needs there is set, and our sockets are not that node's.
        if way == Way::Exec && !runtime.process.is_foreign() {
            replace_streams(runtime, &heir::carried(runtime, false));
        }
        return Plan::default();
    }
    let is_refused = is_told && !own.is_in(preload);
    let library = Path::new(OsStr::from_bytes(own.library.to_bytes()));
    let obstacle = program::obstacle(path, library);
    settle_connects(runtime, way);
    let are_all = way == Way::Spawn { has_actions: true };
    let carried = heir::carried(runtime, are_all);
    if !is_refused && obstacle.is_none() {
        let bundle = leave(runtime, &carried);
        let mut block = Changes::default();
        block.set(PRELOAD, &own.with_library(preload));
        for entry in &own.carried {
            block.add_missing(&entries, entry);
        }
        if let Some(bundle) = &bundle {
            block.set(channel::ENV_ESTATE, bundle.estate.to_string().as_bytes());
        }
        return Plan {
            path: None,
            environment: Some(block.apply(&entries)),
            bundle,
        };
    }
    if let Some(obstacle) = &obstacle {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let road = ROAD_TCP | ((obstacle.reason as u64) << 8);
        let report = &runtime.process.telemetry.report;
        report.made(report.road(name, Side::Program, road, None));
    }
    // Linkers that cannot load the library would refuse to start the program.
    let is_fatal = obstacle.is_some_and(|o| {
        matches!(
            o.reason,
            Reason::MuslBinary | Reason::OldGlibc | Reason::NoProvider
        )
    });
    let kept = if is_fatal {
        own.without_library(preload)
    } else {
        preload.to_vec()
    };
    outside(runtime, way, path, &carried, &entries, &kept)
}

/// The plan for a program that will not have the library.
fn outside(
    runtime: &'static Runtime,
    way: Way,
    path: &Path,
    carried: &[Carried],
    entries: &[&CStr],
    preload: &[u8],
) -> Plan {
    let own = &runtime.environment;
    let mut block = Changes::default();
    let is_own = way == Way::Exec && !runtime.process.is_foreign();
    let streams: Vec<&Carried> = carried
        .iter()
        .filter(|c| c.is_in(Stage::SanConnected))
        .collect();
    for listener in carried.iter().filter(|c| c.is_in(Stage::SanListening)) {
        // It is the kernel's alone for that program, which expects it as it was left.
        let is_nonblocking = listener.socket.as_ref().is_some_and(|s| s.is_nonblocking());
        for &fd in &listener.fds {
            sys::set_nonblocking(fd, is_nonblocking).ok();
        }
    }
    if is_own || streams.is_empty() {
        replace_streams(runtime, carried);
        if value_of(entries, PRELOAD).is_some_and(|before| before != preload) {
            block.set_or_remove(PRELOAD, preload);
        }
        return Plan {
            environment: Some(block.apply(entries)),
            ..Plan::default()
        };
    }
    let all: Vec<Carried> = streams.into_iter().cloned().collect();
    let Some(bundle) = leave(runtime, &all) else {
        return Plan::default();
    };
    if value_of(entries, PRELOAD).is_some() {
        block.set_or_remove(channel::ENV_PRELOAD, preload);
    }
    block.set(PRELOAD, own.library.to_bytes());
    for entry in &own.carried {
        block.add_missing(entries, entry);
    }
    block.set(channel::ENV_ESTATE, bundle.estate.to_string().as_bytes());
    block.set(channel::ENV_ROLE, &role::outside(path));
    Plan {
        path: Some(role::HOST.to_owned()),
        environment: Some(block.apply(entries)),
        bundle: Some(bundle),
    }
}

/// Puts kernel sockets in the place of connections. Without a pump a program gets a socket without a connection, which answers
/// ENOTCONN.
fn replace_streams(runtime: &'static Runtime, carried: &[Carried]) {
    let streams = carried.iter().filter(|c| c.is_in(Stage::SanConnected));
    for fd in streams.filter_map(|c| c.fds.first()) {
        pump::replace(runtime, *fd).ok();
    }
}

fn leave(runtime: &Runtime, carried: &[Carried]) -> Option<Bundle> {
    if carried.is_empty() {
        return None;
    }
    heir::leave(runtime, carried).ok()
}

/// An heir cannot go on with a connect: those under way end before.
fn settle_connects(runtime: &Runtime, way: Way) {
    if way != Way::Exec || runtime.process.is_foreign() {
        return;
    }
    for fd in TABLE.tracked_in(0, u32::MAX) {
        if let Some(socket) = TABLE.get(fd).and_then(|slot| slot.socket().cloned())
            && socket.is_connecting()
            && sys::fcntl(fd, libc::F_GETFD, 0).is_ok_and(|f| f & libc::FD_CLOEXEC == 0)
        {
            runtime.switch.settle_connect(&socket);
        }
    }
}

/// The strings of a vector.
///
/// # Safety
/// `vector` is null or a null-terminated vector of C strings that outlive the result.
unsafe fn entries_of<'a>(vector: *const *const c_char) -> Vec<&'a CStr> {
    let mut entries = Vec::new();
    if vector.is_null() {
        return entries;
    }
    for n in 0.. {
        // SAFETY: by the caller's promise; the null at the end was not passed.
        let at = unsafe { vector.add(n) };
        // SAFETY: as above.
        let entry = unsafe { at.read() };
        if entry.is_null() {
            break;
        }
        // SAFETY: by the caller's promise.
        entries.push(unsafe { CStr::from_ptr(entry) });
    }
    entries
}

/// The value of a variable.
fn value_of<'a>(entries: &[&'a CStr], name: &str) -> Option<&'a [u8]> {
    entries.iter().find_map(|entry| {
        let rest = entry.to_bytes().strip_prefix(name.as_bytes())?;
        rest.strip_prefix(b"=")
    })
}

/// What becomes of an environment.
#[derive(Default)]
struct Changes {
    set: Vec<CString>,
    removed: Vec<&'static str>,
}

impl Changes {
    fn set(&mut self, name: &'static str, value: &[u8]) {
        let mut text = format!("{name}=").into_bytes();
        text.extend_from_slice(value);
        // Values of environments have no zero bytes.
        self.set.extend(CString::new(text));
        self.removed.push(name);
    }

    fn set_or_remove(&mut self, name: &'static str, value: &[u8]) {
        if value.is_empty() {
            self.removed.push(name);
        } else {
            self.set(name, value);
        }
    }

    /// Adds a variable that the caller has not.
    fn add_missing(&mut self, entries: &[&CStr], entry: &CStr) {
        let name = entry.to_bytes().split(|&byte| byte == b'=').next();
        let is_there = name
            .and_then(|name| core::str::from_utf8(name).ok())
            .is_some_and(|name| value_of(entries, name).is_some());
        if !is_there {
            self.set.push(entry.to_owned());
        }
    }

    fn apply(mut self, entries: &[&CStr]) -> Block {
        // Of an earlier image: never right for this one.
        self.removed.push(channel::ENV_ESTATE);
        let is_kept = |entry: &&&CStr| {
            !self
                .removed
                .iter()
                .any(|name| value_of(core::slice::from_ref(*entry), name).is_some())
        };
        let pointers = entries
            .iter()
            .filter(is_kept)
            .map(|entry| entry.as_ptr())
            .chain(self.set.iter().map(|entry| entry.as_ptr()))
            .chain([core::ptr::null()])
            .collect();
        Block {
            pointers,
            _strings: self.set,
        }
    }
}

/// The file behind a descriptor, or a path relative to it, for `fexecve` and `execveat`.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn path_at(directory: c_int, path: *const c_char) -> Option<CString> {
    let relative = if path.is_null() {
        &[]
    } else {
        // SAFETY: by the caller's promise.
        unsafe { CStr::from_ptr(path) }.to_bytes()
    };
    let mut text = match (relative.first(), directory) {
        (Some(b'/'), _) | (_, libc::AT_FDCWD) => return CString::new(relative).ok(),
        (None, fd) => format!("/proc/self/fd/{fd}"),
        (_, fd) => format!("/proc/self/fd/{fd}/"),
    }
    .into_bytes();
    text.extend_from_slice(relative);
    CString::new(text).ok()
}
