//! The driver against the real emulator process, over vfio-user, with forked and killed processes.
#![expect(unsafe_code, reason = "forks")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driver::opener::ChannelOpener;
use driver::spi::{FD_CONNECT, Link, MEM_READ, ServiceProvider, SpSocket, Verdict, Waiter};
use driver::sys::{self, Seen};
use driver::wsa::WsaError;
use nic_emu::control::client;
use nic_emu::server::{BacklogFull, ClusterConfig, Loopback, NodeSpec, Server};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use ring_proto::sync::Ordering;

use support::{Host, connect, eventually, ip, is_set, plain};

/// One test at a time: a fork in between would inherit the other's descriptors and hide its ends.
static ALONE: Mutex<()> = Mutex::new(());

/// Seconds after which a process of a test is killed.
const WATCHDOG: u32 = 60;

/// Forks a process that does `work` and exits: 0, or 1 when it panicked.
fn fork(work: impl FnOnce()) -> Pid {
    // SAFETY: the child uses only what glibc makes usable after fork: it allocates, makes threads of its own and ends by `_exit`.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            nix::unistd::alarm::set(WATCHDOG);
            let done = catch_unwind(AssertUnwindSafe(work));
            if let Err(panic) = &done {
                let text = panic
                    .downcast_ref::<String>()
                    .map_or("panic", String::as_str);
                // Not by `eprintln`, which the test harness captures in the copy of its parent.
                let _ =
                    nix::unistd::write(std::io::stderr(), format!("child: {text}\n").as_bytes());
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

/// A pipe through which one process tells another that it may go on, or a number.
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
        assert_eq!(
            sys::wait_readable(self.0.as_raw_fd(), WATCHDOG * 1000),
            Ok(Seen::Readable)
        );
        let mut value = [0; 8];
        assert_eq!(nix::unistd::read(&self.0, &mut value), Ok(8));
        u64::from_ne_bytes(value)
    }
}

/// The emulator in a process of its own, with nodes a and b.
struct Emulator {
    pid: Pid,
    dir: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = std::env::temp_dir().join(format!("driver-processes-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir(&dir).unwrap();
        let node = |k: u8, name: &str| NodeSpec {
            name: name.into(),
            addresses: vec![format!("{}/24", ip(k)).parse().unwrap()],
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
            nix::unistd::alarm::cancel();
            let server = Server::start(&config).unwrap();
            ready.pass(1);
            server.run().unwrap();
        });
        ready.wait();
        Self {
            pid,
            dir,
            _alone: alone,
        }
    }

    /// The provider of node `k`, in the process that asks.
    fn host(&self, k: u8) -> Host {
        let node = ["a", "b"][usize::from(k) - 1];
        let (_, channel) = client::channel(&self.dir.join("run/control.sock"), node).unwrap();
        let opener = ChannelOpener::new(channel.as_raw_fd()).unwrap();
        Host::new(Arc::new(opener), ip(k))
    }

    fn orphans(&self) -> u64 {
        let stat = client::stat(&self.dir.join("run/control.sock")).unwrap();
        stat.nodes.iter().map(|node| node.counters.orphans).sum()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if kill(self.pid, Signal::SIGKILL).is_ok() {
            let _ = waitpid(self.pid, None);
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// Forks a child that shares the sockets of `host`.
fn fork_sharing(host: &Host, work: impl FnOnce()) -> Pid {
    let sharing = host.start.sharing.as_ref().unwrap();
    sharing.before_fork().unwrap();
    let pid = fork(|| {
        sharing.after_fork_in_child();
        work();
    });
    sharing.after_fork_in_parent(true);
    pid
}

fn release(host: &Host, s: SpSocket) -> Result<bool, WsaError> {
    host.start.sharing.as_ref().unwrap().release(s)
}

/// Sends `text` and waits until it went.
fn say(host: &Host, s: SpSocket, text: &[u8]) {
    let slot = host.slot(s);
    host.send(s, &[plain(text)], slot).unwrap();
    let len = u32::try_from(text.len()).unwrap();
    assert_eq!(host.finished(s, slot).map(|done| done.bytes), Ok(len));
}

/// Receives one message.
fn hear(host: &Host, s: SpSocket) -> Result<Vec<u8>, WsaError> {
    let memory = host.memory(s, 4096);
    let slot = host.slot(s);
    host.recv(s, &[memory.buffer(0, 4096)], slot)?;
    let done = host.finished(s, slot)?;
    Ok(memory.read(0, usize::try_from(done.bytes).unwrap()))
}

#[test]
fn messages_cross_the_emulator_process() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        for round in 0..200_u8 {
            let memory = b.memory(at_b, 4096);
            let received = b.slot(at_b);
            b.recv(at_b, &[memory.buffer(0, 4096)], received).unwrap();
            say(&a, at_a, &[round; 100]);
            assert_eq!(b.finished(at_b, received).unwrap().bytes, 100);
            assert_eq!(memory.read(0, 100), [round; 100]);
        }
        assert_eq!(b.start.waiting.link(at_b), Link::Up);
    }));
}

