//! Report of one run: which roads its connections took, and which system calls went past the library.
//!
//! Place: `sanlab run --explain` and `--audit` make it and read it; every process of the run maps it, writes through [`Report`], and
//! hands it on through fork and exec. Invariants: a memfd that cannot shrink; rows are only added, counters only grow, so whatever was
//! written stays when a process is killed. A row is complete once its state says so; one that a killed process left half written is
//! passed over. Nothing waits, and a row that finds no room is counted as lost. The reader trusts no word.
//! Edges: report-row. Source: ours. Leaves out: single connections, which `sanlab ss` shows while they live.
//!
//! ```text
//! header | roads: one row per program, direction, address, road and reason | findings: one row per system call and place in the code
//! ```
#![expect(unsafe_code, reason = "words of a mapping that other processes write")]

use core::net::SocketAddr;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use ring_proto::admin::SockAddr;
use ring_proto::sync::{AtomicPtr, AtomicU64, Ordering};
use ring_proto::telemetry::{ROAD_SAN, Reason};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::sys::{self, SysResult};

const MAGIC: u64 = u64::from_le_bytes(*b"SANREPO1");
/// Rows of roads.
const ROADS: usize = 2048;
/// Rows of findings.
pub const FINDINGS: usize = 256;
const HEADER_WORDS: usize = 16;
const ROAD_WORDS: usize = 12;
const FINDING_WORDS: usize = 40;
const WORDS: usize = HEADER_WORDS + ROADS * ROAD_WORDS + FINDINGS * FINDING_WORDS;
/// Bytes of the memfd.
const LEN: usize = WORDS * 8;
/// Rows that are looked at before one is given up as lost.
const PROBES: usize = 128;

/// States of a row; a free one is zero.
const BUSY: u64 = 1;
const DONE: u64 = 2;

// Words of the header.
const LOST: usize = 1;
const ARMED: usize = 2;
const UNARMED: usize = 3;
const FINDINGS_MADE: usize = 4;

// Words of a row of roads.
const WHAT: usize = 1;
const ADDRESS: usize = 2;
const PROGRAM: usize = 5;
const CONNECTIONS: usize = 7;
const INHERITED: usize = 8;
const TX: usize = 9;
const RX: usize = 10;

// Words of a row of findings.
const CALL: usize = 1;
const OFFSET: usize = 2;
const MODULE: usize = 3;
const FINDING_PROGRAM: usize = 35;
const PID: usize = 37;
const FD: usize = 38;
const COUNT: usize = 39;
/// Longest file name of a module.
pub const MODULE_LEN: usize = (FINDING_PROGRAM - MODULE) * 8;

/// Which way round a connection was made, or what else a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Side {
    /// The program connected to the address.
    Connected = 1,
    /// The program accepted on the address.
    Accepted = 2,
    /// The program listens on the address.
    Listening = 3,
    /// The program runs without the library.
    Program = 4,
}

impl Side {
    /// Name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connect",
            Self::Accepted => "accept",
            Self::Listening => "listen",
            Self::Program => "program",
        }
    }

    const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Connected,
            2 => Self::Accepted,
            3 => Self::Listening,
            4 => Self::Program,
            _ => return None,
        })
    }
}

/// A road that connections of the run took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoadRow {
    /// Name of the program.
    pub program: String,
    /// Direction.
    pub side: Side,
    /// Destination of connects, listener of accepts.
    pub address: Option<SocketAddr>,
    /// Whether the SAN carried it.
    pub is_san: bool,
    /// Why not.
    pub reason: Option<Reason>,
    /// Connections, listeners or programs.
    pub count: u64,
    /// Connections that a process got from its parent or an earlier image.
    pub inherited: u64,
    /// Stream bytes sent.
    pub tx_bytes: u64,
    /// Stream bytes received.
    pub rx_bytes: u64,
}

/// What a system call touched past the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Touched {
    /// A connection or listener that the SAN carries.
    San = 1,
    /// An epoll set that knows such sockets.
    Set = 2,
    /// A socket that the library follows, in a way that changes what it knows.
    Socket = 3,
    /// A descriptor of the library.
    Library = 4,
    /// The process: an image or copy of it was made in which the sockets are the kernel's alone.
    Process = 5,
    /// A ring of io_uring, through which any socket can be used.
    Ring = 6,
}

