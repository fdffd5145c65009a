//! What the sender of a packet that is too long for its link is told.
//!
//! Place: the forwarder drops such a frame and hands the answer to the sender's interface. Without it streams would stand still where a link's
//! MTU is below the interface's: no sender learns from a switch, so the answer is a router's, in the name of the other node.
//! Source: RFC 792 (destination unreachable), RFC 1191 (next-hop MTU). Leaves out: IPv6 (packet too big).

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of the packet's own payload that the answer holds: the ports.
const QUOTED: usize = 8;

/// "Fragmentation needed" for the IPv4 packet in a frame, unless it is one that may be cut or an ICMP error itself.
pub(super) fn answer(frame: &[u8], mtu: u32) -> Option<Vec<u8>> {
    const DO_NOT_FRAGMENT: u8 = 0x40;
    const ICMP: u8 = 1;
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let [version_ihl, ..] = packet else {
        return None;
    };
    let header = usize::from(version_ihl & 0xf) * 4;
    let is_ipv4 = ethernet.get(12..14)? == [8, 0] && version_ihl >> 4 == 4 && header >= 20;
    let may_be_cut = packet.get(6)? & DO_NOT_FRAGMENT == 0;
    let is_icmp_error = *packet.get(9)? == ICMP && !matches!(packet.get(header)?, 0 | 8);
    if !is_ipv4 || may_be_cut || is_icmp_error {
        return None;
    }
    let quoted = packet.get(..header + QUOTED)?;
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(u16::try_from(mtu).ok()?.to_be_bytes());
    icmp.extend(quoted);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let total = u16::try_from(20 + icmp.len()).ok()?;
    let mut ip = vec![0x45, 0xc0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    ip.extend(packet.get(16..20)?);
    ip.extend(packet.get(12..16)?);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let (to, from) = (ethernet.get(6..12)?, ethernet.get(..6)?);
    Some([to, from, &[8, 0], &ip, &icmp].concat())
}

/// The Internet checksum. Source: RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with an IPv4 packet of UDP from 10.0.0.1 to 10.0.0.2.
    fn frame(flags: u8, protocol: u8) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        bytes.extend([0x45, 0, 5, 220, 0, 7, flags, 0, 64, protocol, 0, 0]);
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([3, 1, 2, 2, 5, 200, 0, 0]);
        bytes.resize(14 + 1500, 7);
        bytes
    }

    #[test]
    fn the_sender_is_told_the_mtu_in_the_name_of_the_other_node() {
        let sent = frame(0x40, 17);
        let told = answer(&sent, 1000).expect("an answer");
        assert_eq!(told[..6], sent[6..12]);
        assert_eq!(told[6..12], sent[..6]);
        assert_eq!(told[26..30], [10, 0, 0, 2]);
        assert_eq!(told[30..34], [10, 0, 0, 1]);
        assert_eq!(told[34..36], [3, 4]);
        assert_eq!(told[40..42], 1000u16.to_be_bytes());
        assert_eq!(told[42..], sent[14..42]);
        // A sum over what it covers, itself included, is nothing.
        assert_eq!(checksum(&told[14..34]), 0);
        assert_eq!(checksum(&told[34..]), 0);
        assert_eq!(
            usize::from(u16::from_be_bytes([told[16], told[17]])),
            told.len() - 14
        );
    }

    #[test]
    fn packets_that_may_be_cut_errors_and_other_protocols_are_not_answered() {
        assert_eq!(answer(&frame(0, 17), 1000), None);
        // Its type is 3 in the first byte of the payload.
        assert_eq!(answer(&frame(0x40, 1), 1000), None);
        let mut other = frame(0x40, 17);
        other[12] = 0x86;
        assert_eq!(answer(&other, 1000), None);
        for len in 0..42 {
            assert_eq!(answer(&frame(0x40, 17)[..len], 1000), None, "{len}");
        }
    }
}
