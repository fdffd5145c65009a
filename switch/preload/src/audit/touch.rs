//! What a system call past the library touches, and taking note of it.
//!
//! Place: `trap` asks for every call that no export makes. Invariants: safe in a signal handler. A call counts if the library would have
//! had to do something for it; a place in the code that was found before costs one look.
//! Source: `switch::watched`; ours.

use core::ffi::c_int;

use ring_proto::sync::{AtomicU64, Ordering};
use switch::report::{MODULE_LEN, Touched};
use switch::table::Kind;
use switch::watched::{self, Shape};
use switch::{process, sys};

use super::memory::{peek, peek_bytes};
use super::place;
use crate::runtime::{self, Runtime, TABLE};

/// Bytes of a `syscall` instruction.
pub(super) const INSTRUCTION: usize = 2;

/// A call of the program's own code, or of a library's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: usize,
    pub(super) args: [usize; 6],
    /// Behind its instruction.
    pub(super) next: usize,
}

impl Call {
    fn int(&self, argument: u8) -> c_int {
        sys::to_int(self.args[usize::from(argument)])
    }
}

/// Looks at a call, and takes note of it if it matters. `is_copy`: it makes a copy of the process behind the back of the C library.
pub(super) fn look(runtime: &Runtime, call: &Call, is_copy: bool) {
    let Some(known) = watched::call(call.number) else {
        return;
    };
    if let Some((fd, touched)) = touched(call, known.shape, is_copy) {
        note(runtime, call, fd, touched);
    }
}

fn touched(call: &Call, shape: Shape, is_copy: bool) -> Option<(c_int, Touched)> {
    let uses = |argument: u8| used(call.int(argument));
    let changes = |argument: u8| changed(call.int(argument));
    match shape {
        Shape::Uses(argument) => uses(argument),
        Shape::Changes(argument) => changes(argument),
        Shape::UsesBoth(one, other) => uses(one).or_else(|| uses(other)),
        Shape::Duplicates => changes(0).or_else(|| changes(1)),
        Shape::Fcntl => match call.int(1) {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_SETFL => changes(0),
            libc::F_GETFL | libc::F_SETOWN | F_SETSIG | F_SETOWN_EX => uses(0),
            _ => None,
        },
        Shape::Ioctl => REQUESTS.contains(&call.args[1]).then(|| uses(0)).flatten(),
        Shape::Polls => polled(call.args[0], call.args[1]),
        Shape::Selects => call.args[1..4]
            .iter()
            .find_map(|&set| selected(set, call.int(0))),
        Shape::Controls => uses(0).or_else(|| changes(2)),
        Shape::Range => in_range(call),
        Shape::Sends => uses(0).or_else(|| passed(call.args[1])),
        Shape::Makes => {
            let is_ip = matches!(call.int(0), libc::AF_INET | libc::AF_INET6);
            let is_stream = call.int(1) & 0xf == libc::SOCK_STREAM;
            (is_ip && is_stream).then_some((-1, Touched::Socket))
        }
        Shape::Image => any_on_san().then_some((-1, Touched::Process)),
        Shape::Copies => (is_copy && any_on_san()).then_some((-1, Touched::Process)),
        Shape::Ring => Some((-1, Touched::Ring)),
    }
}

/// A descriptor that a call uses.
fn used(fd: c_int) -> Option<(c_int, Touched)> {
    let touched = match TABLE.kind(fd) {
        Kind::Socket if TABLE.peek(fd).is_some_and(|slot| slot.is_san()) => Touched::San,
        Kind::Socket => return None,
        Kind::Set => Touched::Set,
        Kind::None if runtime::is_hidden(fd) => Touched::Library,
        Kind::None => return None,
    };
    Some((fd, touched))
}

/// A descriptor of which a call changes what the library must know.
fn changed(fd: c_int) -> Option<(c_int, Touched)> {
    used(fd).or_else(|| {
        let slot = TABLE.peek(fd)?;
        (!slot.endpoint.shape().datagram).then_some((fd, Touched::Socket))
    })
}

fn any_on_san() -> bool {
    TABLE
        .tracked_in(0, u32::MAX)
        .any(|fd| TABLE.peek(fd).is_some_and(|slot| slot.is_san()))
}

/// Entries of a poll that are read at once.
const AT_ONCE: usize = 32;

fn polled(array: usize, count: usize) -> Option<(c_int, Touched)> {
    (0..count.min(1 << 16)).step_by(AT_ONCE).find_map(|from| {
        let mut bytes = [0_u8; AT_ONCE * size_of::<libc::pollfd>()];
        let len = AT_ONCE.min(count - from) * size_of::<libc::pollfd>();
        let at = array.wrapping_add(from * size_of::<libc::pollfd>());
        let read = peek_bytes(at, &mut bytes[..len]);
        let entries = bytes[..read].chunks_exact(size_of::<libc::pollfd>());
        entries.filter_map(int_of).find_map(used)
    })
}

