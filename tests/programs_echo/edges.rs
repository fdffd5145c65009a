//! An echo server and its client of `std::net`, woken by edges alone: one that is lost is a hang.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{PORT, ROUNDS, connections, question};

const LISTENER: u64 = u64::MAX;

fn add(epoll: &Epoll, what: impl std::os::fd::AsFd, data: u64) {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    epoll
        .add(what, EpollEvent::new(flags, data))
        .expect("added");
}

/// Data of the events that come next.
fn wait(epoll: &Epoll) -> Vec<usize> {
    let mut events = [EpollEvent::empty(); 64];
    let count = epoll.wait(&mut events, EpollTimeout::NONE).expect("events");
    events[..count]
        .iter()
        .map(|event| usize::try_from(event.data()).expect("a number"))
        .collect()
}

/// Echoes until all connections have come and gone.
pub(super) fn serve() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("bound");
    listener.set_nonblocking(true).expect("set");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    add(&epoll, listener.as_fd(), LISTENER);
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut ended = 0;
    while ended < connections() {
        for at in wait(&epoll) {
            if at == usize::MAX {
                while let Some((stream, _)) = now(listener.accept()) {
                    stream.set_nonblocking(true).expect("set");
                    add(&epoll, stream.as_fd(), streams.len() as u64);
                    streams.push(Some(stream));
                }
            } else if let Some(stream) = &mut streams[at]
                && !echo(stream)
            {
                streams[at] = None;
                ended += 1;
            }
        }
    }
}

/// Echoes what is there; false at the end of the stream.
fn echo(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match now(stream.read(&mut bytes)) {
            None => return true,
            Some(0) => return false,
            // Answers are short: there is room for all of them.
            Some(len) => stream.write_all(&bytes[..len]).expect("room"),
        }
    }
}

/// Opens all connections, then asks on each of them, several times.
pub(super) fn ask(address: &str) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    let mut streams: Vec<TcpStream> = (0..connections())
        .map(|at| {
            let stream = TcpStream::connect(address).expect("connected");
            stream.set_nonblocking(true).expect("set");
            add(&epoll, stream.as_fd(), at as u64);
            stream
        })
        .collect();
    for round in 0..ROUNDS {
        for (at, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&question(at, round)).expect("room");
        }
        let mut answers = vec![Vec::new(); connections()];
        let mut left = connections();
        while left > 0 {
            for at in wait(&epoll) {
                let mut bytes = [0; 64];
                while let Some(len) = now(streams[at].read(&mut bytes)) {
                    assert!(len > 0, "connection {at} ended");
                    answers[at].extend_from_slice(&bytes[..len]);
                    if answers[at].len() == question(at, round).len() {
                        assert_eq!(answers[at], question(at, round));
                        left -= 1;
                    }
                }
            }
        }
    }
}

/// What can be had without waiting.
fn now<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
