//! Calls about sockets' names: create, bind, listen, accept, connect, and what sockets are called.
//!
//! Place: `exports::names` -> here -> `switch`. Invariants: a socket of another family, or one whose number is too high to be
//! tracked, stays an ordinary one. A descriptor that an earlier program image left is taken in when its name first matters; it
//! stays with TCP.
#![expect(unsafe_code, reason = "reads and writes addresses of the program")]

use core::ffi::c_int;
use core::net::SocketAddr;
use std::sync::Arc;

use libc::{sockaddr, socklen_t};
use switch::place::Destinations;
use switch::readiness::{self, CONNECT_NS, REARMS};
use switch::sys::{self, Name};
use switch::table::{Kind, SlotRef};
use switch::tcp::{self, Endpoint, KernelTcp};
use switch::{ConnectStep, Errno, Stage, SwitchSocket};

use crate::calls::datagrams;
use crate::calls::traffic;
use crate::calls::wait::Wait;
use crate::host;
use crate::runtime::{self, Runtime, SERVICE, TABLE};

/// Creates an IP socket; `None` for the real function.
pub(crate) fn socket(
    domain: c_int,
    socket_type: c_int,
    protocol: c_int,
) -> Option<Result<c_int, Errno>> {
    let runtime = runtime::get()?;
    let mut shape = tcp::shape_of(domain, socket_type)?;
    if runtime.process.is_foreign() {
        return None;
    }
    if !shape.datagram {
        runtime.process.introduce();
    }
    let (fd, socket) = match runtime.switch.socket(domain, socket_type, protocol) {
        Ok(made) => made,
        Err(errno) => return Some(Err(errno)),
    };
    if shape.v6 && runtime.tcp.placement().is_some() {
        let v6only = sys::int_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        if v6only.is_ok_and(|v| v != 0) {
            // The system's default; placed addresses are v4-mapped, so the kernel must not know.
            shape.v6only = true;
            let off = 0_i32.to_ne_bytes();
            sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &off).ok();
        }
    }
    // A number past the table is an ordinary socket's.
    drop(TABLE.insert(fd, &Endpoint::new(shape), socket));
    Some(Ok(fd))
}

/// The state, when `fd` is a socket whose name may differ from the kernel's.
pub(crate) fn placed(fd: c_int) -> Option<&'static Runtime> {
    let runtime = runtime::get()?;
    match TABLE.kind(fd) {
        Kind::Socket => Some(runtime),
        Kind::Set => None,
        Kind::None => {
            runtime.tcp.placement()?;
            if runtime::is_hidden(fd) || runtime.process.is_foreign() {
                return None;
            }
            let endpoint = KernelTcp::inherited(fd)?;
            drop(TABLE.insert(fd, &endpoint, None)?);
            Some(runtime)
        }
    }
}

/// Slot of a socket of ours.
fn slot(fd: c_int) -> Option<(&'static Runtime, SlotRef<'static>)> {
    let runtime = placed(fd)?;
    Some((runtime, TABLE.get(fd)?))
}

/// Binds, or `None` for the real function.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn bind(
    fd: c_int,
    name: *const sockaddr,
    len: socklen_t,
) -> Option<Result<(), Errno>> {
    let (runtime, slot) = slot(fd)?;
    // SAFETY: by the caller's promise.
    let name = unsafe { Name::read(name.cast(), len) }?;
    if runtime.tcp.is_deferred(fd) {
        return Some(Err(libc::EINVAL));
    }
    let result = match slot.socket() {
        Some(socket) => runtime.switch.bind(socket, name),
        None => runtime.tcp.bind_name(fd, name),
    };
    if result.is_ok() && !slot.endpoint.is_plain() {
        host::name(&slot, fd);
    }
    Some(result)
}

/// Listens, or `None` for the real function.
pub(crate) fn listen(fd: c_int, backlog: c_int) -> Option<Result<(), Errno>> {
    let (runtime, slot) = slot(fd)?;
    let Some(socket) = slot.socket() else {
        return Some(runtime.tcp.listen_on(fd, backlog));
    };
    let was_listening = socket.stage() == Stage::SanListening;
    let result = runtime.switch.listen(socket, backlog);
    if result.is_ok() && !was_listening {
        traffic::listening(runtime, fd, socket);
    }
    if socket.stage() == Stage::SanListening {
        host::mark(&slot, socket);
        // A second taker must not leave `accept` waiting for the kernel's half alone; the program's own mode is the switch's to know.
        sys::set_nonblocking(fd, true).ok();
    }
    Some(result)
}

