//! The ring of a capture: from the engine to one reader in another process, over a sealed memfd.
//!
//! Place: [`crate::device`] owns the [`Writer`], `sanlab capture` the [`Reader`]; the descriptor travels over the control socket.
//! Invariants: the writer never waits: what finds no room is dropped and counted. It believes no word of the reader: a consumer that
//! cannot be true is ignored, so a reader that lies loses its own records. The reader copies and checks before it uses. Positions
//! count elements of 64 bytes, free-running; a record is a head and its bytes, and may wrap.
//! Hot: nothing; without a capture nobody comes here. Edges: capture-publish, capture-consume. Source: ours, after the rings of
//! AF_PACKET and perf by name.
//!
//! ```text
//!  head   line 0: producer (engine writes) | line 2: consumer (reader writes) | from line 4: per node {captured, dropped}
//!  data   elements of 64 B, a power of two of them
//! ```
#![expect(unsafe_code, reason = "makes ring views of its own mapping")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd;
use ring_proto::index::Depth;
use ring_proto::ring::Storage;
use ring_proto::shared::Ring;
use ring_proto::sync::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::error::CaptureError;
use super::record::{HEAD, Record};

/// Bytes of an element.
const ELEMENT: usize = 64;
/// Smallest and largest ring.
pub(crate) const RING_BYTES: (u64, u64) = (1 << 16, 1 << 28);
/// Name of the memory in /proc.
const NAME: &CStr = c"sanlab-capture";
/// Elements of the head: one page at least.
const HEAD_ELEMENTS: u32 = 64;
/// Element of the producer, of the consumer, and the first of the counts.
const PRODUCER: u32 = 0;
const CONSUMER: u32 = 2;
const COUNTS: u32 = 4;
/// Nodes whose counts share an element.
const NODES_PER_ELEMENT: u32 = 4;

/// Shape of a ring, as the control socket tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Geometry {
    /// Elements of the head.
    pub head: u32,
    /// Elements of the data.
    pub data: u32,
    /// Nodes with counts.
    pub nodes: u32,
}

/// What a node's port saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Records in the ring, read or not.
    pub captured: u64,
    /// Records that found no room.
    pub dropped: u64,
}

impl Geometry {
    /// A ring of about so many bytes with counts for so many nodes.
    pub(crate) fn new(bytes: u64, nodes: u32) -> Result<Self, CaptureError> {
        let (least, most) = RING_BYTES;
        if !(least..=most).contains(&bytes) {
            return Err(CaptureError::RingBytes { bytes, least, most });
        }
        let data = u32::try_from(bytes.next_power_of_two() / ELEMENT as u64)
            .map_err(|_| CaptureError::BadRing)?;
        let head = (COUNTS + nodes.div_ceil(NODES_PER_ELEMENT)).next_power_of_two();
        Ok(Self {
            head: head.max(HEAD_ELEMENTS),
            data,
            nodes,
        })
    }

    /// Depths of head and data, and the bytes of both.
    fn parts(self) -> Option<(Depth, Depth, u64)> {
        let needed = COUNTS.checked_add(self.nodes.div_ceil(NODES_PER_ELEMENT))?;
        let (head, data) = (Depth::new(self.head)?, Depth::new(self.data)?);
        let bytes = Ring::<8>::bytes(head) + Ring::<8>::bytes(data);
        let is_sound = self.head >= needed.max(HEAD_ELEMENTS) && bytes <= 2 * RING_BYTES.1;
        is_sound.then_some((head, data, bytes))
    }
}

/// A mapping with its two views.
#[derive(Debug)]
struct Memory {
    head: Ring<8>,
    data: Ring<8>,
    nodes: u32,
    _map: MmapRaw,
}

