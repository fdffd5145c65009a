//! Bytes: mapped regions, and the program's buffers.
//!
//! Place: the one file of the session that touches payload. `send` copies from an [`IoCursor`] into the send ring, `recv` from
//! receive buffers into one.
//! Invariants: every access to a region is in bounds whatever the caller passes; no reference is formed over shared memory, bytes
//! move by `ring_proto::copy`. The program's buffers are as good as the program says: a bad pointer is its own fault.
//! DEVIATION: a bad pointer raises SIGSEGV where the kernel answers EFAULT.
//! Hot: everything here. Source: R-123. Leaves out: what the bytes mean.
#![expect(
    unsafe_code,
    reason = "copies between the program's buffers and mapped memory"
)]

use core::ptr::NonNull;

use ring_proto::copy;

/// Most bytes of one call, as in the kernel (MAX_RW_COUNT).
pub const MAX_CALL_BYTES: usize = 0x7fff_f000;

/// A mapped piece of shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reached by `ring_proto::copy` and atomics only, which any thread may use.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    /// Uses `len` bytes at `base`.
    ///
    /// # Safety
    /// The memory is readable and writable as long as the value is used, and no reference covers it.
    pub(super) const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Address of `offset`; the end for an offset beyond it.
    #[inline]
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: at most one past the end of the region.
        unsafe { self.base.add(offset.min(self.len)) }
    }

    /// Bytes from `offset` on, at most `want`.
    #[inline]
    fn clip(&self, offset: usize, want: usize) -> usize {
        want.min(self.len - offset.min(self.len))
    }

    /// Copies from `offset` into private memory; the number of bytes copied.
    #[inline]
    pub(super) fn read(&self, offset: usize, target: &mut [u8]) -> usize {
        let n = self.clip(offset, target.len());
        // SAFETY: 1. `clip` keeps both sides in bounds. 2. `target` is private memory. 3. nothing but this borrow covers it.
        unsafe { copy::copy(target.as_mut_ptr(), self.at(offset).as_ptr(), n) };
        n
    }

    /// Copies private memory to `offset`; the number of bytes copied.
    #[inline]
    pub(super) fn write(&self, offset: usize, source: &[u8]) -> usize {
        let n = self.clip(offset, source.len());
        // SAFETY: as in `read`, in the other direction.
        unsafe { copy::copy(self.at(offset).as_ptr(), source.as_ptr(), n) };
        n
    }
}

/// A walk through the program's scatter list.
#[derive(Clone, Copy, Debug)]
pub(super) struct IoCursor<'a> {
    vectors: &'a [libc::iovec],
    /// Bytes of the first vector that are done.
    done: usize,
    /// Bytes left.
    left: usize,
}

impl<'a> IoCursor<'a> {
    /// Starts at the first byte; bytes beyond [`MAX_CALL_BYTES`] are cut off, as the kernel does.
    pub(super) fn new(vectors: &'a [libc::iovec]) -> Self {
        let left = vectors
            .iter()
            .fold(0_usize, |sum, v| sum.saturating_add(v.iov_len))
            .min(MAX_CALL_BYTES);
        Self {
            vectors,
            done: 0,
            left,
        }
    }

    /// Bytes left.
    #[inline]
    pub(super) const fn left(&self) -> usize {
        self.left
    }

    /// Leaves off all but the next `n` bytes.
    pub(super) fn limit(&mut self, n: usize) {
        self.left = self.left.min(n);
    }

    /// Leaves `n` bytes out.
    pub(super) fn skip(&mut self, n: usize) {
        self.each(n, |_, _, _| {});
    }

    /// Copies the next `n` bytes of the program to `offset` of `target`; the number of bytes copied.
    #[inline]
    pub(super) fn gather(&mut self, target: &Region, offset: usize, n: usize) -> usize {
        let n = target.clip(offset, n);
        self.each(n, |program, at, len| {
            // SAFETY: 1. the program vouches for its buffer; `n` was clipped to the region, and `at + len <= n`. 2. the program cannot
            // name our shared memory. 3. no reference covers either.
            unsafe { copy::copy(target.at(offset + at).as_ptr(), program, len) };
        })
    }

    /// Copies `n` bytes at `offset` of `source` to the program's next bytes; the number of bytes copied.
    #[inline]
    pub(super) fn scatter(&mut self, source: &Region, offset: usize, n: usize) -> usize {
        let n = source.clip(offset, n);
        self.each(n, |program, at, len| {
            // SAFETY: as in `gather`, in the other direction.
            unsafe { copy::copy(program, source.at(offset + at).as_ptr(), len) };
        })
    }

    /// Walks over `n` bytes and calls `f(address in the program, bytes done before, bytes)` for each piece.
    #[inline]
    fn each(&mut self, n: usize, mut f: impl FnMut(*mut u8, usize, usize)) -> usize {
        let want = n.min(self.left);
        let mut moved = 0;
        while moved < want {
            let Some(vector) = self.vectors.first() else {
                break;
            };
            let len = (vector.iov_len - self.done).min(want - moved);
            if len > 0 {
                f(
                    vector.iov_base.cast::<u8>().wrapping_add(self.done),
                    moved,
                    len,
                );
                moved += len;
                self.done += len;
            }
            if self.done == vector.iov_len {
                self.vectors = &self.vectors[1..];
                self.done = 0;
            }
        }
        self.left -= moved;
        moved
    }
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;

    use super::{IoCursor, Region};

    fn vector(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    #[test]
    fn cursor_walks_over_empty_and_odd_vectors() {
        let (mut a, mut b, mut c) = ([1_u8, 2, 3], [], [4_u8, 5]);
        let vectors = [vector(&mut a), vector(&mut b), vector(&mut c)];
        let mut shared = [0_u8; 8];
        // SAFETY: the array outlives the region and is not used through a reference meanwhile.
        let region = unsafe { Region::new(NonNull::new(shared.as_mut_ptr()).unwrap(), 8) };
        let mut cursor = IoCursor::new(&vectors);
        assert_eq!(cursor.left(), 5);
        assert_eq!(cursor.gather(&region, 0, 4), 4);
        assert_eq!(cursor.gather(&region, 7, 4), 1);
        assert_eq!(cursor.left(), 0);
        let mut out = [0_u8; 8];
        assert_eq!(region.read(0, &mut out), 8);
        assert_eq!(out, [1, 2, 3, 4, 0, 0, 0, 5]);
        assert_eq!(region.read(8, &mut out), 0);
        assert_eq!(region.read(100, &mut out), 0);

        let mut back = IoCursor::new(&vectors);
        back.skip(1);
        assert_eq!(back.scatter(&region, 0, 3), 3);
        assert_eq!((a, c), ([1, 1, 2], [3, 5]));
    }
}
