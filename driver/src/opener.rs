//! How a process comes to device functions, and how it tells the device that it lives.
//!
//! Place: `provider` opens functions and shares them over fork through an [`Opener`]; programs use [`ChannelOpener`] over the cluster
//! channel they inherited, tests an embedded device.
//! Invariants: nothing here waits for a reply on the channel, so forks may share it; the process socket has one end in one process
//! only, and its hang-up is that process's end: a child closes its parent's copy first of all.
//! Source: docs/device.md, "Cluster channel".

use std::fmt;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring_proto::attach::{AttachError, Attachment};
use ring_proto::channel::{self, Message};
use ring_proto::ids::{FunctionId, HolderSlot};
use zerocopy::IntoBytes;

use crate::sys::{self, Errno, Fd};
use crate::vfio::client::Client;

/// A holder slot of a function: what a process answers for with its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    /// Function.
    pub function: FunctionId,
    /// Slot in its holder table.
    pub slot: HolderSlot,
    /// Generation of the slot.
    pub generation: u32,
}

/// Source of device functions.
///
/// # Errors
/// All methods fail with [`AttachError`]; `Disconnected` says that the device is gone for good.
pub trait Opener: Send + Sync + fmt::Debug {
    /// Opens a new function of the node.
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError>;

    /// Tells the device that `holding` lives as long as this process.
    fn hold(&self, holding: Holding) -> Result<(), AttachError>;

    /// Before a fork: makes the child's process socket and puts `holdings` into it.
    fn before_fork(&self, holdings: &[Holding]) -> Result<(), AttachError>;

    /// In the parent after a fork that succeeded or failed: gives up its copy of the child's process socket.
    fn after_fork_in_parent(&self);

    /// In the child: gives up the parent's process socket and goes on with its own.
    fn after_fork_in_child(&self);

    /// Makes a process socket for another process, or for the next image of this one, with `holdings` in it. The caller gives it away.
    fn introduce_heir(&self, holdings: &[Holding]) -> Result<Fd, AttachError> {
        let _ = holdings; // the default knows no other process
        Err(AttachError::Refused {
            what: "a process socket for an heir",
            errno: libc::EOPNOTSUPP,
        })
    }
}

/// Opens functions over the cluster channel of `sanlab run`.
#[derive(Debug)]
pub struct ChannelOpener {
    sockets: Mutex<Sockets>,
}

#[derive(Debug)]
struct Sockets {
    /// This process's end of its process socket.
    own: Fd,
    /// End of the child about to be forked.
    child: Option<Fd>,
}

impl ChannelOpener {
    /// Introduces this process over the channel, which stays the caller's.
    ///
    /// # Errors
    /// [`AttachError::Disconnected`] when the emulator is gone.
    pub fn new(channel: RawFd) -> Result<Self, AttachError> {
        let (own, theirs) = sys::socket_pair(true).map_err(system("socketpair"))?;
        send(
            channel,
            Message::new(channel::PROCESS, 0, 0, 0),
            Some(&theirs),
        )?;
        Ok(Self {
            sockets: Mutex::new(Sockets { own, child: None }),
        })
    }

    /// Shows the device the telemetry memfd of this process.
    ///
    /// # Errors
    /// [`AttachError::Disconnected`] when the emulator is gone.
    pub fn show_telemetry(&self, memory: &Fd) -> Result<(), AttachError> {
        let message = Message::new(channel::TELEMETRY, 0, 0, 0);
        send(self.sockets().own.raw(), message, Some(memory))
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> AttachError {
    move |errno| AttachError::System {
        what,
        errno: errno.raw_os_error(),
    }
}

fn send(socket: RawFd, message: Message, fd: Option<&Fd>) -> Result<(), AttachError> {
    let number = fd.map(Fd::raw);
    match sys::send_message(socket, &[message.as_bytes()], number.as_slice()) {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
            Err(AttachError::Disconnected {
                what: "a message over the cluster channel",
            })
        }
        Err(errno) => Err(system("sendmsg")(errno)),
    }
}

fn holder(holding: &Holding) -> Message {
    Message::new(
        channel::HOLDER,
        holding.function.0,
        holding.slot.0,
        holding.generation,
    )
}

impl Opener for ChannelOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        let (ours, theirs) = sys::socket_pair(false).map_err(system("socketpair"))?;
        let message = Message::new(channel::OPEN_FUNCTION, 0, 0, 0);
        send(self.sockets().own.raw(), message, Some(&theirs))?;
        drop(theirs);
        Ok(Arc::new(Client::attach(ours)?))
    }

    fn hold(&self, holding: Holding) -> Result<(), AttachError> {
        send(self.sockets().own.raw(), holder(&holding), None)
    }

    fn introduce_heir(&self, holdings: &[Holding]) -> Result<Fd, AttachError> {
        let (heir, theirs) = sys::socket_pair(true).map_err(system("socketpair"))?;
        for holding in holdings {
            send(heir.raw(), holder(holding), None)?;
        }
        send(
            self.sockets().own.raw(),
            Message::new(channel::PROCESS, 0, 0, 0),
            Some(&theirs),
        )?;
        Ok(heir)
    }

    fn before_fork(&self, holdings: &[Holding]) -> Result<(), AttachError> {
        let child = self.introduce_heir(holdings)?;
        self.sockets().child = Some(child);
        Ok(())
    }

    fn after_fork_in_parent(&self) {
        self.sockets().child = None;
    }

    fn after_fork_in_child(&self) {
        let mut sockets = self.sockets();
        if let Some(child) = sockets.child.take() {
            sockets.own = child;
        } else {
            // Nobody introduced this process. It must not pass for its parent: its socket is replaced by one that leads nowhere.
            if let Ok((nowhere, _)) = sys::socket_pair(true) {
                sockets.own = nowhere;
            }
        }
    }
}