impl Memory {
    fn map(fd: &OwnedFd, geometry: Geometry) -> Result<Self, CaptureError> {
        let (head, data, bytes) = geometry.parts().ok_or(CaptureError::BadRing)?;
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| CaptureError::BadRing)?;
        let stat = fstat(fd).map_err(CaptureError::system("fstat"))?;
        let is_fixed = SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK);
        if !is_fixed || u64::try_from(stat.st_size).unwrap_or(0) < bytes {
            return Err(CaptureError::BadRing);
        }
        let len = usize::try_from(bytes).map_err(|_| CaptureError::BadRing)?;
        let map = MmapOptions::new()
            .len(len)
            .map_raw(fd.as_raw_fd())
            .map_err(|source| CaptureError::System {
                what: "mmap",
                source,
            })?;
        let base = NonNull::new(map.as_mut_ptr().cast::<u64>()).ok_or(CaptureError::BadRing)?;
        // SAFETY: 1. The mapping is page aligned, read-write, has `bytes` bytes of a file that cannot shrink, and lives in this struct,
        //         from which no copy of the view escapes. 2. Nothing else reaches it in this process.
        let head = unsafe { Ring::new(base, head) };
        let words = geometry.head as usize * 8;
        // SAFETY: `words` words are those of the head, which `bytes` covers.
        let behind = unsafe { base.add(words) };
        // SAFETY: as for the head; the data lies behind it and ends with the mapping.
        let data = unsafe { Ring::new(behind, data) };
        Ok(Self {
            head,
            data,
            nodes: geometry.nodes,
            _map: map,
        })
    }

    fn producer(&self) -> &AtomicU64 {
        self.head.word(PRODUCER, 0)
    }

    fn consumer(&self) -> &AtomicU64 {
        self.head.word(CONSUMER, 0)
    }

    /// Captured and dropped of a node.
    fn counts(&self, node: u16) -> Option<(&AtomicU64, &AtomicU64)> {
        let node = u32::from(node);
        if node >= self.nodes {
            return None;
        }
        let element = COUNTS + node / NODES_PER_ELEMENT;
        let word = (node % NODES_PER_ELEMENT) as usize * 2;
        Some((
            self.head.word(element, word),
            self.head.word(element, word + 1),
        ))
    }
}

/// The engine's end.
#[derive(Debug)]
pub struct Writer {
    memory: Memory,
    producer: u32,
    cached_consumer: u32,
    counts: Vec<Counts>,
}

