//! The same steps on a connection and on a pair of kernel TCP sockets: results, errors and EPOLL bits must agree after each step.
//!
//! Place: {tcp} and {san} side by side. The kernel is waited for until it agrees, under a watchdog; it never has to be fast.
#![expect(unsafe_code, reason = "calls the kernel's sockets directly")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::Step::{
    Close, Drain, Error, Fill, Peek, Recv, Reset, Send, ShutBoth, ShutRead, ShutWrite, Truncate,
};
use super::nic::NicWorld;
use super::world::{DoubleWorld, World, recv_flags, send, settle};
use crate::session::{Conn, How};

/// How long the kernel may take to agree before the test says that it does not.
const WATCHDOG: Duration = Duration::from_secs(20);
const BITS: i16 = libc::POLLIN
    | libc::POLLOUT
    | libc::POLLPRI
    | libc::POLLRDHUP
    | libc::POLLRDNORM
    | libc::POLLWRNORM;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Side sends so many bytes.
    Send(usize, usize),
    /// Side receives at most so many bytes.
    Recv(usize, usize),
    /// Side looks at so many.
    Peek(usize, usize),
    /// Side drops so many.
    Truncate(usize, usize),
    /// Side sends until it may not.
    Fill(usize),
    /// Side reads until nothing comes, the other side's data still moving.
    Drain(usize),
    ShutRead(usize),
    ShutWrite(usize),
    ShutBoth(usize),
    Close(usize),
    /// Close with SO_LINGER 0.
    Reset(usize),
    /// Side asks SO_ERROR.
    Error(usize),
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn kernel_pair() -> [Option<TcpStream>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let b = listener.accept().unwrap().0;
    for end in [&a, &b] {
        end.set_nonblocking(true).unwrap();
        end.set_nodelay(true).unwrap();
    }
    [Some(a), Some(b)]
}

/// Longest delay of an acknowledgement (TCP_DELACK_MAX), and some more.
const KERNEL_SETTLES: Duration = Duration::from_millis(300);

fn kernel_bits(end: &TcpStream) -> u32 {
    let mut poll = libc::pollfd {
        fd: end.as_raw_fd(),
        events: BITS,
        revents: 0,
    };
    // SAFETY: one valid entry.
    let n = unsafe { libc::poll(&mut poll, 1, 0) };
    assert!(n >= 0);
    u32::try_from(poll.revents).unwrap()
}

/// Result of a step: a count, or an errno.
type Outcome = Result<usize, i32>;

fn kernel_step(ends: &mut [Option<TcpStream>; 2], step: Step) -> Outcome {
    let fd = |side: usize| ends[side].as_ref().unwrap().as_raw_fd();
    let count = |n: isize| usize::try_from(n).map_err(|_| errno());
    let receive = |side, len: usize, flags| {
        let mut bytes = vec![0_u8; len];
        // SAFETY: the buffer is as long as said.
        count(unsafe { libc::recv(fd(side), bytes.as_mut_ptr().cast(), len, flags) })
    };
    match step {
        Send(side, len) => {
            let bytes = vec![1_u8; len];
            // SAFETY: the buffer is as long as said.
            count(unsafe { libc::send(fd(side), bytes.as_ptr().cast(), len, libc::MSG_NOSIGNAL) })
        }
        Recv(side, len) => receive(side, len, 0),
        Peek(side, len) => receive(side, len, libc::MSG_PEEK),
        Truncate(side, len) => receive(side, len, libc::MSG_TRUNC),
        Fill(side) => {
            let end = ends[side].as_mut().unwrap();
            let mut last = Instant::now();
            // The kernel moves what was accepted on to the peer for a while, at the latest when an acknowledgement was delayed.
            while last.elapsed() < KERNEL_SETTLES {
                if end.write(&[1; 65_536]).is_ok() {
                    last = Instant::now();
                }
                std::thread::yield_now();
            }
            Ok(0)
        }
        Drain(side) => {
            let end = ends[side].as_mut().unwrap();
            let mut bytes = vec![0; 65_536];
            let mut quiet = 0;
            while quiet < 1000 {
                match end.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(_) => quiet = 0,
                    Err(_) => quiet += 1,
                }
                std::thread::yield_now();
            }
            Ok(0)
        }
        ShutRead(side) | ShutWrite(side) | ShutBoth(side) => {
            let how = match step {
                ShutRead(_) => libc::SHUT_RD,
                ShutWrite(_) => libc::SHUT_WR,
                _ => libc::SHUT_RDWR,
            };
            // SAFETY: a valid descriptor.
            count(unsafe { libc::shutdown(fd(side), how) } as isize)
        }
        Close(side) => {
            ends[side] = None;
            Ok(0)
        }
        Reset(side) => {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: the value is as long as said.
            let n = unsafe {
                libc::setsockopt(
                    fd(side),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    libc::socklen_t::try_from(size_of_val(&linger)).unwrap(),
                )
            };
            assert_eq!(n, 0);
            ends[side] = None;
            Ok(0)
        }
        Error(side) => {
            let error = ends[side].as_ref().unwrap().take_error().unwrap();
            Ok(error.map_or(0, |e| usize::try_from(e.raw_os_error().unwrap()).unwrap()))
        }
    }
}

