//! Messages that tell which one they are.
//!
//! Place: both ends stamp what they send and check what they get. Invariants: a message is its number (as much of eight bytes as fits), a
//! constant body, and behind that the complement of the number's low byte; so one that is lost, doubled, out of order or shifted
//! shows at once, and a damaged body in a thorough run.

use anyhow::ensure;

/// Bytes of the number.
const NUMBER: usize = 8;
/// The body.
const BODY: u8 = 0x5a;

/// A message of `len` bytes, to be stamped.
pub(super) fn blank(len: usize) -> Vec<u8> {
    vec![BODY; len]
}

/// Makes a message the one of this number.
#[inline]
pub(super) fn stamp(message: &mut [u8], number: u64) {
    let len = message.len();
    if let Some(first) = message.first_chunk_mut::<NUMBER>() {
        *first = number.to_le_bytes();
    } else {
        message.copy_from_slice(&number.to_le_bytes()[..len]);
    }
    if len > NUMBER
        && let Some(last) = message.last_mut()
    {
        *last = !number.to_le_bytes()[0];
    }
}

/// Messages that arrive on a connection, in whatever pieces.
#[derive(Debug)]
pub(super) struct Incoming {
    len: usize,
    /// Bytes of the current message that have come.
    at: usize,
    /// Number of the current message.
    number: u64,
}

impl Incoming {
    /// Messages of `len` bytes, at least one.
    pub(super) const fn new(len: usize) -> Self {
        Self {
            len,
            at: 0,
            number: 0,
        }
    }

    /// Bytes that are missing of the current message.
    pub(super) const fn missing(&self) -> usize {
        self.len - self.at
    }

    /// Number of the current message.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Checks what came; says how many messages are complete by it.
    pub(super) fn take(&mut self, mut bytes: &[u8], is_thorough: bool) -> anyhow::Result<u64> {
        let mut complete = 0;
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.missing().min(bytes.len()));
            ensure!(
                self.is_right(piece, is_thorough),
                "wrong bytes in message {} behind byte {} of {}",
                self.number,
                self.at,
                self.len
            );
            bytes = rest;
            self.at += piece.len();
            if self.at == self.len {
                self.at = 0;
                self.number += 1;
                complete += 1;
            }
        }
        Ok(complete)
    }

    #[inline]
    fn is_right(&self, piece: &[u8], is_thorough: bool) -> bool {
        let number = self.number.to_le_bytes();
        let mut body = piece;
        if self.at < NUMBER {
            let (own, rest) = piece.split_at(piece.len().min(NUMBER - self.at));
            if own != &number[self.at..self.at + own.len()] {
                return false;
            }
            body = rest;
        }
        if self.at + piece.len() == self.len
            && self.len > NUMBER
            && let Some((last, rest)) = body.split_last()
        {
            if *last != !number[0] {
                return false;
            }
            body = rest;
        }
        !is_thorough || body.iter().all(|&byte| byte == BODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages 0..count one behind the other.
    fn stream(len: usize, count: u64) -> Vec<u8> {
        let mut message = blank(len);
        let mut all = Vec::new();
        for number in 0..count {
            stamp(&mut message, number);
            all.extend_from_slice(&message);
        }
        all
    }

    #[test]
    fn messages_are_right_in_whatever_pieces_they_come() {
        for len in [1, 3, 8, 9, 64, 1000] {
            let all = stream(len, 300);
            for piece in [1, 7, 64, 100_000] {
                let mut incoming = Incoming::new(len);
                let taken = all
                    .chunks(piece)
                    .map(|part| incoming.take(part, true).unwrap());
                assert_eq!(taken.sum::<u64>(), 300, "{len} {piece}");
                assert_eq!((incoming.number(), incoming.missing()), (300, len));
            }
        }
    }

    #[test]
    fn every_kind_of_damage_shows() {
        let whole = stream(64, 3);
        let check = |bytes: &[u8], is_thorough| {
            let taken = Incoming::new(64).take(bytes, is_thorough);
            taken.map_err(|error| error.to_string())
        };
        assert_eq!(check(&whole, true).unwrap(), 3);
        let doubled = [&whole[..64], &whole[..64]].concat();
        assert!(check(&doubled, false).unwrap_err().contains("message 1"));
        let lost = [&whole[..64], &whole[128..]].concat();
        assert!(check(&lost, false).is_err());
        let shifted = [&whole[..64], &whole[65..]].concat();
        assert!(check(&shifted, false).is_err());
        let mut torn = whole.clone();
        torn[63] ^= 1;
        assert!(check(&torn, false).is_err());
        let mut damaged = whole;
        damaged[30] ^= 1;
        assert!(check(&damaged, false).is_ok());
        assert!(check(&damaged, true).is_err());
    }
}
