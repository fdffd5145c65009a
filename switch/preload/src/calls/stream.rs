//! Bytes of connections that the SAN carries.
//!
//! Place: data exports call [`step`] for descriptors whose slot says so, carry out its wait, and call again.
//! Invariants: a [`Transfer`] is plain data. A call on a socket that turns out to be the kernel's ends in [`Step::Kernel`], and only
//! before it has moved a byte. Blocking sends return when all was accepted, like the kernel's.
//! Source: send(2), recv(2), socket(7).
#![expect(unsafe_code, reason = "reads the program's iovecs")]

use core::ffi::c_int;

use libc::iovec;
use switch::readiness::{self, CONNECT_NS};
use switch::session::Conn;
use switch::table::SlotRef;
use switch::{Errno, Stage, SwitchSocket, sys};

use crate::calls::traffic;
use crate::calls::wait::Wait;
use crate::runtime::{self, Runtime, SERVICE, TABLE};

/// Direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the peer.
    Send,
    /// From the peer.
    Receive,
}

/// One call.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    fd: c_int,
    way: Way,
    flags: c_int,
    parts: *const iovec,
    count: usize,
    total: usize,
    done: usize,
    /// Its wait.
    pub(crate) wait: Wait,
}

/// What a step ends with.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// So many bytes.
    Done(usize),
    /// Failed.
    Failed(Errno),
    /// The kernel's call.
    Kernel,
    /// Wait, then call [`woken`].
    Wait,
}

/// Whether the switch must be asked about data on `fd`.
#[inline]
pub(crate) fn concerns(fd: c_int) -> bool {
    TABLE.peek(fd).is_some_and(switch::table::Slot::is_san)
}

impl Transfer {
    /// A call with the program's iovecs.
    ///
    /// # Safety
    /// `parts` has `count` elements, which stay valid while the call lasts, as does the memory they name.
    pub(crate) unsafe fn new(
        fd: c_int,
        way: Way,
        parts: *const iovec,
        count: usize,
        flags: c_int,
    ) -> Result<Self, Errno> {
        if count > libc::UIO_MAXIOV.unsigned_abs() as usize {
            return Err(libc::EINVAL);
        }
        let mut transfer = Self {
            fd,
            way,
            flags,
            parts,
            count,
            total: 0,
            done: 0,
            wait: Wait::new(),
        };
        let mut total = 0_usize;
        for part in transfer.parts() {
            total = total
                .checked_add(part.iov_len)
                .filter(|&total| isize::try_from(total).is_ok())
                .ok_or(libc::EINVAL)?;
        }
        transfer.total = total;
        Ok(transfer)
    }

