//! Connections over the real provider and the real device, both embedded: two switches on two nodes of one process.

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use driver::opener::{Holding, Opener};
use driver::provider::{SanConfig, SanProvider};
use driver::spi::{ServiceProvider, options};
use driver::sys::{self, Fd};
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::NodeId;
use ring_proto::sync::{AtomicU32, Ordering};
use ring_proto::telemetry::Reason;
use switch::config::{NodeConfig, ProviderEntry};
use switch::mock::{Log, MockHost, MockTcp};
use switch::{Accepted, ConnectStep, Host, Installed, Stage, Switch, SwitchSocket};

const A: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 2);

#[derive(Debug)]
struct EmbeddedOpener {
    device: EmbeddedDevice,
    node: NodeId,
}

impl Opener for EmbeddedOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        let function = self.device.attach(self.node);
        Ok(Arc::new(function.map_err(|e| AttachError::Refused {
            what: "attach",
            errno: e.errno(),
        })?))
    }

    fn hold(&self, holding: Holding) -> Result<(), AttachError> {
        self.device
            .with(|d| d.hold_process(holding.function, holding.slot, holding.generation))
            .map_err(|e| AttachError::Refused {
                what: "hold",
                errno: e.errno(),
            })
    }

    fn before_fork(&self, _holdings: &[Holding]) -> Result<(), AttachError> {
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    fn after_fork_in_child(&self) {}
}

struct Node {
    switch: Switch,
    tcp: Arc<MockTcp>,
    san: Arc<SanProvider>,
    log: Arc<Log>,
    address: Ipv4Addr,
}

struct Cluster {
    device: EmbeddedDevice,
}

impl Cluster {
    fn new() -> Self {
        let device = EmbeddedDevice::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        Self { device }
    }

    fn node(&self, address: Ipv4Addr) -> Node {
        let log = Log::new();
        let host = MockHost::new(&log);
        self.node_with(address, log, host)
    }

    #[expect(clippy::unwrap_used, reason = "set-up of a test")]
    fn node_with(&self, address: Ipv4Addr, log: Arc<Log>, host: Arc<dyn Host>) -> Node {
        let node = self.device.add_node(&address.to_string(), &[address]);
        let opener = Arc::new(EmbeddedOpener {
            device: self.device.clone(),
            node,
        });
        let san = Arc::new(SanProvider::new(
            opener,
            SanConfig {
                addresses: vec![address],
                ..SanConfig::default()
            },
        ));
        let text = format!(
            r#"{{"cluster":"test","node":"n","node_id":1,"addresses":["{address}/24"],"subnet":0}}"#
        );
        let mut config = NodeConfig::from_json(&text).unwrap();
        config.providers.push(ProviderEntry {
            id: "nic".to_owned(),
            name: "nic".to_owned(),
            enabled: true,
        });
        let tcp = MockTcp::new(&log);
        let installed = vec![Installed {
            id: "nic".to_owned(),
            sp: Arc::clone(&san) as _,
        }];
        Node {
            switch: Switch::new(config, installed, Arc::clone(&tcp) as _, host),
            tcp,
            san,
            log,
            address,
        }
    }

    fn payload(&self) -> u64 {
        let counters = self.device.with(|d| d.node_counters());
        counters.iter().map(|c| c.counters.tx_payload_bytes).sum()
    }
}

impl Node {
    #[expect(clippy::unwrap_used, reason = "set-up of a test")]
    fn socket(&self) -> Arc<SwitchSocket> {
        let made = self.switch.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        made.unwrap().1.unwrap()
    }

    #[expect(clippy::unwrap_used, reason = "set-up of a test")]
    fn listener(&self, ip: Ipv4Addr, port: u16, backlog: i32) -> Arc<SwitchSocket> {
        let socket = self.socket();
        self.switch.bind(&socket, (ip, port).into()).unwrap();
        self.switch.listen(&socket, backlog).unwrap();
        assert_eq!(socket.stage(), Stage::SanListening);
        socket
    }