/// What an accept ends with.
pub(crate) enum Accept {
    /// The new descriptor.
    Done(c_int),
    /// Failed.
    Failed(Errno),
    /// The kernel's call.
    Kernel,
    /// Wait, then call [`accept_woken`].
    Wait,
}

/// One step of an accept on a listener that the SAN knows.
///
/// # Safety
/// `name` and `len` are as of `accept`.
pub(crate) unsafe fn accept(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
    wait: &mut Wait,
) -> Accept {
    let (Some(runtime), Some(slot)) = (runtime::get(), TABLE.get(fd)) else {
        return Accept::Kernel;
    };
    let Some(socket) = slot
        .socket()
        .filter(|s| slot.is_san() && s.stage() == Stage::SanListening)
    else {
        return Accept::Kernel;
    };
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Accept::Failed(libc::EINVAL);
    }
    let may_wait = !socket.is_nonblocking();
    loop {
        runtime.switch.drive_listener(socket);
        match runtime.switch.accept(socket, flags) {
            Ok(accepted) => {
                let taken = take_in(runtime, &accepted);
                // SAFETY: by the caller's promise.
                unsafe { Name::write(accepted.peer, name.cast(), len) };
                return Accept::Done(taken);
            }
            Err(libc::EAGAIN) if may_wait => {}
            Err(errno) => return Accept::Failed(errno),
        }
        SERVICE.ensure();
        let is_ready = || {
            runtime.switch.drive_listener(socket);
            runtime.switch.has_ready(socket).then_some(())
        };
        if readiness::spin(is_ready).is_some() || arm_accept(runtime, socket, wait) {
            continue;
        }
        wait.limit_call(|| socket.timeout_ns(libc::SO_RCVTIMEO));
        if wait.is_over() {
            wait.woken();
            return Accept::Failed(libc::EAGAIN);
        }
        let plan = runtime.switch.accept_plan(socket, u64::MAX);
        wait.as_planned(&plan, None);
        return Accept::Wait;
    }
}

/// Arms a listener for vectors of this thread, so that it need not wait for the service thread, and looks once more: true when the
/// call must not sleep.
fn arm_accept(runtime: &'static Runtime, socket: &Arc<SwitchSocket>, wait: &mut Wait) -> bool {
    for _ in 0..REARMS {
        readiness::arm_pending(&runtime.desk(), socket, &mut wait.sleep);
        let has_moved = runtime.switch.drive_listener(socket);
        if runtime.switch.has_ready(socket) {
            break;
        }
        if !has_moved {
            return false;
        }
    }
    wait.woken();
    true
}

/// Tracks a connection that the switch has accepted.
fn take_in(runtime: &Runtime, accepted: &switch::Accepted) -> c_int {
    let fd = accepted.fd;
    let socket = &accepted.socket;
    let is_san = socket.stage() == Stage::SanConnected;
    let shape = tcp::shape_of(socket.domain(), libc::SOCK_STREAM).unwrap_or_default();
    match TABLE.get(fd) {
        // The kernel's side has been taken in with its names.
        Some(slot) if !is_san => TABLE.attach(&slot, Arc::clone(socket)),
        _ => {
            let slot = TABLE.insert(fd, &Endpoint::new(shape), Some(Arc::clone(socket)));
            if let Some(slot) = slot
                && is_san
            {
                host::arrived(&slot, socket);
            }
        }
    }
    if !is_san {
        traffic::accepted(runtime, fd, accepted.peer);
    }
    fd
}

/// After the wait of an accept: the errno that ends the call.
pub(crate) fn accept_woken(wait: &mut Wait, errno: Errno) -> Option<Errno> {
    wait.woken();
    wait.is_interrupted(errno).then_some(libc::EINTR)
}

/// Takes in a connection that the kernel has accepted on `listener`, and tells the program its peer.
///
/// # Safety
/// `from` is what the kernel wrote; `name` and `len` are as of `accept`.
pub(crate) unsafe fn accepted(
    listener: c_int,
    fd: c_int,
    from: &Name,
    name: *mut sockaddr,
    len: *mut socklen_t,
) {
    let Some(kernel) = from.decode() else {
        // SAFETY: by the caller's promise.
        unsafe { from.copy_out(name.cast(), len) };
        return;
    };
    let Some(runtime) = runtime::get() else {
        // SAFETY: by the caller's promise.
        unsafe { Name::write(kernel, name.cast(), len) };
        return;
    };
    let (endpoint, peer) = runtime.tcp.accepted(fd, listener, kernel);
    if !runtime.process.is_foreign() {
        runtime.process.introduce();
        drop(TABLE.insert(fd, &endpoint, None));
        traffic::accepted(runtime, fd, peer);
    }
    // SAFETY: by the caller's promise.
    unsafe { Name::write(peer, name.cast(), len) };
}