    fn parts(&self) -> &[iovec] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: by the promise of `new`.
        unsafe { core::slice::from_raw_parts(self.parts, self.count) }
    }

    fn has(&self, flag: c_int) -> bool {
        self.flags & flag != 0
    }

    /// Moves what can be moved now. `Ok(0)` of a receive is the end of the stream.
    fn attempt(&mut self, conn: &Conn) -> Result<usize, Errno> {
        let mut skip = self.done;
        let mut moved = 0;
        let mut index = 0;
        while let Some(part) = self.parts().get(index) {
            if skip >= part.iov_len && part.iov_len > 0 {
                skip -= part.iov_len;
                index += 1;
                continue;
            }
            if skip == 0 {
                // From here on the program's array serves as it is.
                let rest = self.parts().get(index..).unwrap_or(&[]);
                return match self.call(conn, rest) {
                    Err(_) if moved > 0 => Ok(moved),
                    result => result.map(|n| n + moved),
                };
            }
            let part = iovec {
                iov_base: part.iov_base.wrapping_byte_add(skip),
                iov_len: part.iov_len - skip,
            };
            let n = self.call(conn, &[part])?;
            moved += n;
            if n < part.iov_len || self.meets_mark(conn) {
                return Ok(moved);
            }
            (skip, index) = (0, index + 1);
        }
        if moved > 0 || self.total > 0 {
            return Ok(moved);
        }
        self.call(conn, &[])
    }

    /// Whether a receive that has got something must end here: urgent data follows.
    fn meets_mark(&self, conn: &Conn) -> bool {
        self.way == Way::Receive && conn.is_at_mark()
    }

    fn call(&self, conn: &Conn, parts: &[iovec]) -> Result<usize, Errno> {
        match self.way {
            Way::Send => conn.send(parts, self.flags & (libc::MSG_OOB | libc::MSG_MORE)),
            Way::Receive => {
                let known = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_TRUNC;
                conn.recv(parts, self.flags & known)
            }
        }
    }

    /// Moves what can be moved; `None`: nothing more now, and the call is not over.
    fn advance(&mut self, conn: &Conn, slot: &SlotRef<'_>, runtime: &Runtime) -> Option<Step> {
        loop {
            let result = self.attempt(conn);
            if let Ok(n) = result
                && !self.has(libc::MSG_PEEK)
            {
                let (tx, rx) = match self.way {
                    Way::Send => (n, 0),
                    Way::Receive => (0, n),
                };
                traffic::count_san(runtime, slot, tx, rx);
            }
            match (self.way, result) {
                (_, Err(libc::EAGAIN)) => return None,
                (way, Err(errno)) if self.done > 0 => {
                    // What was moved is the answer; the next call hears of the error.
                    if way == Way::Receive || errno != libc::EPIPE {
                        conn.restore_error(errno);
                    }
                    return Some(Step::Done(self.done));
                }
                (Way::Send, Err(libc::EPIPE)) => {
                    if !self.has(libc::MSG_NOSIGNAL) {
                        sys::raise(libc::SIGPIPE);
                    }
                    return Some(Step::Failed(libc::EPIPE));
                }
                (_, Err(errno)) => return Some(Step::Failed(errno)),
                (Way::Send, Ok(n)) => {
                    self.done += n;
                    if self.done == self.total {
                        if self.has(libc::MSG_ZEROCOPY) && n > 0 && wants_notices(slot) {
                            conn.note_zerocopy();
                        }
                        return Some(Step::Done(self.done));
                    }
                    if n == 0 {
                        return None;
                    }
                }
                // As in the kernel, a receive of nothing waits for something.
                (Way::Receive, Ok(0))
                    if self.total == 0
                        && !self.has(libc::MSG_OOB)
                        && conn.readable_bytes() == 0
                        && !conn.is_final() =>
                {
                    return None;
                }
                (Way::Receive, Ok(n)) => {
                    let is_final =
                        n == 0 || conn.is_final() || self.has(libc::MSG_OOB) || conn.is_at_mark();
                    if self.has(libc::MSG_PEEK) && self.has(libc::MSG_WAITALL) {
                        // What was peeked at is peeked at again.
                        return (n == self.total || is_final).then_some(Step::Done(n));
                    }
                    self.done += n;
                    let is_enough = !self.has(libc::MSG_WAITALL) || self.done == self.total;
                    if is_enough || is_final {
                        return Some(Step::Done(self.done));
                    }
                }
            }
        }
    }

    /// The call's answer when it may not, or no longer, wait.
    const fn cut_short(&self, errno: Errno) -> Step {
        if self.done > 0 {
            Step::Done(self.done)
        } else {
            Step::Failed(errno)
        }
    }
}

/// Makes one step of a call.
pub(crate) fn step(transfer: &mut Transfer) -> Step {
    let (Some(runtime), Some(slot)) = (runtime::get(), TABLE.get(transfer.fd)) else {
        return Step::Kernel;
    };
    let Some(socket) = slot.socket() else {
        return Step::Kernel;
    };
    readiness::drive(&runtime.switch, socket);
    match socket.stage() {
        Stage::SanConnected => match socket.conn() {
            Some(conn) => on_connection(transfer, runtime, &slot, socket, conn),
            None => Step::Kernel,
        },
        Stage::SanConnecting | Stage::Negotiating => while_connecting(transfer, runtime, socket),
        Stage::Failed => {
            let mut error = [0; 4];
            let asked = runtime
                .switch
                .option(socket, libc::SOL_SOCKET, libc::SO_ERROR, &mut error);
            match i32::from_ne_bytes(error) {
                errno if asked.is_ok() && errno != 0 => Step::Failed(errno),
                _ => Step::Kernel,
            }
        }
        _ => Step::Kernel,
    }
}

