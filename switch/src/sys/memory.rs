//! Mappings.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use std::os::fd::RawFd;
use std::sync::OnceLock;

use super::{SysResult, int, syscall};

/// Maps `len` bytes of a descriptor, shared and writable.
///
/// # Errors
/// The kernel's.
pub fn map_shared(fd: RawFd, len: usize) -> SysResult<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    map(len, protection, libc::MAP_SHARED, fd)
}

/// Maps `len` bytes of private zero memory.
///
/// # Errors
/// The kernel's.
pub fn map_private(len: usize) -> SysResult<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let memory = map(len, protection, flags, -1)?;
    if let Some(told) = LEAK_CHECKER.get() {
        told(memory.as_ptr().cast(), len);
    }
    Ok(memory)
}

/// A leak checker's function that takes memory in which it should look for pointers.
pub type RootRegion = extern "C" fn(*const c_void, usize);

static LEAK_CHECKER: OnceLock<RootRegion> = OnceLock::new();

/// Names a leak checker in this process: what lies behind pointers in [`map_private`] memory is not lost. Before there is a second
/// thread.
pub fn set_leak_checker(told: RootRegion) {
    // A second one would be the same.
    LEAK_CHECKER.set(told).ok();
}

fn map(len: usize, protection: i32, flags: i32, fd: RawFd) -> SysResult<NonNull<u8>> {
    let args = [0, len, int(protection), int(flags), int(fd), 0];
    // SAFETY: without MAP_FIXED no existing mapping is touched.
    let address = unsafe { syscall(libc::SYS_mmap, args) }?;
    NonNull::new(ptr::with_exposed_provenance_mut(address)).ok_or(libc::ENOMEM)
}

/// Unmaps what [`map_shared`] or [`map_private`] mapped.
///
/// # Safety
/// Nobody uses the memory any more.
pub unsafe fn unmap(address: NonNull<u8>, len: usize) {
    let args = [address.as_ptr().expose_provenance(), len, 0, 0, 0, 0];
    // SAFETY: by the caller's promise. A refusal leaves the mapping, which harms nobody.
    unsafe { syscall(libc::SYS_munmap, args) }.ok();
}
