//! The table from local IP subnets to providers: the only input of the routing decision.
//!
//! Place: built by the provider table from the providers' address lists and the node's prefix lengths (R-22, OP-1), asked by the
//! determination at connect. Invariants: plain values, no call; an address without known prefix does not enter.

use core::net::Ipv4Addr;

use crate::config::AddressPrefix;

/// Local subnets and the provider of each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubnetTable {
    entries: Vec<Entry>,
}

/// One subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The NIC's own address, with its prefix.
    pub nic: AddressPrefix,
    /// Index of the provider in the provider table.
    pub provider: usize,
}

impl SubnetTable {
    /// Adds the address of a NIC. Providers are added in configuration order, which decides between equal prefixes (OP-2).
    pub fn add(&mut self, nic: AddressPrefix, provider: usize) {
        self.entries.push(Entry { nic, provider });
    }

    /// The provider whose subnet contains `destination`: longest prefix, then configuration order.
    #[must_use]
    pub fn lookup(&self, destination: Ipv4Addr) -> Option<Entry> {
        let mut best: Option<Entry> = None;
        for &entry in &self.entries {
            let longer = best.is_none_or(|b| entry.nic.prefix > b.nic.prefix);
            if longer && entry.nic.contains(destination) {
                best = Some(entry);
            }
        }
        best
    }

    /// Entries in configuration order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, provider: usize) -> (AddressPrefix, usize) {
        (text.parse().unwrap(), provider)
    }

    #[test]
    fn r041_longest_prefix_wins_then_configuration_order() {
        let mut table = SubnetTable::default();
        for (nic, provider) in [
            entry("10.0.0.1/8", 0),
            entry("10.1.0.1/16", 1),
            entry("10.1.0.2/16", 2),
        ] {
            table.add(nic, provider);
        }
        let of = |a: [u8; 4]| table.lookup(Ipv4Addr::from(a)).map(|e| e.provider);
        assert_eq!(of([10, 1, 2, 3]), Some(1));
        assert_eq!(of([10, 2, 2, 3]), Some(0));
        assert_eq!(of([11, 1, 2, 3]), None);
        assert_eq!(SubnetTable::default().lookup(Ipv4Addr::LOCALHOST), None);
    }
}
