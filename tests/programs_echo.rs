//! An echo server of `std::net` with edge-triggered epoll, and a client with 200 connections to it at once; 2,000 with `SANLAB_LONG=1`.
//!
//! Place: this test binary plays both programs, started again on the nodes. Invariants: every connection is open while all are used; every
//! answer is checked; both ends are woken by edges alone, so one that is lost is a hang.

mod harness;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use harness::{Cluster, Lab, Road, programs};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const ROUNDS: usize = 3;
const PORT: u16 = 7300;
/// Which program this process is; unset in the test itself.
const ROLE: &str = "ECHO_ROLE";
const LISTENER: u64 = u64::MAX;
/// Thousands of connects take minutes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// Connections at once; both programs inherit what decides it.
fn connections() -> usize {
    let is_long = std::env::var_os("SANLAB_LONG").is_some();
    if is_long { 2000 } else { 200 }
}

#[test]
fn many_connections_at_once_are_served_by_edges() {
    match std::env::var(ROLE).as_deref() {
        Ok("server") => return serve(),
        Ok(address) => return ask(address),
        Err(_) => {}
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    if hard < connections() as u64 + 100 {
        programs::skip(format_args!("{hard} descriptors are too few"));
        return;
    }
    for road in Road::BOTH {
        let lab = Lab::patient("many_connections_at_once_are_served_by_edges", PATIENCE);
        let cluster = lab.up_on(road);
        let mut server = lab.spawn("server", role(&cluster, "a", "server"));
        cluster.wait_listening("a", PORT);
        let address = format!("{}:{PORT}", cluster.address("a"));
        lab.spawn("client", role(&cluster, "b", &address)).succeed();
        assert!(server.wait().success(), "{}", server.stderr());
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
        if road == Road::San {
            assert_eq!(
                cluster.total("b", "san_connections"),
                connections() as u64,
                "{:#}",
                cluster.stat()
            );
        }
    }
}

/// This test, as one of its programs on a node.
fn role(cluster: &Cluster<'_>, node: &str, role: &str) -> Command {
    let this = std::env::current_exe().expect("a test has a path");
    let mut command = cluster.run(node, [this]);
    command
        .args(["--exact", "many_connections_at_once_are_served_by_edges"])
        .arg("--nocapture")
        .env(ROLE, role);
    command
}

fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit");
}

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
fn serve() {
    raise_limit();
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
fn ask(address: &str) {
    raise_limit();
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
        let question = |at: usize| format!("connection {at:4} in round {round}").into_bytes();
        for (at, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&question(at)).expect("room");
        }
        let mut answers = vec![Vec::new(); connections()];
        let mut left = connections();
        while left > 0 {
            for at in wait(&epoll) {
                let mut bytes = [0; 64];
                while let Some(len) = now(streams[at].read(&mut bytes)) {
                    assert!(len > 0, "connection {at} ended");
                    answers[at].extend_from_slice(&bytes[..len]);
                    if answers[at].len() == question(at).len() {
                        assert_eq!(answers[at], question(at));
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