fn san_step(ends: &mut [Option<Arc<Conn>>; 2], closed: &mut Vec<Arc<Conn>>, step: Step) -> Outcome {
    let end = |side: usize| ends[side].as_ref().unwrap();
    let receive = |side, len, flags| recv_flags(end(side), len, flags).map(|b| b.len());
    match step {
        Send(side, len) => send(end(side), &vec![1; len]),
        Recv(side, len) => receive(side, len, 0),
        Peek(side, len) => receive(side, len, libc::MSG_PEEK),
        Truncate(side, len) => receive(side, len, libc::MSG_TRUNC),
        Fill(side) => loop {
            settle(&[end(0), end(1)]);
            if send(end(side), &[1; 65_536]).is_err() {
                return Ok(0);
            }
        },
        Drain(side) => {
            while matches!(receive(side, 65_536, 0), Ok(n) if n > 0) {
                for one in ends.iter().flatten() {
                    settle(&[one]);
                }
            }
            Ok(0)
        }
        ShutRead(side) => end(side).shutdown(How::Read).map(|()| 0),
        ShutWrite(side) => end(side).shutdown(How::Write).map(|()| 0),
        ShutBoth(side) => end(side).shutdown(How::Both).map(|()| 0),
        Close(side) => {
            end(side).close(None);
            closed.extend(ends[side].take());
            Ok(0)
        }
        Reset(side) => {
            end(side).close(Some(0));
            closed.extend(ends[side].take());
            Ok(0)
        }
        Error(side) => Ok(end(side)
            .take_error()
            .map_or(0, |e| usize::try_from(e).unwrap())),
    }
}

/// Runs `steps` on both roads.
fn compare(name: &str, steps: &[Step]) {
    compare_in(&DoubleWorld::new(), name, steps);
    compare_in(&NicWorld::new(), name, steps);
}

fn compare_in(world: &impl World, name: &str, steps: &[Step]) {
    let (a, b) = world.pair();
    let mut san = [Some(a), Some(b)];
    let mut closed = Vec::new();
    let mut kernel = kernel_pair();
    agree(name, "before", &kernel, &san);
    for (number, &step) in steps.iter().enumerate() {
        let what = format!("step {number}: {step:?}");
        let expected = kernel_step(&mut kernel, step);
        let shown = san_step(&mut san, &mut closed, step);
        assert_eq!(shown, expected, "{name}, {what}");
        for _ in 0..3 {
            for end in san.iter().flatten().chain(&closed) {
                settle(&[end]);
            }
        }
        agree(name, &what, &kernel, &san);
    }
}

