//! The client: stores and reads back keys, counts round trips, moves a stream each way, and checks every byte.
//!
//! Place: `kv client`. Invariants: it ends with an error at the first wrong byte; otherwise it prints one line of JSON with what it moved and how
//! long that took.
//! Source: ours.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use super::Error;
use super::pattern::{self, Pattern};
use super::protocol::{self, ECHO, GET, HEADER_LEN, Header, PIECE, PUT, SINK, SOURCE};

/// Bytes of an echo, with its header.
const ECHO_LEN: usize = 64;
/// Longest value of a key.
const KEY_VALUE_MAX: u64 = 16 << 10;

/// What the client does.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where the server is.
    pub(crate) connect: String,
    /// What all content follows from.
    pub(crate) seed: u64,
    /// Keys to store and read back.
    pub(crate) keys: u64,
    /// Round trips to time.
    pub(crate) trips: usize,
    /// Length of the stream in each direction.
    pub(crate) mib: u64,
    /// Keep the connection until standard input ends.
    pub(crate) hold: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: String::new(),
            seed: 1,
            keys: 200,
            trips: 5_000,
            mib: 128,
            hold: false,
        }
    }
}

/// A connection that counts.
struct Link {
    stream: TcpStream,
    sent: u64,
    received: u64,
}

/// Runs the client.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let stream = TcpStream::connect(&options.connect)
        .map_err(|error| format!("cannot connect to {}: {error}", options.connect))?;
    stream.set_nodelay(true)?;
    let mut link = Link {
        stream,
        sent: 0,
        received: 0,
    };
    for key in 0..options.keys {
        let value = value_of(options.seed, key);
        link.ask(PUT, key, &value)?;
    }
    for key in 0..options.keys {
        if link.ask(GET, key, &[])? != value_of(options.seed, key) {
            return Err(format!("the value of key {key} came back changed").into());
        }
    }
    let mut trips = echo(&mut link, options)?;
    trips.sort_unstable();
    let stream_len = options.mib << 20;
    let up = timed(|| upload(&mut link, options.seed, stream_len))?;
    let down = timed(|| download(&mut link, options.seed, stream_len))?;
    report(&link, &trips, stream_len, up, down)?;
    if options.hold {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    }
    Ok(())
}

fn value_of(seed: u64, key: u64) -> Vec<u8> {
    let mix = pattern::bytes(seed ^ key.rotate_left(32), 8);
    let len = mix.iter().fold(0, |sum, &byte| sum * 256 + u64::from(byte)) % KEY_VALUE_MAX;
    pattern::bytes(seed.wrapping_add(key), usize::try_from(len).unwrap_or(0))
}

/// Times round trips, in nanoseconds.
fn echo(link: &mut Link, options: &Options) -> Result<Vec<u64>, Error> {
    let content = pattern::bytes(options.seed, ECHO_LEN - HEADER_LEN);
    let warm_up = options.trips / 10;
    let mut trips = Vec::with_capacity(options.trips);
    for trip in 0..warm_up + options.trips {
        let begin = Instant::now();
        let back = link.ask(ECHO, trip as u64, &content)?;
        let took = begin.elapsed();
        if back != content {
            return Err(format!("echo {trip} came back changed").into());
        }
        if trip >= warm_up {
            trips.push(u64::try_from(took.as_nanos())?);
        }
    }
    Ok(trips)
}

fn upload(link: &mut Link, seed: u64, len: u64) -> Result<(), Error> {
    let pattern = Pattern::new(seed);
    let header = Header {
        what: SINK,
        key: seed,
        len,
    };
    link.write(&header.encode())?;
    let mut offset = 0;
    while offset < len {
        let limit = usize::try_from(len - offset)?.min(PIECE);
        let piece = pattern.piece(offset, limit);
        link.write(piece)?;
        offset += piece.len() as u64;
    }
    link.answer(SINK, seed).map(|_| ())
}

fn download(link: &mut Link, seed: u64, len: u64) -> Result<(), Error> {
    let pattern = Pattern::new(seed);
    let header = Header {
        what: SOURCE,
        key: seed,
        len,
    };
    link.write(&header.encode())?;
    if link.header(SOURCE, seed)? != len {
        return Err("the server announces another length".into());
    }
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < len {
        let limit = usize::try_from(len - offset)?.min(PIECE);
        let count = link.stream.read(&mut buffer[..limit])?;
        if count == 0 {
            return Err(format!("the stream ends after {offset} bytes").into());
        }
        pattern
            .compare(offset, &buffer[..count])
            .map_err(|at| format!("byte {at} of the stream is wrong"))?;
        offset += count as u64;
    }
    link.received += len;
    Ok(())
}

/// Bytes each second of nothing but the work: 0 for work that took no time.
fn timed(work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn report(link: &Link, trips: &[u64], len: u64, up: f64, down: f64) -> Result<(), Error> {
    let at = |permille: usize| {
        let index = (trips.len() * permille / 1000).min(trips.len().saturating_sub(1));
        trips.get(index).copied().unwrap_or(0)
    };
    let rate = |seconds: f64| {
        if seconds > 0.0 {
            len as f64 / seconds
        } else {
            0.0
        }
    };
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "{{\"sent\":{},\"received\":{},\"trips\":{},\"p50_ns\":{},\"p99_ns\":{},\"p999_ns\":{},\"max_ns\":{},\
         \"up_bytes_per_second\":{:.0},\"down_bytes_per_second\":{:.0}}}",
        link.sent,
        link.received,
        trips.len(),
        at(500),
        at(990),
        at(999),
        at(1000),
        rate(up),
        rate(down),
    )?;
    stdout.flush()?;
    Ok(())
}

impl Link {
    fn ask(&mut self, what: u64, key: u64, content: &[u8]) -> Result<Vec<u8>, Error> {
        let header = Header {
            what,
            key,
            len: content.len() as u64,
        };
        protocol::write_message(&mut self.stream, header, content)?;
        self.sent += (HEADER_LEN + content.len()) as u64;
        self.answer(what, key)
    }

    fn answer(&mut self, what: u64, key: u64) -> Result<Vec<u8>, Error> {
        let len = self.header(what, key)?;
        let value = protocol::read_value(&mut self.stream, len)?;
        self.received += len;
        Ok(value)
    }

    fn header(&mut self, what: u64, key: u64) -> Result<u64, Error> {
        let header = Header::read(&mut self.stream)?.ok_or("the server closed the connection")?;
        self.received += HEADER_LEN as u64;
        if (header.what, header.key) != (what, key) {
            return Err("the answer belongs to another request".into());
        }
        Ok(header.len)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes)?;
        self.sent += bytes.len() as u64;
        Ok(())
    }
}
