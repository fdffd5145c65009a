//! The one door to atomics: core's in a normal build, loom's under `cfg(loom)`.
//!
//! Place: every module of the workspace that shares a word takes its atomics from here, so that loom can model the same code.
//! Invariants: accesses are Relaxed, Acquire, Release or AcqRel; sequential consistency comes from [`fence`] alone, because loom
//! treats `SeqCst` accesses as `AcqRel`.
//! Leaves out: spin hints; whoever waits here yields.

#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicPtr, Ordering, fence};
#[cfg(loom)]
pub use modelled::{AtomicI32, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

/// Loom's atomics, with a mark that every load leaves.
///
/// Loom 0.7 remembers one last access per atomic. A thread that looks at a word and then changes it (`mark` does) so hides the looks of
/// all others from the search: the orders in which the change comes before their looks are never tried, and a doorbell without its
/// first fence passes. The mark is a second atomic that loads change with Relaxed: loads now conflict with each other, and the
/// search is complete. It orders nothing that the model did not order before: only `fence(SeqCst)` could turn it into an edge, and
/// loom orders those fences among themselves anyway.
#[cfg(loom)]
mod modelled {
    use loom::sync::atomic::{self, Ordering};

    macro_rules! modelled {
        ($($name:ident: $value:ty,)*) => {$(
            /// Atomic of the same name, for models.
            #[derive(Debug, Default)]
            pub struct $name {
                word: atomic::$name,
                looks: atomic::AtomicU8,
            }

            impl $name {
                /// Makes one.
                #[must_use]
                pub fn new(value: $value) -> Self {
                    Self {
                        word: atomic::$name::new(value),
                        looks: atomic::AtomicU8::new(0),
                    }
                }

                /// Loads the value.
                #[must_use]
                pub fn load(&self, order: Ordering) -> $value {
                    self.looks.fetch_add(1, Ordering::Relaxed);
                    self.word.load(order)
                }

                /// Stores a value.
                pub fn store(&self, value: $value, order: Ordering) {
                    self.word.store(value, order);
                }

                /// Swaps the value.
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    self.word.swap(value, order)
                }

                /// Sets bits.
                pub fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                    self.word.fetch_or(bits, order)
                }

                /// Clears bits.
                pub fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                    self.word.fetch_and(bits, order)
                }

                /// Adds, wrapping.
                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    self.word.fetch_add(value, order)
                }

                /// Subtracts, wrapping.
                pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    self.word.fetch_sub(value, order)
                }

                /// Stores `new` where `current` is.
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.looks.fetch_add(1, Ordering::Relaxed);
                    self.word.compare_exchange(current, new, success, failure)
                }
            }
        )*};
    }

    modelled! {
        AtomicI32: i32,
        AtomicU8: u8,
        AtomicU16: u16,
        AtomicU32: u32,
        AtomicU64: u64,
        AtomicUsize: usize,
    }
}