#[test]
fn a_child_and_then_its_parent_use_an_inherited_connection() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        let child = fork_sharing(&a, || {
            say(&a, at_a, b"from the child");
            // New sockets of a child get a function of their own.
            let own = a.socket();
            assert_ne!(
                a.start.waiting.function_of(own),
                a.start.waiting.function_of(at_a)
            );
            assert_eq!(release(&a, at_a), Ok(true));
        });
        assert_eq!(hear(&b, at_b).unwrap(), b"from the child");
        join(child);
        let memory = b.memory(at_b, 4096);
        let received = b.slot(at_b);
        b.recv(at_b, &[memory.buffer(0, 4096)], received).unwrap();
        say(&a, at_a, b"from the parent");
        assert_eq!(b.finished(at_b, received).unwrap().bytes, 15);
        // Now the parent is the last holder.
        assert_eq!(release(&a, at_a), Ok(false));
        a.provider.wsp_close_socket(at_a).unwrap();
        eventually("the peer hears of the close", || {
            b.start.waiting.progress();
            b.start.waiting.link(at_b) == Link::Ended(WsaError::ConnReset)
        });
    }));
}

#[test]
fn a_child_goes_on_with_what_its_parent_gave_up_and_its_death_makes_an_orphan() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        let go = Baton::new();
        let child = fork_sharing(&a, || {
            go.wait();
            say(&a, at_a, b"the child alone");
            loop {
                nix::unistd::pause();
            }
        });
        assert_eq!(release(&a, at_a), Ok(true));
        go.pass(1);
        assert_eq!(hear(&b, at_b).unwrap(), b"the child alone");
        assert_eq!(b.start.waiting.link(at_b), Link::Up);
        assert_eq!(emulator.orphans(), 0);
        slay(child);
        eventually("the connection is an orphan", || {
            b.start.waiting.progress();
            b.start.waiting.link(at_b) == Link::Orphaned
        });
        b.provider.wsp_close_socket(at_b).unwrap();
        eventually("the orphan is gone", || emulator.orphans() == 0);
    }));
}

#[test]
fn a_killed_program_leaves_its_exposed_memory_to_its_peer() {
    let emulator = Emulator::start();
    let told = Baton::new();
    let b = emulator.host(2);
    let (listener, wakes) = b.listener(ip(2), 80, 5);
    let program = fork(|| {
        let a = emulator.host(1);
        let (s, ends) = a.connecting(4000, SocketAddrV4::new(ip(2), 80));
        assert_eq!(a.events(s, &ends).connect_error, None);
        let memory = a.memory(s, 65_536);
        memory.write(60_000, b"last words");
        let descriptor = a
            .provider
            .wsp_register_rdma_memory(s, memory.address, 65_536, MEM_READ);
        let descriptor = descriptor.unwrap();
        told.pass(descriptor.addr);
        told.pass(descriptor.rkey.into());
        loop {
            nix::unistd::pause();
        }
    });
    b.events(listener, &wakes);
    let s = b.accept(listener).unwrap().socket;
    let descriptor = driver::spi::RdmaDescriptor {
        addr: told.wait(),
        len: 65_536,
        rkey: u32::try_from(told.wait()).unwrap(),
        access: MEM_READ,
    };
    slay(program);
    eventually("the connection is an orphan", || {
        b.start.waiting.progress();
        b.start.waiting.link(s) == Link::Orphaned
    });
    let memory = b.memory(s, 100);
    let slot = b.slot(s);
    let places = [memory.buffer(0, 10)];
    b.provider
        .wsp_rdma_read(s, &places, &descriptor, 60_000, slot, false)
        .unwrap();
    assert_eq!(b.finished(s, slot).unwrap().bytes, 10);
    assert_eq!(memory.read(0, 10), b"last words");
}

