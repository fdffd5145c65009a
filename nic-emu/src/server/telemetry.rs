//! What processes tell about their connections: read on demand, never trusted, folded into totals when the process ends.
//!
//! Place: `stat` reads the live ones, the control thread folds one at the hang-up of its process socket.
//! Invariants: the file is a sealed memfd of full size and is read with `pread` into private memory, so a process can neither block
//! nor kill us with it; every number is clamped or saturated, totals never go down, texts are made printable.
//! Source: ours (ring_proto::telemetry). Leaves out: counters of the NIC, which the device keeps itself.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::uio::pread;
use ring_proto::telemetry::{
    ENTRIES, Entry, FlowState, Header, LEN, LIVE, MAGIC, ROAD_SAN, ROAD_TCP, Reason,
};
use ring_proto::uar::{MODE_COPY, MODE_WINDOW};
use zerocopy::{FromBytes, IntoBytes};

use super::fd_pass;

/// Places of [`Header::fallbacks`].
const REASONS: usize = 32;

/// Cumulative numbers of one process, or of all processes of a node that have ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) san_tx_bytes: u64,
    pub(crate) san_rx_bytes: u64,
    pub(crate) tcp_connections: u64,
    pub(crate) san_connections: u64,
    /// By number of [`Reason`].
    pub(crate) fallbacks: [u64; REASONS],
}

impl Totals {
    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let pairs = [
            (&mut self.san_tx_bytes, other.san_tx_bytes),
            (&mut self.san_rx_bytes, other.san_rx_bytes),
            (&mut self.tcp_connections, other.tcp_connections),
            (&mut self.san_connections, other.san_connections),
        ];
        let fallbacks = self.fallbacks.iter_mut().zip(other.fallbacks);
        for (mine, theirs) in pairs.into_iter().chain(fallbacks) {
            *mine = with(*mine, theirs);
        }
    }

    /// Adds another process's numbers.
    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add);
    }

    /// Takes the larger of each number: what a process once reported it cannot take back.
    fn raise(&mut self, other: &Self) {
        self.combine(other, u64::max);
    }

    /// Counts one fall-back.
    pub(crate) fn count(&mut self, reason: Reason) {
        if let Some(count) = self.fallbacks.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Fall-backs that have a name, those that happened alone.
    pub(crate) fn named_fallbacks(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().filter_map(|reason| {
            let count = self.fallbacks.get(reason as usize).copied().unwrap_or(0);
            (count > 0).then_some((reason, count))
        })
    }
}

/// A live connection as its process tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Connection {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) is_san: bool,
    pub(crate) reason: Option<Reason>,
    /// Name of the transfer mode, for SAN connections.
    pub(crate) mode: Option<&'static str>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    /// Of a SAN connection.
    pub(crate) flow: Flow,
}

/// How a SAN connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) accepted: u64,
    pub(crate) taken: u64,
    pub(crate) unsent: u64,
    pub(crate) credits: u32,
    pub(crate) state: FlowState,
}

/// What one look at a telemetry file showed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Report {
    pub(crate) pid: u64,
    pub(crate) program: String,
    pub(crate) connections: Vec<Connection>,
}

/// A process's telemetry file.
#[derive(Debug)]
pub(crate) struct Telemetry {
    file: OwnedFd,
    totals: Totals,
}

impl Telemetry {
    /// Takes a file when it is one that can be read without risk.
    pub(crate) fn new(file: OwnedFd) -> Result<Self, Errno> {
        // Seals exist on memory files alone: no pipe, no device, no file system that answers when it likes.
        if !fd_pass::is_sealed_memfd(file.as_fd()) {
            return Err(Errno::EINVAL);
        }
        let size = nix::sys::stat::fstat(&file)?.st_size;
        if usize::try_from(size).is_ok_and(|size| size >= LEN) {
            Ok(Self {
                file,
                totals: Totals::default(),
            })
        } else {
            Err(Errno::EMSGSIZE)
        }
    }