    fn connect(&self, to: SocketAddr) -> (Arc<SwitchSocket>, ConnectStep) {
        let socket = self.socket();
        let step = self.switch.connect(&socket, to);
        (socket, step)
    }
}

fn settle(client: &Node, server: &Node, socket: &Arc<SwitchSocket>) -> ConnectStep {
    for _ in 0..100 {
        server.switch.service_step();
        match client.switch.connect_progress(socket) {
            ConnectStep::Pending => {}
            step => return step,
        }
    }
    panic!("the connect does not settle: {:?}", socket.stage());
}

fn take(server: &Node, listener: &Arc<SwitchSocket>) -> Accepted {
    for _ in 0..100 {
        server.switch.service_step();
        match server.switch.accept(listener, 0) {
            Ok(accepted) => return accepted,
            Err(libc::EAGAIN) => {}
            Err(errno) => panic!("accept: errno {errno}"),
        }
    }
    panic!("no connection comes");
}

fn establish(client: &Node, server: &Node, port: u16) -> (Arc<SwitchSocket>, Accepted) {
    let listener = server.listener(server.address, port, 8);
    let (socket, step) = client.connect((server.address, port).into());
    let step = match step {
        ConnectStep::Pending => settle(client, server, &socket),
        step => step,
    };
    assert_eq!(step, ConnectStep::Established);
    let accepted = take(server, &listener);
    assert_eq!(
        server.switch.close(&listener),
        switch::session::CloseStep::Closed
    );
    (socket, accepted)
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// Moves `bytes` from one end to the other, both driven in turn, and checks them.
fn carry(from: &SwitchSocket, to: &SwitchSocket, bytes: &[u8]) {
    let (from, to) = (
        from.conn().expect("connected"),
        to.conn().expect("connected"),
    );
    let (mut sent, mut received) = (0, Vec::new());
    let mut idle = 0;
    while received.len() < bytes.len() {
        idle += 1;
        assert!(
            idle < 10_000,
            "stuck at {sent} sent, {} received",
            received.len()
        );
        if sent < bytes.len() {
            match from.send(&[part(&bytes[sent..])], 0) {
                Ok(n) => sent += n,
                Err(libc::EAGAIN) => from.progress(),
                Err(errno) => panic!("send: errno {errno}"),
            }
        } else {
            from.progress();
        }
        let mut buffer = vec![0; 70_000];
        let room = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        match to.recv(&[room], 0) {
            Ok(0) => panic!("end of stream after {} bytes", received.len()),
            Ok(n) => {
                received.extend_from_slice(&buffer[..n]);
                idle = 0;
            }
            Err(libc::EAGAIN) => {}
            Err(errno) => panic!("recv: errno {errno}"),
        }
    }
    assert!(received == bytes, "content differs");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + i / 251).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_connection_carries_every_byte_both_ways_over_the_nic() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let (client, accepted) = establish(&a, &b, 80);
    let before = cluster.payload();
    let bytes = pattern(3_000_000);
    carry(&client, &accepted.socket, &bytes);
    carry(&accepted.socket, &client, &bytes);
    assert!(cluster.payload() - before >= 6_000_000);
    for node in [&a, &b] {
        assert_eq!(
            node.log.count("tcp.WSPConnect") + node.log.count("tcp.WSPAccept"),
            0
        );
        assert_eq!(node.log.count("host.fell_back"), 0);
    }
}

#[test]
fn r065_both_addresses_travel_with_the_request_and_a_foreign_one_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let (client, accepted) = establish(&a, &b, 6379);
    let local = a.switch.local_address(&client).unwrap();
    assert_eq!((local.ip(), accepted.peer), (A.into(), local));
    assert_eq!(accepted.local, (B, 6379).into());
    let made = a.switch.providers()[0].socket().unwrap();
    let foreign = "127.77.0.9:80".parse().unwrap();
    let refused = a.san.wsp_bind(made, foreign);
    assert_eq!(refused, Err(driver::wsa::WsaError::AddrNotAvail));
}

