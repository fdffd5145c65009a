//! The control socket: what the command line asks a running emulator.
//!
//! Place: `<dir>/control.sock`; the server side runs in the control thread, [`client`] in `sanlab` commands.
//! Invariants: one request and one reply a connection, each one line of JSON; a reply without `"ok":false` is the answer; only CHANNEL
//! and NAMESPACES carry descriptors. Fields may be added, never renamed.
//! Source: ours (docs/control.md). Leaves out: anything on the data path, and who may connect, which the listening socket decides.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub mod client;
pub(crate) mod connection;
pub mod text;

use crate::capture::Geometry;
use crate::device::{
    Counters, FaultReport, Finding, Inspection, LinkParameters, LinkRow, Recording, Topic,
};
use crate::server::{Loopback, NamespaceKind, UngovernedPolicy};

/// Name of the socket in a cluster's directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Version of the objects.
pub const SCHEMA: u32 = 1;

/// A request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Answered with [`Pong`].
    Ping,
    /// What is going on? Answered with [`Stat`].
    Stat,
    /// A cluster channel for one program. Answered with [`ChannelReply`] and the descriptor.
    Channel {
        /// Node of the program.
        node: String,
    },
    /// The namespaces of a node, for a program that enters them. Answered with [`Namespaces`] and their descriptors.
    Namespaces {
        /// Node of the program.
        node: String,
    },
    /// A program runs that cannot be hooked. Answered with [`Done`].
    Note(Note),
    /// How packets from one node to another are treated from now on. Answered with [`Done`].
    Link {
        /// Node they come from.
        from: String,
        /// Node they go to.
        to: String,
        /// What is not named is that of a perfect link.
        #[serde(default)]
        parameters: LinkParameters,
    },
    /// Change some parameters of the packets from one node to another. Answered with [`Done`].
    LinkChange {
        /// Node they come from.
        from: String,
        /// Node they go to.
        to: String,
        /// The other direction too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        both: bool,
        /// Fields of [`LinkChange`](crate::device::LinkChange).
        change: Map<String, Value>,
    },
    /// Mend every cut direction. Answered with [`Healed`].
    Heal,
    /// How do links treat packets? Answered with [`Links`].
    Links,
    /// Take the port of a node down or up. Answered with [`Done`].
    Port {
        /// The node.
        node: String,
        /// Up or down.
        up: bool,
    },
    /// Make pieces of work fail. Answered with [`FaultAdded`].
    FaultAdd {
        /// Fields of a [`FaultRule`](crate::device::FaultRule).
        #[serde(flatten)]
        rule: Map<String, Value>,
    },
    /// Which fault rules are there, and what did they do? Answered with [`Faults`].
    FaultLs {
        /// This rule alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u32>,
    },
    /// Remove a fault rule, or all of them. Answered with [`FaultsRemoved`].
    FaultRm {
        /// The rule; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u32>,
    },
    /// Lets virtual time pass. Answered with [`Clock`]; refused when the device's time is real or stands still.
    Advance {
        /// Nanoseconds.
        ns: u64,
    },
    /// What does the device consist of? Answered with [`Inspected`].
    Inspect {
        /// Parts to show; all when there are none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        topics: Vec<Topic>,
    },
    /// What happened last? Answered with [`Recorded`].
    Recorder {
        /// Of this function alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        function: Option<u32>,
    },
    /// What ports see, from now until the connection that comes with the answer is closed. Answered with [`CaptureReply`] and two
    /// descriptors, the ring and that connection; in namespace mode with a third, the ring of the Ethernet interfaces.
    Capture {
        /// Nodes whose ports are captured; all when there are none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        nodes: Vec<String>,
        /// Most bytes of a packet that are wanted.
        #[serde(default = "whole_packets")]
        snaplen: u32,
        /// Size of the ring.
        #[serde(default = "ring_bytes")]
        ring_bytes: u64,
    },
    /// Stand still. Answered with [`Engine`].
    Pause,
    /// Do one piece of work. Answered with [`Engine`], refused when it does not stand still.
    Step,
    /// Go on. Answered with [`Engine`], refused when it does not stand still.
    Continue,
    /// End. Answered with [`Done`] before it happens.
    Shutdown,
}

