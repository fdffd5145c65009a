//! The session between processes, over the emulator as a process: shared by forks, killed in the middle, blocked in real waits.
//!
//! Place: {san}; what the unit suites show with a double of the SPI holds here with SIGKILL.
#![expect(unsafe_code, reason = "forks")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driver::opener::ChannelOpener;
use driver::provider::{SanConfig, SanProvider};
use driver::spi::{FD_ACCEPT, FD_CONNECT, SpSocket, Verdict, Waiter};
use driver::sys;
use driver::wsa::WsaError;
use nic_emu::control::client;
use nic_emu::server::{BacklogFull, ClusterConfig, Loopback, NodeSpec, Server};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use switch::session::{CloseStep, Conn, ConnOptions, How, Phase, Role};
use switch::{Errno, Provider, ProviderRef};

/// One test at a time: a fork in between would inherit the other's descriptors and hide its ends.
static ALONE: Mutex<()> = Mutex::new(());
/// Seconds after which a process of a test is killed.
const WATCHDOG: u32 = 90;
const PORT: u16 = 5000;

fn address(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, 0, k)
}

/// Forks a process that does `work` and exits: 0, or 1 when it panicked.
fn fork(work: impl FnOnce()) -> Pid {
    // SAFETY: the child uses only what glibc makes usable after fork: it allocates and ends by `_exit`.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            nix::unistd::alarm::set(WATCHDOG);
            let done = catch_unwind(AssertUnwindSafe(work));
            if let Err(panic) = &done {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("panic");
                // Not by `eprintln`, which the test harness captures in the copy of its parent.
                let text = format!("child: {text}\n");
                let _written = nix::unistd::write(std::io::stderr(), text.as_bytes());
            }
            // SAFETY: ends the process without running what belongs to its parent.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
    }
}

fn join(pid: Pid) {
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
}

fn slay(pid: Pid) {
    kill(pid, Signal::SIGKILL).unwrap();
    assert!(matches!(
        waitpid(pid, None).unwrap(),
        WaitStatus::Signaled(..)
    ));
}

/// A pipe by which one process tells another a number.
struct Baton(OwnedFd, OwnedFd);

impl Baton {
    fn new() -> Self {
        let (read, write) = nix::unistd::pipe().unwrap();
        Self(read, write)
    }

    fn pass(&self, value: u64) {
        assert_eq!(nix::unistd::write(&self.1, &value.to_ne_bytes()), Ok(8));
    }

    fn wait(&self) -> u64 {
        let mut value = [0; 8];
        // The process's own alarm ends a wait in vain.
        assert_eq!(nix::unistd::read(&self.0, &mut value), Ok(8));
        u64::from_ne_bytes(value)
    }
}

