//! The MTU of a link, as interfaces tell it, and what it leaves of an RDMA packet.
//!
//! Place: the requester cuts WQEs by [`LinkParameters::path_mtu`], the wire of namespace mode drops frames by the MTU itself.
//! Source: the sizes are those of IBA vol. 1 (path MTU) with the room for headers that RoCE drivers of Linux leave. Hot: nothing.

use std::ops::RangeInclusive;

use super::LinkParameters;

/// What an MTU may be: from what IPv4 asks of every host to what jumbo frames of switches hold.
pub const MTU_BYTES: RangeInclusive<u32> = 576..=9216;
/// MTU of Ethernet, where nobody tells another one.
pub(crate) const ETHERNET_MTU: u32 = 1500;
/// Longest payload of an RDMA packet.
const PATH_MTU: u32 = 4096;
/// Room for the headers of a RoCE packet: IPv6 40, UDP 8, BTH 12, XRC 4, AtomicETH 28, ICRC 4.
const HEADERS: u32 = 40 + 8 + 12 + 4 + 28 + 4;

/// Whether a link can have it; 0 is not told.
pub(crate) fn is_mtu(bytes: u32) -> bool {
    bytes == 0 || MTU_BYTES.contains(&bytes)
}

impl LinkParameters {
    /// Payload bytes of the longest RDMA packet: 256, 512, 1024, 2048 or 4096, the largest that fits in the MTU with its headers.
    #[must_use]
    pub fn path_mtu(&self) -> u32 {
        match self.mtu_bytes {
            0 => PATH_MTU,
            mtu => {
                let sizes = [PATH_MTU, 2048, 1024, 512];
                let mut fits = sizes.into_iter().filter(|size| size + HEADERS <= mtu);
                fits.next().unwrap_or(256)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_mtus_are_those_of_linux_drivers() {
        for (mtu, path) in [
            (0, 4096),
            (576, 256),
            (607, 256),
            (608, 512),
            (1119, 512),
            (1120, 1024),
            (1500, 1024),
            (2144, 2048),
            (4191, 2048),
            (4192, 4096),
            (9216, 4096),
        ] {
            let parameters = LinkParameters {
                mtu_bytes: mtu,
                ..LinkParameters::default()
            };
            assert_eq!(parameters.path_mtu(), path, "{mtu}");
            assert!(is_mtu(mtu), "{mtu}");
        }
        assert!(!is_mtu(575) && !is_mtu(9217) && !is_mtu(1));
    }
}