#[test]
fn r055_r057_r058_the_real_provider_keeps_one_structure_and_one_handle_per_socket() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let (client, accepted) = establish(&a, &b, 80);
    for node in [&a, &b] {
        assert_eq!(node.switch.providers()[0].live_handles(), 1);
    }
    a.switch.close(&client);
    b.switch.close(&accepted.socket);
    for _ in 0..50 {
        a.switch.service_step();
        b.switch.service_step();
    }
    for node in [&a, &b] {
        assert_eq!(node.switch.providers()[0].live_handles(), 0);
    }
    let counters = cluster.device.with(|d| d.node_counters());
    // One set of queues is kept for the next connection; the regions are those of the arena and of the pair.
    assert!(
        counters
            .iter()
            .all(|c| (c.counters.qps, c.counters.cqs, c.counters.mrs) == (1, 1, 2)),
        "{counters:?}"
    );
    let provider = a.switch.providers().remove(0);
    let made = provider.socket().unwrap();
    a.san.wsp_close_socket(made).unwrap();
    let again = a.san.wsp_close_socket(made);
    assert_eq!(again, Err(driver::wsa::WsaError::NotSock));
}

#[test]
fn r069_the_one_option_of_the_real_provider_is_replayed() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let _listener = b.listener(B, 80, 8);
    let socket = a.socket();
    for (level, name) in [
        (libc::SOL_SOCKET, libc::SO_DEBUG),
        (libc::SOL_TCP, libc::TCP_NODELAY),
    ] {
        let one = 1_i32.to_ne_bytes();
        a.switch.set_option(&socket, level, name, &one).unwrap();
    }
    let step = match a.switch.connect(&socket, (B, 80).into()) {
        ConnectStep::Pending => settle(&a, &b, &socket),
        step => step,
    };
    assert_eq!(step, ConnectStep::Established);
    let companion = socket.conn().unwrap().sp();
    let told = a
        .san
        .wsp_get_sock_opt(companion, libc::SOL_SOCKET, options::SO_DEBUG);
    assert_eq!(told, Ok(1));
}

#[test]
fn r107_nobody_listening_is_answered_at_once_and_a_listener_on_tcp_alone_too() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let (socket, step) = a.connect((B, 80).into());
    assert_eq!(step, ConnectStep::UseTcp(Reason::NoSanListener));
    assert_eq!(socket.reason(), Some(Reason::NoSanListener));
    drop(b);
}

#[test]
fn r108_an_unanswered_connect_ends_on_the_device_and_means_tcp() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    // A listener whose switch is never served: the request waits.
    let _listener = b.listener(B, 80, 8);
    let (socket, step) = a.connect((B, 80).into());
    assert_eq!(step, ConnectStep::Pending);
    cluster.device.advance(1_100_000_000);
    let step = a.switch.connect_progress(&socket);
    assert!(
        matches!(
            step,
            ConnectStep::UseTcp(Reason::SanTimeout | Reason::BacklogFull)
        ),
        "{step:?}"
    );
    assert_eq!(a.log.count("tcp.WSPConnect"), 1);
}

#[test]
fn r032_wildcard_listeners_of_two_nodes_on_one_port_do_not_collide() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let on_a = a.listener(Ipv4Addr::UNSPECIFIED, 6379, 8);
    let on_b = b.listener(Ipv4Addr::UNSPECIFIED, 6379, 8);
    let (to_b, _) = a.connect((B, 6379).into());
    assert_eq!(settle(&a, &b, &to_b), ConnectStep::Established);
    let (to_a, _) = b.connect((A, 6379).into());
    assert_eq!(settle(&b, &a, &to_a), ConnectStep::Established);
    let (at_b, at_a) = (take(&b, &on_b), take(&a, &on_a));
    assert_eq!(
        (at_b.local, at_a.local),
        ((B, 6379).into(), (A, 6379).into())
    );
    carry(&to_b, &at_b.socket, b"to b");
    carry(&to_a, &at_a.socket, b"to a");
}