/// The emulator in a process of its own, with two nodes.
struct Emulator {
    pid: Option<Pid>,
    dir: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = std::env::temp_dir().join(format!("session-processes-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir(&dir).unwrap();
        let node = |k: u8, name: &str| NodeSpec {
            name: name.into(),
            addresses: vec![format!("{}/24", address(k)).parse().unwrap()],
            limits: nic_emu::device::Limits::default(),
        };
        let config = ClusterConfig {
            name: "test".into(),
            dir: dir.join("run"),
            nodes: vec![node(1, "a"), node(2, "b")],
            subnet: Some(0),
            wildcard_on_san: true,
            backlog_full: BacklogFull::Hold,
            san_connect_limit_ms: None,
            loopback: Loopback::Tcp,
            debug: nic_emu::server::DebugConfig::default(),
            lab: nic_emu::server::LabConfig::default(),
        };
        let ready = Baton::new();
        let pid = fork(|| {
            nix::unistd::alarm::set(4 * WATCHDOG);
            let server = Server::start(&config).unwrap();
            ready.pass(1);
            server.run().unwrap();
        });
        ready.wait();
        Self {
            pid: Some(pid),
            dir,
            _alone: alone,
        }
    }

    /// The provider of node `k`, in the process that asks.
    fn provider(&self, k: u8) -> ProviderRef {
        let node = ["a", "b"][usize::from(k) - 1];
        let (_, channel) = client::channel(&self.dir.join("run/control.sock"), node).unwrap();
        let opener = ChannelOpener::new(channel.as_raw_fd()).unwrap();
        let config = SanConfig {
            addresses: vec![address(k)],
            ..SanConfig::default()
        };
        let provider = SanProvider::new(Arc::new(opener), config);
        Provider::start(u32::from(k), Arc::new(provider), Box::new(|| {})).unwrap()
    }

    /// Connects from node a, once node b listens.
    fn connect(&self, listening: &Baton) -> Arc<Conn> {
        let provider = self.provider(1);
        listening.wait();
        let s = bound(&provider, 1, 0x4000);
        let event = sys::eventfd().unwrap();
        let sp = &provider.sp;
        sp.wsp_event_select(s, Some(event.raw()), FD_CONNECT)
            .unwrap();
        assert_eq!(
            sp.wsp_connect(s, SocketAddrV4::new(address(2), PORT)),
            Err(WsaError::WouldBlock)
        );
        loop {
            provider.waiting.progress();
            let events = sp.wsp_enum_network_events(s, Some(event.raw())).unwrap();
            if events.events & FD_CONNECT != 0 {
                assert_eq!(events.connect_error, None);
                break;
            }
            std::thread::yield_now();
        }
        establish(Conn::start(Role::Active, provider, s, ConnOptions::default()).unwrap())
    }

    /// Accepts one connection on node b.
    fn accept(&self, listening: &Baton) -> Arc<Conn> {
        let provider = self.provider(2);
        let listener = bound(&provider, 2, PORT);
        let event = sys::eventfd().unwrap();
        let sp = &provider.sp;
        sp.wsp_listen(listener, 5).unwrap();
        sp.wsp_event_select(listener, Some(event.raw()), FD_ACCEPT)
            .unwrap();
        listening.pass(1);
        let s = loop {
            provider.waiting.progress();
            match sp.wsp_accept(listener, &mut |_| Verdict::Accept) {
                Ok(accepted) => break accepted.socket,
                Err(WsaError::WouldBlock) => std::thread::yield_now(),
                Err(error) => panic!("accept: {error}"),
            }
        };
        let sharing = provider.sharing.as_ref().unwrap();
        sharing.take_from_listener(s, listener).unwrap();
        sp.wsp_close_socket(listener).unwrap();
        establish(Conn::start(Role::Passive, provider, s, ConnOptions::default()).unwrap())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            slay(pid);
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn bound(provider: &ProviderRef, k: u8, port: u16) -> SpSocket {
    let s = provider.socket().unwrap();
    provider
        .sp
        .wsp_bind(s, SocketAddrV4::new(address(k), port))
        .unwrap();
    s
}

fn establish(conn: Conn) -> Arc<Conn> {
    let conn = Arc::new(conn);
    while conn.phase() == Phase::Negotiating {
        conn.progress();
        std::thread::yield_now();
    }
    assert_eq!(conn.phase(), Phase::Established);
    conn
}

/// A process's way of sleeping on a connection: armed vectors, the events of the function, and its hang-up.
struct Sleeper<'a> {
    conn: &'a Conn,
    waiter: Waiter,
}

impl<'a> Sleeper<'a> {
    fn new(conn: &'a Conn) -> Self {
        let waiting = &conn.provider().waiting;
        let function = waiting.function_of(conn.sp()).unwrap();
        Self {
            conn,
            waiter: waiting.acquire(function).unwrap(),
        }
    }

    /// Repeats `call` until it answers something else than EAGAIN, sleeping in between.
    fn until<T>(&self, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        let waiting = &self.conn.provider().waiting;
        loop {
            match call() {
                Err(libc::EAGAIN) => {}
                answer => return answer,
            }
            waiting.drain(self.waiter);
            // A dead device refuses; progress then says how the connection ended.
            let armed =
                self.conn.arm(self.waiter).is_ok() && waiting.arm_events(self.waiter).is_ok();
            self.conn.progress();
            match call() {
                Err(libc::EAGAIN) => {}
                answer => return answer,
            }
            if armed {
                self.sleep();
            }
        }
    }

    fn sleep(&self) {
        let mut fds = vec![libc::pollfd {
            fd: self.waiter.fd,
            events: libc::POLLIN,
            revents: 0,
        }];
        let waiting = &self.conn.provider().waiting;
        let functions = waiting.functions();
        for &(_, hangup) in &functions {
            fds.push(libc::pollfd {
                fd: hangup.unwrap_or(-1),
                events: 0,
                revents: 0,
            });
        }
        let count = libc::nfds_t::try_from(fds.len()).unwrap();
        // SAFETY: as many entries as said.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, -1) };
        assert!(ready > 0);
        for ((function, _), polled) in functions.iter().zip(&fds[1..]) {
            if polled.revents != 0 {
                waiting.check(*function);
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let iov = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        self.until(|| self.conn.send(&[iov], 0))
    }

    fn recv(&self, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        let iov = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: len,
        };
        let n = self.until(|| self.conn.recv(&[iov], 0))?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Sends stream bytes up to offset `end`, wherever the stream stands.
    fn send_to(&self, end: u64) {
        loop {
            let at = self.conn.counters().0;
            if at >= end {
                return;
            }
            let n = usize::try_from((end - at).min(23_456)).unwrap();
            self.send(&pattern(at, n)).unwrap();
        }
    }

    /// Reads and checks stream bytes up to offset `end`.
    fn read_to(&self, end: u64) {
        loop {
            let at = self.conn.counters().1;
            if at >= end {
                return;
            }
            let n = usize::try_from((end - at).min(34_567)).unwrap();
            let bytes = self.recv(n).unwrap();
            assert!(!bytes.is_empty(), "end of stream at {at}");
            assert!(bytes == pattern(at, bytes.len()), "wrong bytes at {at}");
        }
    }

    /// Reads and checks until the stream or the connection ends: the offset, and the errno or 0.
    fn read_to_end(&self) -> (u64, Errno) {
        loop {
            let at = self.conn.counters().1;
            match self.recv(50_000) {
                Ok(bytes) if bytes.is_empty() => return (at, 0),
                Ok(bytes) => assert!(bytes == pattern(at, bytes.len()), "wrong bytes at {at}"),
                Err(errno) => return (at, errno),
            }
        }
    }

    /// Sleeps until the connection has failed.
    fn until_ended(&self) {
        self.until(|| match self.conn.phase() {
            Phase::Failed(_) => Ok(()),
            _ => Err(libc::EAGAIN),
        })
        .unwrap();
    }

    /// Lets everything that was accepted go out.
    fn flush(&self) {
        self.until(|| {
            self.conn.progress();
            if self.conn.wants_service() && self.conn.phase() == Phase::Established {
                Err(libc::EAGAIN)
            } else {
                Ok(())
            }
        })
        .unwrap();
    }
}

fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|i| (i ^ i >> 7 ^ i >> 15).to_le_bytes()[0])
        .collect()
}

/// Forks a child that shares the sockets of `conn`'s provider.
fn fork_sharing(conn: &Conn, work: impl FnOnce()) -> Pid {
    let sharing = conn.provider().sharing.as_ref().unwrap();
    sharing.before_fork().unwrap();
    let pid = fork(|| {
        sharing.after_fork_in_child();
        conn.after_fork_in_child();
        work();
    });
    sharing.after_fork_in_parent(true);
    pid
}

/// Spins for a while that differs from round to round: a kill then meets another instruction each time.
fn some_time(round: u64) {
    let spins = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
    for _ in 0..spins {
        std::hint::black_box(spins);
    }
    for _ in 0..round % 5 {
        std::thread::yield_now();
    }
}

#[test]
fn r140_blocking_programs_that_both_send_first_go_on() {
    const LEN: u64 = 1 << 20;
    let emulator = Emulator::start();
    let listening = Baton::new();
    let server = fork(|| {
        let conn = emulator.accept(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.send_to(LEN);
        sleeper.read_to(LEN);
        sleeper.flush();
        assert_eq!(conn.shutdown(How::Write), Ok(()));
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.send_to(LEN);
        sleeper.read_to(LEN);
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
        assert_eq!(conn.shutdown(How::Write), Ok(()));
        sleeper.flush();
    });
    join(server);
    join(client);
}

#[test]
fn r199_parent_and_child_go_on_with_one_connection() {
    const PART: u64 = 300_000;
    let emulator = Emulator::start();
    let listening = Baton::new();
    let server = fork(|| {
        let conn = emulator.accept(&listening);
        // The child takes the first part and answers, then closes its share; the parent goes on.
        let child = fork_sharing(&conn, || {
            let sleeper = Sleeper::new(&conn);
            sleeper.read_to(PART);
            sleeper.send_to(PART);
            assert_eq!(conn.close(None), CloseStep::Closed);
        });
        join(child);
        let sleeper = Sleeper::new(&conn);
        sleeper.read_to(2 * PART);
        sleeper.send_to(2 * PART);
        // Now the parent closes, and the child is the last.
        let go = Baton::new();
        let child = fork_sharing(&conn, || {
            go.wait();
            let sleeper = Sleeper::new(&conn);
            sleeper.read_to(3 * PART);
            sleeper.send_to(3 * PART);
            conn.shutdown(How::Write).unwrap();
            assert_eq!(sleeper.recv(1), Ok(Vec::new()));
            sleeper.flush();
        });
        assert_eq!(conn.close(None), CloseStep::Closed);
        go.pass(1);
        join(child);
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        for part in 1..=3 {
            sleeper.send_to(part * PART);
            sleeper.read_to(part * PART);
        }
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
        conn.shutdown(How::Write).unwrap();
        sleeper.flush();
    });
    join(server);
    join(client);
}

#[test]
fn r201_senders_killed_one_after_another_leave_one_stream() {
    let emulator = Emulator::start();
    let listening = Baton::new();
    let total = Baton::new();
    let server = fork(|| {
        let conn = emulator.accept(&listening);
        for round in 0..60 {
            let running = Baton::new();
            let child = fork_sharing(&conn, || {
                let sleeper = Sleeper::new(&conn);
                running.pass(1);
                let mut size = round * 7919;
                loop {
                    size = (size * 31 + 7) % 40_000;
                    sleeper.send_to(conn.counters().0 + 1 + size);
                }
            });
            running.wait();
            some_time(round);
            slay(child);
        }
        let sleeper = Sleeper::new(&conn);
        sleeper.send_to(conn.counters().0 + 100_000);
        conn.shutdown(How::Write).unwrap();
        sleeper.flush();
        total.pass(conn.counters().0);
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        assert_eq!(sleeper.read_to_end(), (total.wait(), 0));
        conn.shutdown(How::Write).unwrap();
        sleeper.flush();
    });
    join(server);
    join(client);
}

#[test]
fn r201_receivers_killed_one_after_another_miss_nothing() {
    let emulator = Emulator::start();
    let listening = Baton::new();
    let total = Baton::new();
    let server = fork(|| {
        let conn = emulator.accept(&listening);
        for round in 0..60 {
            let running = Baton::new();
            let child = fork_sharing(&conn, || {
                let sleeper = Sleeper::new(&conn);
                running.pass(1);
                sleeper.read_to(u64::MAX);
            });
            running.wait();
            some_time(round);
            slay(child);
        }
        // The end of our direction tells the sender to come to its own.
        conn.shutdown(How::Write).unwrap();
        let sleeper = Sleeper::new(&conn);
        assert_eq!(sleeper.read_to_end(), (total.wait(), 0));
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        while conn.recv(&[], 0) == Err(libc::EAGAIN) {
            sleeper.send_to(conn.counters().0 + 100_000);
        }
        total.pass(conn.counters().0);
        conn.shutdown(How::Write).unwrap();
        sleeper.flush();
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
    });
    join(server);
    join(client);
}

#[test]
fn r216_program_killed_with_a_full_ring_loses_nothing() {
    const LEN: u64 = 1_100_000;
    let emulator = Emulator::start();
    let listening = Baton::new();
    let (accepted, read) = (Baton::new(), Baton::new());
    let writer = fork(|| {
        let conn = emulator.accept(&listening);
        Sleeper::new(&conn).send_to(LEN);
        accepted.pass(1);
        loop {
            nix::unistd::pause();
        }
    });
    let reader = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.read_to(100_000);
        read.pass(1);
        assert_eq!(sleeper.read_to_end(), (LEN, 0));
        assert_eq!(conn.close(None), CloseStep::Closed);
    });
    accepted.wait();
    read.wait();
    slay(writer);
    join(reader);
}

#[test]
fn program_killed_while_its_peer_sleeps_wakes_it_with_the_right_end() {
    let emulator = Emulator::start();
    let listening = Baton::new();
    let ready = Baton::new();
    let victim = fork(|| {
        let conn = emulator.accept(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.read_to(10);
        ready.pass(1);
        loop {
            nix::unistd::pause();
        }
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.send_to(10);
        assert_eq!(sleeper.read_to_end(), (0, 0));
        assert_eq!(sleeper.send(b"x"), Err(libc::EPIPE));
    });
    ready.wait();
    slay(victim);
    join(client);
}

#[test]
fn shutdown_by_another_thread_wakes_a_sleeping_reader() {
    let emulator = Emulator::start();
    let listening = Baton::new();
    let server = fork(|| {
        let conn = emulator.accept(&listening);
        let about_to_sleep = Baton::new();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let sleeper = Sleeper::new(&conn);
                about_to_sleep.pass(1);
                sleeper.recv(1)
            });
            about_to_sleep.wait();
            // Before, during or after its sleep: the end is the same.
            some_time(3);
            conn.shutdown(How::Both).unwrap();
            assert_eq!(reader.join().unwrap(), Ok(Vec::new()));
        });
        Sleeper::new(&conn).flush();
    });
    let client = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
    });
    join(server);
    join(client);
}