fn whole_packets() -> u32 {
    65_535
}

fn ring_bytes() -> u64 {
    16 << 20
}

/// Answer to CAPTURE.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CaptureReply {
    /// True.
    pub ok: bool,
    /// Name of the cluster.
    pub cluster: String,
    /// All nodes; records name them by their place here.
    pub nodes: Vec<NodeEntry>,
    /// Places of the captured ones.
    pub ports: Vec<u16>,
    /// Time since 1970 at which the device's clock stood at 0; 0 when its time is virtual.
    pub epoch_ns: u64,
    /// Time of the device's clock now.
    pub now_ns: u64,
    /// Shape of the ring, and of the second one.
    pub ring: Geometry,
    /// A second ring comes as a third descriptor: what the nodes' Ethernet interfaces see, in namespace mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ethernet: bool,
}

/// Answer to ADVANCE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clock {
    /// True.
    pub ok: bool,
    /// The device's time.
    pub now_ns: u64,
}

/// Answer to INSPECT: the object of `nic-emu inspect --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inspected {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster; `nic-emu` for a device alone.
    pub cluster: String,
    /// Process id of the emulator.
    pub emulator_pid: u32,
    /// Rows.
    #[serde(flatten)]
    pub inspection: Inspection,
}

/// Answer to LINKS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Links {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Ports of all nodes.
    pub ports: Vec<PortRow>,
    /// Directions that are or were anything but perfect.
    pub links: Vec<LinkRow>,
}

/// The port of a node in [`Links`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRow {
    /// The node.
    pub node: String,
    /// Whether anything passes.
    pub up: bool,
}

/// Answer to HEAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Healed {
    /// True.
    pub ok: bool,
    /// Directions that were cut.
    pub healed: usize,
}

/// Answer to FAULT_ADD.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultAdded {
    /// True.
    pub ok: bool,
    /// Number of the rule.
    pub id: u32,
}

/// Answer to FAULT_RM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultsRemoved {
    /// True.
    pub ok: bool,
    /// How many rules.
    pub removed: usize,
}

/// Answer to FAULT_LS: the object of `sanlab fault ls --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Faults {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Rules and faults.
    #[serde(flatten)]
    pub report: FaultReport,
}

/// Answer to RECORDER: the object of `nic-emu inspect recorder --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recorded {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What each function's recorder holds now.
    pub live: Vec<Recording>,
    /// What they held when something broke, oldest first.
    pub dumps: Vec<Recording>,
}

/// Answer to PAUSE, STEP and CONTINUE.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Engine {
    /// True.
    pub ok: bool,
    /// Pieces of work that a step did.
    pub served: u64,
    /// Why the engine stands still now.
    pub paused: Option<String>,
}

/// The control socket of a device socket that belongs to no cluster: the same name with `.ctl` behind it.
#[must_use]
pub fn beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".ctl");
    name.into()
}

/// The control socket that serves a place: a cluster's directory, a device socket of either kind, or a control socket itself.
#[must_use]
pub fn locate(place: &Path) -> PathBuf {
    if place.is_dir() {
        return place.join(SOCKET_NAME);
    }
    let is_control = place.file_name().is_some_and(|name| name == SOCKET_NAME)
        || place
            .extension()
            .is_some_and(|extension| extension == "ctl");
    if is_control {
        return place.to_owned();
    }
    let own = beside(place);
    let of_cluster = place
        .parent()
        .and_then(Path::parent)
        .map(|directory| directory.join(SOCKET_NAME))
        .filter(|path| !own.exists() && path.exists());
    of_cluster.unwrap_or(own)
}

/// Report of the launcher about a program that runs without the preload library.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// Node it was started on.
    pub node: String,
    /// Program.
    pub program: String,
    /// Its process id.
    pub pid: u32,
    /// Name of a reason from the closed list, such as `static_binary`.
    pub reason: String,
}

/// Plain success.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// True.
    pub ok: bool,
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// False.
    pub ok: bool,
    /// Why, for people.
    pub error: String,
}

