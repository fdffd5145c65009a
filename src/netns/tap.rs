//! TAP devices: interfaces whose frames a process reads and writes.
//!
//! Place: the helper makes one in each node's network namespace. Invariants: the device is not persistent, it goes with its last descriptor.
//! Source: tuntap.txt of the kernel's documentation, linux/if_tun.h, netdevice(7) for the layout of `ifreq`. Leaves out: offloads, queues.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF is an ioctl, and no wrapper of ours knows it"
)]

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Context as _;
use nix::errno::Errno;

/// The device that makes them.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// Bytes of an `ifreq`: a name, and a union that we use the first word of.
const IFREQ: usize = 40;
const NAME: usize = libc::IFNAMSIZ;

/// Makes an interface in the network namespace of this thread. Frames come without a header.
pub(super) fn make(name: &str) -> anyhow::Result<OwnedFd> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .with_context(|| format!("cannot open {DEVICE}"))?;
    let mut request = [0u8; IFREQ];
    assert!(name.len() < NAME, "a short name of our own");
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI).to_ne_bytes();
    request[NAME..NAME + 2].copy_from_slice(if cfg!(target_endian = "little") {
        &flags[..2]
    } else {
        &flags[2..]
    });
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which has 40 bytes and lies in `request`, alive during the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    Errno::result(made).with_context(|| format!("cannot make the interface {name}"))?;
    Ok(device.into())
}