/// What a connect does next.
pub(crate) enum Connect {
    /// The real function with the program's arguments.
    Real,
    /// Succeeded.
    Done,
    /// Failed.
    Failed(Errno),
    /// The kernel's connect to these addresses in turn, then [`connect_ended`].
    Try(Destinations),
    /// Wait, then call [`connect_woken`] and the next step.
    Wait,
}

/// One step of a connect. `is_first`: the program's call, not a repetition after a wait.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
pub(crate) unsafe fn connect(
    fd: c_int,
    name: *const sockaddr,
    len: socklen_t,
    is_first: bool,
    wait: &mut Wait,
) -> Connect {
    let Some((runtime, slot)) = slot(fd) else {
        return Connect::Real;
    };
    // SAFETY: by the caller's promise.
    let Some(to) = (unsafe { Name::read(name.cast(), len) }) else {
        // SAFETY: by the caller's promise.
        if unsafe { is_unspecified(name, len) } {
            return dissolve(runtime, &slot, fd);
        }
        return Connect::Real;
    };
    if let Some(socket) = slot.socket()
        && let Some(answer) = connect_by_switch(runtime, &slot, socket, to, is_first, wait)
    {
        return answer;
    }
    let admitted = datagrams::admit(runtime, fd, to);
    match admitted.and_then(|()| runtime.tcp.route(fd, to)) {
        Ok(destinations) => Connect::Try(destinations),
        Err(errno) => Connect::Failed(errno),
    }
}

/// Asks the switch; `None`: the kernel's connect is wanted.
fn connect_by_switch(
    runtime: &'static Runtime,
    slot: &SlotRef<'_>,
    socket: &Arc<SwitchSocket>,
    to: SocketAddr,
    is_first: bool,
    wait: &mut Wait,
) -> Option<Connect> {
    let ask = |is_first| {
        if is_first {
            runtime.switch.connect(socket, to)
        } else {
            runtime.switch.connect_progress(socket)
        }
    };
    let mut step = ask(is_first);
    host::mark(slot, socket);
    if step == ConnectStep::Pending && !socket.is_nonblocking() {
        let spun = readiness::spin(|| {
            let step = ask(false);
            (step != ConnectStep::Pending).then_some(step)
        });
        step = spun.unwrap_or(ConnectStep::Pending);
        if step == ConnectStep::Pending {
            step = arm_connect(runtime, socket, wait);
        }
        host::mark(slot, socket);
    }
    match step {
        ConnectStep::Established => Some(Connect::Done),
        ConnectStep::Failed(errno) => Some(Connect::Failed(errno)),
        ConnectStep::UseTcp(_) => None,
        ConnectStep::Pending if socket.is_nonblocking() => Some(Connect::Failed(libc::EINPROGRESS)),
        ConnectStep::Pending => {
            wait.limit_call(|| socket.timeout_ns(libc::SO_SNDTIMEO));
            if wait.is_over() {
                wait.woken();
                return Some(Connect::Failed(libc::EINPROGRESS));
            }
            let plan = runtime.switch.connect_plan(socket, u64::MAX);
            wait.as_planned(&plan, Some(CONNECT_NS));
            Some(Connect::Wait)
        }
    }
}

/// Arms a blocking connect for a vector of this thread, so that it need not wait for the service thread, and looks once more.
fn arm_connect(
    runtime: &'static Runtime,
    socket: &Arc<SwitchSocket>,
    wait: &mut Wait,
) -> ConnectStep {
    let mut step = ConnectStep::Pending;
    for _ in 0..REARMS {
        let stage = socket.stage();
        readiness::arm_pending(&runtime.desk(), socket, &mut wait.sleep);
        step = runtime.switch.connect_progress(socket);
        if step != ConnectStep::Pending {
            wait.woken();
            break;
        }
        // Connected meanwhile: the session is not armed yet.
        if socket.stage() == stage {
            break;
        }
    }
    step
}