fn on_connection(
    transfer: &mut Transfer,
    runtime: &'static Runtime,
    slot: &SlotRef<'_>,
    socket: &SwitchSocket,
    conn: &Conn,
) -> Step {
    let mut answer = transfer.advance(conn, slot, runtime);
    let may_wait = !transfer.has(libc::MSG_DONTWAIT) && !socket.is_nonblocking();
    if answer.is_none() && may_wait {
        answer = readiness::spin(|| transfer.advance(conn, slot, runtime));
    }
    if answer.is_none() && may_wait {
        SERVICE.ensure();
        readiness::arm(&runtime.desk(), socket, &mut transfer.wait.sleep);
        // Armed: what came before is found now, what comes later wakes.
        answer = transfer.advance(conn, slot, runtime);
        if answer.is_some() {
            transfer.wait.woken();
        }
    }
    if let Some(answer) = answer {
        leave(runtime, slot, conn);
        return answer;
    }
    if !may_wait {
        leave(runtime, slot, conn);
        return transfer.cut_short(libc::EAGAIN);
    }
    let name = match transfer.way {
        Way::Send => libc::SO_SNDTIMEO,
        Way::Receive => libc::SO_RCVTIMEO,
    };
    transfer.wait.limit_call(|| socket.timeout_ns(name));
    if transfer.wait.is_over() {
        transfer.wait.woken();
        leave(runtime, slot, conn);
        return transfer.cut_short(libc::EAGAIN);
    }
    let limit_ns = transfer.wait.sleep.limit_ns();
    transfer.wait.for_vectors(limit_ns);
    Step::Wait
}

/// Bytes that a send on `fd` would take now, after the error that it would give; `None` for the kernel.
pub(crate) fn send_room(fd: c_int) -> Option<Result<usize, Errno>> {
    let slot = TABLE.get(fd)?;
    let socket = slot.socket()?;
    if socket.stage() != Stage::SanConnected {
        return None;
    }
    let conn = socket.conn()?;
    conn.progress();
    let room = conn.send_room();
    if matches!(room, Err(libc::EPIPE)) {
        sys::raise(libc::SIGPIPE);
    }
    Some(room)
}

/// Whether calls on `fd` do not wait.
pub(crate) fn is_nonblocking(fd: c_int) -> bool {
    let slot = TABLE.get(fd);
    slot.and_then(|slot| slot.socket().map(|s| s.is_nonblocking()))
        .unwrap_or(false)
}

/// Bytes left to read, if the program wants to be told with each message (`TCP_INQ`).
pub(crate) fn left_if_asked(fd: c_int) -> Option<c_int> {
    let asks = TABLE
        .get(fd)?
        .socket()?
        .int_option(libc::SOL_TCP, libc::TCP_INQ)
        == Some(1);
    let left = queued(fd).filter(|_| asks)?.readable;
    Some(c_int::try_from(left).unwrap_or(c_int::MAX))
}

/// Whether the program wants to hear when its zero-copy sends are done.
fn wants_notices(slot: &SlotRef<'_>) -> bool {
    let socket = slot.socket();
    socket.is_some_and(|s| s.int_option(libc::SOL_SOCKET, libc::SO_ZEROCOPY) == Some(1))
}

/// What the call leaves undone is the service thread's.
fn leave(runtime: &Runtime, slot: &SlotRef<'_>, conn: &Conn) {
    traffic::flow(runtime, slot, conn);
    if conn.leave() {
        SERVICE.wake();
    }
}

fn while_connecting(transfer: &mut Transfer, runtime: &Runtime, socket: &SwitchSocket) -> Step {
    if transfer.has(libc::MSG_DONTWAIT) || socket.is_nonblocking() {
        return Step::Failed(libc::EAGAIN);
    }
    let plan = runtime.switch.connect_plan(socket, u64::MAX);
    transfer.wait.limit_call(|| None);
    transfer.wait.as_planned(&plan, Some(CONNECT_NS));
    Step::Wait
}

/// After a wait that ended with `errno`, 0 for none: the call's answer if it ends here.
pub(crate) fn woken(transfer: &mut Transfer, errno: Errno) -> Option<Step> {
    transfer.wait.woken();
    transfer
        .wait
        .is_interrupted(errno)
        .then(|| transfer.cut_short(libc::EINTR))
}

/// What lies in the two queues of a connection.
pub(crate) struct Queued {
    /// `FIONREAD`.
    pub(crate) readable: usize,
    /// `SIOCOUTQ`.
    pub(crate) unsent: usize,
    /// `SIOCOUTQNSD`.
    pub(crate) unposted: usize,
    /// `SIOCATMARK`.
    pub(crate) is_at_mark: bool,
}

/// What lies in the queues of the connection behind `fd`; `None` for the kernel.
pub(crate) fn queued(fd: c_int) -> Option<Queued> {
    let slot = TABLE.get(fd)?;
    let socket = slot.socket()?;
    if socket.stage() != Stage::SanConnected {
        return None;
    }
    let conn = socket.conn()?;
    conn.progress();
    Some(Queued {
        readable: conn.inquired_bytes(),
        unsent: conn.unsent_bytes(),
        unposted: conn.unposted_bytes(),
        is_at_mark: conn.is_at_mark(),
    })
}