    /// Numbers up to now. They never go down, whatever the file says.
    pub(crate) fn totals(&mut self) -> &Totals {
        if let Some(header) = self.header() {
            self.totals.raise(&Totals {
                san_tx_bytes: header.san_tx_bytes,
                san_rx_bytes: header.san_rx_bytes,
                tcp_connections: header.tcp_connections,
                san_connections: header.san_connections,
                fallbacks: header.fallbacks,
            });
        }
        &self.totals
    }

    /// Process, program and live connections.
    pub(crate) fn report(&self) -> Report {
        let Some(header) = self.header() else {
            return Report::default();
        };
        let used = usize::try_from(header.entries_used).map_or(ENTRIES, |used| used.min(ENTRIES));
        let mut entries = vec![Entry::default(); used];
        let wanted = entries.as_mut_bytes();
        let offset = i64::try_from(size_of::<Header>()).expect("the header is small");
        // EDGE telemetry-entry (acquire): as far as a copy by the kernel goes; a torn entry is a wrong line in a table, no more.
        if pread(&self.file, wanted, offset) != Ok(wanted.len()) {
            entries.clear();
        }
        Report {
            pid: header.pid,
            program: printable(&header.program),
            connections: entries.iter().filter_map(connection).collect(),
        }
    }

    fn header(&self) -> Option<Header> {
        let mut bytes = [0; size_of::<Header>()];
        if pread(&self.file, &mut bytes, 0) != Ok(bytes.len()) {
            return None;
        }
        let header = Header::read_from_bytes(&bytes).ok()?;
        // A process that has not got around to its header yet has nothing to tell.
        (header.magic == MAGIC).then_some(header)
    }
}

fn connection(entry: &Entry) -> Option<Connection> {
    if entry.state != LIVE {
        return None;
    }
    let is_san = match entry.road & 0xff {
        ROAD_TCP => false,
        ROAD_SAN => true,
        _ => return None,
    };
    let mode = match (entry.road >> 16) & 0xff {
        mode if mode == u64::from(MODE_COPY) => Some("copy"),
        mode if mode == u64::from(MODE_WINDOW) => Some("window"),
        _ => None,
    };
    Some(Connection {
        local: entry.local.try_into().ok()?,
        remote: entry.remote.try_into().ok()?,
        is_san,
        reason: Reason::from_number((entry.road >> 8) & 0xff),
        mode: mode.filter(|_| is_san),
        tx_bytes: entry.tx_bytes,
        rx_bytes: entry.rx_bytes,
        flow: Flow {
            accepted: entry.accepted,
            taken: entry.taken,
            unsent: entry.unsent,
            credits: u32::try_from(entry.flow & u64::from(u32::MAX)).unwrap_or(0),
            state: FlowState::from_number((entry.flow >> 32) & 0xff),
        },
    })
}

