//! The device inside the caller's process: no server, no thread, virtual time when asked for.
//!
//! Place: tests, examples and driver authors attach to it instead of the vfio-user socket; same device, other pump.
//! Invariants: outside of a pump every function shows `parked`, so every doorbell kicks, and a kick works until nothing is left.

#![expect(
    unsafe_code,
    reason = "borrows descriptor numbers that the Attachment trait passes raw"
)]

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::{FunctionId, NodeId};
use ring_proto::uar;

use crate::device::{Device, DeviceError, DeviceOptions, WindowRequest};

/// A device that several embedded functions share.
#[derive(Clone, Debug)]
pub struct EmbeddedDevice {
    device: Arc<Mutex<Device>>,
}

impl EmbeddedDevice {
    /// Makes a device without nodes.
    #[must_use]
    pub fn new(options: DeviceOptions) -> Self {
        Self {
            device: Arc::new(Mutex::new(Device::new(options))),
        }
    }

    /// Adds a node whose port owns `addresses`.
    #[must_use]
    pub fn add_node(&self, name: &str, addresses: &[Ipv4Addr]) -> NodeId {
        self.lock().add_node(name, addresses)
    }

    /// Attaches a new function to a node; dropping it is the client's hang-up.
    ///
    /// # Errors
    /// As [`Device::attach`].
    pub fn attach(&self, node: NodeId) -> Result<Embedded, DeviceError> {
        let mut device = self.lock();
        let function = device.attach(node)?;
        let bar2 = device.bar2(function)?.as_raw_fd();
        drop(device);
        Ok(Embedded {
            device: self.clone(),
            function,
            bar2,
        })
    }

    /// Runs `work` on the device, then pumps until nothing is left.
    pub fn with<R>(&self, work: impl FnOnce(&mut Device) -> R) -> R {
        let mut device = self.lock();
        let result = work(&mut device);
        settle(&mut device);
        result
    }

    /// Moves the virtual clock and works off what became due.
    pub fn advance(&self, ns: u64) {
        self.with(|device| device.advance(ns));
    }

    /// Works until nothing is left.
    pub fn pump(&self) {
        self.with(|_| ());
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        // A panic of another thread inside the device has already failed the function it worked for.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pumps until the device may sleep; it stays parked.
fn settle(device: &mut Device) {
    device.unpark();
    loop {
        if device.pump().served == 0 && device.try_park() {
            return;
        }
    }
}

/// A function of an [`EmbeddedDevice`], as a driver sees it.
#[derive(Debug)]
pub struct Embedded {
    device: EmbeddedDevice,
    function: FunctionId,
    bar2: RawFd,
}

impl Embedded {
    /// Number of the function.
    #[must_use]
    pub fn function(&self) -> FunctionId {
        self.function
    }

    /// The device it belongs to.
    #[must_use]
    pub fn device(&self) -> &EmbeddedDevice {
        &self.device
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.device.with(|device| device.detach(self.function));
    }
}

impl Attachment for Embedded {
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        self.device
            .with(|device| device.read_register(self.function, offset, len))
            .map_err(refused("register read"))
    }

    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError> {
        self.device
            .with(|device| device.write_register(self.function, offset, len, value))
            .map_err(refused("register write"))
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        Ok((self.bar2, uar::BAR2_LEN))
    }

    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError> {
        let fd = duplicate(fd)?;
        let request = WindowRequest {
            fd: Some(fd),
            offset,
            iova,
            len,
            read: true,
            write: writable,
        };
        self.device
            .with(|device| device.map(self.function, request))
            .map_err(refused("dma map"))
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        self.device
            .with(|device| device.unmap(self.function, iova, len))
            .map_err(refused("dma unmap"))
    }

    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError> {
        let eventfd = eventfd.map(duplicate).transpose()?;
        self.device
            .with(|device| device.set_vector(self.function, index, eventfd))
            .map_err(refused("set vector"))
    }

    fn kick(&self) {
        self.device.with(|device| device.kicked(self.function));
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        None
    }
}

fn refused(what: &'static str) -> impl FnOnce(DeviceError) -> AttachError {
    move |error| AttachError::Refused {
        what,
        errno: error.errno(),
    }
}

fn duplicate(fd: RawFd) -> Result<std::os::fd::OwnedFd, AttachError> {
    if fd < 0 {
        return Err(AttachError::System {
            what: "dup",
            errno: libc::EBADF,
        });
    }
    // SAFETY: the number is not -1; the borrow ends with this call, and a number that is not open only makes the duplication fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed
        .try_clone_to_owned()
        .map_err(|error| AttachError::System {
            what: "dup",
            errno: error.raw_os_error().unwrap_or(libc::EBADF),
        })
}