/// The int that bytes begin with.
fn int_of(bytes: &[u8]) -> Option<c_int> {
    Some(c_int::from_ne_bytes(*bytes.first_chunk()?))
}

fn selected(set: usize, count: c_int) -> Option<(c_int, Touched)> {
    let mut bits = [0_u8; 128];
    let len = usize::try_from(count)
        .unwrap_or(0)
        .div_ceil(8)
        .min(bits.len());
    let read = peek_bytes(set, &mut bits[..len]);
    (0..count)
        .take(read * 8)
        .filter(|&fd| bits[usize::try_from(fd / 8).unwrap_or(0)] & (1 << (fd % 8)) != 0)
        .find_map(used)
}

fn in_range(call: &Call) -> Option<(c_int, Touched)> {
    let (first, last) = (call.int(0).cast_unsigned(), call.int(1).cast_unsigned());
    let ours = driver::sys::INTERNAL_LIMIT - 1;
    let internal = first..=last.min(u32::try_from(ours).unwrap_or(0));
    TABLE.tracked_in(first, last).find_map(changed).or_else(|| {
        internal
            .filter_map(|fd| c_int::try_from(fd).ok())
            .find_map(used)
    })
}

/// SAN sockets that a message carries to another process.
fn passed(message: usize) -> Option<(c_int, Touched)> {
    let message: libc::msghdr = peek(message)?;
    let mut control = [0_u8; 512];
    let len = message.msg_controllen.min(control.len());
    let read = peek_bytes(message.msg_control.expose_provenance(), &mut control[..len]);
    let mut rest = &control[..read];
    while rest.len() >= HEADER {
        let len = usize::from_ne_bytes(*rest.first_chunk()?).min(rest.len());
        let (level, kind) = (int_of(&rest[8..])?, int_of(&rest[12..])?);
        let content = rest.get(HEADER..len)?;
        if level == libc::SOL_SOCKET
            && kind == libc::SCM_RIGHTS
            && let Some(found) = content.chunks_exact(4).filter_map(int_of).find_map(used)
        {
            return Some(found);
        }
        rest = rest.get(len.next_multiple_of(8)..)?;
    }
    None
}

/// Bytes of a `cmsghdr`: length, level, type.
const HEADER: usize = 16;

// As in `asm-generic/fcntl.h`, `asm-generic/sockios.h` and `linux/sockios.h`.
const F_SETSIG: c_int = 10;
const F_SETOWN_EX: c_int = 15;
/// FIONREAD, FIONBIO, FIOASYNC, TIOCOUTQ, FIOSETOWN, SIOCSPGRP, SIOCATMARK, SIOCOUTQNSD.
const REQUESTS: [usize; 8] = [
    0x541b, 0x5421, 0x5452, 0x5411, 0x8901, 0x8902, 0x8905, 0x894b,
];

/// Places that were found in this process.
struct Place {
    /// Call and address, 0 for none.
    key: AtomicU64,
    /// Row of the report.
    row: AtomicU64,
}

const PLACES: usize = 256;

static FOUND: [Place; PLACES] = [const {
    Place {
        key: AtomicU64::new(0),
        row: AtomicU64::new(0),
    }
}; PLACES];

#[cold]
fn note(runtime: &Runtime, call: &Call, fd: c_int, touched: Touched) {
    let report = &runtime.process.telemetry.report;
    // Addresses of programs have 47 bits.
    let key = (call.next as u64) | ((call.number as u64) << 48);
    let places = (0..PLACES).map(|n| &FOUND[(call.next + n) % PLACES]);
    let mut own = None;
    for place in places {
        // Relaxed, here and below: both words say the same to every thread, whoever wrote them.
        let found = place
            .key
            .compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed);
        if found.is_ok() || found == Err(key) {
            own = Some(place);
            break;
        }
    }
    let row = own.map_or(0, |place| place.row.load(Ordering::Relaxed));
    if row != 0 {
        report.found_again(u32::try_from(row).unwrap_or(0));
        return;
    }
    let mut path = [0; MODULE_LEN];
    let (len, offset) = place::of(call.next - INSTRUCTION, &mut path);
    let mut name = [0; 64];
    let program = process::program_name(&mut name);
    let number = u32::try_from(call.number).unwrap_or(u32::MAX);
    let row = report.found(program, fd, (number, touched), (&path[..len], offset));
    if let Some(place) = own {
        place.row.store(u64::from(row), Ordering::Relaxed);
    }
}
