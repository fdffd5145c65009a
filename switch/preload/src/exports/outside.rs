//! Exports: ways around the C library's calls.
//!
//! Invariants: rings of the kernel would move bytes that no export sees, so there are none: programs fall back to ordinary calls.
#![expect(unsafe_code, reason = "exports with the C library's names")]

use core::ffi::{c_int, c_long, c_uint, c_ulong, c_void};

use libc::size_t;

use super::{data, descriptors, exports, files, names, programs, ready, real, splice};
use crate::{errno, runtime};

/// The answer to every way into io_uring; liburing's functions return it negative.
const NO_RINGS: c_int = libc::ENOSYS;

exports! {
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one table; each arm calls the export of its name"
    )]
    fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
        if runtime::get().is_none() {
            return real!(syscall(number, a, b, c, d, e, f));
        }
        let int = switch::sys::to_int;
        let uint = |value: usize| int(value).cast_unsigned();
        let pointer = core::ptr::with_exposed_provenance_mut::<c_void>;
        // SAFETY: each with the arguments of the system call of its name.
        unsafe {
            match number {
                libc::SYS_io_uring_setup => errno::answer_int(Err(NO_RINGS)) as isize,
                libc::SYS_socket => names::socket(int(a), int(b), int(c)) as isize,
                libc::SYS_bind => names::bind(int(a), pointer(b).cast(), uint(c)) as isize,
                libc::SYS_listen => names::listen(int(a), int(b)) as isize,
                libc::SYS_connect => names::connect(int(a), pointer(b).cast(), uint(c)) as isize,
                libc::SYS_accept => names::accept(int(a), pointer(b).cast(), pointer(c).cast()) as isize,
                libc::SYS_accept4 => names::accept4(int(a), pointer(b).cast(), pointer(c).cast(), int(d)) as isize,
                libc::SYS_getsockname => names::getsockname(int(a), pointer(b).cast(), pointer(c).cast()) as isize,
                libc::SYS_getpeername => names::getpeername(int(a), pointer(b).cast(), pointer(c).cast()) as isize,
                libc::SYS_close => descriptors::close(int(a)) as isize,
                libc::SYS_close_range => descriptors::close_range(uint(a), uint(b), int(c)) as isize,
                libc::SYS_dup => descriptors::dup(int(a)) as isize,
                #[cfg(target_arch = "x86_64")]
                libc::SYS_dup2 => descriptors::dup2(int(a), int(b)) as isize,
                libc::SYS_dup3 => descriptors::dup3(int(a), int(b), int(c)) as isize,
                libc::SYS_fcntl => descriptors::fcntl(int(a), int(b), c) as isize,
                libc::SYS_execve => programs::execve(pointer(a).cast(), pointer(b).cast(), pointer(c).cast()) as isize,
                libc::SYS_execveat => programs::execveat(int(a), pointer(b).cast(), pointer(c).cast(), pointer(d).cast(), int(e)) as isize,
                libc::SYS_read => data::read(int(a), pointer(b), c),
                libc::SYS_write => data::write(int(a), pointer(b), c),
                libc::SYS_readv => data::readv(int(a), pointer(b).cast(), int(c)),
                libc::SYS_writev => data::writev(int(a), pointer(b).cast(), int(c)),
                libc::SYS_sendto => data::sendto(int(a), pointer(b), c, int(d), pointer(e).cast(), uint(f)),
                libc::SYS_recvfrom => data::recvfrom(int(a), pointer(b), c, int(d), pointer(e).cast(), pointer(f).cast()),
                libc::SYS_sendmsg => data::sendmsg(int(a), pointer(b).cast(), int(c)),
                libc::SYS_recvmsg => data::recvmsg(int(a), pointer(b).cast(), int(c)),
                libc::SYS_sendmmsg => data::sendmmsg(int(a), pointer(b).cast(), uint(c), int(d)) as isize,
                libc::SYS_recvmmsg => data::recvmmsg(int(a), pointer(b).cast(), uint(c), int(d), pointer(e).cast()) as isize,
                // The offset comes in two halves, of which this architecture needs the first.
                libc::SYS_preadv2 => data::preadv2(int(a), pointer(b).cast(), int(c), d as libc::off_t, int(f)),
                libc::SYS_pwritev2 => data::pwritev2(int(a), pointer(b).cast(), int(c), d as libc::off_t, int(f)),
                libc::SYS_sendfile => files::sendfile(int(a), int(b), pointer(c).cast(), d),
                libc::SYS_splice => splice::splice(int(a), pointer(b).cast(), int(c), pointer(d).cast(), e, uint(f)),
                libc::SYS_shutdown => names::shutdown(int(a), int(b)) as isize,
                libc::SYS_setsockopt => names::setsockopt(int(a), int(b), int(c), pointer(d), uint(e)) as isize,
                libc::SYS_getsockopt => names::getsockopt(int(a), int(b), int(c), pointer(d), pointer(e).cast()) as isize,
                libc::SYS_ioctl => descriptors::ioctl(int(a), b as c_ulong, c) as isize,
                libc::SYS_poll => ready::poll(pointer(a).cast(), b as libc::nfds_t, int(c)) as isize,
                libc::SYS_ppoll => ready::ppoll(pointer(a).cast(), b as libc::nfds_t, pointer(c).cast(), pointer(d).cast()) as isize,
                libc::SYS_select => ready::select(int(a), pointer(b).cast(), pointer(c).cast(), pointer(d).cast(), pointer(e).cast()) as isize,
                // The mask comes behind a pair of address and length.
                libc::SYS_pselect6 => {
                    let pair = pointer(f).cast::<usize>();
                    let mask = if pair.is_null() { 0 } else { pair.read() };
                    ready::pselect(int(a), pointer(b).cast(), pointer(c).cast(), pointer(d).cast(), pointer(e).cast(), pointer(mask).cast()) as isize
                }
                libc::SYS_epoll_wait => ready::epoll_wait(int(a), pointer(b).cast(), int(c), int(d)) as isize,
                libc::SYS_epoll_pwait => ready::epoll_pwait(int(a), pointer(b).cast(), int(c), int(d), pointer(e).cast()) as isize,
                libc::SYS_epoll_pwait2 => ready::epoll_pwait2(int(a), pointer(b).cast(), int(c), pointer(d).cast(), pointer(e).cast()) as isize,
                libc::SYS_epoll_ctl => ready::epoll_ctl(int(a), int(b), int(c), pointer(d).cast()) as isize,
                _ => crate::real::syscall(number, a, b, c, d, e, f),
            }
        }
    }

    fn io_uring_setup(entries: c_uint, parameters: *mut c_void) -> c_int {
        if runtime::get().is_some() {
            return -NO_RINGS;
        }
        real!(io_uring_setup(entries, parameters))
    }

    fn io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int {
        if runtime::get().is_some() {
            return -NO_RINGS;
        }
        real!(io_uring_queue_init(entries, ring, flags))
    }

    fn io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, parameters: *mut c_void) -> c_int {
        if runtime::get().is_some() {
            return -NO_RINGS;
        }
        real!(io_uring_queue_init_params(entries, ring, parameters))
    }

    fn io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, parameters: *mut c_void, memory: *mut c_void, len: size_t) -> c_int {
        if runtime::get().is_some() {
            return -NO_RINGS;
        }
        real!(io_uring_queue_init_mem(entries, ring, parameters, memory, len))
    }
}
