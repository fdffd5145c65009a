//! Content that both ends can make by themselves, so that every byte can be checked.
//!
//! Place: values of keys and both streams come from here. Invariants: a stream repeats after a prime number of bytes, so a piece that arrives
//! twice, too late or at another place does not match.
//! Source: the generator is `splitmix64` (Steele, Lea, Flood 2014).

/// Bytes after which a stream repeats.
const PERIOD: usize = 1_048_573;

/// An endless stream of bytes that follows from a seed.
#[derive(Debug)]
pub(crate) struct Pattern {
    block: Vec<u8>,
}

impl Pattern {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            block: bytes(seed, PERIOD),
        }
    }

    /// As many bytes of the stream from `offset` on as lie in one piece, at most `limit`.
    pub(crate) fn piece(&self, offset: u64, limit: usize) -> &[u8] {
        let period = self.block.len() as u64;
        let start = usize::try_from(offset % period).unwrap_or(0);
        let end = self.block.len().min(start.saturating_add(limit));
        &self.block[start..end]
    }

    /// Compares received bytes with the stream; gives the offset of the first that differs.
    pub(crate) fn compare(&self, offset: u64, received: &[u8]) -> Result<(), u64> {
        let (mut at, mut rest) = (offset, received);
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len());
            let (head, tail) = rest.split_at(piece.len());
            if head != piece {
                let same = head.iter().zip(piece).take_while(|(a, b)| a == b).count();
                return Err(at + same as u64);
            }
            at += head.len() as u64;
            rest = tail;
        }
        Ok(())
    }
}

/// `len` bytes that follow from a seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_matches_itself_wherever_it_is_cut() {
        let pattern = Pattern::new(7);
        let start = PERIOD as u64 - 3;
        let mut received = pattern.piece(start, 100).to_vec();
        assert_eq!(received.len(), 3);
        received.extend_from_slice(pattern.piece(start + 3, 97));
        assert_eq!(pattern.compare(start, &received), Ok(()));
        assert_eq!(pattern.compare(start + 3, &received[3..]), Ok(()));
    }

    #[test]
    fn a_piece_at_another_place_and_a_changed_byte_are_found() {
        let pattern = Pattern::new(7);
        let mut received = pattern.piece(0, 1000).to_vec();
        assert!(pattern.compare(65_536, &received).is_err());
        assert!(Pattern::new(8).compare(0, &received).is_err());
        received[999] ^= 1;
        assert_eq!(pattern.compare(0, &received), Err(999));
    }
}