#[test]
fn a_member_fetches_the_pair_arena_that_another_one_made() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, _at_b) = connect(&a, &b, 4000, 5000);
        let (ring, done) = (Baton::new(), Baton::new());
        let child = fork_sharing(&a, || {
            let offset = ring.wait();
            let address = a.start.memory.at(at_a, offset).unwrap();
            // SAFETY: the parent allocated 64 KiB there, and waits.
            unsafe { address.write_volatile(77) };
            done.pass(1);
            // And the other way round.
            let own = a.start.memory.alloc_ring(at_a, 65_536).unwrap();
            done.pass(own.offset);
            ring.wait();
        });
        let region = a.start.memory.alloc_ring(at_a, 65_536).unwrap();
        assert!(region.offset >= 1 << 30);
        ring.pass(region.offset);
        done.wait();
        let address = a.start.memory.at(at_a, region.offset).unwrap();
        // SAFETY: ours, and mapped.
        assert_eq!(unsafe { address.read_volatile() }, 77);
        let theirs = done.wait();
        assert_eq!(theirs >> 30, region.offset >> 30);
        assert!(theirs.abs_diff(region.offset) >= 65_536);
        ring.pass(0);
        join(child);
    }));
}

#[test]
fn a_member_takes_what_another_one_accepted() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (listener, wakes) = b.listener(ip(2), 80, 5);
        let accepted = Baton::new();
        let worker = fork_sharing(&b, || {
            let s = SpSocket(accepted.wait());
            b.start
                .sharing
                .as_ref()
                .unwrap()
                .take_from_listener(s, listener)
                .unwrap();
            say(&b, s, b"served by the worker");
            b.provider.wsp_close_socket(s).unwrap();
        });
        let (active, ends) = a.connecting(4000, SocketAddrV4::new(ip(2), 80));
        b.events(listener, &wakes);
        let taken = b
            .provider
            .wsp_accept(listener, &mut |_| Verdict::Accept)
            .unwrap();
        assert_eq!(a.events(active, &ends).events, FD_CONNECT);
        accepted.pass(taken.socket.0);
        assert_eq!(hear(&a, active).unwrap(), b"served by the worker");
        join(worker);
        assert_eq!(
            b.provider.wsp_close_socket(taken.socket),
            Err(WsaError::NotSock)
        );
        b.provider.wsp_close_socket(listener).unwrap();
    }));
}

#[test]
fn members_wait_with_vectors_of_their_own() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        let memory = b.memory(at_b, 4096);
        let slot = b.slot(at_b);
        b.recv(at_b, &[memory.buffer(0, 4096)], slot).unwrap();
        let armed = Baton::new();
        let sleep = |waiter: Waiter| {
            let seen = sys::wait_readable(waiter.fd, WATCHDOG * 1000);
            assert_eq!(seen, Ok(Seen::Readable));
        };
        let acquire = || {
            let function = b.start.waiting.function_of(at_b).unwrap();
            let waiter = b.start.waiting.acquire(function).unwrap();
            b.start.waiting.arm(at_b, waiter).unwrap();
            assert_eq!(b.result(at_b, slot), Err(WsaError::IoIncomplete));
            waiter
        };
        let child = fork_sharing(&b, || {
            let waiter = acquire();
            armed.pass(waiter.vector.into());
            sleep(waiter);
            assert_eq!(b.finished(at_b, slot).unwrap().bytes, 5);
        });
        let waiter = acquire();
        assert_ne!(armed.wait(), u64::from(waiter.vector));
        say(&a, at_a, b"wake!");
        sleep(waiter);
        assert_eq!(b.finished(at_b, slot).unwrap().bytes, 5);
        join(child);
    }));
}

