//! What the exports do around the real functions.
//!
//! Place: `exports` -> here -> `switch`. Invariants: nothing here blocks, apart from the bounded look for a refusal in a connect to
//! the node's own loopback; everything runs under [`guarded`].

pub(crate) mod control;
pub(crate) mod datagrams;
pub(crate) mod descriptors;
pub(crate) mod exec;
#[cfg(not(test))]
pub(crate) mod flow;
pub(crate) mod hosts;
pub(crate) mod messages;
pub(crate) mod names;
pub(crate) mod notices;
pub(crate) mod options;
pub(crate) mod pump;
pub(crate) mod readiness;
pub(crate) mod stream;
pub(crate) mod traffic;
pub(crate) mod wait;

use crate::signals;

/// Runs `work` so that no panic passes into the program: it aborts here; and so that no signal handler of the program runs inside.
/// Never put around a real function that can block, because a cancelled thread unwinds through that.
#[inline]
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> T {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let abort = Abort;
    signals::enter();
    let value = work();
    core::mem::forget(abort);
    signals::leave();
    value
}