/// A zero-padded name as text that no terminal takes for commands.
pub(crate) fn printable(name: &[u8]) -> String {
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end])
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::uio::pwrite;
    use zerocopy::FromZeros;

    fn memfd(len: usize, seals: SealFlag) -> OwnedFd {
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
        let fd = memfd_create(c"telemetry", flags).unwrap();
        nix::unistd::ftruncate(&fd, i64::try_from(len).unwrap()).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        fd
    }

    fn write(file: &OwnedFd, header: &Header, entries: &[Entry]) {
        pwrite(file, header.as_bytes(), 0).unwrap();
        let at = i64::try_from(size_of::<Header>()).unwrap();
        pwrite(file, entries.as_bytes(), at).unwrap();
    }

    fn header() -> Header {
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.pid = 42;
        header.program[..4].copy_from_slice(b"\x1b[2J");
        header
    }

    fn entry(road: u64) -> Entry {
        let address: SocketAddr = "127.77.0.1:80".parse().unwrap();
        Entry {
            state: LIVE,
            road,
            local: address.into(),
            remote: address.into(),
            tx_bytes: 1,
            rx_bytes: 2,
            accepted: 3,
            taken: 4,
            unsent: u64::MAX,
            flow: u64::MAX,
        }
    }

    #[test]
    fn only_sealed_files_of_full_size_are_taken() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert_eq!(Telemetry::new(read).unwrap_err(), Errno::EINVAL);
        let unsealed = memfd(LEN, SealFlag::empty());
        assert_eq!(Telemetry::new(unsealed).unwrap_err(), Errno::EINVAL);
        let short = memfd(LEN - 1, SealFlag::F_SEAL_SHRINK);
        assert_eq!(Telemetry::new(short).unwrap_err(), Errno::EMSGSIZE);
        Telemetry::new(memfd(LEN, SealFlag::F_SEAL_SHRINK)).unwrap();
    }

    #[test]
    fn what_was_reported_once_is_never_taken_back() {
        let file = memfd(LEN, SealFlag::F_SEAL_SHRINK);
        let copy = file.try_clone().unwrap();
        let mut telemetry = Telemetry::new(file).unwrap();
        assert_eq!(*telemetry.totals(), Totals::default());
        let mut told = header();
        told.san_tx_bytes = 100;
        told.fallbacks[Reason::NoSanListener as usize] = 3;
        write(&copy, &told, &[]);
        assert_eq!(telemetry.totals().san_tx_bytes, 100);
        told.san_tx_bytes = 1;
        told.san_rx_bytes = u64::MAX;
        told.fallbacks = [0; 32];
        write(&copy, &told, &[]);
        let totals = *telemetry.totals();
        assert_eq!((totals.san_tx_bytes, totals.san_rx_bytes), (100, u64::MAX));
        assert_eq!(
            totals.named_fallbacks().collect::<Vec<_>>(),
            [(Reason::NoSanListener, 3)]
        );
        let mut sum = totals;
        sum.add(&totals);
        assert_eq!((sum.san_tx_bytes, sum.san_rx_bytes), (200, u64::MAX));
    }

    #[test]
    fn lies_about_entries_are_clamped_and_skipped() {
        let file = memfd(LEN, SealFlag::F_SEAL_SHRINK);
        let mut told = header();
        told.entries_used = u64::MAX;
        let bad_family = Entry {
            local: ring_proto::admin::SockAddr {
                family: 9,
                ..Default::default()
            },
            ..entry(ROAD_SAN)
        };
        let free = Entry {
            state: 2,
            ..entry(ROAD_SAN)
        };
        let reason = (Reason::Loopback as u64) << 8;
        let unknown = 0xff << 8 | 0xff << 16;
        write(
            &file,
            &told,
            &[
                entry(ROAD_SAN),
                bad_family,
                entry(7),
                free,
                entry(ROAD_TCP | reason),
                entry(ROAD_SAN | unknown),
            ],
        );
        let report = Telemetry::new(file).unwrap().report();
        assert_eq!((report.pid, report.program.as_str()), (42, "?[2J"));
        let seen: Vec<_> = report
            .connections
            .iter()
            .map(|c| (c.is_san, c.reason, c.mode))
            .collect();
        assert_eq!(
            seen,
            [
                (true, None, Some("copy")),
                (false, Some(Reason::Loopback), None),
                (true, None, None)
            ]
        );
    }

    #[test]
    fn a_file_without_magic_tells_nothing() {
        let file = memfd(LEN, SealFlag::F_SEAL_SHRINK);
        let mut told = header();
        told.magic = 0;
        told.san_tx_bytes = 5;
        write(&file, &told, &[]);
        let mut telemetry = Telemetry::new(file).unwrap();
        assert_eq!(telemetry.totals().san_tx_bytes, 0);
        assert_eq!(telemetry.report(), Report::default());
    }
}