#[test]
fn r087_more_clients_than_backlog_are_all_served_in_the_end() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let listener = b.listener(B, 80, 3);
    let mut waiting: Vec<_> = (0..20).map(|_| a.connect((B, 80).into()).0).collect();
    let mut served = Vec::new();
    for _ in 0..500 {
        b.switch.service_step();
        a.switch.service_step();
        while let Ok(accepted) = b.switch.accept(&listener, 0) {
            served.push(accepted);
        }
        waiting.retain(|socket| socket.stage() != Stage::SanConnected);
        if waiting.is_empty() {
            break;
        }
    }
    let stages: Vec<_> = waiting.iter().map(|s| s.stage()).collect();
    assert!(waiting.is_empty(), "{stages:?}");
    while served.len() < 20 {
        served.push(take(&b, &listener));
    }
}

#[test]
fn r111_a_cancelled_connect_leaves_nothing_at_either_end() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let listener = b.listener(B, 80, 8);
    let (socket, step) = a.connect((B, 80).into());
    assert_eq!(step, ConnectStep::Pending);
    a.switch.close(&socket);
    for _ in 0..10 {
        b.switch.service_step();
    }
    assert_eq!(b.switch.accept(&listener, 0).map(drop), Err(libc::EAGAIN));
    assert_eq!(a.switch.providers()[0].live_handles(), 0);
    let counters = cluster.device.with(|d| d.node_counters());
    // The connecting side keeps its queues for the next attempt.
    let qps: Vec<_> = counters.iter().map(|c| c.counters.qps).collect();
    assert_eq!(qps, [1, 0], "{counters:?}");
}

#[test]
fn r100_a_closed_listener_refuses_who_waits_and_resets_who_was_not_taken() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let listener = b.listener(B, 80, 1);
    let (ready, _) = a.connect((B, 80).into());
    assert_eq!(settle(&a, &b, &ready), ConnectStep::Established);
    let (pending, step) = a.connect((B, 80).into());
    assert_eq!(step, ConnectStep::Pending);
    b.switch.close(&listener);
    let step = a.switch.connect_progress(&pending);
    assert_eq!(step, ConnectStep::Failed(libc::ECONNREFUSED));
    let conn = ready.conn().unwrap();
    conn.progress();
    assert_eq!(conn.take_error(), Some(libc::ECONNRESET));
}

#[test]
fn r182_half_close_over_the_nic() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(A), cluster.node(B));
    let (client, accepted) = establish(&a, &b, 80);
    carry(&client, &accepted.socket, b"request");
    assert_eq!(a.switch.shutdown(&client, libc::SHUT_WR), Ok(()));
    let mut byte = [0_u8; 1];
    let room = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let server = accepted.socket.conn().unwrap();
    let mut end = Err(libc::EAGAIN);
    for _ in 0..100 {
        end = server.recv(&[room], 0);
        if end != Err(libc::EAGAIN) {
            break;
        }
        client.conn().unwrap().progress();
    }
    assert_eq!(end, Ok(0));
    carry(&accepted.socket, &client, b"answer");
    assert!(a.tcp.is_open(client.fd()));
}

/// A host with a wake-up descriptor and the real clock, as programs have it.
struct ThreadHost {
    wake: Fd,
    is_over: AtomicU32,
}

impl Host for ThreadHost {
    fn wake_service(&self) {
        sys::signal(self.wake.raw());
    }

    fn socket_changed(&self, _socket: &Arc<SwitchSocket>) {}

    fn fell_back(&self, _socket: &SwitchSocket, reason: Reason) {
        panic!("fell back: {}", reason.name());
    }

    fn established(&self, _socket: &Arc<SwitchSocket>) {}
}

