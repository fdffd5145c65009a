//! The option store: what the program set on a socket, for replay on companions and on accepted sockets.
//!
//! Place: filled by every successful `setsockopt`, read when a companion is made, when a connection is accepted and
//! when a session starts. Invariants: an option that TCP refused is not stored; one entry per name, the last value wins, and
//! it stands in the order of the last settings.
//! Source.

use driver::spi::{ServiceProvider, SpSocket};
use driver::wsa::WsaError;

use crate::session::{Conn, KeepAlive};

/// Most bytes of a stored value; the kernel's longest TCP option (`TCP_MD5SIG`) is shorter.
const MAX_VALUE: usize = 256;

/// Options that only kernel TCP can honour.
const TCP_ONLY: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::SOL_IP, libc::IP_TRANSPARENT),
    (libc::SOL_TCP, libc::TCP_FASTOPEN),
    (libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT),
    (libc::SOL_TCP, libc::TCP_REPAIR),
    (libc::SOL_TCP, libc::TCP_ULP),
    (libc::SOL_TCP, libc::TCP_MD5SIG),
];

/// Options of a listener that an accepted socket does not get.
const NOT_INHERITED: &[(i32, i32)] = &[
    (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
];

/// Options that a connection itself follows.
const FOLLOWED: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_TCP, libc::TCP_KEEPIDLE),
    (libc::SOL_TCP, libc::TCP_KEEPINTVL),
    (libc::SOL_TCP, libc::TCP_KEEPCNT),
    (libc::SOL_TCP, libc::TCP_CORK),
    (libc::SOL_TCP, libc::TCP_NODELAY),
    (libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
];

/// Options of one socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct OptionStore {
    entries: Vec<StoredOption>,
}

/// One option, as the program gave it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct StoredOption {
    /// Level.
    pub level: i32,
    /// Name.
    pub name: i32,
    /// Raw bytes.
    pub value: Vec<u8>,
}

impl OptionStore {
    /// Stores an option that TCP took.
    pub fn store(&mut self, level: i32, name: i32, value: &[u8]) {
        self.entries.retain(|e| (e.level, e.name) != (level, name));
        self.entries.push(StoredOption {
            level,
            name,
            value: value[..value.len().min(MAX_VALUE)].to_vec(),
        });
    }

    /// All options, in the order of their last settings.
    #[must_use]
    pub fn entries(&self) -> &[StoredOption] {
        &self.entries
    }

    /// Value of an option that the program set.
    #[must_use]
    pub fn find(&self, level: i32, name: i32) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|e| (e.level, e.name) == (level, name))
            .map(|e| e.value.as_slice())
    }

    /// Value of an option of type `int` that the program set.
    #[must_use]
    pub fn int(&self, level: i32, name: i32) -> Option<i32> {
        let bytes = self.find(level, name)?;
        Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
    }

    /// `SO_RCVTIMEO` or `SO_SNDTIMEO` in nanoseconds; `None`: no limit.
    #[must_use]
    pub fn timeout_ns(&self, name: i32) -> Option<u64> {
        let bytes = self.find(libc::SOL_SOCKET, name)?;
        let half = |at: usize| -> Option<u64> {
            let raw = i64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
            u64::try_from(raw).ok()
        };
        let ns = half(0)?
            .saturating_mul(1_000_000_000)
            .saturating_add(half(8)?.saturating_mul(1000));
        (ns != 0).then_some(ns)
    }

    /// `SO_LINGER`: on or off, and seconds.
    #[must_use]
    pub fn linger(&self) -> Option<u32> {
        let bytes = self.find(libc::SOL_SOCKET, libc::SO_LINGER)?;
        let half = |at: usize| -> Option<i32> {
            Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        (half(0)? != 0).then(|| half(4).and_then(|s| u32::try_from(s).ok()).unwrap_or(0))
    }

    /// Whether an option of the program keeps the socket on TCP.
    #[must_use]
    pub fn needs_tcp(&self) -> bool {
        self.entries
            .iter()
            .any(|e| is_tcp_only(e.level, e.name) && e.value.iter().any(|&b| b != 0))
    }

    /// Options for the placeholder of an accepted connection.
    pub fn inherited(&self) -> impl Iterator<Item = &StoredOption> {
        self.entries
            .iter()
            .filter(|e| !NOT_INHERITED.contains(&(e.level, e.name)))
    }

    /// The store of an accepted socket.
    #[must_use]
    pub fn inherit(&self) -> Self {
        Self {
            entries: self.inherited().cloned().collect(),
        }
    }

    /// Sets each stored option that the provider supports on the companion `s`, in order. Support is asked, never tried.
    ///
    /// # Errors
    /// The provider's code for the first option that it fails.
    pub fn replay(&self, sp: &dyn ServiceProvider, s: SpSocket) -> Result<(), WsaError> {
        self.entries
            .iter()
            .try_for_each(|e| forward(sp, s, e.level, e.name, &e.value).map(drop))
    }
}

/// Size of a buffer that the program asked for, as the kernel reports it: doubled.
#[must_use]
pub fn buffer(options: &OptionStore, name: i32) -> Option<u32> {
    let asked = u32::try_from(options.int(libc::SOL_SOCKET, name)?).ok()?;
    Some(asked.saturating_mul(2).max(MIN_BUFFER))
}

/// Smallest buffer, as the kernel's `SOCK_MIN_SNDBUF`.
const MIN_BUFFER: u32 = 4608;

/// Whether an option keeps a socket on TCP.
#[must_use]
pub fn is_tcp_only(level: i32, name: i32) -> bool {
    TCP_ONLY.contains(&(level, name))
}

