//! What client and server say to each other: a header of 24 bytes, then as many bytes as it announces.
//!
//! Place: both ends. Invariants: little-endian; a length beyond [`VALUE_MAX`] of a value is refused before anything is allocated.
//! Source: ours.

use std::io::{Read, Write};

use super::Error;

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 24;
/// Longest value and longest echo.
pub(crate) const VALUE_MAX: u64 = 1 << 20;
/// Piece in which streams are written and read.
pub(crate) const PIECE: usize = 64 << 10;

/// Stores the value that follows under the key; answered by an empty header.
pub(crate) const PUT: u64 = 1;
/// Asks for the value of the key; answered by it.
pub(crate) const GET: u64 = 2;
/// Asks for the bytes that follow.
pub(crate) const ECHO: u64 = 3;
/// A stream of `len` bytes follows, made from the seed in `key`; answered by an empty header once all of it was right.
pub(crate) const SINK: u64 = 4;
/// Asks for a stream of `len` bytes made from the seed in `key`.
pub(crate) const SOURCE: u64 = 5;

/// Header of a request or an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// What is asked; an answer repeats it.
    pub(crate) what: u64,
    /// Key or seed.
    pub(crate) key: u64,
    /// Bytes that follow or are asked for.
    pub(crate) len: u64,
}

impl Header {
    /// The header as bytes.
    pub(crate) fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (place, word) in bytes
            .chunks_exact_mut(8)
            .zip([self.what, self.key, self.len])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a header; `None` when the stream ends before it.
    pub(crate) fn read(stream: &mut impl Read) -> Result<Option<Self>, Error> {
        let mut bytes = [0; HEADER_LEN];
        let mut len = 0;
        while len < HEADER_LEN {
            match stream.read(&mut bytes[len..])? {
                0 if len == 0 => return Ok(None),
                0 => return Err("the stream ends inside a header".into()),
                more => len += more,
            }
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Some(Self {
            what: word(0),
            key: word(8),
            len: word(16),
        }))
    }
}

/// Writes a header and what follows it in one piece.
pub(crate) fn write_message(
    stream: &mut impl Write,
    header: Header,
    content: &[u8],
) -> Result<(), Error> {
    let mut message = Vec::with_capacity(HEADER_LEN + content.len());
    message.extend_from_slice(&header.encode());
    message.extend_from_slice(content);
    stream.write_all(&message)?;
    Ok(())
}

/// Reads a value of the announced length.
pub(crate) fn read_value(stream: &mut impl Read, len: u64) -> Result<Vec<u8>, Error> {
    if len > VALUE_MAX {
        return Err(format!("a value of {len} bytes, {VALUE_MAX} are allowed").into());
    }
    let mut value = vec![0; usize::try_from(len)?];
    stream.read_exact(&mut value)?;
    Ok(value)
}