#[test]
fn a_member_killed_at_any_point_stops_nobody() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        let memory = b.memory(at_b, 4096);
        let mut at_large = 0_u32;
        for round in 0..40_u32 {
            let begun = Baton::new();
            // It works on everything that is shared: heap, admin queue, vectors, send queue, completion queue.
            let child = fork_sharing(&a, || {
                begun.pass(1);
                loop {
                    let region = a.start.memory.alloc(at_a, 4096).unwrap();
                    let address = a.start.memory.at(at_a, region.offset).unwrap();
                    if let Ok(descriptor) = a
                        .provider
                        .wsp_register_rdma_memory(at_a, address, 4096, MEM_READ)
                    {
                        a.provider
                            .wsp_deregister_rdma_memory(at_a, &descriptor)
                            .unwrap();
                    }
                    a.start.memory.free(at_a, region);
                    let function = a.start.waiting.function_of(at_a).unwrap();
                    let waiter = a.start.waiting.acquire(function).unwrap();
                    a.start.waiting.release(waiter);
                    let slot = a.slot(at_a);
                    if a.send(at_a, &[plain(b"child")], slot).is_ok() {
                        let _ = a.result(at_a, slot);
                    }
                }
            });
            begun.wait();
            // Drain what it sends, so that it moves on through all of its steps.
            for _ in 0..(round % 40) * 5 {
                let slot = b.slot(at_b);
                b.recv(at_b, &[memory.buffer(0, 100)], slot).unwrap();
                b.finished(at_b, slot).unwrap();
            }
            slay(child);
            // Everything still works here.
            let region = a.start.memory.alloc(at_a, 4096).unwrap();
            a.start.memory.free(at_a, region);
            let slot = a.slot(at_a);
            eventually("there is room to send", || {
                match a.send(at_a, &[plain(b"parent")], slot) {
                    Ok(()) => true,
                    Err(code) => {
                        assert_eq!(code, WsaError::NoBufs);
                        let slot = b.slot(at_b);
                        b.recv(at_b, &[memory.buffer(0, 100)], slot).unwrap();
                        b.finished(at_b, slot).unwrap();
                        false
                    }
                }
            });
            loop {
                let received = b.slot(at_b);
                b.recv(at_b, &[memory.buffer(0, 100)], received).unwrap();
                let bytes = b.finished(at_b, received).unwrap().bytes;
                at_large += 1;
                if bytes == 6 {
                    break;
                }
            }
            assert_eq!(a.finished(at_a, slot).unwrap().bytes, 6);
        }
        assert!(at_large >= 40);
    }));
}

#[test]
fn the_death_of_the_emulator_ends_everything_and_hangs_nothing() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (at_a, at_b) = connect(&a, &b, 4000, 5000);
        let memory = b.memory(at_b, 100);
        let pending = b.slot(at_b);
        b.recv(at_b, &[memory.buffer(0, 100)], pending).unwrap();
        let (_listener, _wakes) = b.listener(ip(2), 81, 1);
        let (waiting, ends) = a.connecting(4001, SocketAddrV4::new(ip(2), 81));
        let function = b.start.waiting.function_of(at_b).unwrap();
        let waiter = b.start.waiting.acquire(function).unwrap();
        b.start.waiting.arm(at_b, waiter).unwrap();
        kill(emulator.pid, Signal::SIGKILL).unwrap();
        for (_, hangup) in b.start.waiting.functions() {
            eventually("the hang-up shows", || {
                sys::wait_readable(hangup.unwrap(), 1000) == Ok(Seen::HungUp)
            });
        }
        b.start.waiting.check(function);
        assert_eq!(b.start.waiting.arm(at_b, waiter), Err(WsaError::NetDown));
        assert_eq!(
            b.start.waiting.link(at_b),
            Link::Ended(WsaError::ConnAborted)
        );
        assert_eq!(b.result(at_b, pending), Err(WsaError::ConnAborted));
        assert_eq!(
            pending.error.load(Ordering::Relaxed),
            WsaError::ConnAborted.code()
        );
        // A pending connect ends with a code that falls back.
        eventually("the connect ends", || {
            let function = a.start.waiting.function_of(at_a).unwrap();
            let _ = a.start.waiting.acquire(function);
            a.start.waiting.progress();
            is_set(&ends)
        });
        let ended = a.provider.wsp_enum_network_events(waiting, None).unwrap();
        assert_eq!(ended.connect_error, Some(WsaError::TimedOut));
        assert_eq!(a.try_socket(), Err(WsaError::NetDown));
        let slot = a.slot(at_a);
        assert!(a.send(at_a, &[plain(b"x")], slot).is_err());
        for (host, s) in [(&a, at_a), (&a, waiting), (&b, at_b)] {
            assert_eq!(host.provider.wsp_close_socket(s), Ok(()));
        }
    }));
}

