//! The preload library: redirects of socket calls into the switch.
//!
//! Place: `sanlab run` names it in `LD_PRELOAD`; the dynamic linker binds the program's calls to `exports`, which ask `switch` and
//! end in the real C functions or in raw system calls.
//! Invariants: without `SANLAB_CONFIG` in the environment every export is its real function and nothing else. Nothing is printed.
//! `errno` is kept on success. A blocking call is the real function, called from the export itself, which holds nothing with a
//! destructor: a thread may be cancelled there, or `longjmp` away. All else runs in functions through which no panic passes.
//! Hot: the data calls of `exports::data` on descriptors that are none of ours: one load.
//! Source: symbol interposition, ld.so(8); docs/limits.md tells
//! where the list of calls ends. Leaves out: programs without a dynamic libc, which the launcher reports.
#![cfg_attr(
    test,
    expect(dead_code, reason = "the exports that use it are not built for tests")
)]

#[cfg_attr(not(target_arch = "x86_64"), path = "audit/none.rs")]
mod audit;
mod calls;
mod environment;
mod errno;
#[cfg(not(test))]
mod exports;
mod heir;
mod host;
mod real;
mod role;
mod runtime;
mod service;
mod signals;