impl Writer {
    /// Makes a ring; the descriptor is for its reader.
    ///
    /// # Errors
    /// [`CaptureError::System`] when the kernel gives no memory.
    pub fn new(geometry: Geometry) -> Result<(Self, OwnedFd), CaptureError> {
        let (_, _, bytes) = geometry.parts().ok_or(CaptureError::BadRing)?;
        let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(CaptureError::system("memfd_create"))?;
        let len = i64::try_from(bytes).map_err(|_| CaptureError::BadRing)?;
        unistd::ftruncate(&fd, len).map_err(CaptureError::system("ftruncate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(CaptureError::system("F_ADD_SEALS"))?;
        let memory = Memory::map(&fd, geometry)?;
        let counts = vec![Counts::default(); geometry.nodes as usize];
        let writer = Self {
            memory,
            producer: 0,
            cached_consumer: 0,
            counts,
        };
        Ok((writer, fd))
    }

    /// Adds a record, or counts it as dropped.
    pub(crate) fn push(&mut self, record: &Record, bytes: &[&[u8]]) {
        let len: usize = bytes.iter().map(|part| part.len()).sum();
        let elements = elements(len);
        let has_room = self.has_room(elements);
        let port = usize::from(record.port);
        if let Some(counts) = self.counts.get_mut(port) {
            let (captured, dropped) = (&mut counts.captured, &mut counts.dropped);
            let count = if has_room { captured } else { dropped };
            *count += 1;
        }
        if has_room {
            let parts = std::iter::once(record.as_bytes()).chain(bytes.iter().copied());
            self.write(parts);
        }
        // Counts of what is in the ring stand there before a reader finds it.
        if let (Some(counts), Some((captured, dropped))) =
            (self.counts.get(port), self.memory.counts(record.port))
        {
            // Relaxed: for information; each is one word of its own.
            captured.store(counts.captured, Ordering::Relaxed);
            dropped.store(counts.dropped, Ordering::Relaxed);
        }
        // EDGE capture-publish (release): the elements above. Acquired in `Reader::next`.
        self.memory
            .producer()
            .store(self.producer.into(), Ordering::Release);
    }

    fn has_room(&mut self, elements: u32) -> bool {
        let depth = self.memory.data.depth();
        if depth.free(self.producer, self.cached_consumer) < elements {
            // EDGE capture-consume (acquire): the reader is done with what lies before it. Released in `Reader::next`.
            let claimed = self.memory.consumer().load(Ordering::Acquire);
            let unread = depth.used(self.producer, self.cached_consumer);
            if let Ok(claimed) = u32::try_from(claimed)
                && depth.used(self.producer, claimed) <= unread
            {
                self.cached_consumer = claimed;
            }
        }
        depth.free(self.producer, self.cached_consumer) >= elements
    }

    /// Writes bytes from `producer` on, and moves it behind them.
    fn write<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        let mut element = [0u8; ELEMENT];
        let mut filled = 0;
        for mut part in parts {
            while !part.is_empty() {
                let (now, rest) = part.split_at(part.len().min(ELEMENT - filled));
                element[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                part = rest;
                if filled == ELEMENT {
                    self.put(&element);
                    filled = 0;
                }
            }
        }
        if filled != 0 {
            element[filled..].fill(0);
            self.put(&element);
        }
    }

    fn put(&mut self, element: &[u8; ELEMENT]) {
        let words: [u64; 8] = zerocopy::transmute!(*element);
        self.memory.data.write(self.producer, &words);
        self.producer = self.producer.wrapping_add(1);
    }
}

/// Elements of a record with so many bytes behind its head.
fn elements(bytes: usize) -> u32 {
    let elements = (HEAD + bytes).div_ceil(ELEMENT);
    u32::try_from(elements).unwrap_or(u32::MAX)
}

/// The reader's end.
#[derive(Debug)]
pub struct Reader {
    memory: Memory,
    consumer: u32,
    cached_producer: u32,
}

impl Reader {
    /// Maps a ring that the emulator made.
    ///
    /// # Errors
    /// [`CaptureError::BadRing`] when the descriptor is not what was announced.
    pub fn new(fd: &OwnedFd, geometry: Geometry) -> Result<Self, CaptureError> {
        Ok(Self {
            memory: Memory::map(fd, geometry)?,
            consumer: 0,
            cached_producer: 0,
        })
    }

    /// Takes the next record; its bytes replace those in `bytes`. `None` when there is none now.
    pub(crate) fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Record>, CaptureError> {
        let depth = self.memory.data.depth();
        if self.consumer == self.cached_producer {
            // EDGE capture-publish (acquire): pairs with `Writer::push`.
            let claimed = self.memory.producer().load(Ordering::Acquire);
            let claimed = u32::try_from(claimed).map_err(|_| CaptureError::BadRing)?;
            if depth.used(claimed, self.consumer) > depth.entries() {
                return Err(CaptureError::BadRing);
            }
            self.cached_producer = claimed;
            if self.consumer == claimed {
                return Ok(None);
            }
        }
        let mut head = [0; HEAD];
        self.copy(self.consumer, &mut head);
        let record = Record::read_from_bytes(&head).map_err(|_| CaptureError::BadRing)?;
        let elements = elements(record.bytes as usize);
        if elements > depth.used(self.cached_producer, self.consumer) {
            return Err(CaptureError::BadRing);
        }
        bytes.resize(record.bytes as usize, 0);
        let behind = u32::try_from(HEAD / ELEMENT).map_err(|_| CaptureError::BadRing)?;
        self.copy(self.consumer.wrapping_add(behind), bytes);
        self.consumer = self.consumer.wrapping_add(elements);
        // EDGE capture-consume (release): the copies above are made. Acquired in `Writer::has_room`.
        self.memory
            .consumer()
            .store(self.consumer.into(), Ordering::Release);
        Ok(Some(record))
    }

    /// What the port of a node saw so far.
    #[must_use]
    pub fn counts(&self, node: u16) -> Counts {
        self.memory
            .counts(node)
            .map_or_else(Counts::default, |(captured, dropped)| Counts {
                // Relaxed: for information.
                captured: captured.load(Ordering::Relaxed),
                dropped: dropped.load(Ordering::Relaxed),
            })
    }

    fn copy(&self, from: u32, bytes: &mut [u8]) {
        let mut position = from;
        for chunk in bytes.chunks_mut(ELEMENT) {
            let words = self.memory.data.snapshot(position);
            let element: [u8; ELEMENT] = zerocopy::transmute!(words);
            chunk.copy_from_slice(&element[..chunk.len()]);
            position = position.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(bytes: u64) -> (Writer, Reader) {
        let geometry = Geometry::new(bytes, 3).unwrap();
        let (writer, fd) = Writer::new(geometry).unwrap();
        (writer, Reader::new(&fd, geometry).unwrap())
    }

    fn record(number: u64, len: usize) -> Record {
        Record {
            at_ns: number,
            port: 1,
            bytes: u32::try_from(len).unwrap(),
            ..Record::default()
        }
    }

    proptest! {
        #[test]
        fn what_fits_arrives_in_order_and_the_rest_is_counted(
            start in any::<u32>(), steps in proptest::collection::vec((any::<bool>(), 0usize..9000), 1..200)
        ) {
            let (mut writer, mut reader) = pair(1 << 16);
            (writer.producer, writer.cached_consumer) = (start, start);
            writer.memory.consumer().store(start.into(), Ordering::Relaxed);
            (reader.consumer, reader.cached_producer) = (start, start);
            writer.memory.producer().store(start.into(), Ordering::Relaxed);
            let mut model = std::collections::VecDeque::new();
            let (mut used, mut dropped, mut bytes) = (0, 0, Vec::new());
            for (number, (is_push, len)) in (0u64..).zip(steps) {
                if is_push {
                    let body = vec![number.to_le_bytes()[0]; len];
                    writer.push(&record(number, len), &[&body[..len / 2], &body[len / 2..]]);
                    if used + elements(len) <= 1024 {
                        used += elements(len);
                        model.push_back((number, body));
                    } else {
                        dropped += 1;
                    }
                } else {
                    let taken = reader.next(&mut bytes).unwrap();
                    let expected = model.pop_front();
                    prop_assert_eq!(taken.map(|record| record.at_ns), expected.as_ref().map(|e| e.0));
                    if let Some((_, body)) = expected {
                        used -= elements(body.len());
                        prop_assert_eq!(&bytes, &body);
                    }
                }
                prop_assert_eq!(reader.counts(1).dropped, dropped);
            }
            prop_assert_eq!(reader.counts(0), Counts::default());
        }
    }

    #[test]
    fn a_reader_that_lies_loses_its_own_records_only() {
        let (mut writer, reader) = pair(1 << 16);
        for lie in [u64::from(u32::MAX), u64::MAX, 1 << 40] {
            reader.memory.consumer().store(lie, Ordering::Relaxed);
            for number in 0..1000 {
                writer.push(&record(number, 100), &[&[7; 100]]);
            }
            // Four elements each: no more than the ring has room for.
            assert!(writer.counts[1].captured <= 256, "{lie}");
        }
        assert_eq!(writer.counts[1].captured + writer.counts[1].dropped, 3000);
    }

    #[test]
    fn a_ring_that_is_not_what_was_announced_is_refused() {
        let geometry = Geometry::new(1 << 16, 3).unwrap();
        let (mut writer, fd) = Writer::new(geometry).unwrap();
        for bad in [
            Geometry {
                data: 1 << 20,
                ..geometry
            },
            Geometry {
                data: 1000,
                ..geometry
            },
            Geometry {
                head: 4,
                ..geometry
            },
            Geometry {
                nodes: 1 << 30,
                ..geometry
            },
        ] {
            assert!(Reader::new(&fd, bad).is_err(), "{bad:?}");
        }
        let open = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        unistd::ftruncate(&open, 1 << 20).unwrap();
        assert!(Reader::new(&open, geometry).is_err());
        // A writer that lies ends its reader, no more.
        let mut reader = Reader::new(&fd, geometry).unwrap();
        writer.push(
            &Record {
                bytes: u32::MAX,
                ..Record::default()
            },
            &[],
        );
        assert!(reader.next(&mut Vec::new()).is_err());
        writer.memory.producer().store(1 << 20, Ordering::Relaxed);
        let mut reader = Reader::new(&fd, geometry).unwrap();
        assert!(reader.next(&mut Vec::new()).is_err());
        for bytes in [0, 1, 1 << 40] {
            assert!(Geometry::new(bytes, 1).is_err());
        }
    }
}