#[test]
fn a_fork_that_fails_takes_its_holds_back() {
    let emulator = Emulator::start();
    let b = emulator.host(2);
    let (listener, wakes) = b.listener(ip(2), 80, 5);
    let program = fork(|| {
        let a = emulator.host(1);
        let (s, ends) = a.connecting(4000, SocketAddrV4::new(ip(2), 80));
        assert_eq!(a.events(s, &ends).connect_error, None);
        let sharing = a.start.sharing.as_ref().unwrap();
        sharing.before_fork().unwrap();
        sharing.after_fork_in_parent(false);
    });
    b.events(listener, &wakes);
    let s = b.accept(listener).unwrap().socket;
    join(program);
    // A hold of the child that was never born would keep the connection up.
    eventually("nobody holds the connection", || {
        b.start.waiting.progress();
        b.start.waiting.link(s) == Link::Orphaned
    });
}

#[test]
fn a_process_has_a_number_that_dies_with_it() {
    let emulator = Emulator::start();
    join(fork(|| {
        let a = emulator.host(1);
        let sharing = a.start.sharing.as_ref().unwrap();
        let before = sharing.self_id();
        assert!(before != 0 && sharing.is_alive(before));
        a.socket();
        let own = sharing.self_id();
        assert!(own != 0 && sharing.is_alive(own));
        let told = Baton::new();
        let child = fork_sharing(&a, || {
            let mine = sharing.self_id();
            assert!(mine != own && sharing.is_alive(mine) && sharing.is_alive(own));
            told.pass(mine);
            loop {
                nix::unistd::pause();
            }
        });
        let theirs = told.wait();
        assert!(sharing.is_alive(theirs));
        slay(child);
        eventually("the number is dead", || !sharing.is_alive(theirs));
        assert!(sharing.is_alive(own));
    }));
}

#[test]
fn memory_of_killed_members_comes_back() {
    let emulator = Emulator::start();
    join(fork(|| {
        let (a, b) = (emulator.host(1), emulator.host(2));
        let (listener, wakes) = b.listener(ip(2), 80, 5);
        let waiting = &a.start.waiting;
        for round in 0..12_u16 {
            let (active, ends) = a.connecting(4000 + round, SocketAddrV4::new(ip(2), 80));
            b.events(listener, &wakes);
            let taken = b
                .provider
                .wsp_accept(listener, &mut |_| Verdict::Accept)
                .unwrap();
            assert_eq!(a.events(active, &ends).connect_error, None);
            let took = Baton::new();
            let worker = fork_sharing(&b, || {
                let sharing = b.start.sharing.as_ref().unwrap();
                sharing.take_from_listener(taken.socket, listener).unwrap();
                // The arena holds four of these.
                assert!(b.start.memory.alloc(taken.socket, 200 << 20).is_some());
                assert!(b.start.memory.alloc_ring(taken.socket, 200 << 20).is_some());
                took.pass(1);
                loop {
                    nix::unistd::pause();
                }
            });
            took.wait();
            slay(worker);
            eventually("the connection is an orphan", || {
                waiting.progress();
                waiting.link(active) == Link::Orphaned
            });
            a.provider.wsp_close_socket(active).unwrap();
        }
    }));
}
