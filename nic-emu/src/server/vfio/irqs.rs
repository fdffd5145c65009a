//! Interrupts: GET_IRQ_INFO and SET_IRQS.
//!
//! Place: between [`super::session`] and the device's vectors. Invariants: only eventfds become vectors, because devices write to
//! them and must not block; all descriptors of a message are checked before the first one is used; a device sees existing vectors only.
//! Source: vfio-user protocol, linux/vfio.h. Leaves out: masks by eventfd, interrupts as messages.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use ring_proto::vfio::{IRQ_MASKABLE, IrqInfo};
use zerocopy::IntoBytes;

use super::message::{IrqRequest, Which};
use super::{Device, Failure, IrqAction, IrqType, Reply};
use crate::device::VECTORS_LIMIT;

fn irq_type<D: Device>(device: &D, index: u32) -> Result<IrqType, Errno> {
    if index >= device.shape().irqs {
        return Err(Errno::EINVAL);
    }
    let kind = device.irq(index);
    Ok(IrqType {
        vectors: kind.vectors.min(VECTORS_LIMIT),
        ..kind
    })
}

/// Describes an interrupt type.
pub(crate) fn info<D: Device>(device: &D, index: u32) -> Result<Reply, Failure> {
    let kind = irq_type(device, index)?;
    let info = IrqInfo {
        argsz: u32::try_from(size_of::<IrqInfo>()).expect("16 bytes"),
        flags: kind.flags,
        index,
        count: kind.vectors,
    };
    Ok(Reply::bytes(info.as_bytes()))
}

/// Connects, disconnects, masks or fires vectors.
pub(crate) fn set<D: Device>(
    device: &mut D,
    index: u32,
    start: u32,
    count: u32,
    request: IrqRequest<'_>,
    fds: Vec<OwnedFd>,
) -> Result<Reply, Failure> {
    let kind = irq_type(device, index)?;
    if start.saturating_add(count) > kind.vectors {
        return Err(Errno::EINVAL.into());
    }
    let range = set_of(start..start + count);
    let chosen = |which: Which<'_>| match which {
        Which::All => range,
        Which::Some(bytes) => {
            let chosen = (start..).zip(bytes).filter(|&(_, &byte)| byte != 0);
            set_of(chosen.map(|(vector, _)| vector))
        }
    };
    let action = match request {
        IrqRequest::DisableAll => IrqAction::Disconnect(set_of(0..kind.vectors)),
        // No descriptors at all: the range is disconnected.
        IrqRequest::Assign if fds.is_empty() => IrqAction::Disconnect(range),
        IrqRequest::Assign => {
            if !fds.iter().all(is_eventfd) {
                return Err(Errno::EINVAL.into());
            }
            IrqAction::Connect { start, fds }
        }
        IrqRequest::Trigger(which) => IrqAction::Trigger(chosen(which)),
        IrqRequest::Mask(_) | IrqRequest::Unmask(_) if kind.flags & IRQ_MASKABLE == 0 => {
            return Err(Errno::ENOTSUP.into());
        }
        IrqRequest::Mask(which) => IrqAction::Mask(chosen(which)),
        IrqRequest::Unmask(which) => IrqAction::Unmask(chosen(which)),
    };
    device.set_irqs(index, action)?;
    Ok(Reply::default())
}

/// Vectors below [`VECTORS_LIMIT`] as a set.
fn set_of(vectors: impl Iterator<Item = u32>) -> u64 {
    vectors.fold(0, |set, vector| set | 1 << vector)
}

/// The vectors of a set.
pub(crate) fn members(set: u64) -> impl Iterator<Item = u8> {
    (0u8..64).filter(move |&vector| set & 1 << vector != 0)
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

    #[test]
    fn sets_have_a_bit_for_each_member() {
        assert_eq!(set_of(0..64), u64::MAX);
        assert_eq!(set_of(std::iter::empty()), 0);
        assert_eq!(members(1 << 63 | 5).collect::<Vec<_>>(), [0, 2, 63]);
    }
}