fn dissolve(runtime: &Runtime, slot: &SlotRef<'_>, fd: c_int) -> Connect {
    let result = match slot.socket() {
        Some(socket) => {
            let result = runtime.switch.disconnect(socket);
            host::mark(slot, socket);
            result
        }
        None => runtime.tcp.dissolve(fd),
    };
    match result {
        Ok(()) => {
            traffic::ended(runtime, slot);
            Connect::Done
        }
        Err(errno) => Connect::Failed(errno),
    }
}

/// Whether an address has the family that dissolves an association.
///
/// # Safety
/// `name` is null or readable for `len` bytes.
unsafe fn is_unspecified(name: *const sockaddr, len: socklen_t) -> bool {
    if name.is_null() || len < 2 {
        return false;
    }
    // SAFETY: two bytes are readable by the caller's promise.
    let family = unsafe { name.cast::<u16>().read_unaligned() };
    i32::from(family) == libc::AF_UNSPEC
}

/// After the wait of a connect: the errno that ends the call. The attempt goes on.
pub(crate) fn connect_woken(wait: &mut Wait, errno: Errno) -> Option<Errno> {
    wait.woken();
    wait.is_interrupted(errno).then_some(libc::EINTR)
}

/// Whether the next address should be tried after a kernel connect failed with `errno`.
pub(crate) fn is_next_wanted(fd: c_int, errno: Errno) -> bool {
    match errno {
        libc::ECONNREFUSED => true,
        libc::EINPROGRESS => KernelTcp::is_refused(fd),
        _ => false,
    }
}

/// Ends a kernel connect: `errno` is 0 or the last attempt's.
pub(crate) fn connect_ended(fd: c_int, to: &Destinations, errno: Errno) {
    let Some(runtime) = runtime::get() else {
        return;
    };
    if errno == 0 || errno == libc::EINPROGRESS || errno == libc::EINTR {
        runtime.tcp.connected(fd, to);
        traffic::connected(runtime, fd, errno == 0);
    }
    if let Some(slot) = TABLE.get(fd)
        && let Some(socket) = slot.socket()
    {
        let result = if errno == 0 { Ok(()) } else { Err(errno) };
        runtime.switch.tcp_connect_ended(socket, result);
    }
}

/// Whether the room for a name is negative, which the kernel refuses.
///
/// # Safety
/// `name` and `len` are as of `getsockname`.
pub(crate) unsafe fn has_no_room(name: *const sockaddr, len: *const socklen_t) -> bool {
    if name.is_null() || len.is_null() {
        return false;
    }
    // SAFETY: by the caller's promise.
    unsafe { len.read_unaligned() }.cast_signed() < 0
}

/// Own name, or `None` for the real function.
///
/// # Safety
/// `name` and `len` are as of `getsockname`.
pub(crate) unsafe fn local(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    let (runtime, slot) = slot(fd)?;
    // SAFETY: by the caller's promise.
    if unsafe { has_no_room(name, len) } {
        return Some(Err(libc::EINVAL));
    }
    let local = match slot.socket() {
        Some(socket) => runtime
            .tcp
            .settle(fd)
            .and_then(|()| runtime.switch.local_address(socket)),
        None => runtime.tcp.local(fd),
    };
    // SAFETY: by the caller's promise.
    Some(local.map(|local| unsafe { Name::write(local, name.cast(), len) }))
}

/// Name of the peer, or `None` for the real function.
///
/// # Safety
/// `name` and `len` are as of `getpeername`.
pub(crate) unsafe fn peer(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
) -> Option<Result<(), Errno>> {
    let (runtime, slot) = slot(fd)?;
    // SAFETY: by the caller's promise.
    if unsafe { has_no_room(name, len) } {
        return Some(Err(libc::EINVAL));
    }
    let peer = match slot.socket() {
        Some(socket) => {
            readiness::drive(&runtime.switch, socket);
            runtime.switch.peer_address(socket)
        }
        None => runtime.tcp.peer(fd),
    };
    // SAFETY: by the caller's promise.
    Some(peer.map(|peer| unsafe { Name::write(peer, name.cast(), len) }))
}

/// Shuts directions down, or `None` for the real function.
pub(crate) fn shutdown(fd: c_int, how: c_int) -> Option<Result<(), Errno>> {
    let runtime = runtime::get()?;
    let slot = TABLE.get(fd)?;
    let socket = slot.socket()?;
    let result = runtime.switch.shutdown(socket, how);
    host::mark(&slot, socket);
    if let Some(conn) = socket.conn() {
        traffic::flow(runtime, &slot, conn);
        if conn.leave() {
            SERVICE.wake();
        }
    }
    Some(result)
}
