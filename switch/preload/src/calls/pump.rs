//! Pump mode: a kernel socket in place of a SAN socket, for everybody who would read and write past the library.
//!
//! Place: `calls::exec` before an image without the library, `heir` and `calls::descriptors` for the standard streams, `exports` for
//! `fdopen` and for descriptors on their way to another process ask for a [`stand_in`], or to [`replace`] a socket by one; `role` runs
//! the pump itself.
//! Invariants: the pump is an heir like any other, in a process of its own that nobody waits for: no child of the program, no signal
//! to it, none of its descriptors but the two ends. It holds the SAN socket before the program lets go of it. Bytes, half closes,
//! resets and the end pass in both directions.
//! Source: ours. Leaves out: options set later, which reach the stand-in alone, and the ports of the connection's names: the stand-in
//! has the addresses of both ends, with ports of its own.
#![expect(unsafe_code, reason = "makes a process by raw system calls")]

use core::ffi::{CStr, c_char};
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ffi::CString;
use std::os::fd::RawFd;
use std::sync::Arc;

use driver::sys::SignalsBlocked;
use ring_proto::channel;
use ring_proto::sync::Ordering;
use switch::table::SlotRef;
use switch::tcp::{self, Endpoint};
use switch::{Errno, Stage, SwitchSocket, detached, sys};

use crate::calls::descriptors;
use crate::environment::PRELOAD;
use crate::heir::{self, Bundle, Carried};
use crate::role;
use crate::runtime::{Runtime, TABLE};

/// Puts a kernel socket with a pump behind it in the place of a SAN connection, under all its descriptors in this process.
pub(crate) fn replace(runtime: &'static Runtime, fd: RawFd) -> Result<(), Errno> {
    let slot = TABLE.get(fd).ok_or(libc::EBADF)?;
    let socket = connected(&slot).ok_or(libc::ENOTCONN)?;
    let end = stand_in(runtime, &slot, &socket)?;
    let numbers: Vec<RawFd> = TABLE.descriptors_of(&slot).collect();
    drop(slot);
    let shape = tcp::shape_of(socket.domain(), libc::SOCK_STREAM).unwrap_or_default();
    let mut first = None;
    for fd in numbers {
        let flags = sys::fcntl(fd, libc::F_GETFD, 0).unwrap_or(0);
        // The pump holds the connection: with the last entry goes our part in it.
        descriptors::forget(runtime, fd);
        let over = if flags & libc::FD_CLOEXEC == 0 {
            0
        } else {
            libc::O_CLOEXEC
        };
        sys::duplicate_to(end, fd, over)?;
        match first {
            None => {
                drop(TABLE.insert(fd, &Endpoint::new(shape), None));
                first = Some(fd);
            }
            Some(first) => drop(TABLE.duplicate(first, fd)),
        }
    }
    sys::close(end)
}

/// The connection of a slot that the SAN carries.
pub(crate) fn connected(slot: &SlotRef<'_>) -> Option<Arc<SwitchSocket>> {
    let socket = slot.socket()?;
    (socket.stage() == Stage::SanConnected).then(|| Arc::clone(socket))
}