/// The service thread of a node, until the host says that it is over.
fn serve(node: &Node, host: &ThreadHost) {
    while host.is_over.load(Ordering::Relaxed) == 0 {
        let mut plan = node.switch.service_step();
        plan.fds.push(libc::pollfd {
            fd: host.wake.raw(),
            events: libc::POLLIN,
            revents: 0,
        });
        // The deadline is not waited for exactly: a step too many does no harm, one too few would show as a hang.
        wait(&mut plan.fds);
        sys::drain(host.wake.raw());
    }
}

#[expect(unsafe_code, reason = "polls as the preload library does")]
fn wait(fds: &mut [libc::pollfd]) {
    let count = libc::nfds_t::try_from(fds.len()).expect("few");
    // SAFETY: pointer and count describe the slice.
    unsafe { libc::poll(fds.as_mut_ptr(), count, 100) };
}

#[test]
fn threads_connect_and_accept_at_once_while_service_threads_serve() {
    const THREADS: usize = 4;
    const EACH: usize = 25;
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let cluster = Cluster { device };
    let hosts = [(); 2].map(|()| {
        Arc::new(ThreadHost {
            wake: sys::eventfd().unwrap(),
            is_over: AtomicU32::new(0),
        })
    });
    let a = cluster.node_with(A, Log::new(), Arc::clone(&hosts[0]) as _);
    let b = cluster.node_with(B, Log::new(), Arc::clone(&hosts[1]) as _);
    let listener = b.listener(Ipv4Addr::UNSPECIFIED, 80, 5);
    let connect = || {
        for _ in 0..EACH {
            let (socket, mut step) = a.connect((B, 80).into());
            while step == ConnectStep::Pending {
                let plan = a.switch.connect_plan(&socket, u64::MAX);
                wait(&mut plan.polled().to_vec());
                step = a.switch.connect_progress(&socket);
            }
            assert_eq!(step, ConnectStep::Established);
            let conn = socket.conn().expect("established");
            assert_eq!(conn.send(&[part(b"hello")], 0), Ok(5));
            a.switch.close(&socket);
        }
    };
    let taken = AtomicU32::new(0);
    let accept = || {
        while (taken.load(Ordering::Relaxed) as usize) < THREADS * EACH {
            match b.switch.accept(&listener, 0) {
                Ok(accepted) => {
                    taken.fetch_add(1, Ordering::Relaxed);
                    expect_hello(&accepted.socket);
                    b.switch.close(&accepted.socket);
                }
                Err(libc::EAGAIN) => {
                    let mut fds = [libc::pollfd {
                        fd: listener.doorbell_fd().expect("listening"),
                        events: libc::POLLIN,
                        revents: 0,
                    }];
                    wait(&mut fds);
                }
                Err(errno) => panic!("accept: errno {errno}"),
            }
        }
    };
    std::thread::scope(|scope| {
        let services = [(&a, &hosts[0]), (&b, &hosts[1])]
            .map(|(node, host)| scope.spawn(move || serve(node, host)));
        let workers: Vec<_> = (0..THREADS)
            .flat_map(|_| [scope.spawn(connect), scope.spawn(accept)])
            .collect();
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        for host in &hosts {
            host.is_over.store(1, Ordering::Relaxed);
            host.wake_service();
        }
        for service in services {
            service.join().unwrap();
        }
        for result in results {
            result.unwrap();
        }
    });
    assert_eq!(taken.load(Ordering::Relaxed) as usize, THREADS * EACH);
}

/// Reads the greeting and then the end.
fn expect_hello(socket: &SwitchSocket) {
    let conn = socket.conn().expect("connected");
    let mut got = Vec::new();
    loop {
        let mut buffer = [0_u8; 16];
        let room = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        match conn.recv(&[room], 0) {
            Ok(0) => break,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(libc::EAGAIN) => {
                conn.progress();
                std::thread::yield_now();
            }
            Err(errno) => panic!("recv: errno {errno} after {got:?}"),
        }
    }
    assert_eq!(got, b"hello");
}
