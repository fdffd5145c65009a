//! The embedded device through the `Attachment` trait.

use std::os::fd::AsRawFd;

use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use nix::fcntl::SealFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::regs;
use ring_proto::uar;

use crate::client::{A, memfd};

#[test]
fn embedded_function_answers_like_an_attached_one() {
    let device = EmbeddedDevice::new(DeviceOptions::default());
    let node = device.add_node("a", &[A]);
    let function = device.attach(node).unwrap();
    assert_eq!(
        function.read_register(regs::MAGIC, 4),
        Ok(regs::MAGIC_VALUE.into())
    );
    assert_eq!(
        function.read_register(regs::MAGIC, 8),
        Err(AttachError::Refused {
            what: "register read",
            errno: libc::EINVAL
        })
    );
    let (fd, len) = function.bar2().unwrap();
    assert!(fd >= 0);
    assert_eq!(len, uar::BAR2_LEN);
    let memory = memfd(0x10_000, SealFlag::F_SEAL_SHRINK);
    let fd = memory.as_raw_fd();
    assert_eq!(function.dma_map(fd, 0, 1 << 32, 0x10_000, true), Ok(()));
    assert_eq!(
        function
            .dma_map(fd, 0, 1 << 32, 0x10_000, true)
            .unwrap_err()
            .errno(),
        libc::EEXIST
    );
    assert_eq!(
        function
            .dma_map(-1, 0, 1 << 40, 0x1000, true)
            .unwrap_err()
            .errno(),
        libc::EBADF
    );
    assert_eq!(function.dma_unmap(1 << 32, 0x10_000), Ok(()));
    let vector = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    assert_eq!(function.set_vector(7, Some(vector.as_raw_fd())), Ok(()));
    device.with(|inner| inner.fire_vector(function.function(), 7));
    assert_eq!(vector.read(), Ok(1));
    function.kick();
    assert_eq!(function.hangup_fd(), None);
    let id = function.function();
    drop(function);
    assert!(device.with(|inner| inner.node_of(id).is_none()));
}
