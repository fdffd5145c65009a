//! Exports: the life of descriptors.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_char, c_int, c_uint, c_ulong};

use libc::FILE;

use super::{exports, kept, real, with_program};
use crate::calls::{control, descriptors, guarded, stream};
use crate::{errno, runtime};

exports! {
    fn close(fd: c_int) -> c_int {
        match kept(|| descriptors::closing(fd)) {
            Ok(()) => real!(close(fd)),
            Err(errno) => errno::answer_unit(Err(errno)),
        }
    }

    fn __close(fd: c_int) -> c_int {
        // SAFETY: as of `close`.
        unsafe { close(fd) }
    }

    fn closefrom(first: c_int) -> () {
        if runtime::get().is_none() {
            return real!(closefrom(first));
        }
        let first = c_uint::try_from(first).unwrap_or(0);
        // The function has no way to fail.
        guarded(|| descriptors::close_range(first, c_uint::MAX, 0)).ok();
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if runtime::get().is_none() {
            return real!(close_range(first, last, flags));
        }
        errno::answer_unit(guarded(|| descriptors::close_range(first, last, flags)))
    }

    fn dup(fd: c_int) -> c_int {
        if runtime::is_hidden(fd) {
            return errno::answer_unit(Err(libc::EBADF));
        }
        let new = real!(dup(fd));
        if new >= 0 {
            kept(|| descriptors::duplicated(fd, new));
        }
        new
    }

    fn dup2(old: c_int, new: c_int) -> c_int {
        if let Err(errno) = descriptors::duplicating(old, new) {
            return errno::answer_unit(Err(errno));
        }
        let result = real!(dup2(old, new));
        if result >= 0 {
            kept(|| descriptors::duplicated(old, new));
        }
        result
    }

    fn __dup2(old: c_int, new: c_int) -> c_int {
        // SAFETY: as of `dup2`.
        unsafe { dup2(old, new) }
    }

    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
        if let Err(errno) = descriptors::duplicating(old, new) {
            return errno::answer_unit(Err(errno));
        }
        let result = real!(dup3(old, new, flags));
        if result >= 0 {
            kept(|| descriptors::duplicated(old, new));
        }
        result
    }

    fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        if runtime::is_hidden(fd) {
            return errno::answer_unit(Err(libc::EBADF));
        }
        if let Some(result) = kept(|| control::fcntl(fd, command, argument)) {
            return errno::answer_int(result);
        }
        let result = real!(fcntl(fd, command, argument));
        if result >= 0 && (command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC) {
            kept(|| descriptors::duplicated(fd, result));
        }
        result
    }

    fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
        // SAFETY: as of `fcntl`.
        unsafe { fcntl(fd, command, argument) }
    }

    fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        // SAFETY: as of `fcntl`.
        unsafe { fcntl(fd, command, argument) }
    }

    fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
        if runtime::is_hidden(fd) {
            return errno::answer_unit(Err(libc::EBADF));
        }
        let pointer = core::ptr::with_exposed_provenance_mut(argument);
        match with_program!(control::ioctl(fd, request, pointer)) {
            Some(result) => errno::answer_unit(result),
            None => real!(ioctl(fd, request, argument)),
        }
    }

    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
        if stream::concerns(fd)
            && let Err(errno) = kept(|| descriptors::streaming(fd))
        {
            errno::store(errno);
            return core::ptr::null_mut();
        }
        real!(fdopen(fd, mode))
    }

    fn fclose(stream: *mut FILE) -> c_int {
        leave(stream);
        real!(fclose(stream))
    }

    fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
        leave(stream);
        real!(freopen(path, mode, stream))
    }

    fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
        leave(stream);
        real!(freopen64(path, mode, stream))
    }
}

/// Before the C library closes a stream's descriptor, which no export sees.
fn leave(stream: *mut FILE) {
    if runtime::get().is_none() || stream.is_null() {
        return;
    }
    let fd = with_program!(libc::fileno(stream));
    // The stream is the program's, so its descriptor is none of ours.
    kept(|| descriptors::closing(fd)).ok();
}
