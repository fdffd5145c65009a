//! SAN sockets on their way from one program image to the next.
//!
//! Place: `calls::exec` and `pump` leave an estate ([`leave`]); the constructor of the library in the heir takes it up ([`take_up`],
//! then [`settle`]). Invariants: the estate is a memfd of our own; the descriptors it names cross `exec` under their numbers. A
//! socket is known by the kernel's cookie, so nobody needs to know what became of its descriptors on the way. The first two steps in
//! a `vfork` child change nothing that its parent has, but kernel objects that the child alone is told of.
//! Source; `switch::estate`. Leaves out: epoll sets.

use std::os::fd::RawFd;
use std::sync::Arc;

use ring_proto::channel;
use ring_proto::sync::Ordering;
use switch::estate::{Estate, Leaving};
use switch::tcp::Endpoint;
use switch::{Errno, Stage, SwitchSocket, sys};

use crate::calls::{pump, traffic};
use crate::environment;
use crate::host;
use crate::runtime::{self, Runtime, SERVICE, TABLE};

/// Longest estate that is read.
const LEN_MAX: usize = 64 << 20;
/// Numbers of the standard streams, which the C library reads and writes past our exports.
const STREAMS: core::ops::RangeInclusive<RawFd> = 0..=2;

/// A socket that an heir may get.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    cookie: u64,
    endpoint: [u64; 2],
    /// The socket, where it is more than the kernel's.
    pub(crate) socket: Option<Arc<SwitchSocket>>,
    /// Its descriptors in this process.
    pub(crate) fds: Vec<RawFd>,
}

impl Carried {
    /// A socket whose descriptors do not matter.
    pub(crate) const fn new(cookie: u64, endpoint: [u64; 2], socket: Arc<SwitchSocket>) -> Self {
        Self {
            cookie,
            endpoint,
            socket: Some(socket),
            fds: Vec::new(),
        }
    }

    /// Whether the SAN carries it, in this stage.
    pub(crate) fn is_in(&self, stage: Stage) -> bool {
        self.socket.as_ref().is_some_and(|s| s.stage() == stage)
    }
}

/// What an heir needs to be given, until it has it.
#[derive(Debug, Default)]
pub(crate) struct Bundle {
    /// Number of the memfd with the estate.
    pub(crate) estate: RawFd,
    /// Descriptors that must cross.
    pub(crate) needed: Vec<RawFd>,
    /// Those of them that nobody else has.
    made: Vec<RawFd>,
}

/// The sockets that cross the next `exec` and of which the next image must be told something: those with a descriptor that is not
/// close-on-exec, or all of them.
pub(crate) fn carried(runtime: &Runtime, are_all: bool) -> Vec<Carried> {
    let mut known: Vec<Carried> = Vec::new();
    for fd in TABLE.tracked_in(0, u32::MAX) {
        let Some(slot) = TABLE.get(fd) else {
            continue;
        };
        let socket = slot.socket().filter(|socket| is_left(socket));
        if socket.is_none() && slot.endpoint.is_plain() {
            continue;
        }
        // In a `vfork` child the number may be another socket's by now.
        if !runtime.process.is_foreign() {
            host::name(&slot, fd);
        }
        // Relaxed: a number that never changes once it is known.
        let cookie = slot.cookie.load(Ordering::Relaxed);
        if cookie != 0 && !known.iter().any(|c| c.cookie == cookie) {
            known.push(Carried {
                cookie,
                endpoint: slot.endpoint.words(),
                socket: socket.cloned(),
                fds: Vec::new(),
            });
        }
    }
    if known.is_empty() {
        return known;
    }
    for fd in sys::open_descriptors() {
        let crosses = sys::fcntl(fd, libc::F_GETFD, 0).is_ok_and(|f| f & libc::FD_CLOEXEC == 0);
        if (crosses || are_all)
            && let Ok(cookie) = sys::cookie(fd)
            && let Some(found) = known.iter_mut().find(|c| c.cookie == cookie)
        {
            found.fds.push(fd);
        }
    }
    known.retain(|c| !c.fds.is_empty());
    known
}

fn is_left(socket: &SwitchSocket) -> bool {
    matches!(socket.stage(), Stage::SanConnected | Stage::SanListening)
}

