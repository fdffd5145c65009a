//! Targets of the suite: how a device is attached and how its time passes.
//!
//! Place: [`super::run`] takes one; [`super::rig`] attaches the functions of each case through it. Invariants: two attachments of one
//! case reach the same fabric. Source: ours. Leaves out: starting a device process, which is its owner's business.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::NodeId;
use ring_proto::sync::{AtomicU32, Ordering};

use super::stream::Stream;
use crate::control::{self, client};
use crate::device::DeviceOptions;
use crate::embedded::EmbeddedDevice;

/// How long a device in another process may take for an effect: far above anything a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One of the two ports that cases use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// First port.
    A,
    /// Second port.
    B,
}

/// A device under test.
pub trait Target {
    /// Name of the target in reports.
    fn name(&self) -> String;

    /// A new case begins.
    fn begin(&self) {}

    /// Attaches a new function to a port; dropping it is the client's hang-up.
    ///
    /// # Errors
    /// [`AttachError`], as the device answers.
    fn attach(&self, port: Port) -> Result<Box<dyn Attachment>, AttachError>;

    /// An address of the port, for the connection manager; `None` skips its cases.
    fn address(&self, port: Port) -> Option<Ipv4Addr>;

    /// Lets this much of the device's time pass at once; false when its time is real.
    fn advance(&self, ns: u64) -> bool {
        let _ = ns; // real time passes by itself
        false
    }

    /// The device's time when it is virtual.
    fn now_ns(&self) -> Option<u64> {
        None
    }

    /// Takes a port up or down; false when that is out of the target's reach.
    fn set_port(&self, port: Port, is_up: bool) -> bool {
        let _ = (port, is_up);
        false
    }

    /// How long an effect may take that the case waits for.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// A port number that no other case of the run uses.
    fn fresh_port(&self) -> u16;
}

/// The device inside this process, in virtual time; each case gets a new one.
#[derive(Debug)]
pub struct EmbeddedTarget {
    options: DeviceOptions,
    device: Mutex<Option<EmbeddedDevice>>,
    next_port: AtomicU32,
}

impl EmbeddedTarget {
    /// A target whose devices are made with `options`, but always in virtual time.
    #[must_use]
    pub fn new(options: DeviceOptions) -> Self {
        Self {
            options: DeviceOptions {
                virtual_time: true,
                ..options
            },
            device: Mutex::new(None),
            next_port: AtomicU32::new(0),
        }
    }

    fn node(&self, port: Port) -> Option<NodeId> {
        let nodes = self.device().with(|device| device.nodes());
        let node = nodes.get(match port {
            Port::A => 0,
            Port::B => 1,
        });
        Some(node?.id)
    }

    fn device(&self) -> EmbeddedDevice {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device
            .get_or_insert_with(|| {
                let device = EmbeddedDevice::new(self.options.clone());
                for (name, port) in [("a", Port::A), ("b", Port::B)] {
                    let _ = device.add_node(name, self.address(port).as_slice());
                }
                device
            })
            .clone()
    }
}

impl Default for EmbeddedTarget {
    fn default() -> Self {
        Self::new(DeviceOptions::default())
    }
}

impl Target for EmbeddedTarget {
    fn name(&self) -> String {
        "embedded".into()
    }

    fn begin(&self) {
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Relaxed: a counter of one thread at a time, which publishes nothing.
        self.next_port.store(0, Ordering::Relaxed);
    }

    fn attach(&self, port: Port) -> Result<Box<dyn Attachment>, AttachError> {
        let refused = |errno| AttachError::Refused {
            what: "attach",
            errno,
        };
        let node = self.node(port).ok_or_else(|| refused(libc::ENODEV))?;
        match self.device().attach(node) {
            Ok(function) => Ok(Box::new(function)),
            Err(error) => Err(refused(error.errno())),
        }
    }

