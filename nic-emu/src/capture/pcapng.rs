//! Writing pcapng: a section, an interface for each node and medium, a block for each packet, statistics at the end.
//!
//! Place: `sanlab capture` writes the frames of [`super::session`] with it. Invariants: every block is written whole, in one call, so a
//! reader of a pipe never meets a torn one; times have nanoseconds. Source: pcapng draft (draft-ietf-opsawg-pcapng): SHB, IDB, EPB, ISB.
//! Hot: nothing.

use std::io::{self, Write};

use super::ring::Counts;
use super::session::{Frame, Medium, Port};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;

/// Options: end, comment, and by block.
const COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_USRDELIV: u16 = 8;

/// A pcapng file under way.
#[derive(Debug)]
pub struct Pcapng<W> {
    to: W,
    /// In the order of their blocks, with the frames written for each.
    interfaces: Vec<((u16, Medium), u64)>,
    snaplen: u32,
    started_ns: u64,
}

impl<W: Write> Pcapng<W> {
    /// Begins a file: `ports` are the nodes that are captured, each with its number and what carries its frames.
    ///
    /// # Errors
    /// What `to` says.
    pub fn begin(
        to: W,
        cluster: &str,
        ports: &[(u16, &Port)],
        media: &[Medium],
        snaplen: u32,
        started_ns: u64,
    ) -> io::Result<Self> {
        let mut each = Vec::new();
        for &(node, port) in ports {
            each.extend(media.iter().map(|&medium| (node, port, medium)));
        }
        let mut file = Self {
            to,
            interfaces: each
                .iter()
                .map(|&(node, _, medium)| ((node, medium), 0))
                .collect(),
            snaplen,
            started_ns,
        };
        let mut section = Block::new(SECTION);
        section.u32(BYTE_ORDER);
        // Version 1.0, length unknown.
        section.u32(1);
        section.u32(u32::MAX);
        section.u32(u32::MAX);
        section.option(COMMENT, format!("cluster {cluster}").as_bytes());
        section.option(
            SHB_USERAPPL,
            concat!("sanlab ", env!("CARGO_PKG_VERSION")).as_bytes(),
        );
        section.write(&mut file.to)?;
        for (_, port, medium) in each {
            let mut interface = Block::new(INTERFACE);
            interface.u32(ETHERNET.into());
            interface.u32(snaplen);
            let (suffix, what) = match medium {
                Medium::San => ("", "SAN NIC"),
                Medium::Ethernet => ("/eth0", "eth0"),
            };
            interface.option(IF_NAME, format!("{}{suffix}", port.name).as_bytes());
            let addresses = if port.addresses.is_empty() {
                "no address".to_owned()
            } else {
                port.addresses.join(", ")
            };
            let description = format!("{what} of node {} ({addresses})", port.name);
            interface.option(IF_DESCRIPTION, description.as_bytes());
            interface.option(IF_TSRESOL, &[9]);
            interface.write(&mut file.to)?;
        }
        Ok(file)
    }

    /// Adds a frame; one of a node without interface is left out.
    ///
    /// # Errors
    /// What the file says.
    pub fn packet(&mut self, frame: &Frame, at_ns: u64) -> io::Result<()> {
        let found = (0u32..)
            .zip(&mut self.interfaces)
            .find(|(_, (of, _))| *of == (frame.port, frame.medium));
        let Some((interface, (_, written))) = found else {
            return Ok(());
        };
        *written += 1;
        let captured = frame.bytes.len().min(self.snaplen as usize);
        let mut block = Block::new(PACKET);
        block.u32(interface);
        block.time(at_ns);
        block.u32(length(captured));
        block.u32(length(frame.whole_len));
        block.bytes(&frame.bytes[..captured]);
        let direction: u32 = if frame.is_inbound { 1 } else { 2 };
        block.option(EPB_FLAGS, &direction.to_le_bytes());
        for fate in frame.fates() {
            block.option(COMMENT, fate.as_bytes());
        }
        block.write(&mut self.to)
    }

    /// Hands on what is written so far.
    ///
    /// # Errors
    /// What the file says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Ends the file with what each interface saw and dropped.
    ///
    /// # Errors
    /// What the file says.
    pub fn finish(
        mut self,
        ended_ns: u64,
        counts: impl Fn(Medium, u16) -> Counts,
    ) -> io::Result<()> {
        for (interface, ((node, medium), written)) in (0u32..).zip(&self.interfaces) {
            let counts = counts(*medium, *node);
            let mut block = Block::new(STATISTICS);
            block.u32(interface);
            block.time(ended_ns);
            for (option, time_ns) in [(ISB_STARTTIME, self.started_ns), (ISB_ENDTIME, ended_ns)] {
                let [high, low] = halves(time_ns);
                block.option(option, &[high.to_le_bytes(), low.to_le_bytes()].concat());
            }
            for (option, count) in [
                (ISB_IFRECV, counts.captured + counts.dropped),
                (ISB_IFDROP, counts.dropped),
                (ISB_USRDELIV, *written),
            ] {
                block.option(option, &count.to_le_bytes());
            }
            block.write(&mut self.to)?;
        }
        self.to.flush()
    }
}

/// A block: type, length, body, options, length again.
struct Block {
    bytes: Vec<u8>,
    has_options: bool,
}

impl Block {
    fn new(kind: u32) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        Self {
            bytes,
            has_options: false,
        }
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn time(&mut self, time_ns: u64) {
        let [high, low] = halves(time_ns);
        self.u32(high);
        self.u32(low);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.has_options = true;
        self.bytes.extend_from_slice(&code.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes(value);
    }

    fn write(mut self, to: &mut impl Write) -> io::Result<()> {
        if self.has_options {
            self.u32(0);
        }
        let len = length(self.bytes.len() + 4);
        self.bytes[4..8].copy_from_slice(&len.to_le_bytes());
        self.u32(len);
        to.write_all(&self.bytes)
    }
}

/// High half first, as pcapng has times.
fn halves(time: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = time.to_be_bytes();
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("blocks hold a packet")
}
