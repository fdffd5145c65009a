//! Telemetry of one process: what `sanlab stat` shows of its connections, written into a memfd that the emulator reads.
//!
//! Place: the preload library and the switch report connections, bytes and fall-backs; `process` sends the memfd.
//! Invariants: nothing waits and nothing fails visibly: a report that finds no room, or no memfd, is lost. An entry's `state` word
//! is stored last. Records carry the epoch of the process, so a child never writes what its parent owns.
//! Hot: `count`. Edges: telemetry-entry. Source: `ring_proto::telemetry`. Leaves out: what the NIC counts itself.
#![expect(unsafe_code, reason = "words of a mapping that another process reads")]

use core::mem::{offset_of, size_of};
use core::net::SocketAddr;
use std::os::fd::RawFd;

use ring_proto::admin::SockAddr;
use ring_proto::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use ring_proto::telemetry::{ENTRIES, Entry, Header, LEN, LIVE, MAGIC, Reason};
use zerocopy::IntoBytes;

use crate::report::{Report, Side};
use crate::session::Flow;
use crate::sys::{self, SysResult};

/// Words of the memfd.
const WORDS: usize = LEN / 8;
const HEADER_WORDS: usize = size_of::<Header>() / 8;
const ENTRY_WORDS: usize = size_of::<Entry>() / 8;
/// [`Entry::state`] of an entry that is being written.
const RESERVED: u64 = 2;

const SAN_TX: usize = offset_of!(Header, san_tx_bytes) / 8;
const SAN_RX: usize = offset_of!(Header, san_rx_bytes) / 8;
const TCP_CONNECTIONS: usize = offset_of!(Header, tcp_connections) / 8;
const SAN_CONNECTIONS: usize = offset_of!(Header, san_connections) / 8;
const ENTRIES_USED: usize = offset_of!(Header, entries_used) / 8;
const FALLBACKS: usize = offset_of!(Header, fallbacks) / 8;
const ROAD: usize = offset_of!(Entry, road) / 8;
const TX: usize = offset_of!(Entry, tx_bytes) / 8;
const RX: usize = offset_of!(Entry, rx_bytes) / 8;
const ACCEPTED: usize = offset_of!(Entry, accepted) / 8;
const TAKEN: usize = offset_of!(Entry, taken) / 8;
const UNSENT: usize = offset_of!(Entry, unsent) / 8;
const FLOW: usize = offset_of!(Entry, flow) / 8;

/// Names a live entry of this process: epoch in the upper half, index plus one in the lower. 0 names none.
pub type Record = u64;

/// Which way a connection's bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Road {
    /// Kernel TCP, and why.
    Tcp(Option<Reason>),
    /// The SAN, with its transfer mode.
    San {
        /// 0 copy, 1 window.
        mode: u8,
    },
}

impl Road {
    const fn word(self) -> u64 {
        match self {
            Self::Tcp(None) => ring_proto::telemetry::ROAD_TCP,
            Self::Tcp(Some(reason)) => ring_proto::telemetry::ROAD_TCP | ((reason as u64) << 8),
            Self::San { mode } => ring_proto::telemetry::ROAD_SAN | ((mode as u64) << 16),
        }
    }
}

/// Writer of the memfd of this process.
#[derive(Debug, Default)]
pub struct Telemetry {
    words: AtomicPtr<AtomicU64>,
    epoch: AtomicU32,
    /// Where the search for a free entry begins.
    cursor: AtomicU32,
    /// What this process adds to the report of its run.
    pub report: Report,
}