/// Answer to PING.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// True.
    pub ok: bool,
    /// Name of the cluster.
    pub cluster: String,
    /// Process id of the emulator.
    pub emulator_pid: u32,
    /// Its nodes.
    pub nodes: Vec<NodeEntry>,
    /// What becomes of traffic that links cannot govern; `warn` when absent.
    #[serde(default, skip_serializing_if = "UngovernedPolicy::is_usual")]
    pub ungoverned: UngovernedPolicy,
}

/// A node with its addresses, such as `127.77.0.1/24`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Name.
    pub name: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// Answer to CHANNEL.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelReply {
    /// True.
    pub ok: bool,
    /// What the program's switch has to know.
    pub config: NodeConfig,
}

/// Answer to NAMESPACES.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Namespaces {
    /// True.
    pub ok: bool,
    /// Kinds of the descriptors that come along, in the order in which a program enters them; none in loopback mode.
    pub kinds: Vec<NamespaceKind>,
}

/// What a program is told about its node, the JSON of [`ring_proto::channel::ENV_CONFIG`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Number of the node, from 1: the last byte of its address in loopback mode.
    pub node_id: u32,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// C of 127.77.C.0/24, in loopback mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<u8>,
    /// Whether wildcard listeners are on the SAN.
    pub wildcard_on_san: bool,
    /// Time a connect gets on the SAN before TCP is tried; the switch's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub san_connect_limit_ms: Option<u64>,
    /// Road of the node's connections to itself.
    #[serde(default)]
    pub loopback: Loopback,
    /// What becomes of traffic that links cannot govern; `warn` when absent.
    #[serde(default, skip_serializing_if = "UngovernedPolicy::is_usual")]
    pub ungoverned: UngovernedPolicy,
    /// All nodes.
    pub nodes: Vec<NodeEntry>,
    /// SAN service providers in order of preference.
    pub providers: Vec<ProviderEntry>,
}

/// An entry of the provider list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProviderEntry {
    /// Unique id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// False: listed but not used.
    pub enabled: bool,
}

/// Answer to STAT: the object of `sanlab stat --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Process id of the emulator.
    pub emulator_pid: u32,
    /// Nodes with their NIC counters.
    pub nodes: Vec<NodeStat>,
    /// Live connections, as the processes tell.
    pub connections: Vec<ConnectionStat>,
    /// Sums over all processes since the start, as they told.
    pub totals: Vec<NodeTotals>,
    /// How often connections took TCP, by reason.
    pub fallbacks: Vec<Fallback>,
    /// Programs whose traffic the cluster does not see.
    pub ungoverned: Vec<Ungoverned>,
    /// Findings of the validation layer.
    pub findings: Vec<Finding>,
}

/// A node in [`Stat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStat {
    /// Name.
    pub name: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Counters of its NIC.
    pub counters: Counters,
}

/// A live connection in [`Stat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectionStat {
    /// Node of the process.
    pub node: String,
    /// The process.
    pub pid: u64,
    /// Its program.
    pub program: String,
    /// Local `ip:port`.
    pub local: String,
    /// Remote `ip:port`.
    pub remote: String,
    /// `san` or `tcp`.
    pub road: String,
    /// Why it is not on the SAN.
    pub reason: Option<String>,
    /// Transfer mode on the SAN: `copy` or `window`.
    pub mode: Option<String>,
    /// Stream bytes sent.
    pub tx_bytes: u64,
    /// Stream bytes received.
    pub rx_bytes: u64,
    /// State by the name that ss(8) has for it; of a TCP connection the kernel knows.
    #[serde(default)]
    pub state: Option<String>,
    /// Stream bytes that have come and that no program has taken.
    #[serde(default)]
    pub recv_queue: Option<u64>,
    /// Stream bytes that were sent and have not arrived.
    #[serde(default)]
    pub send_queue: Option<u64>,
    /// Messages that the peer lets this end send.
    #[serde(default)]
    pub credits: Option<u32>,
}

/// Sums of a node in [`Stat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeTotals {
    /// Node.
    pub node: String,
    /// Stream bytes sent over the SAN.
    pub san_tx_bytes: u64,
    /// Stream bytes received over the SAN.
    pub san_rx_bytes: u64,
    /// Connections that took TCP.
    pub tcp_connections: u64,
    /// Connections that took the SAN.
    pub san_connections: u64,
}

