//! Which port a MAC address is behind.
//!
//! Place: [`super::forward`] asks for the destination of a frame and teaches the source. Invariants: what nodes send cannot make it grow
//! without end; the address that a node was made with stays at its port, whatever another node says. Source: IEEE 802.1D learning, by name.
//! Leaves out: ageing, because a port goes away with its cluster alone.

use std::collections::HashMap;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// Learnt addresses at most, beyond those that nodes were made with: bridges and macvlans in a node have a few.
const LEARNT_LIMIT: usize = 4096;

/// The table.
#[derive(Debug)]
pub(crate) struct Macs {
    ports: HashMap<Mac, Entry>,
    learnt: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    port: usize,
    is_static: bool,
}

impl Macs {
    /// A table with each port's own address.
    pub(crate) fn new(own: impl IntoIterator<Item = Mac>) -> Self {
        let entry = |(port, mac)| {
            let is_static = true;
            (mac, Entry { port, is_static })
        };
        Self {
            ports: own.into_iter().enumerate().map(entry).collect(),
            learnt: 0,
        }
    }

    /// The port an address is behind; `None` for one that is unknown, and for groups: the frame goes to all.
    pub(crate) fn find(&self, mac: Mac) -> Option<usize> {
        self.ports.get(&mac).map(|entry| entry.port)
    }

    /// A frame with this source came from a port.
    pub(crate) fn learn(&mut self, mac: Mac, port: usize) {
        if is_group(mac) {
            return;
        }
        match self.ports.get_mut(&mac) {
            Some(entry) if entry.is_static => {}
            Some(entry) => entry.port = port,
            None if self.learnt < LEARNT_LIMIT => {
                let is_static = false;
                self.ports.insert(mac, Entry { port, is_static });
                self.learnt += 1;
            }
            None => {}
        }
    }
}

/// Broadcast and multicast.
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 == 1
}

/// The address of a node's interface: locally administered, with the node's number in its last bytes.
#[must_use]
pub fn mac_of(node: u16) -> [u8; 6] {
    let [high, low] = node.to_be_bytes();
    [0x02, 0x5a, 0x0b, 0x00, high, low]
}

#[cfg(test)]
mod tests {
    use super::{LEARNT_LIMIT, Macs, mac_of};

    #[test]
    fn a_node_cannot_take_the_address_of_another() {
        let mut macs = Macs::new([mac_of(0), mac_of(1)]);
        macs.learn(mac_of(0), 1);
        assert_eq!(macs.find(mac_of(0)), Some(0));
        let bridge = [2, 0, 0, 0, 0, 9];
        assert_eq!(macs.find(bridge), None);
        macs.learn(bridge, 1);
        macs.learn(bridge, 0);
        assert_eq!(macs.find(bridge), Some(0));
        macs.learn([0xff; 6], 1);
        assert_eq!(macs.find([0xff; 6]), None);
    }

    #[test]
    fn a_node_that_invents_addresses_fills_no_memory() {
        let mut macs = Macs::new([mac_of(0), mac_of(1)]);
        for number in 0..u32::try_from(LEARNT_LIMIT).unwrap() * 2 {
            let [a, b, c, d] = number.to_be_bytes();
            macs.learn([0x06, 0, a, b, c, d], 1);
        }
        assert_eq!(macs.ports.len(), LEARNT_LIMIT + 2);
        assert_eq!(macs.find(mac_of(1)), Some(1));
    }
}