/// What goes to another process in the place of `fd`: a stand-in for a connection, the caller's to close; `None` for what goes as it is.
pub(crate) fn to_pass(runtime: &'static Runtime, fd: RawFd) -> Result<Option<RawFd>, Errno> {
    let Some(slot) = TABLE.get(fd).filter(|slot| slot.is_san()) else {
        return Ok(None);
    };
    let Some(socket) = slot.socket() else {
        return Ok(None);
    };
    // Settled first: the kernel's socket is nothing to anybody before that.
    runtime.switch.settle_connect(socket);
    match socket.stage() {
        Stage::SanConnected => stand_in(runtime, &slot, socket).map(Some),
        Stage::SanListening => {
            retire(runtime, socket);
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Leaves a listener to the kernel alone, in all processes. What waits in its queue is carried over.
fn retire(runtime: &'static Runtime, listener: &Arc<SwitchSocket>) {
    for accepted in runtime.switch.retire(listener) {
        // What cannot be carried over ends with a reset.
        carry_over(runtime, listener, &accepted).ok();
        let _step = runtime.switch.close(&accepted.socket);
        sys::close(accepted.fd).ok();
    }
}

/// Makes a connection that the SAN has accepted one that the kernel will.
fn carry_over(
    runtime: &Runtime,
    listener: &SwitchSocket,
    accepted: &switch::Accepted,
) -> Result<(), Errno> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let far = Held(sys::socket(listener.domain(), kind, 0)?);
    sys::connect(far.0, sys::local_name(listener.fd())?)?;
    let shape = tcp::shape_of(listener.domain(), libc::SOCK_STREAM).unwrap_or_default();
    let carried = Carried::new(
        sys::cookie(accepted.fd)?,
        Endpoint::new(shape).words(),
        Arc::clone(&accepted.socket),
    );
    let bundle = heir::leave(runtime, &[carried])?;
    let started = start(runtime, &bundle, accepted.fd, far.0);
    bundle.close();
    started
}

/// Makes a kernel socket that reads and writes the connection of `socket`, which stays as it is. The caller's to close.
pub(crate) fn stand_in(
    runtime: &'static Runtime,
    slot: &SlotRef<'_>,
    socket: &Arc<SwitchSocket>,
) -> Result<RawFd, Errno> {
    if runtime.is_pump {
        // Its own end of the SAN may have any number. A pump for a pump would be the first of very many.
        return Err(libc::EOPNOTSUPP);
    }
    let local = runtime.switch.local_address(socket).ok();
    let peer = runtime.switch.peer_address(socket).ok();
    let (end, far) = pair(socket.domain(), local, peer)?;
    let carried = Carried::of(slot, socket).ok_or(libc::ENOTCONN)?;
    let started = heir::leave(runtime, &[carried]).and_then(|bundle| {
        let started = start(runtime, &bundle, socket.fd(), far);
        bundle.close();
        started
    });
    sys::close(far).ok();
    if let Err(errno) = started {
        sys::close(end).ok();
        return Err(errno);
    }
    sys::set_nonblocking(end, socket.is_nonblocking()).ok();
    Ok(end)
}

/// Two connected sockets of the host's loopback: the first is called as the program's connection is, but for the ports.
fn pair(
    domain: i32,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
) -> Result<(RawFd, RawFd), Errno> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let name = |wanted: Option<SocketAddr>| {
        let ip = wanted.and_then(|name| sys::inner_v4(name.ip()));
        let ip = ip
            .filter(Ipv4Addr::is_loopback)
            .unwrap_or(Ipv4Addr::LOCALHOST);
        let ip = if domain == libc::AF_INET6 {
            IpAddr::V6(ip.to_ipv6_mapped())
        } else {
            IpAddr::V4(ip)
        };
        SocketAddr::new(ip, 0)
    };
    let listener = Held(sys::socket(domain, kind, 0)?);
    let far = Held(sys::socket(domain, kind, 0)?);
    if domain == libc::AF_INET6 {
        for socket in [&listener, &far] {
            let off = 0_i32.to_ne_bytes();
            sys::set_option(socket.0, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &off)?;
        }
    }
    sys::bind(listener.0, name(local))?;
    sys::listen(listener.0, 1)?;
    sys::bind(far.0, name(peer))?;
    sys::connect(far.0, sys::local_name(listener.0)?)?;
    let own = sys::local_name(far.0)?;
    loop {
        let (end, from) = sys::accept(listener.0, libc::SOCK_CLOEXEC)?;
        let end = Held(end);
        // Anybody of the host may connect in between; only we have this name.
        if from == own {
            return Ok((end.keep(), far.keep()));
        }
    }
}

/// A descriptor that is closed unless it is kept.
struct Held(RawFd);

impl Held {
    fn keep(self) -> RawFd {
        let fd = self.0;
        core::mem::forget(self);
        fd
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        sys::close(self.0).ok();
    }
}

/// Starts the pump between `san` and `far` in a process of nobody's.
fn start(runtime: &Runtime, bundle: &Bundle, san: RawFd, far: RawFd) -> Result<(), Errno> {
    let own = &runtime.environment;
    let text = |name: &str, value: &[u8]| {
        let mut text = format!("{name}=").into_bytes();
        text.extend_from_slice(value);
        CString::new(text).map_err(|_| libc::EINVAL)
    };
    let mut variables = own.carried.clone();
    variables.extend(own.search_path.clone());
    variables.push(text(PRELOAD, own.library.to_bytes())?);
    variables.push(text(
        channel::ENV_ESTATE,
        bundle.estate.to_string().as_bytes(),
    )?);
    variables.push(text(channel::ENV_ROLE, &role::pump(san, far))?);
    let mut needed = bundle.needed.clone();
    needed.extend([san, far]);
    needed.extend(runtime.process.channel());
    detach(role::HOST, &[c"sanlab-pump"], &variables, &needed)
}

/// Executes a program in a grandchild, with no descriptors but `needed`: its end is not ours to wait for, and tells us nothing.
fn detach(
    path: &CStr,
    arguments: &[&CStr],
    environment: &[CString],
    needed: &[RawFd],
) -> Result<(), Errno> {
    let pointers = |strings: &mut dyn Iterator<Item = *const c_char>| -> Vec<*const c_char> {
        strings.chain([core::ptr::null()]).collect()
    };
    let argv = pointers(&mut arguments.iter().map(|s| s.as_ptr()));
    let envp = pointers(&mut environment.iter().map(|s| s.as_ptr()));
    let [heard, told] = detached::pipe()?;
    let (heard, told) = (Held(heard), Held(told));
    // A handler must not run in a copy of the program.
    let signals = SignalsBlocked::new();
    // SAFETY: without flags a copy of this process, which makes nothing but system calls until it ends, and whose end raises no signal.
    let child = unsafe { sys::syscall(libc::SYS_clone, [0; 6]) };
    if child == Ok(0) {
        // SAFETY: as above; the grandchild belongs to nobody once we have ended.
        let grandchild = unsafe { sys::syscall(libc::SYS_clone, [0; 6]) };
        if grandchild == Ok(0) {
            execute(path, &argv, &envp, needed);
        }
        if grandchild != Ok(0) {
            let failed = u8::from(grandchild.is_err());
            if failed != 0 {
                detached::send_byte(told.0);
            }
            detached::exit(0);
        }
        detached::send_byte(told.0);
        detached::exit(127);
    }
    drop(signals);
    let child = sys::to_int(child?);
    drop(told);
    detached::reap_clone(child);
    // The end of the pipe: the image was replaced. A byte: it was not.
    if detached::has_byte(heard.0) {
        Err(libc::ENOEXEC)
    } else {
        Ok(())
    }
}

/// In the grandchild. Returns when the program cannot be executed.
fn execute(path: &CStr, argv: &[*const c_char], envp: &[*const c_char], needed: &[RawFd]) {
    const CLOSE_RANGE_CLOEXEC: i32 = 4;
    detached::new_session();
    if sys::close_range(0, u32::MAX, CLOSE_RANGE_CLOEXEC).is_err() {
        return;
    }
    for &fd in needed {
        sys::fcntl(fd, libc::F_SETFD, 0).ok();
    }
    detached::unblock_all_signals();
    let args = [
        path.as_ptr().expose_provenance(),
        argv.as_ptr().expose_provenance(),
        envp.as_ptr().expose_provenance(),
        0,
        0,
        0,
    ];
    // SAFETY: a C string, and two null-terminated vectors of them.
    unsafe { sys::syscall(libc::SYS_execve, args) }.ok();
}

impl Carried {
    /// One socket, whatever becomes of its descriptors.
    fn of(slot: &SlotRef<'_>, socket: &Arc<SwitchSocket>) -> Option<Self> {
        // Relaxed: stored before the socket could be seen as the SAN's.
        let cookie = slot.cookie.load(Ordering::Relaxed);
        (cookie != 0).then(|| Self::new(cookie, slot.endpoint.words(), Arc::clone(socket)))
    }
}
