//! The real functions behind the exports.
//!
//! Place: every export ends here or in a raw system call. Invariants: all are looked up once, before any thread of the program
//! runs: a lock taken by a later look-up could be held by another thread at a fork. A function this C library does not have answers
//! `ENOSYS`. No wrapper holds anything with a destructor, so a cancelled thread unwinds through it.
//! Source: dlsym(3), RTLD_NEXT.
#![expect(
    unsafe_code,
    reason = "calls functions of the C library by their addresses"
)]
#![expect(clippy::too_many_arguments, reason = "the C library's signatures")]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};

use libc::{
    FILE, addrinfo, epoll_event, fd_set, hostent, iovec, mmsghdr, msghdr, nfds_t, off_t, pid_t,
    pollfd, posix_spawn_file_actions_t, posix_spawnattr_t, sigset_t, size_t, sockaddr, socklen_t,
    ssize_t, timespec, timeval, utsname,
};
use ring_proto::sync::{AtomicPtr, Ordering};

use crate::errno;

/// What a call returns when its function does not exist.
pub(crate) trait Failure {
    /// The value that sends the caller to `errno`.
    const FAILED: Self;
}

impl Failure for c_int {
    const FAILED: Self = -1;
}

impl Failure for ssize_t {
    const FAILED: Self = -1;
}

impl<T> Failure for *mut T {
    const FAILED: Self = core::ptr::null_mut();
}

impl Failure for () {
    const FAILED: Self = ();
}

/// Names an argument that a watched call gives the kernel in another form.
macro_rules! watched_argument {
    (mask $mask:ident) => {
        crate::audit::without_trap($mask)
    };
    ($_name:ident $argument:ident) => {
        $argument
    };
}

fn look_up(name: &CStr) -> *mut c_void {
    // SAFETY: a C string; RTLD_NEXT is a valid handle for a library that the dynamic linker has loaded.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// Tells a leak checker in this process, if there is one, of memory that we map.
pub(crate) fn find_leak_checker() {
    let name = c"__lsan_register_root_region";
    // SAFETY: a C string and a valid handle.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if !found.is_null() {
        // SAFETY: LeakSanitizer's interface gives the function of this name this signature.
        let told = unsafe { core::mem::transmute::<*mut c_void, switch::sys::RootRegion>(found) };
        switch::sys::set_leak_checker(told);
    }
}

/// The C library's `__libc_single_threaded`, null where it has none.
static SINGLE_THREADED: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Finds the C library's word on threads.
pub(crate) fn find_threads() {
    let name = c"__libc_single_threaded";
    // SAFETY: a C string and a valid handle.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // Relaxed: as of the functions.
    SINGLE_THREADED.store(found.cast(), Ordering::Relaxed);
}

/// Whether the process has one thread for certain.
#[inline]
pub(crate) fn is_single_threaded() -> bool {
    let word = SINGLE_THREADED.load(Ordering::Relaxed);
    // SAFETY: a variable of the C library of type `char`, which a thread changes before it makes the second one: a process with one
    // thread reads it undisturbed. Volatile: others write it.
    !word.is_null() && unsafe { word.read_volatile() } != 0
}

#[inline(always)]
fn find(slot: &AtomicPtr<c_void>, name: &'static CStr) -> *mut c_void {
    // Relaxed, here and below: all threads find the same address, and the code behind it was there before any of them.
    let known = slot.load(Ordering::Relaxed);
    if known.is_null() {
        return find_late(slot, name);
    }
    known
}

#[cold]
fn find_late(slot: &AtomicPtr<c_void>, name: &'static CStr) -> *mut c_void {
    // A constructor of another library ran before ours, or the function does not exist.
    let found = look_up(name);
    slot.store(found, Ordering::Relaxed);
    found
}

