//! A small world of recording doubles: nodes with a switch each, one network between them, one log of all calls.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use driver::spi::SpSocket;
use switch::config::{NodeConfig, ProviderEntry};
use switch::mock::{Log, MockFabric, MockHost, MockSan, MockTcp};
use switch::{Accepted, ConnectStep, Installed, Stage, Switch, SwitchSocket};

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 2);

pub(crate) struct World {
    pub(crate) log: Arc<Log>,
    pub(crate) fabric: Arc<MockFabric>,
}

pub(crate) struct Node {
    pub(crate) switch: Switch,
    pub(crate) tcp: Arc<MockTcp>,
    pub(crate) host: Arc<MockHost>,
    pub(crate) san: Arc<MockSan>,
    pub(crate) log: Arc<Log>,
    pub(crate) address: Ipv4Addr,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            log: Log::new(),
            fabric: MockFabric::new(),
        }
    }

    pub(crate) fn san(&self, name: &'static str, addresses: &[Ipv4Addr]) -> Arc<MockSan> {
        MockSan::new(name, &self.log, &self.fabric, addresses)
    }

    /// A node with one provider, called "san".
    pub(crate) fn node(&self, address: Ipv4Addr) -> Node {
        self.node_with(address, |_| {})
    }

    pub(crate) fn node_with(&self, address: Ipv4Addr, tweak: impl FnOnce(&mut NodeConfig)) -> Node {
        let san = self.san("san", &[address]);
        self.node_of(address, vec![san], tweak)
    }

    pub(crate) fn node_of(
        &self,
        address: Ipv4Addr,
        sans: Vec<Arc<MockSan>>,
        tweak: impl FnOnce(&mut NodeConfig),
    ) -> Node {
        let mut config = config(address);
        config.providers = (0..sans.len())
            .map(|i| ProviderEntry {
                id: i.to_string(),
                name: format!("nic{i}"),
                enabled: true,
            })
            .collect();
        tweak(&mut config);
        let installed = sans
            .iter()
            .enumerate()
            .map(|(i, san)| Installed {
                id: i.to_string(),
                sp: Arc::clone(san) as _,
            })
            .collect();
        let tcp = MockTcp::new(&self.log);
        let host = MockHost::new(&self.log);
        Node {
            switch: Switch::new(
                config,
                installed,
                Arc::clone(&tcp) as _,
                Arc::clone(&host) as _,
            ),
            tcp,
            host,
            san: Arc::clone(&sans[0]),
            log: Arc::clone(&self.log),
            address,
        }
    }
}

pub(crate) fn config(address: Ipv4Addr) -> NodeConfig {
    let text = format!(
        r#"{{"cluster":"test","node":"n","node_id":1,"addresses":["{address}/24"],"subnet":0}}"#
    );
    NodeConfig::from_json(&text).unwrap()
}

pub(crate) fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

impl Node {
    pub(crate) fn socket(&self) -> Arc<SwitchSocket> {
        let made = self.switch.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        made.unwrap().1.unwrap()
    }

    pub(crate) fn nonblocking(&self) -> Arc<SwitchSocket> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        let made = self.switch.socket(libc::AF_INET, kind, 0);
        made.unwrap().1.unwrap()
    }

    /// A listener on `ip` and `port`.
    pub(crate) fn listener(&self, ip: Ipv4Addr, port: u16) -> Arc<SwitchSocket> {
        let socket = self.socket();
        self.switch.bind(&socket, at(ip, port)).unwrap();
        self.switch.listen(&socket, 8).unwrap();
        socket
    }

    pub(crate) fn stage_after_connect(&self, to: SocketAddr) -> (Arc<SwitchSocket>, ConnectStep) {
        let socket = self.socket();
        let step = self.switch.connect(&socket, to);
        (socket, step)
    }

    pub(crate) fn serve(&self) {
        // The first step may leave to the program what it drives by its calls; a tick later they have stopped.
        self.switch.service_step();
        self.switch.service_step();
    }

    /// The log since the last look, without what starting the providers writes.
    pub(crate) fn calls(&self) -> Vec<String> {
        let noise = [
            "WSPStartupEx",
            "SIO_ADDRESS_LIST_QUERY",
            "host.socket_changed",
            "host.established",
            "WSPEnumNetworkEvents",
        ];
        let lines = self.log.take();
        let kept = lines
            .into_iter()
            .filter(|l| !noise.iter().any(|n| l.contains(n)));
        kept.collect()
    }

    /// Starts the providers now, so that their start is not in the log later.
    pub(crate) fn warm(&self) -> &Self {
        let (socket, _) = self.stage_after_connect(at(Ipv4Addr::new(192, 0, 2, 1), 9));
        self.switch.close(&socket);
        let _start = self.log.take();
        self
    }
}

/// Drives both sides until `client` stands somewhere.
pub(crate) fn settle(client: &Node, server: &Node, socket: &Arc<SwitchSocket>) -> ConnectStep {
    for _ in 0..20 {
        server.serve();
        match client.switch.connect_progress(socket) {
            ConnectStep::Pending => {}
            step => {
                server.serve();
                return step;
            }
        }
    }
    panic!("the connect does not settle: {:?}", socket.stage());
}

/// A connection over the SAN from `client` to a fresh listener of `server`.
pub(crate) fn establish(client: &Node, server: &Node, port: u16) -> (Arc<SwitchSocket>, Accepted) {
    let listener = server.listener(server.address, port);
    let (socket, step) = client.stage_after_connect(at(server.address, port));
    if step == ConnectStep::Pending {
        assert_eq!(settle(client, server, &socket), ConnectStep::Established);
    }
    assert_eq!(socket.stage(), Stage::SanConnected);
    let accepted = accept(server, &listener);
    (socket, accepted)
}

/// Takes the connection that must come.
pub(crate) fn accept(server: &Node, listener: &Arc<SwitchSocket>) -> Accepted {
    for _ in 0..20 {
        server.serve();
        match server.switch.accept(listener, 0) {
            Ok(accepted) => return accepted,
            Err(libc::EAGAIN) => {}
            Err(errno) => panic!("accept: errno {errno}"),
        }
    }
    panic!("no connection comes");
}

/// The provider's descriptor under an established connection.
pub(crate) fn sp_of(socket: &SwitchSocket) -> SpSocket {
    socket.conn().unwrap().sp()
}
