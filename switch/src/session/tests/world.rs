//! Connected pairs for the suites, and the few words the suites are written in.

use std::sync::{Arc, OnceLock};

use driver::spi::SpSocket;

use super::double::Fabric;
use crate::outcome::Errno;
use crate::session::{Conn, ConnOptions, Phase, Role};

/// Where a suite runs.
pub(super) trait World {
    /// Two ends that have finished their negotiation.
    fn pair_with(&self, a: ConnOptions, b: ConnOptions) -> (Arc<Conn>, Arc<Conn>);

    /// Takes the last holder of an end away, as a kill does.
    fn orphan(&self, end: &Arc<Conn>);

    /// Ends the device.
    fn die(&self);

    /// Two ends with default options.
    fn pair(&self) -> (Arc<Conn>, Arc<Conn>) {
        self.pair_with(ConnOptions::default(), ConnOptions::default())
    }
}

/// The double.
pub(super) struct DoubleWorld {
    pub(super) fabric: Arc<Fabric>,
}

impl DoubleWorld {
    pub(super) fn new() -> Self {
        Self {
            fabric: Fabric::new(),
        }
    }

    /// One end, and the socket of a peer that the test plays itself.
    pub(super) fn end(&self, role: Role) -> (Arc<Conn>, SpSocket) {
        let (ours, theirs) = self.fabric.connect();
        let provider = self.fabric.provider(0);
        let conn = Conn::start(role, provider, ours, ConnOptions::default()).unwrap();
        (Arc::new(conn), theirs)
    }
}

impl World for DoubleWorld {
    fn pair_with(&self, a: ConnOptions, b: ConnOptions) -> (Arc<Conn>, Arc<Conn>) {
        let (sa, sb) = self.fabric.connect();
        let one = Conn::start(Role::Active, self.fabric.provider(0), sa, a).unwrap();
        let two = Conn::start(Role::Passive, self.fabric.provider(1), sb, b).unwrap();
        let (one, two) = (Arc::new(one), Arc::new(two));
        settle(&[&one, &two]);
        assert_eq!(one.phase(), Phase::Established);
        assert_eq!(two.phase(), Phase::Established);
        (one, two)
    }

    fn orphan(&self, end: &Arc<Conn>) {
        self.fabric.orphan(end.sp());
    }

    fn die(&self) {
        self.fabric.die();
    }
}

/// Lets everything happen that can happen without the program.
pub(super) fn settle(ends: &[&Arc<Conn>]) {
    for _ in 0..40 {
        for end in ends {
            end.progress();
        }
    }
}

/// Bytes after which a stream's pattern repeats; a prime, so that no ring or message length divides it.
const PERIOD: usize = 1_048_573;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[5]
            })
            .collect()
    })
}

/// `len` bytes of a stream from `offset` on; `seed` tells directions apart.
pub(super) fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let table = table();
    let start = seed.wrapping_mul(777_777).wrapping_add(offset) % PERIOD as u64;
    let mut at = usize::try_from(start).unwrap();
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let n = (len - bytes.len()).min(PERIOD - at);
        bytes.extend_from_slice(&table[at..at + n]);
        at = 0;
    }
    bytes
}

/// Sends one buffer.
pub(super) fn send(end: &Conn, bytes: &[u8]) -> Result<usize, Errno> {
    let iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    end.send(&[iov], libc::MSG_NOSIGNAL)
}

/// Receives into one buffer.
pub(super) fn recv_flags(end: &Conn, len: usize, flags: i32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    let iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: len,
    };
    let n = end.recv(&[iov], flags)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Receives without flags.
pub(super) fn recv(end: &Conn, len: usize) -> Result<Vec<u8>, Errno> {
    recv_flags(end, len, 0)
}

/// Sends all of `bytes`, letting the connection work when it is full; the peer must be reading.
pub(super) fn send_all(end: &Arc<Conn>, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        match send(end, &bytes[done..]) {
            Ok(n) => done += n,
            Err(libc::EAGAIN) => panic!("no room after {done} bytes"),
            Err(errno) => panic!("errno {errno} after {done} bytes"),
        }
    }
}

/// Reads until an answer that is no data: what came, and the errno, or 0 at the end of the stream.
pub(super) fn read_to_end(end: &Arc<Conn>, other: Option<&Arc<Conn>>) -> (Vec<u8>, Errno) {
    let mut all = Vec::new();
    let mut idle = 0;
    loop {
        match recv(end, 10_000) {
            Ok(bytes) if bytes.is_empty() => return (all, 0),
            Ok(bytes) => {
                all.extend(bytes);
                idle = 0;
            }
            Err(libc::EAGAIN) if idle < 100 => {
                idle += 1;
                end.progress();
                if let Some(other) = other {
                    other.progress();
                }
            }
            Err(errno) => return (all, errno),
        }
    }
}
