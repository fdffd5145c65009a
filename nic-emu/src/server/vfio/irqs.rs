//! Interrupts: GET_IRQ_INFO and SET_IRQS.
//!
//! Place: between [`super::session`] and the device's vectors. Invariants: only eventfds become vectors, because the engine writes to
//! them and must not block; all descriptors of a message are checked before the first one is used.
//! Source: vfio-user protocol, linux/vfio.h. Leaves out: INTx, masking by message, interrupts as messages.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use ring_proto::ids::FunctionId;
use ring_proto::regs;
use ring_proto::vfio::{IRQ_EVENTFD, IrqInfo};
use zerocopy::IntoBytes;

use super::message::IrqAction;
use super::{Failure, Reply};
use crate::server::runtime::EngineHandle;

/// Describes an interrupt type.
pub(crate) fn info(index: u32) -> Result<Reply, Failure> {
    if index >= regs::NUM_IRQS {
        return Err(Errno::EINVAL.into());
    }
    let (flags, count) = if index == regs::IRQ_MSIX {
        (IRQ_EVENTFD, regs::VECTORS)
    } else {
        (0, 0)
    };
    let info = IrqInfo {
        argsz: u32::try_from(size_of::<IrqInfo>()).expect("16 bytes"),
        flags,
        index,
        count,
    };
    Ok(Reply::bytes(info.as_bytes()))
}

/// Connects, disconnects or fires vectors.
pub(crate) fn set(
    engine: &EngineHandle,
    function: FunctionId,
    index: u32,
    start: u32,
    count: u32,
    action: IrqAction<'_>,
    fds: Vec<OwnedFd>,
) -> Result<Reply, Failure> {
    let vectors = if index == regs::IRQ_MSIX {
        regs::VECTORS
    } else {
        0
    };
    if index >= regs::NUM_IRQS || start.saturating_add(count) > vectors {
        return Err(Errno::EINVAL.into());
    }
    let number = |vector: u32| u8::try_from(vector).expect("vectors are fewer than 256");
    match action {
        IrqAction::DisableAll => {
            engine.call(move |device| {
                (0..vectors).try_for_each(|v| device.set_vector(function, number(v), None))
            })??;
        }
        IrqAction::Assign => {
            if !fds.iter().all(is_eventfd) {
                return Err(Errno::EINVAL.into());
            }
            engine.call(move |device| {
                // No descriptors at all: the range is disconnected.
                let mut fds = fds.into_iter();
                (start..start + count)
                    .try_for_each(|v| device.set_vector(function, number(v), fds.next()))
            })??;
        }
        IrqAction::Trigger => {
            engine.call(move |device| {
                (start..start + count).for_each(|v| device.fire_vector(function, number(v)));
            })?;
        }
        IrqAction::TriggerSome(which) => {
            let which = which.to_vec();
            engine.call(move |device| {
                for (vector, _) in (start..).zip(which).filter(|&(_, fire)| fire != 0) {
                    device.fire_vector(function, number(vector));
                }
            })?;
        }
    }
    Ok(Reply::default())
}

/// Whether a descriptor is an eventfd: the kernel's name for it tells.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::readlink(path.as_str()).is_ok_and(|name| name == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::EventFd;

    #[test]
    fn eventfds_are_told_from_other_descriptors() {
        assert!(is_eventfd(&OwnedFd::from(EventFd::new().unwrap())));
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert!(!is_eventfd(&read));
        let epoll =
            nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
        assert!(!is_eventfd(&epoll.0));
    }
}