impl Telemetry {
    /// A writer that reports to nobody yet.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            words: AtomicPtr::new(core::ptr::null_mut()),
            epoch: AtomicU32::new(0),
            cursor: AtomicU32::new(0),
            report: Report::new(),
        }
    }

    /// Makes the memfd of this process, sealed, and begins to write to it. The caller sends the descriptor and closes it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, program: &[u8]) -> SysResult<RawFd> {
        let fd = sys::memfd(c"sanlab-telemetry")?;
        match Self::prepare(fd, program) {
            Ok(words) => {
                // EDGE telemetry-entry (release): the header. The reader is another process that maps the same memfd.
                self.words
                    .store(words.as_ptr().cast_mut(), Ordering::Release);
                Ok(fd)
            }
            Err(errno) => {
                // The memfd holds nothing.
                sys::close(fd).ok();
                Err(errno)
            }
        }
    }

    fn prepare(fd: RawFd, program: &[u8]) -> SysResult<&'static [AtomicU64]> {
        sys::truncate(fd, LEN)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        sys::fcntl(fd, libc::F_ADD_SEALS, sys::int(seals))?;
        let memory = sys::map_shared(fd, LEN)?;
        // SAFETY: LEN bytes are mapped, page aligned, never unmapped, and only ever reached through atomics.
        let words = unsafe { core::slice::from_raw_parts(memory.as_ptr().cast(), WORDS) };
        let mut header = [0_u64; HEADER_WORDS];
        header[0] = MAGIC;
        header[1] = u64::try_from(sys::getpid()).unwrap_or(0);
        let name = offset_of!(Header, program);
        let room = &mut header.as_mut_bytes()[name..name + 63];
        let len = program.len().min(room.len());
        room[..len].copy_from_slice(&program[..len]);
        store_all(words, &header);
        Ok(words)
    }

    /// Forgets the parent's memfd in a child. Its records are void from now on.
    pub fn forked(&self) {
        // The mapping stays: a signal handler that forked may have interrupted a writer.
        self.words.store(core::ptr::null_mut(), Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.cursor.store(0, Ordering::Relaxed);
    }

    /// Whether anybody reads.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.words.load(Ordering::Relaxed).is_null()
    }

    /// Whether `record` was made by this process, not by the parent it was forked from.
    #[inline]
    #[must_use]
    pub fn is_current(&self, record: Record) -> bool {
        record >> 32 == u64::from(self.epoch.load(Ordering::Relaxed))
    }

    fn words(&self) -> Option<&'static [AtomicU64]> {
        let words = self.words.load(Ordering::Acquire);
        if words.is_null() {
            return None;
        }
        // SAFETY: `open` stored the address of a slice of WORDS words that is never unmapped.
        Some(unsafe { core::slice::from_raw_parts(words, WORDS) })
    }

    fn entry(&self, record: Record) -> Option<&'static [AtomicU64]> {
        if !self.is_current(record) {
            return None;
        }
        let index = usize::try_from(record & u64::from(u32::MAX))
            .ok()?
            .checked_sub(1)?;
        let at = HEADER_WORDS + index * ENTRY_WORDS;
        self.words()?.get(at..at + ENTRY_WORDS)
    }

    fn add(&self, word: usize, count: u64) {
        if let Some(words) = self.words() {
            // Relaxed: a counter.
            words[word].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Reports an established connection. 0 when nobody reads or the entries are used up: the totals count it all the same.
    pub fn connection(
        &self,
        side: Side,
        road: Road,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Record {
        self.add(
            match road {
                Road::Tcp(_) => TCP_CONNECTIONS,
                Road::San { .. } => SAN_CONNECTIONS,
            },
            1,
        );
        let row = self.row(side, road, local, remote);
        self.report.made(row);
        self.enter(road, row, local, remote)
    }

    /// Reports a connection that a parent process has established already.
    pub fn inherited(
        &self,
        side: Side,
        road: Road,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Record {
        let row = self.row(side, road, local, remote);
        self.report.inherited(row);
        self.enter(road, row, local, remote)
    }

    /// Tells the run of a listener and the road that it offers.
    pub fn listener(&self, road: Road, local: SocketAddr) {
        let row = self.row(Side::Listening, road, local, local);
        self.report.made(row);
    }

    /// The row of a connection in the report of the run: a port that was made for it alone tells nobody anything.
    fn row(&self, side: Side, road: Road, local: SocketAddr, remote: SocketAddr) -> u32 {
        if !self.report.is_open() {
            return 0;
        }
        let address = match side {
            Side::Connected | Side::Program => remote,
            Side::Accepted | Side::Listening => local,
        };
        let mut name = [0; 64];
        let program = crate::process::program_name(&mut name);
        self.report.road(program, side, road.word(), Some(address))
    }

    fn enter(&self, road: Road, row: u32, local: SocketAddr, remote: SocketAddr) -> Record {
        let epoch = u64::from(self.epoch.load(Ordering::Relaxed)) << 32;
        let Some(words) = self.words() else {
            return 0;
        };
        let from = self.cursor.fetch_add(1, Ordering::Relaxed) as usize;
        for n in 0..ENTRIES {
            let index = (from + n) % ENTRIES;
            let at = HEADER_WORDS + index * ENTRY_WORDS;
            let entry = &words[at..at + ENTRY_WORDS];
            // Acquire: the former user's last words come before ours.
            let taken =
                entry[0].compare_exchange(0, RESERVED, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            let mut body = [0_u64; ENTRY_WORDS];
            let local_at = offset_of!(Entry, local);
            let remote_at = offset_of!(Entry, remote);
            let bytes = body.as_mut_bytes();
            bytes[local_at..local_at + 24].copy_from_slice(SockAddr::from(local).as_bytes());
            bytes[remote_at..remote_at + 24].copy_from_slice(SockAddr::from(remote).as_bytes());
            body[ROAD] = road.word() | (u64::from(row) << ROW_SHIFT);
            store_all(&entry[1..], &body[1..]);
            let used = index as u64 + 1;
            words[ENTRIES_USED].fetch_max(used, Ordering::Relaxed);
            // EDGE telemetry-entry (release): the words above. The reader is another process.
            entry[0].store(LIVE, Ordering::Release);
            return epoch | used;
        }
        0
    }

    /// Adds stream bytes to a connection; for the SAN also to the totals.
    #[inline]
    pub fn count(&self, record: Record, tx_bytes: u64, rx_bytes: u64) {
        let Some(entry) = self.entry(record) else {
            return;
        };
        let road = entry[ROAD].load(Ordering::Relaxed);
        let is_san = road & 0xff == ring_proto::telemetry::ROAD_SAN;
        for (bytes, word, total) in [(tx_bytes, TX, SAN_TX), (rx_bytes, RX, SAN_RX)] {
            if bytes != 0 {
                // Relaxed: counters.
                entry[word].fetch_add(bytes, Ordering::Relaxed);
                if is_san {
                    self.add(total, bytes);
                }
            }
        }
        if road >> ROW_SHIFT != 0 {
            self.report.moved(row_of(road), tx_bytes, rx_bytes);
        }
    }

    /// Adds bytes of a SAN connection without an entry to the totals.
    pub fn count_unlisted(&self, tx_bytes: u64, rx_bytes: u64) {
        self.add(SAN_TX, tx_bytes);
        self.add(SAN_RX, rx_bytes);
    }

    /// Tells how a SAN connection stands.
    #[inline]
    pub fn flow(&self, record: Record, flow: Flow) {
        let Some(entry) = self.entry(record) else {
            return;
        };
        let state = (flow.state as u64) << 32;
        // Relaxed: numbers that are looked at alone.
        entry[ACCEPTED].store(flow.accepted, Ordering::Relaxed);
        entry[TAKEN].store(flow.taken, Ordering::Relaxed);
        entry[UNSENT].store(flow.unsent, Ordering::Relaxed);
        entry[FLOW].store(state | u64::from(flow.credits), Ordering::Relaxed);
    }

    /// Takes a connection off the list.
    pub fn end(&self, record: Record) {
        if let Some(entry) = self.entry(record) {
            // EDGE telemetry-entry (release): the last counts come before the entry's next use.
            entry[0].store(0, Ordering::Release);
        }
    }

    /// Counts a connect or listen that went to TCP.
    pub fn fell_back(&self, reason: Reason) {
        self.add(FALLBACKS + reason as usize, 1);
    }
}

/// The upper half of an entry's road, which readers of the telemetry leave alone.
const ROW_SHIFT: u32 = 32;

/// The row in the report of the run, of an entry's road.
const fn row_of(road: u64) -> u32 {
    (road >> ROW_SHIFT) as u32
}

fn store_all(words: &[AtomicU64], values: &[u64]) {
    for (word, &value) in words.iter().zip(values) {
        // Relaxed: published by the entry's state word, or by sending the memfd.
        word.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use zerocopy::FromBytes;

    use super::*;

    /// Another process's look at what a writer tells.
    pub(crate) struct Read(RawFd);

    impl Read {
        /// A writer and its reader.
        pub(crate) fn open() -> (Telemetry, Self) {
            let telemetry = Telemetry::new();
            let fd = telemetry.open(b"test").unwrap();
            (telemetry, Self(fd))
        }

        /// Totals of the SAN, sent and received.
        pub(crate) fn san_bytes(&self) -> (u64, u64) {
            let (header, _) = read(self.0);
            (header.san_tx_bytes, header.san_rx_bytes)
        }

        /// Bytes of an entry, sent and received.
        pub(crate) fn entry_bytes(&self, index: usize) -> (u64, u64) {
            let (_, entries) = read(self.0);
            (entries[index].tx_bytes, entries[index].rx_bytes)
        }

        /// Whether an entry is shown.
        pub(crate) fn is_live(&self, index: usize) -> bool {
            read(self.0).1[index].state == LIVE
        }
    }

    impl Drop for Read {
        fn drop(&mut self) {
            sys::close(self.0).unwrap();
        }
    }

    fn read(fd: RawFd) -> (Header, Vec<Entry>) {
        let memory = sys::map_shared(fd, LEN).unwrap();
        // SAFETY: mapped with this length; nobody writes during the copy in these tests.
        let bytes = unsafe { core::slice::from_raw_parts(memory.as_ptr(), LEN) }.to_vec();
        let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
        let entries = rest
            .chunks_exact(size_of::<Entry>())
            .map(|e| Entry::read_from_bytes(e).unwrap())
            .collect();
        (header, entries)
    }

    fn names() -> (SocketAddr, SocketAddr) {
        (
            "127.77.0.1:80".parse().unwrap(),
            "127.77.0.2:40000".parse().unwrap(),
        )
    }

    #[test]
    fn connections_and_counts_are_seen_by_the_reader() {
        let telemetry = Telemetry::new();
        let fd = telemetry.open(b"redis-server").unwrap();
        let (local, remote) = names();
        let tcp = telemetry.connection(
            Side::Connected,
            Road::Tcp(Some(Reason::OffSubnet)),
            local,
            remote,
        );
        let san = telemetry.connection(Side::Connected, Road::San { mode: 1 }, local, remote);
        telemetry.count(tcp, 10, 0);
        telemetry.count(san, 5, 7);
        telemetry.fell_back(Reason::OffSubnet);
        let (header, entries) = read(fd);
        assert_eq!(header.magic, MAGIC);
        assert_eq!(header.pid, u64::from(std::process::id()));
        assert_eq!(&header.program[..13], b"redis-server\0");
        assert_eq!((header.tcp_connections, header.san_connections), (1, 1));
        assert_eq!((header.san_tx_bytes, header.san_rx_bytes), (5, 7));
        assert_eq!(header.fallbacks[Reason::OffSubnet as usize], 1);
        assert_eq!(header.entries_used, 2);
        assert_eq!((entries[0].state, entries[1].state), (LIVE, LIVE));
        assert_eq!(entries[0].road, (Reason::OffSubnet as u64) << 8);
        assert_eq!(entries[1].road, 1 | (1 << 16));
        assert_eq!(SocketAddr::try_from(entries[0].local), Ok(local));
        assert_eq!(SocketAddr::try_from(entries[0].remote), Ok(remote));
        assert_eq!((entries[0].tx_bytes, entries[1].rx_bytes), (10, 7));
        telemetry.end(tcp);
        let (_, entries) = read(fd);
        assert_eq!((entries[0].state, entries[1].state), (0, LIVE));
        sys::close(fd).unwrap();
    }

    #[test]
    fn a_child_does_not_touch_its_parents_entries() {
        let telemetry = Telemetry::new();
        let fd = telemetry.open(b"parent").unwrap();
        let (local, remote) = names();
        let record = telemetry.connection(Side::Connected, Road::San { mode: 0 }, local, remote);
        telemetry.forked();
        let mine = telemetry.open(b"child").unwrap();
        telemetry.count(record, 99, 99);
        telemetry.end(record);
        let (header, entries) = read(fd);
        assert_eq!((header.san_tx_bytes, entries[0].state), (0, LIVE));
        let record = telemetry.inherited(Side::Connected, Road::San { mode: 0 }, local, remote);
        assert!(telemetry.is_current(record));
        let (header, entries) = read(mine);
        assert_eq!((header.san_connections, entries[0].state), (0, LIVE));
        sys::close(fd).unwrap();
        sys::close(mine).unwrap();
    }

    #[test]
    fn a_full_table_still_counts() {
        let telemetry = Telemetry::new();
        let fd = telemetry.open(b"x").unwrap();
        let (local, remote) = names();
        for _ in 0..ENTRIES {
            assert_ne!(
                telemetry.connection(Side::Connected, Road::Tcp(None), local, remote),
                0
            );
        }
        assert_eq!(
            telemetry.connection(Side::Connected, Road::Tcp(None), local, remote),
            0
        );
        let (header, _) = read(fd);
        assert_eq!(header.tcp_connections, ENTRIES as u64 + 1);
        assert_eq!(header.entries_used, ENTRIES as u64);
        sys::close(fd).unwrap();
    }

    #[test]
    fn without_a_reader_nothing_happens() {
        let telemetry = Telemetry::new();
        let (local, remote) = names();
        assert_eq!(
            telemetry.connection(Side::Connected, Road::Tcp(None), local, remote),
            0
        );
        telemetry.count(0, 1, 1);
        telemetry.end(0);
        telemetry.fell_back(Reason::Loopback);
    }
}