    fn address(&self, port: Port) -> Option<Ipv4Addr> {
        Some(match port {
            Port::A => Ipv4Addr::new(127, 77, 0, 1),
            Port::B => Ipv4Addr::new(127, 77, 0, 2),
        })
    }

    fn advance(&self, ns: u64) -> bool {
        self.device().advance(ns);
        true
    }

    fn set_port(&self, port: Port, is_up: bool) -> bool {
        let node = self.node(port);
        node.is_some_and(|node| {
            self.device()
                .with(|device| device.set_port(node, is_up))
                .is_ok()
        })
    }

    fn now_ns(&self) -> Option<u64> {
        Some(self.device().with(|device| device.now_ns()))
    }

    fn patience(&self) -> Duration {
        // A doorbell returns when its work is done: what is not there now never comes by itself.
        Duration::ZERO
    }

    fn fresh_port(&self) -> u16 {
        fresh(&self.next_port)
    }
}

/// A device served on one or two vfio-user sockets.
#[derive(Debug)]
pub struct SocketTarget {
    /// Socket of port A.
    pub a: PathBuf,
    /// Socket of port B: another node of the same fabric, or the same socket again.
    pub b: PathBuf,
    /// Address of port A, when the connection manager is to be tested.
    pub a_address: Option<Ipv4Addr>,
    /// Address of port B.
    pub b_address: Option<Ipv4Addr>,
    /// Control socket and the names of both nodes.
    control: Option<(PathBuf, [String; 2])>,
    /// The device's time moves by requests.
    is_time_virtual: bool,
    next_port: AtomicU32,
}

impl SocketTarget {
    /// A target on these sockets, without addresses.
    #[must_use]
    pub fn new(a: PathBuf, b: PathBuf) -> Self {
        Self {
            a,
            b,
            a_address: None,
            b_address: None,
            control: None,
            is_time_virtual: false,
            next_port: AtomicU32::new(0),
        }
    }

    /// Uses the control socket beside port A's for what clients cannot do: it takes the ports of these nodes down, and lets time pass if
    /// that is virtual there.
    pub fn control_by(&mut self, node_a: &str, node_b: &str) {
        let control = control::beside(&self.a);
        self.is_time_virtual = client::advance(&control, 0).is_ok();
        self.control = Some((control, [node_a.into(), node_b.into()]));
    }

    fn move_time(&self, ns: u64) -> Option<u64> {
        let (control, _) = self.control.as_ref().filter(|_| self.is_time_virtual)?;
        client::advance(control, ns).ok()
    }
}

impl Target for SocketTarget {
    fn name(&self) -> String {
        if self.is_time_virtual {
            "process, virtual time".into()
        } else {
            "process".into()
        }
    }

    fn advance(&self, ns: u64) -> bool {
        self.move_time(ns).is_some()
    }

    fn now_ns(&self) -> Option<u64> {
        self.move_time(0)
    }

    fn set_port(&self, port: Port, is_up: bool) -> bool {
        let Some((control, [a, b])) = &self.control else {
            return false;
        };
        let node = if port == Port::A { a } else { b };
        client::port(control, node, is_up).is_ok()
    }

    fn attach(&self, port: Port) -> Result<Box<dyn Attachment>, AttachError> {
        let path = match port {
            Port::A => &self.a,
            Port::B => &self.b,
        };
        Ok(Box::new(Stream::attach(path, PATIENCE)?))
    }

    fn address(&self, port: Port) -> Option<Ipv4Addr> {
        match port {
            Port::A => self.a_address,
            Port::B => self.b_address,
        }
    }

    fn fresh_port(&self) -> u16 {
        fresh(&self.next_port)
    }
}

fn fresh(next: &AtomicU32) -> u16 {
    // Relaxed: the number publishes nothing.
    let n = next.fetch_add(1, Ordering::Relaxed);
    20_000 + u16::try_from(n % 40_000).unwrap_or(0)
}