macro_rules! real_functions {
    ($($name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {
        #[expect(non_upper_case_globals, reason = "named after their functions")]
        mod slots {
            use super::{AtomicPtr, c_void};
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());)*
        }

        /// Under the audit: the real functions.
        #[cfg(target_arch = "x86_64")]
        #[expect(non_upper_case_globals, reason = "named after their functions")]
        mod kept {
            use super::{AtomicPtr, c_void};
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());)*
        }

        /// Under the audit: what stands in the slots. The system calls of a real function are the library's while it runs.
        #[cfg(target_arch = "x86_64")]
        mod watched {
            use super::*;
            $(
                /// # Safety
                /// As of the function.
                pub(super) unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret {
                    $(let $arg = watched_argument!($arg $arg);)*
                    let address = kept::$name.load(Ordering::Relaxed);
                    // SAFETY: as below.
                    let function = unsafe {
                        core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($type),*) -> $ret>(address)
                    };
                    crate::audit::open();
                    // SAFETY: by the caller's promise.
                    let result = unsafe { function($($arg),*) };
                    crate::audit::close();
                    result
                }
            )*
        }

        /// Lets the system calls of real functions pass the audit. All but `syscall`: what it is asked for and has no export here goes
        /// past the library.
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn watch() {
            $(
                let real = slots::$name.load(Ordering::Relaxed);
                if !real.is_null() && stringify!($name) != "syscall" {
                    kept::$name.store(real, Ordering::Relaxed);
                    slots::$name.store(watched::$name as *mut c_void, Ordering::Relaxed);
                }
            )*
        }

        /// Looks all functions up.
        pub(crate) fn resolve() {
            $(slots::$name.store(look_up(name_of(concat!(stringify!($name), "\0"))), Ordering::Relaxed);)*
        }

        $(
            /// The real function of this name.
            ///
            /// # Safety
            /// As of the function.
            #[inline(always)]
            pub(crate) unsafe fn $name($($arg: $type),*) -> $ret {
                // Constant: the name would else be measured in every call.
                const NAME: &CStr = name_of(concat!(stringify!($name), "\0"));
                let address = find(&slots::$name, NAME);
                if address.is_null() {
                    errno::store(libc::ENOSYS);
                    return <$ret as Failure>::FAILED;
                }
                // SAFETY: the C library's function of this name has this signature. Variadic ones take their arguments in the
                // same places on the supported architectures.
                let function = unsafe {
                    core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($type),*) -> $ret>(address)
                };
                // SAFETY: by the caller's promise.
                unsafe { function($($arg),*) }
            }
        )*
    };
}

const fn name_of(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

real_functions! {
    socket(domain: c_int, socket_type: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept4(fd: c_int, name: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    sockatmark(fd: c_int) -> c_int;
    getsockname(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getpeername(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;

    send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, name: *const sockaddr, name_len: socklen_t) -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    recv(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    recvfrom(fd: c_int, bytes: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t;
    write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t;
    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    __read_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t) -> ssize_t;
    __recv_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    __recvfrom_chk(fd: c_int, bytes: *mut c_void, len: size_t, room: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t;
    vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
    __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
    sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t;

    poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int;
    ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    __poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, room: size_t) -> c_int;
    __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int;
    select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    epoll_ctl(set: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    epoll_wait(set: c_int, events: *mut epoll_event, room: c_int, timeout_ms: c_int) -> c_int;
    epoll_pwait(set: c_int, events: *mut epoll_event, room: c_int, timeout_ms: c_int, mask: *const sigset_t) -> c_int;
    epoll_pwait2(set: c_int, events: *mut epoll_event, room: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;

    close(fd: c_int) -> c_int;
    closefrom(first: c_int) -> ();
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(old: c_int, new: c_int) -> c_int;
    dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int;
    fdopen(fd: c_int, mode: *const c_char) -> *mut FILE;
    fclose(stream: *mut FILE) -> c_int;
    freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE;
    freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE;

    getaddrinfo(name: *const c_char, service: *const c_char, hints: *const addrinfo, result: *mut *mut addrinfo) -> c_int;
    getnameinfo(address: *const sockaddr, len: socklen_t, name: *mut c_char, name_room: socklen_t, service: *mut c_char, service_room: socklen_t, flags: c_int) -> c_int;
    gethostbyname(name: *const c_char) -> *mut hostent;
    gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    gethostbyname_r(name: *const c_char, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    gethostbyaddr_r(address: *const c_void, len: socklen_t, family: c_int, entry: *mut hostent, work: *mut c_char, work_len: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostname(name: *mut c_char, len: size_t) -> c_int;
    uname(to: *mut utsname) -> c_int;

    execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    execveat(directory: c_int, path: *const c_char, argv: *const *const c_char, envp: *const *const c_char, flags: c_int) -> c_int;
    posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *const c_char, envp: *const *const c_char) -> c_int;

    pthread_create(thread: *mut libc::pthread_t, attributes: *const libc::pthread_attr_t, function: *mut c_void, argument: *mut c_void) -> c_int;
    thrd_create(thread: *mut c_void, function: *mut c_void, argument: *mut c_void) -> c_int;
    sigaction(signal: c_int, action: *const sigaction_t, old: *mut sigaction_t) -> c_int;

    syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long_result;
    io_uring_setup(entries: c_uint, parameters: *mut c_void) -> c_int;
    io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int;
    io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, parameters: *mut c_void) -> c_int;
    io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, parameters: *mut c_void, memory: *mut c_void, len: size_t) -> c_int;
}

use libc::sigaction as sigaction_t;

/// `long`, which has the size of `ssize_t` on the supported architectures.
#[expect(non_camel_case_types, reason = "stands for a C type")]
type c_long_result = ssize_t;
