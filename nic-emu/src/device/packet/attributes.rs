//! Transport attributes of a QP: path MTU, PSNs, timeouts, retries.
//!
//! Place: QP_MODIFY (`modify`) checks and sets them, the requester and the responder of packet mode live by them; message mode by the timers only.
//! Invariants: every value lies in the range of its field; PSNs have 24 bits. A refused QP_MODIFY changes nothing.
//! Source: `ibv_modify_qp` (attributes per transition); timer codes IBA vol. 1, section 9.7.5.2.8 (RNR NAK) and 9.9.2.4 (local ACK
//! timeout). INIT takes them too, and RETRY_UNLIMITED is ours: the connection manager leads from INIT to RTS at once. Hot: nothing.

use ring_proto::admin::{QpAttributes, QpModify, QpSettings};

/// Bits of a PSN.
pub(crate) const PSN_MASK: u32 = 0xff_ffff;
/// Most retries.
const RETRIES: u8 = 7;
/// Shortest and longest wait before a retry of a QP that retries without end.
pub(crate) const BACKOFF_NS: (u64, u64) = (20_000_000, 2_000_000_000);

/// Waits of the receiver-not-ready codes, in units of 10 us.
const RNR_WAITS: [u16; 32] = [
    65535, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
    2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// How long the answer receiver-not-ready with `code` makes the requester wait.
pub(crate) fn rnr_wait_ns(code: u8) -> u64 {
    let units = RNR_WAITS.get(usize::from(code)).copied();
    // Code 0 is 655.36 ms.
    let units = units.map_or(0, |units| u64::from(units) + u64::from(units == 65535));
    units * 10_000
}

/// Transport attributes. See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transport {
    /// 1..=5: 256 B to 4096 B.
    path_mtu: u8,
    timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) min_rnr_timer: u8,
    pub(crate) retry_unlimited: bool,
    pub(crate) sq_psn: u32,
    pub(crate) rq_psn: u32,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            path_mtu: 5,
            timeout: 14,
            retry_cnt: RETRIES,
            min_rnr_timer: 12,
            retry_unlimited: false,
            sq_psn: 0,
            rq_psn: 0,
        }
    }
}

impl Transport {
    /// Payload bytes of a full packet.
    pub(crate) fn mtu(self) -> u32 {
        128 << self.path_mtu
    }

    /// The local ACK timeout; `None` waits without end.
    pub(crate) fn timeout_ns(self) -> Option<u64> {
        (self.timeout != 0).then(|| 4_096u64 << self.timeout)
    }

    /// How long a request waits for a peer that does not answer; `None` without end.
    pub(crate) fn wait_ns(self) -> Option<u64> {
        if self.retry_unlimited {
            return None;
        }
        Some(self.timeout_ns()? * (u64::from(self.retry_cnt) + 1))
    }

    /// Takes over what a QP_MODIFY gives; `modify` has checked it.
    pub(crate) fn take(&mut self, wanted: &QpModify, given: QpAttributes) {
        for (bit, field, value) in [
            (QpAttributes::PATH_MTU, &mut self.path_mtu, wanted.path_mtu),
            (QpAttributes::TIMEOUT, &mut self.timeout, wanted.timeout),
            (
                QpAttributes::RETRY_CNT,
                &mut self.retry_cnt,
                wanted.retry_cnt,
            ),
            (
                QpAttributes::MIN_RNR_TIMER,
                &mut self.min_rnr_timer,
                wanted.min_rnr_timer,
            ),
        ] {
            if given.contains(bit) {
                *field = value;
            }
        }
        if given.contains(QpAttributes::RETRY_UNLIMITED) {
            self.retry_unlimited = wanted.retry_unlimited == 1;
        }
        if given.contains(QpAttributes::SQ_PSN) {
            self.sq_psn = wanted.sq_psn;
        }
        if given.contains(QpAttributes::RQ_PSN) {
            self.rq_psn = wanted.rq_psn;
        }
    }

    /// What QP_QUERY_ATTR answers of them.
    pub(crate) fn settings(self) -> QpSettings {
        QpSettings {
            min_rnr_timer: self.min_rnr_timer,
            path_mtu: self.path_mtu,
            timeout: self.timeout,
            retry_cnt: self.retry_cnt,
            sq_psn: self.sq_psn,
            retry_unlimited: self.retry_unlimited.into(),
            rq_psn: self.rq_psn,
            ..QpSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Transport, rnr_wait_ns};

    #[test]
    fn timers_are_those_of_the_specification() {
        assert_eq!(rnr_wait_ns(0), 655_360_000);
        assert_eq!(rnr_wait_ns(1), 10_000);
        assert_eq!(rnr_wait_ns(12), 640_000);
        assert_eq!(rnr_wait_ns(31), 491_520_000);
        assert_eq!(Transport::default().timeout_ns(), Some(67_108_864));
        assert_eq!(Transport::default().mtu(), 4096);
    }
}