/// A reason in [`Stat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fallback {
    /// Node.
    pub node: String,
    /// Name from the closed list.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// A program in [`Stat`] that runs without the preload library.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ungoverned {
    /// Node.
    pub node: String,
    /// Its process id.
    pub pid: u64,
    /// Program.
    pub program: String,
    /// Why it is not hooked.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn requests_look_as_documented() {
        for (text, request) in [
            (r#"{"cmd":"ping"}"#, Request::Ping),
            (r#"{"cmd":"stat"}"#, Request::Stat),
            (r#"{"cmd":"shutdown"}"#, Request::Shutdown),
            (r#"{"cmd":"inspect"}"#, Request::Inspect { topics: vec![] }),
            (
                r#"{"cmd":"inspect","topics":["qps","findings"]}"#,
                Request::Inspect {
                    topics: vec![Topic::Qps, Topic::Findings],
                },
            ),
            (
                r#"{"cmd":"recorder","function":3}"#,
                Request::Recorder { function: Some(3) },
            ),
            (
                r#"{"cmd":"capture","nodes":["a"],"snaplen":128,"ring_bytes":65536}"#,
                Request::Capture {
                    nodes: vec!["a".into()],
                    snaplen: 128,
                    ring_bytes: 65_536,
                },
            ),
            (r#"{"cmd":"pause"}"#, Request::Pause),
            (r#"{"cmd":"step"}"#, Request::Step),
            (r#"{"cmd":"continue"}"#, Request::Continue),
            (
                r#"{"cmd":"link","from":"a","to":"b","parameters":{"up":false,"latency_ns":5,"jitter_ns":0,"jitter_distribution":"uniform","loss_ppm":7,"burst_enter_ppm":0,"burst_leave_ppm":1000000,"burst_loss_ppm":1000000,"reorder_ppm":0,"reorder_ns":0,"duplicate_ppm":0,"corrupt_ppm":0,"bandwidth_bps":0,"queue_bytes":0,"mtu_bytes":0}}"#,
                Request::Link {
                    from: "a".into(),
                    to: "b".into(),
                    parameters: LinkParameters {
                        up: false,
                        latency_ns: 5,
                        loss_ppm: 7,
                        ..LinkParameters::default()
                    },
                },
            ),
            (
                r#"{"cmd":"link_change","from":"a","to":"b","both":true,"change":{"loss_ppm":7}}"#,
                Request::LinkChange {
                    from: "a".into(),
                    to: "b".into(),
                    both: true,
                    change: fields(json!({"loss_ppm": 7})),
                },
            ),
            (r#"{"cmd":"heal"}"#, Request::Heal),
            (r#"{"cmd":"links"}"#, Request::Links),
            (
                r#"{"cmd":"port","node":"a","up":false}"#,
                Request::Port {
                    node: "a".into(),
                    up: false,
                },
            ),
            (
                r#"{"cmd":"fault_add","action":"drop","at":"packet","nth":3}"#,
                Request::FaultAdd {
                    rule: fields(json!({"at": "packet", "action": "drop", "nth": 3})),
                },
            ),
            (r#"{"cmd":"fault_ls"}"#, Request::FaultLs { id: None }),
            (
                r#"{"cmd":"fault_rm","id":3}"#,
                Request::FaultRm { id: Some(3) },
            ),
            (
                r#"{"cmd":"channel","node":"a"}"#,
                Request::Channel { node: "a".into() },
            ),
            (
                r#"{"cmd":"note","node":"a","program":"p","pid":7,"reason":"go_binary"}"#,
                Request::Note(Note {
                    node: "a".into(),
                    program: "p".into(),
                    pid: 7,
                    reason: "go_binary".into(),
                }),
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn a_cluster_without_subnet_leaves_the_key_out() {
        let config = NodeConfig {
            cluster: "c".into(),
            node: "a".into(),
            node_id: 1,
            addresses: vec![],
            subnet: None,
            wildcard_on_san: true,
            san_connect_limit_ms: None,
            loopback: Loopback::Tcp,
            ungoverned: UngovernedPolicy::default(),
            nodes: vec![],
            providers: vec![],
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(!text.contains("subnet"), "{text}");
        assert_eq!(serde_json::from_str::<NodeConfig>(&text).unwrap(), config);
    }
}