#[test]
fn r195_emulator_killed_ends_blocked_calls_with_econnreset() {
    let mut emulator = Emulator::start();
    let listening = Baton::new();
    let (read, filled) = (Baton::new(), Baton::new());
    let reader = fork(|| {
        let conn = emulator.accept(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.read_to(1000);
        sleeper.send_to(1000);
        sleeper.flush();
        read.pass(1);
        // Takes nothing: the peer's ring fills. What is here at the emulator's end is still delivered, then comes the reset.
        sleeper.until_ended();
        let (at, errno) = sleeper.read_to_end();
        assert!(at >= 1000);
        assert_eq!(errno, libc::ECONNRESET);
        assert_eq!(sleeper.recv(1), Ok(Vec::new()));
        assert_eq!(conn.close(None), CloseStep::Closed);
    });
    let writer = fork(|| {
        let conn = emulator.connect(&listening);
        let sleeper = Sleeper::new(&conn);
        sleeper.send_to(1000);
        sleeper.read_to(1000);
        // Until the ring is full and the call sleeps.
        let error = loop {
            let at = conn.counters().0;
            match sleeper.send(&pattern(at, 100_000)) {
                Ok(_) => {}
                Err(error) => break error,
            }
            if conn.unsent_bytes() > 1_000_000 {
                filled.pass(1);
            }
        };
        assert_eq!(error, libc::ECONNRESET);
        assert_eq!(sleeper.send(b"x"), Err(libc::EPIPE));
    });
    read.wait();
    filled.wait();
    slay(emulator.pid.take().unwrap());
    join(reader);
    join(writer);
}