impl Touched {
    /// Name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::San => "san",
            Self::Set => "epoll_set",
            Self::Socket => "socket",
            Self::Library => "library",
            Self::Process => "process",
            Self::Ring => "io_uring",
        }
    }

    const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::San,
            2 => Self::Set,
            3 => Self::Socket,
            4 => Self::Library,
            5 => Self::Process,
            6 => Self::Ring,
            _ => return None,
        })
    }
}

/// A system call past the library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Number of the system call.
    pub number: u32,
    /// What it touched.
    pub touched: Touched,
    /// File of the code, empty for code that has none.
    pub module: String,
    /// Place in that file, or the address.
    pub offset: u64,
    /// How often.
    pub count: u64,
    /// Process that was first.
    pub pid: u64,
    /// Its descriptor.
    pub fd: i32,
    /// Its program.
    pub program: String,
}

/// The mapped report of this process's run, or none.
#[derive(Debug, Default)]
pub struct Report {
    words: AtomicPtr<AtomicU64>,
}

impl Report {
    /// No report.
    #[must_use]
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            words: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Makes an empty report. For the launcher: inside the library a descriptor of the standard library's would close by our export.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create() -> SysResult<(Self, OwnedFd)> {
        let fd = sys::memfd(c"sanlab-report")?;
        // SAFETY: just made, and nobody else's.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        sys::truncate(fd, LEN)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        sys::fcntl(fd, libc::F_ADD_SEALS, sys::int(seals))?;
        let report = Self::new();
        report.map(fd)?[0].store(MAGIC, Ordering::Relaxed);
        Ok((report, owned))
    }

    fn map(&self, fd: RawFd) -> SysResult<&'static [AtomicU64]> {
        let memory = sys::map_shared(fd, LEN)?;
        // Release: the mapping; pairs with `words`.
        self.words.store(memory.as_ptr().cast(), Ordering::Release);
        // SAFETY: LEN bytes are mapped, page aligned, never unmapped, and only ever reached through atomics.
        Ok(unsafe { core::slice::from_raw_parts(memory.as_ptr().cast(), WORDS) })
    }

    /// Takes part in the report behind an inherited descriptor. False: it is none.
    pub fn join(&self, fd: RawFd) -> bool {
        let is_sealed = sys::fcntl(fd, libc::F_GET_SEALS, 0)
            .is_ok_and(|seals| seals & libc::F_SEAL_SHRINK != 0);
        let mut magic = [0; 8];
        // Of the full length, or the last word could not be read.
        let end = i64::try_from(LEN - 8).unwrap_or(i64::MAX);
        is_sealed
            && sys::read_at(fd, &mut [0; 8], end) == Ok(8)
            && sys::read_at(fd, &mut magic, 0) == Ok(8)
            && u64::from_ne_bytes(magic) == MAGIC
            && self.map(fd).is_ok()
    }

    /// Whether anybody reads.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        // Relaxed: set before any other thread runs.
        !self.words.load(Ordering::Relaxed).is_null()
    }

    fn words(&self) -> Option<&'static [AtomicU64]> {
        // Acquire: pairs with `map`.
        let words = self.words.load(Ordering::Acquire);
        if words.is_null() {
            return None;
        }
        // SAFETY: `map` stored the address of WORDS words that are never unmapped.
        Some(unsafe { core::slice::from_raw_parts(words, WORDS) })
    }

    /// The row of these connections, plus one; 0 when there is no report or no room. `road` is a road as the telemetry writes it.
    pub fn road(&self, program: &[u8], side: Side, road: u64, address: Option<SocketAddr>) -> u32 {
        let Some(words) = self.words() else {
            return 0;
        };
        let mut key = [0_u64; PROGRAM + 2 - WHAT];
        key[0] = side as u64 | ((road & 0xffff) << 8);
        if let Some(address) = address {
            key[ADDRESS - WHAT..PROGRAM - WHAT]
                .as_mut_bytes()
                .copy_from_slice(SockAddr::from(address).as_bytes());
        }
        put(&mut key[PROGRAM - WHAT..], program);
        let rows = &words[HEADER_WORDS..HEADER_WORDS + ROADS * ROAD_WORDS];
        let Some(row) = find(rows, ROAD_WORDS, &key, key.len(), || {}) else {
            // Relaxed: a counter.
            words[LOST].fetch_add(1, Ordering::Relaxed);
            return 0;
        };
        u32::try_from(row + 1).unwrap_or(0)
    }

    fn count(&self, row: u32, word: usize, count: u64) {
        let (Some(words), Some(row)) = (self.words(), (row as usize).checked_sub(1)) else {
            return;
        };
        if let Some(word) = words
            .get(HEADER_WORDS + row * ROAD_WORDS + word)
            .filter(|_| row < ROADS)
        {
            // Relaxed: a counter.
            word.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts a connection, listener or program.
    pub fn made(&self, row: u32) {
        self.count(row, CONNECTIONS, 1);
    }

    /// Counts a connection that was there before.
    pub fn inherited(&self, row: u32) {
        self.count(row, INHERITED, 1);
    }

    /// Counts stream bytes.
    pub fn moved(&self, row: u32, tx_bytes: u64, rx_bytes: u64) {
        if tx_bytes != 0 {
            self.count(row, TX, tx_bytes);
        }
        if rx_bytes != 0 {
            self.count(row, RX, rx_bytes);
        }
    }

    /// Takes note of a system call past the library; safe in a signal handler. Gives what [`Self::found_again`] takes.
    pub fn found(
        &self,
        program: &[u8],
        fd: RawFd,
        call: (u32, Touched),
        place: (&[u8], u64),
    ) -> u32 {
        let Some(words) = self.words() else {
            return 0;
        };
        let mut key = [0_u64; COUNT - CALL];
        key[0] = u64::from(call.0) | ((call.1 as u64) << 32);
        key[OFFSET - CALL] = place.1;
        key[PID - CALL] = u64::try_from(sys::getpid()).unwrap_or(0);
        key[FD - CALL] = u64::from(fd.cast_unsigned());
        put(&mut key[FINDING_PROGRAM - CALL..PID - CALL], program);
        put(&mut key[MODULE - CALL..FINDING_PROGRAM - CALL], place.0);
        let rows = &words[HEADER_WORDS + ROADS * ROAD_WORDS..];
        let made = || {
            // Relaxed: a counter.
            words[FINDINGS_MADE].fetch_add(1, Ordering::Relaxed);
        };
        // What makes two findings one: the call and the place.
        let Some(row) = find(rows, FINDING_WORDS, &key, FINDING_PROGRAM - CALL, made) else {
            // Relaxed: a counter.
            words[LOST].fetch_add(1, Ordering::Relaxed);
            return 0;
        };
        let row = u32::try_from(row + 1).unwrap_or(0);
        self.found_again(row);
        row
    }

    /// Counts a finding that has its row.
    pub fn found_again(&self, row: u32) {
        let (Some(words), Some(row)) = (self.words(), (row as usize).checked_sub(1)) else {
            return;
        };
        let at = HEADER_WORDS + ROADS * ROAD_WORDS + row * FINDING_WORDS + COUNT;
        if let Some(word) = words.get(at) {
            // Relaxed: a counter.
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes note of a process whose calls are watched, or cannot be.
    pub fn watched(&self, is_armed: bool) {
        if let Some(words) = self.words() {
            // Relaxed: a counter.
            words[if is_armed { ARMED } else { UNARMED }].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Processes whose calls are watched, and those whose calls cannot be.
    #[must_use]
    pub fn processes_watched(&self) -> (u64, u64) {
        self.words().map_or((0, 0), |words| {
            let count = |word: usize| words[word].load(Ordering::Relaxed);
            (count(ARMED), count(UNARMED))
        })
    }

    /// Rows of which there was no room for a note.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.words()
            .map_or(0, |words| words[LOST].load(Ordering::Relaxed))
    }

    /// How many findings there are, cheaply.
    #[must_use]
    pub fn findings_made(&self) -> u64 {
        self.words()
            .map_or(0, |words| words[FINDINGS_MADE].load(Ordering::Relaxed))
    }

    /// All roads so far.
    #[must_use]
    pub fn roads(&self) -> Vec<RoadRow> {
        let Some(words) = self.words() else {
            return Vec::new();
        };
        let rows = &words[HEADER_WORDS..HEADER_WORDS + ROADS * ROAD_WORDS];
        let mut all: Vec<RoadRow> = Vec::new();
        for row in complete(rows, ROAD_WORDS).filter_map(|row| road_of(&row)) {
            // Two processes that made a row at once, of which one was killed, leave two of a kind.
            let same = all.iter_mut().find(|other| {
                (
                    &other.program,
                    other.side,
                    other.address,
                    other.is_san,
                    other.reason,
                ) == (&row.program, row.side, row.address, row.is_san, row.reason)
            });
            match same {
                Some(other) => {
                    other.count += row.count;
                    other.inherited += row.inherited;
                    other.tx_bytes += row.tx_bytes;
                    other.rx_bytes += row.rx_bytes;
                }
                None => all.push(row),
            }
        }
        all
    }

    /// All findings so far.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let Some(words) = self.words() else {
            return Vec::new();
        };
        let rows = &words[HEADER_WORDS + ROADS * ROAD_WORDS..];
        complete(rows, FINDING_WORDS)
            .filter_map(|row| finding_of(&row))
            .collect()
    }
}

/// Writes bytes into words, cut to their room.
fn put(words: &mut [u64], bytes: &[u8]) {
    let room = words.as_mut_bytes();
    let len = bytes.len().min(room.len());
    room[..len].copy_from_slice(&bytes[..len]);
}

fn text(words: &[u64]) -> String {
    let bytes = words.as_bytes();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    // A terminal must not take a name for commands.
    let printable = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(&bytes[..end])
        .chars()
        .map(printable)
        .collect()
}

/// The row whose first `same` words behind the state are those of `key`, made of all of `key` if there is none.
fn find(
    rows: &[AtomicU64],
    len: usize,
    key: &[u64],
    same: usize,
    made: impl Fn(),
) -> Option<usize> {
    let count = rows.len() / len;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in &key[..same] {
        hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
    let from = hash as usize;
    for n in 0..PROBES.min(count) {
        let index = from.wrapping_add(n) % count;
        let row = &rows[index * len..(index + 1) * len];
        // EDGE report-row (acquire): the words of the row. Released below.
        let state = match row[0].compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => {
                for (word, &value) in row[1..].iter().zip(key) {
                    // Relaxed: published by the state.
                    word.store(value, Ordering::Relaxed);
                }
                // EDGE report-row (release): the words above. Acquired above and in `complete`.
                row[0].store(DONE, Ordering::Release);
                made();
                return Some(index);
            }
            Err(state) => settled(&row[0], state),
        };
        let is_same = row[1..]
            .iter()
            .zip(&key[..same])
            // Relaxed: ordered by the state.
            .all(|(word, &value)| word.load(Ordering::Relaxed) == value);
        if state == DONE && is_same {
            return Some(index);
        }
    }
    None
}

/// The state of a row after another process has had a moment to write it.
fn settled(word: &AtomicU64, mut state: u64) -> u64 {
    for _ in 0..100 {
        if state != BUSY {
            break;
        }
        sys::yield_now();
        // EDGE report-row (acquire): as in `find`.
        state = word.load(Ordering::Acquire);
    }
    state
}

fn complete(rows: &[AtomicU64], len: usize) -> impl Iterator<Item = Vec<u64>> {
    rows.chunks_exact(len)
        // EDGE report-row (acquire): the words of the row. Released in `find`.
        .filter(|row| row[0].load(Ordering::Acquire) == DONE)
        // Relaxed: ordered by the state; counters are looked at alone.
        .map(|row| {
            row.iter()
                .map(|word| word.load(Ordering::Relaxed))
                .collect()
        })
}

fn road_of(row: &[u64]) -> Option<RoadRow> {
    let what = row[WHAT];
    let address = SockAddr::read_from_bytes(row[ADDRESS..PROGRAM].as_bytes()).ok()?;
    Some(RoadRow {
        program: text(&row[PROGRAM..CONNECTIONS]),
        side: Side::from_number(what & 0xff)?,
        address: SocketAddr::try_from(address).ok(),
        is_san: (what >> 8) & 0xff == ROAD_SAN,
        reason: Reason::from_number((what >> 16) & 0xff),
        count: row[CONNECTIONS],
        inherited: row[INHERITED],
        tx_bytes: row[TX],
        rx_bytes: row[RX],
    })
}

fn finding_of(row: &[u64]) -> Option<Finding> {
    #[expect(clippy::cast_possible_truncation, reason = "halves of words")]
    let low = |word: u64| word as u32;
    Some(Finding {
        number: low(row[CALL]),
        touched: Touched::from_number(row[CALL] >> 32)?,
        module: text(&row[MODULE..FINDING_PROGRAM]),
        offset: row[OFFSET],
        count: row[COUNT],
        pid: row[PID],
        fd: low(row[FD]).cast_signed(),
        program: text(&row[FINDING_PROGRAM..PID]),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn pair() -> (Report, Report, OwnedFd) {
        let (reader, fd) = Report::create().unwrap();
        let writer = Report::new();
        assert!(writer.join(fd.as_raw_fd()));
        (reader, writer, fd)
    }

    #[test]
    fn rows_of_a_kind_are_one_and_counters_add_up() {
        let (reader, writer, fd) = pair();
        let other = Report::new();
        assert!(other.join(fd.as_raw_fd()));
        drop(fd);
        let to = address("127.77.0.1:80");
        for report in [&writer, &other, &writer] {
            let row = report.road(b"client", Side::Connected, ROAD_SAN, to);
            report.made(row);
            report.moved(row, 10, 1);
        }
        let why = (Reason::OffSubnet as u64) << 8;
        let row = writer.road(b"client", Side::Connected, why, to);
        writer.inherited(row);
        let mut rows = reader.roads();
        rows.sort_by_key(|row| row.is_san);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].count, rows[0].inherited), (0, 1));
        assert_eq!(rows[0].reason, Some(Reason::OffSubnet));
        let san = RoadRow {
            program: "client".to_owned(),
            side: Side::Connected,
            address: to,
            is_san: true,
            reason: None,
            count: 3,
            inherited: 0,
            tx_bytes: 30,
            rx_bytes: 3,
        };
        assert_eq!(rows[1], san);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (reader, writer, fd) = pair();
        drop(fd);
        let ports = 1..=u16::try_from(ROADS + 100).unwrap();
        for port in ports {
            let to = Some(SocketAddr::from(([127, 77, 0, 1], port)));
            let row = writer.road(b"scan", Side::Connected, ROAD_SAN, to);
            writer.made(row);
        }
        let rows = reader.roads();
        assert!(rows.len() > ROADS / 2, "{}", rows.len());
        assert_eq!(rows.len() as u64 + reader.lost(), (ROADS + 100) as u64);
        assert!(rows.iter().all(|row| row.count == 1));
    }

    #[test]
    fn findings_are_told_apart_by_call_and_place() {
        let (reader, writer, fd) = pair();
        drop(fd);
        let close = (3, Touched::San);
        let row = writer.found(b"odd", 7, close, (b"/lib/odd.so", 0x1234));
        writer.found_again(row);
        assert_eq!(
            writer.found(b"odd", 8, close, (b"/lib/odd.so", 0x1234)),
            row
        );
        writer.found(b"odd", 9, close, (b"/lib/odd.so", 0x9999));
        assert_eq!(reader.findings_made(), 2);
        let mut all = reader.findings();
        all.sort_by_key(|finding| finding.offset);
        assert_eq!((all[0].count, all[1].count), (3, 1));
        assert_eq!((all[0].fd, all[0].number), (7, 3));
        assert_eq!(all[0].touched, Touched::San);
        assert_eq!(
            (all[0].module.as_str(), all[0].program.as_str()),
            ("/lib/odd.so", "odd")
        );
    }

    #[test]
    fn a_row_left_half_written_is_passed_over() {
        let (reader, writer, fd) = pair();
        drop(fd);
        let to = address("127.77.0.1:80");
        let row = writer.road(b"killed", Side::Accepted, ROAD_SAN, to);
        // As if its writer had been killed before it was done.
        let at = HEADER_WORDS + (row as usize - 1) * ROAD_WORDS;
        writer.words().unwrap()[at].store(BUSY, Ordering::Relaxed);
        let again = writer.road(b"killed", Side::Accepted, ROAD_SAN, to);
        writer.made(again);
        assert_ne!(row, again);
        assert_eq!(reader.roads().len(), 1);
    }

    #[test]
    fn only_a_report_is_joined() {
        let report = Report::new();
        assert!(!report.join(-1));
        assert!(!report.join(0));
        let memory = sys::memfd(c"other").unwrap();
        assert!(!report.join(memory));
        sys::truncate(memory, LEN).unwrap();
        assert!(!report.join(memory));
        sys::close(memory).unwrap();
        assert!(!report.is_open());
        assert_eq!(report.road(b"x", Side::Connected, 0, None), 0);
        report.made(5);
        report.moved(5, 1, 1);
        assert!(report.roads().is_empty());
    }

    #[test]
    fn garbage_in_the_memory_harms_nobody() {
        let (reader, _, fd) = pair();
        for (n, word) in reader.words().unwrap().iter().enumerate() {
            word.store(
                (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 2,
                Ordering::Relaxed,
            );
        }
        for row in 0..ROADS {
            reader.words().unwrap()[HEADER_WORDS + row * ROAD_WORDS].store(DONE, Ordering::Relaxed);
        }
        assert!(reader.roads().len() <= ROADS);
        assert!(reader.findings().len() <= FINDINGS);
        drop(fd);
    }
}