fn agree(name: &str, what: &str, kernel: &[Option<TcpStream>; 2], san: &[Option<Arc<Conn>>; 2]) {
    let start = Instant::now();
    for side in 0..2 {
        let (Some(k), Some(s)) = (&kernel[side], &san[side]) else {
            continue;
        };
        let shown = s.readiness();
        while kernel_bits(k) != shown {
            assert!(
                start.elapsed() < WATCHDOG,
                "{name}, {what}, side {side}: kernel {:#x}, we {shown:#x}",
                kernel_bits(k)
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn data_as_in_the_kernel() {
    compare(
        "data",
        &[
            Recv(0, 10),
            Send(0, 5),
            Peek(1, 3),
            Recv(1, 3),
            Truncate(1, 1),
            Recv(1, 10),
            Recv(1, 10),
            Send(1, 0),
            Recv(0, 0),
            Send(1, 70_000),
            Recv(0, 1),
            Drain(0),
            Recv(0, 1),
            Error(0),
        ],
    );
}

#[test]
fn full_buffers_as_in_the_kernel() {
    compare(
        "full",
        &[Fill(0), Send(0, 1), Drain(1), Send(0, 1), Recv(1, 9)],
    );
}

#[test]
fn half_closes_as_in_the_kernel() {
    compare(
        "write side first",
        &[
            Send(0, 7),
            ShutWrite(0),
            Send(0, 1),
            Recv(1, 4),
            Recv(1, 9),
            Recv(1, 9),
            Send(1, 3),
            Recv(0, 9),
            ShutWrite(1),
            Recv(0, 9),
            Send(1, 1),
            Send(0, 1),
            ShutWrite(0),
            ShutWrite(1),
            ShutRead(0),
            Error(0),
            Error(1),
            Close(0),
            Recv(1, 1),
            Close(1),
        ],
    );
    compare(
        "read side",
        &[
            Send(0, 4),
            ShutRead(1),
            Recv(1, 2),
            Recv(1, 9),
            Recv(1, 9),
            Send(0, 2),
            Recv(1, 9),
            Recv(1, 9),
            Send(1, 3),
            Recv(0, 9),
            Close(1),
            Recv(0, 1),
        ],
    );
    compare(
        "both",
        &[
            ShutBoth(0),
            Recv(0, 1),
            Send(0, 1),
            Recv(1, 1),
            ShutBoth(1),
            Recv(1, 1),
        ],
    );
    compare(
        "data after both were shut",
        &[
            ShutBoth(0),
            Send(1, 5),
            Recv(1, 1),
            Send(1, 1),
            Recv(0, 1),
            Error(0),
            Error(1),
        ],
    );
}

#[test]
fn closes_as_in_the_kernel() {
    compare(
        "orderly close",
        &[
            Send(0, 9),
            Close(0),
            Recv(1, 4),
            Recv(1, 9),
            Recv(1, 9),
            Error(1),
            Close(1),
        ],
    );
    compare("both close", &[Close(0), Close(1)]);
    compare(
        "unread data",
        &[
            Send(0, 4),
            Send(1, 6),
            Close(1),
            Recv(0, 3),
            Recv(0, 9),
            Recv(0, 9),
            Recv(0, 9),
            Send(0, 1),
        ],
    );
    compare(
        "unread data, writer first",
        &[
            Send(0, 4),
            Close(1),
            Send(0, 1),
            Send(0, 1),
            Recv(0, 1),
            Error(0),
        ],
    );
    compare(
        "linger 0",
        &[
            Send(1, 6),
            Reset(1),
            Recv(0, 3),
            Recv(0, 9),
            Recv(0, 9),
            ShutWrite(0),
            ShutBoth(0),
            Close(0),
        ],
    );
    compare(
        "linger 0, asked for its error",
        &[Reset(1), Error(0), Recv(0, 1), Send(0, 1), Recv(0, 1)],
    );
    compare(
        "linger 0, peeked",
        &[
            Send(1, 2),
            Reset(1),
            Peek(0, 9),
            Truncate(0, 9),
            Peek(0, 9),
            Peek(0, 9),
        ],
    );
    compare(
        "FIN, then reset",
        &[
            Send(1, 5),
            ShutWrite(1),
            Send(0, 4),
            Close(1),
            Recv(0, 9),
            Recv(0, 9),
            Send(0, 1),
            Send(0, 1),
            Recv(0, 1),
        ],
    );
    compare(
        "FIN, then reset, asked for its error",
        &[
            ShutWrite(1),
            Send(0, 4),
            Reset(1),
            Error(0),
            Send(0, 1),
            ShutWrite(0),
        ],
    );
    compare(
        "close while the peer has half closed",
        &[
            ShutWrite(0),
            Recv(1, 1),
            Send(1, 3),
            Close(1),
            Recv(0, 2),
            Recv(0, 9),
            Recv(0, 9),
            Error(0),
        ],
    );
}
