//! What a pump does: it moves bytes between two sockets.
//!
//! Place: `role` calls [`run`] in the pump's process. It reads and writes by the exports of this library, as any program on the node does.
//! Invariants: no more than one buffer is under way in each direction, so a slow reader slows the writer behind the other socket; the
//! end of one direction leaves the other one open; a reset of one socket resets the other.
//! Source: ours. Leaves out: urgent data, which comes in line.
#![expect(unsafe_code, reason = "calls exports with the C library's names")]

use core::ffi::c_char;
use std::os::fd::RawFd;

use switch::sys;

use crate::errno;
use crate::exports::{data, descriptors, names, ready};

/// Bytes under way in each direction.
const ROOM: usize = 64 * 1024;

/// One direction.
struct Flow {
    from: RawFd,
    to: RawFd,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The source has ended.
    is_dry: bool,
    /// The end was passed on, or the target takes no more.
    is_over: bool,
}

/// What ends a pump at once.
enum Broken {
    /// One side has been reset, or reads no more.
    Reset,
    /// The program's last descriptor is closed: others may go on with the connection.
    Closed,
}

impl Flow {
    fn new(from: RawFd, to: RawFd) -> Self {
        Self {
            from,
            to,
            bytes: vec![0; ROOM],
            start: 0,
            end: 0,
            is_dry: false,
            is_over: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What to wait for: source, target.
    fn wants(&self) -> [(RawFd, i16); 2] {
        let reads = self.is_empty() && !self.is_dry;
        let writes = !self.is_empty();
        [
            (self.from, if reads { libc::POLLIN } else { 0 }),
            (self.to, if writes { libc::POLLOUT } else { 0 }),
        ]
    }

    fn step(&mut self) -> Result<(), Broken> {
        while !self.is_over {
            if self.is_empty() && !self.is_dry {
                let room = self.bytes.as_mut_ptr().cast();
                // SAFETY: room for that many bytes.
                let read = unsafe { data::recv(self.from, room, ROOM, libc::MSG_DONTWAIT) };
                match usize::try_from(read) {
                    Ok(0) => self.is_dry = true,
                    Ok(read) => (self.start, self.end) = (0, read),
                    Err(_) => return pause(),
                }
            }
            if self.is_empty() && self.is_dry {
                if is_orphan_beyond(self.from) {
                    return Err(Broken::Closed);
                }
                // SAFETY: takes no pointer. A target that is gone already tells it elsewhere.
                unsafe { names::shutdown(self.to, libc::SHUT_WR) };
                self.is_over = true;
                return Ok(());
            }
            let rest = self.bytes.get(self.start..self.end).unwrap_or(&[]);
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: that many bytes.
            let sent = unsafe { data::send(self.to, rest.as_ptr().cast(), rest.len(), flags) };
            match usize::try_from(sent) {
                Ok(sent) => self.start += sent,
                Err(_) => return pause(),
            }
        }
        Ok(())
    }
}

fn pause() -> Result<(), Broken> {
    match errno::load() {
        libc::EAGAIN | libc::EINTR => Ok(()),
        _ => Err(Broken::Reset),
    }
}

/// Moves bytes until both directions have ended, then ends the process.
pub(crate) fn run(san: RawFd, tcp: RawFd) -> ! {
    name_process(c"sanlab-pump".as_ptr());
    let mut flows = [Flow::new(san, tcp), Flow::new(tcp, san)];
    let mut outcome = Ok(());
    while outcome.is_ok() && flows.iter().any(|flow| !flow.is_over) {
        outcome = flows.iter_mut().try_for_each(Flow::step);
        if outcome.is_ok() && flows.iter().any(|flow| !flow.is_over) {
            wait(&flows);
        }
    }
    if matches!(outcome, Err(Broken::Reset)) {
        // So will the other side see it.
        for fd in [san, tcp] {
            abort_on_close(fd);
        }
    }
    for fd in [tcp, san] {
        // SAFETY: ours.
        unsafe { descriptors::close(fd) };
    }
    // SAFETY: ends the process without running anything of the host.
    unsafe { libc::_exit(0) }
}

fn wait(flows: &[Flow]) {
    let mut fds: Vec<libc::pollfd> = Vec::new();
    for (fd, events) in flows.iter().filter(|f| !f.is_over).flat_map(Flow::wants) {
        if events == 0 {
            continue;
        }
        match fds.iter_mut().find(|entry| entry.fd == fd) {
            Some(entry) => entry.events |= events,
            None => fds.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            }),
        }
    }
    // SAFETY: that many entries. Whatever comes, both flows are looked at.
    unsafe { ready::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
}

fn abort_on_close(fd: RawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
    let len = libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap_or(0);
    // SAFETY: a value of that length.
    unsafe { names::setsockopt(fd, level, name, (&raw const linger).cast(), len) };
}

fn name_process(name: *const c_char) {
    let args = [
        sys::int(libc::PR_SET_NAME),
        name.expose_provenance(),
        0,
        0,
        0,
        0,
    ];
    // SAFETY: a C string.
    unsafe { sys::syscall(libc::SYS_prctl, args) }.ok();
}

/// Whether no process has the other end of a kernel connection within this host any more: it was closed, not merely shut down. The
/// kernel lists such a socket without an inode.
fn is_orphan_beyond(fd: RawFd) -> bool {
    let (Ok(own), Ok(far)) = (sys::local_name(fd), sys::peer_name(fd)) else {
        // Not the kernel's, or gone altogether.
        return false;
    };
    let (own, far) = (
        format!(":{:04X}", own.port()),
        format!(":{:04X}", far.port()),
    );
    let lists = ["/proc/net/tcp", "/proc/net/tcp6"];
    let lists = lists.map(|list| std::fs::read_to_string(list).unwrap_or_default());
    lists.iter().flat_map(|list| list.lines()).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_it = words.next().is_some_and(|local| local.ends_with(&far))
            && words.next().is_some_and(|remote| remote.ends_with(&own));
        is_it && words.nth(6) == Some("0")
    })
}
