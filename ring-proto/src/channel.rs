//! Messages between a program and the emulator outside of the device: cluster channel and process socket.
//!
//! Place: `sanlab run` asks the emulator's control socket for a channel and leaves it to the program; the preload library introduces
//! each process over it; `nic-emu` serves both.
//! Invariants: SEQPACKET; one [`Message`] of 32 B a packet with at most one descriptor; no replies, so forks may share the channel.
//! The process socket's hang-up is the process's end: nothing else proves it.
//! Source: ours (docs/device.md, section "Cluster channel").
//!
//! ```text
//! channel (shared by all programs of one `sanlab run`):
//!     PROCESS + fd            the other end of a process socket
//! process socket (one per process; its end in the program is held by that process alone):
//!     TELEMETRY + memfd       see `telemetry`
//!     OPEN_FUNCTION + fd      a stream socket; from now on it speaks vfio-user as a function of the node
//!     HOLDER                  this process answers for a holder slot of a function
//!     PROCESS + fd            process socket of a child about to be forked
//! ```

use core::mem::size_of;
use core::net::Ipv4Addr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First word of every message: "SANC" in memory order, then the version.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SANC");
/// Version of these messages.
pub const VERSION: u16 = 1;

/// Introduces a process; the descriptor is the emulator's end of its process socket.
pub const PROCESS: u16 = 1;
/// The descriptor is the telemetry memfd of the process.
pub const TELEMETRY: u16 = 2;
/// The descriptor is a stream socket that will speak vfio-user.
pub const OPEN_FUNCTION: u16 = 3;
/// `a` function id, `b` holder slot, `c` its generation: they live as long as this process.
pub const HOLDER: u16 = 4;

/// One message.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Message {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// Kind.
    pub kind: u16,
    /// First argument.
    pub a: u32,
    /// Second argument.
    pub b: u32,
    /// Third argument.
    pub c: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

const _: () = assert!(size_of::<Message>() == 32);

impl Message {
    /// Makes a message.
    #[must_use]
    pub const fn new(kind: u16, a: u32, b: u32, c: u32) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            kind,
            a,
            b,
            c,
            reserved: [0; 3],
        }
    }

    /// Whether magic, version and reserved fields are right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.magic == MAGIC && self.version == VERSION && self.reserved == [0; 3]
    }
}

/// Environment variable with the number of the inherited channel descriptor.
pub const ENV_CHANNEL: &str = "SANLAB_CHANNEL";
/// Environment variable with the [node configuration](NodeConfig), as JSON.
pub const ENV_CONFIG: &str = "SANLAB_CONFIG";
/// Environment variable with the cluster's name.
pub const ENV_CLUSTER: &str = "SANLAB_CLUSTER";
/// Environment variable with the node's name.
pub const ENV_NODE: &str = "SANLAB_NODE";
/// Environment variable with the node's first address, empty when it has none.
pub const ENV_ADDR: &str = "SANLAB_ADDR";

/// Environment variable with the number of the inherited descriptor of the run's report, and behind a blank [`REPORT_AUDIT`] where system
/// calls past the library are to be watched.
pub const ENV_REPORT: &str = "SANLAB_REPORT";
/// Word in [`ENV_REPORT`].
pub const REPORT_AUDIT: &str = "audit";

/// Second octet of node addresses in loopback mode: node k of subnet C is 127.77.C.k.
const NODE_OCTET: u8 = 77;

/// What stands for 127.0.0.1 and for `::1` of a node with this address in loopback mode, where all nodes share one host: 127.78.C.k and
/// 127.79.C.k. They exist for that node alone, in its kernel sockets and at its NIC. `None` for an address outside of 127.77.0.0/16.
#[must_use]
pub const fn loopback_aliases(node: Ipv4Addr) -> Option<[Ipv4Addr; 2]> {
    match node.octets() {
        [127, NODE_OCTET, c, k] => Some([
            Ipv4Addr::new(127, NODE_OCTET + 1, c, k),
            Ipv4Addr::new(127, NODE_OCTET + 2, c, k),
        ]),
        _ => None,
    }
}

/// Environment variable with the number of the memfd in which one program image tells the next of its SAN sockets. Taken out of the
/// environment by the library before the program sees it.
pub const ENV_ESTATE: &str = "SANLAB_ESTATE";
/// Environment variable that makes the library do another work than the program's, see the library's `role`. Never seen by programs.
pub const ENV_ROLE: &str = "SANLAB_ROLE";
/// Environment variable with the `LD_PRELOAD` of a program that is not to have the library. Never seen by programs.
pub const ENV_PRELOAD: &str = "SANLAB_PRELOAD";

/// Keys of the JSON object in [`ENV_CONFIG`], written by `sanlab run` and read by the switch. Documented in docs/session.md.
///
/// `{"cluster":"default","node":"a","node_id":0,"addresses":["127.77.0.1/24"],"subnet":0,"wildcard_on_san":true,
/// "loopback":"tcp","providers":[{"id":"…","name":"sanlab","enabled":true}]}`; `subnet` is C of 127.77.C.0/24 or null.
#[derive(Debug)]
pub struct NodeConfig;