/// Makes an heir a holder of `sockets`, and writes down what it is to know.
pub(crate) fn leave(runtime: &Runtime, sockets: &[Carried]) -> Result<Bundle, Errno> {
    let named: Vec<_> = sockets
        .iter()
        .map(|c| Leaving {
            cookie: c.cookie,
            endpoint: c.endpoint,
            socket: c.socket.clone(),
        })
        .collect();
    let (estate, parting) = runtime.switch.bequeath(&named)?;
    let mut bundle = Bundle {
        estate: -1,
        needed: parting.needed,
        made: parting.made,
    };
    let written = serde_json::to_vec(&estate)
        .map_err(|_| libc::EINVAL)
        .and_then(|text| {
            let memory = sys::memfd(c"sanlab-estate")?;
            bundle.made.push(memory);
            bundle.needed.push(memory);
            bundle.estate = memory;
            sys::write_all(memory, &text)
        });
    match written {
        Ok(()) => Ok(bundle),
        Err(errno) => {
            bundle.close();
            Err(errno)
        }
    }
}

impl Bundle {
    /// Lets the descriptors cross an `exec` of this process, or keeps them from it.
    pub(crate) fn cross(&self, is_let: bool) {
        let flag = if is_let { 0 } else { libc::FD_CLOEXEC };
        for &fd in &self.needed {
            // What is not open any more cannot cross; the heir will miss it.
            sys::fcntl(fd, libc::F_SETFD, sys::int(flag)).ok();
        }
    }

    /// Closes what was made for the heir: it has its own copies, or there is none.
    pub(crate) fn close(&self) {
        for &fd in &self.made {
            sys::close(fd).ok();
        }
    }
}

/// Reads the estate that the environment names, if there is one.
pub(crate) fn take_up() -> Option<Estate> {
    let number = environment::take(channel::ENV_ESTATE)?;
    let number: RawFd = number.to_str().ok()?.parse().ok()?;
    let mut text = Vec::new();
    while text.len() < LEN_MAX {
        let mut piece = [0; 4096];
        match sys::read_at(number, &mut piece, i64::try_from(text.len()).ok()?).ok()? {
            0 => break,
            read => text.extend_from_slice(piece.get(..read)?),
        }
    }
    let estate = serde_json::from_slice(&text).ok()?;
    // It was ours, as what it holds shows.
    sys::close(number).ok();
    Some(estate)
}

/// Makes the sockets of an estate this program's, and closes those that none of its descriptors names.
pub(crate) fn settle(runtime: &'static Runtime, estate: &Estate) {
    let mut left: Vec<_> = estate.sockets.iter().map(|h| (h, None::<RawFd>)).collect();
    let mut streams = Vec::new();
    for fd in sys::open_descriptors() {
        if runtime::is_hidden(fd) {
            continue;
        }
        let Ok(cookie) = sys::cookie(fd) else {
            continue;
        };
        let Some((heirloom, first)) = left.iter_mut().find(|(h, _)| h.cookie == cookie) else {
            continue;
        };
        if let Some(first) = first {
            drop(TABLE.duplicate(*first, fd));
        } else if heirloom.is_plain() {
            let endpoint = Endpoint::of_words(heirloom.endpoint);
            *first = TABLE.insert(fd, &endpoint, None).map(|_| fd);
        } else if let Some(socket) = runtime.switch.inherit(heirloom, fd) {
            let endpoint = Endpoint::of_words(heirloom.endpoint);
            if let Some(slot) = TABLE.insert(fd, &endpoint, Some(Arc::clone(&socket))) {
                host::mark(&slot, &socket);
                if socket.stage() == Stage::SanConnected {
                    traffic::inherited(runtime, &slot, &socket);
                }
            }
            *first = Some(fd);
        }
        if first.is_some() && STREAMS.contains(&fd) && heirloom.is_connection() {
            streams.push(fd);
        }
    }
    for (heirloom, first) in left {
        if first.is_none()
            && !heirloom.is_plain()
            && let Some(socket) = runtime.switch.inherit(heirloom, -1)
        {
            // Whether it drains is the service thread's business.
            let _step = runtime.switch.close(&socket);
        }
    }
    if estate.sockets.iter().any(|h| !h.is_plain()) {
        SERVICE.wake();
    }
    for fd in streams {
        // The C library's own streams are past our exports. What cannot be pumped can still be read and written by calls.
        pump::replace(runtime, fd).ok();
    }
}