/// Lets a new connection follow what the program set before.
pub(crate) fn follow_all(options: &OptionStore, conn: &Conn) {
    for (level, name) in FOLLOWED {
        if options.find(*level, *name).is_some() {
            follow(options, conn, *level, *name);
        }
    }
}

/// Lets a connection follow an option that was just stored.
pub(crate) fn follow(options: &OptionStore, conn: &Conn, level: i32, name: i32) {
    let value = options.int(level, name).unwrap_or(0);
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
            if let Some(limit) = buffer(options, name) {
                conn.set_send_limit(limit);
            }
        }
        // As the kernel: nothing means one byte, a negative number all there can be.
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
            conn.set_receive_low_water(u32::try_from(value).unwrap_or(i32::MAX.unsigned_abs()));
        }
        (libc::SOL_SOCKET, libc::SO_OOBINLINE) => conn.set_urgent_in_line(value != 0),
        (libc::SOL_TCP, libc::TCP_CORK) => conn.set_cork(value != 0),
        (libc::SOL_TCP, libc::TCP_USER_TIMEOUT) => {
            // The kernel took it, so it is not negative.
            conn.set_user_timeout(value.unsigned_abs());
        }
        (libc::SOL_TCP, libc::TCP_NODELAY) if value != 0 => conn.push_held(),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE)
        | (libc::SOL_TCP, libc::TCP_KEEPIDLE | libc::TCP_KEEPINTVL | libc::TCP_KEEPCNT) => {
            conn.set_keep_alive(keep_alive(options));
        }
        _ => {}
    }
}

/// When the program wants an idle peer to be probed, if it does.
fn keep_alive(options: &OptionStore) -> Option<KeepAlive> {
    let is_on = options
        .int(libc::SOL_SOCKET, libc::SO_KEEPALIVE)
        .is_some_and(|on| on != 0);
    let usual = KeepAlive::default();
    // The kernel took them, so they are in range.
    let seconds = |name, usual| {
        let given = options.int(libc::SOL_TCP, name);
        given.and_then(|s| u16::try_from(s).ok()).unwrap_or(usual)
    };
    let count = options.int(libc::SOL_TCP, libc::TCP_KEEPCNT);
    is_on.then(|| KeepAlive {
        idle_s: seconds(libc::TCP_KEEPIDLE, usual.idle_s),
        interval_s: seconds(libc::TCP_KEEPINTVL, usual.interval_s),
        count: count
            .and_then(|n| u8::try_from(n).ok())
            .unwrap_or(usual.count),
    })
}

/// Sets an option on a companion if the provider supports it; `Ok(false)` if it does not.
///
/// # Units and shape
/// Linux numbers are Winsock's where both have the option: `SO_DEBUG` is 1 at level `SOL_SOCKET` of the caller; group and RDMA
/// options have no Linux name and so never come from a program.
/// # Errors
/// The provider's code.
pub fn forward(
    sp: &dyn ServiceProvider,
    s: SpSocket,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<bool, WsaError> {
    let Ok(name) = u32::try_from(name) else {
        return Ok(false);
    };
    if !sp.supports_option(level, name) {
        return Ok(false);
    }
    sp.wsp_set_sock_opt(s, level, name, value).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r036_last_value_wins_in_order_of_the_last_settings() {
        let mut store = OptionStore::default();
        store.store(1, 10, &[1]);
        store.store(6, 1, &[2]);
        store.store(1, 10, &[3]);
        let names: Vec<_> = store.entries().iter().map(|e| (e.level, e.name)).collect();
        assert_eq!(names, [(6, 1), (1, 10)]);
        assert_eq!(store.find(1, 10), Some(&[3][..]));
    }

    #[test]
    fn times_and_linger_are_read_as_the_kernel_reads_them() {
        let mut store = OptionStore::default();
        let mut time = 2_i64.to_ne_bytes().to_vec();
        time.extend(500_000_i64.to_ne_bytes());
        store.store(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time);
        assert_eq!(store.timeout_ns(libc::SO_RCVTIMEO), Some(2_500_000_000));
        store.store(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &[0; 16]);
        assert_eq!(store.timeout_ns(libc::SO_RCVTIMEO), None);
        assert_eq!(store.linger(), None);
        store.store(libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(store.linger(), Some(0));
        store.store(libc::SOL_SOCKET, libc::SO_LINGER, &[0; 8]);
        assert_eq!(store.linger(), None);
    }

    #[test]
    fn probes_are_wanted_as_the_program_says_and_else_as_the_kernel_does() {
        let mut store = OptionStore::default();
        store.store(libc::SOL_TCP, libc::TCP_KEEPIDLE, &30_i32.to_ne_bytes());
        assert_eq!(keep_alive(&store), None);
        store.store(libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1_i32.to_ne_bytes());
        let wanted = KeepAlive {
            idle_s: 30,
            interval_s: 75,
            count: 9,
        };
        assert_eq!(keep_alive(&store), Some(wanted));
        store.store(libc::SOL_SOCKET, libc::SO_KEEPALIVE, &0_i32.to_ne_bytes());
        assert_eq!(keep_alive(&store), None);
    }

    #[test]
    fn r047_options_of_kernel_tcp_alone_keep_the_socket_there() {
        let mut store = OptionStore::default();
        store.store(libc::SOL_TCP, libc::TCP_NODELAY, &1_i32.to_ne_bytes());
        assert!(!store.needs_tcp());
        store.store(libc::SOL_TCP, libc::TCP_FASTOPEN, &0_i32.to_ne_bytes());
        assert!(!store.needs_tcp());
        store.store(libc::SOL_TCP, libc::TCP_ULP, b"tls");
        assert!(store.needs_tcp());
    }
}
