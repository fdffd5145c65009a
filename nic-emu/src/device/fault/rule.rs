//! A fault rule: where it looks, what it looks for, when it fires, what it does then.
//!
//! Place: embedded programs build one by [`FaultRule::new`], the control socket makes one of JSON ([`super::fields`]);
//! [`Device::add_fault`](crate::device::Device::add_fault) checks it. Invariants: a rule that passed [`FaultRule::check`] has an action and
//! a scope that its point knows. Source: ours; opcodes and statuses as in verbs. Hot: nothing.

use std::fmt;

use ring_proto::status::{Opcode, WcOpcode, WcStatus};

use super::call;
use crate::device::fields::FieldError;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name in JSON and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// Where a rule looks.
    FaultPoint {
        /// A send WQE, once, before it is executed.
        Wqe = "wqe",
        /// A packet that a QP sends. The rule puts the connections it is about into packet mode.
        Packet = "packet",
        /// A message that needs a receive, at the QP that has to have one.
        Receive = "receive",
        /// A CQE of success, before it is written.
        Completion = "completion",
        /// A doorbell of a QP, CQ, EQ or SRQ, as the device sees it. Never that of the admin queue.
        Doorbell = "doorbell",
        /// Armed vectors of a function, as they are about to fire.
        Interrupt = "interrupt",
        /// A call of the service provider, before it is done; [`FaultRule::opcode`] names the call.
        Call = "call",
    }
}

/// What a rule does when it fires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAction {
    /// It happens so much later. Packets overtake one that is delayed; completions of a CQ keep their order.
    Delay {
        /// How much.
        ns: u64,
    },
    /// It does not happen: a lost packet, completion, doorbell or interrupt.
    Drop,
    /// The packet arrives twice.
    Duplicate,
    /// The packet arrives with a flipped bit, which its check finds.
    Corrupt,
    /// The WQE is not executed and completes so, or the completion tells this; the QP goes to ERR.
    Status {
        /// Any but SUCCESS.
        status: WcStatus,
    },
    /// The QP goes to ERR with a QP_FATAL event; what is posted flushes.
    QpErr,
    /// The function fails as a NIC that has reset itself: its objects end, DEVICE_FATAL, it needs a reset.
    NicReset,
    /// The CQ overruns: it takes nothing more, its QPs go to ERR.
    CqOverrun,
    /// The receiver is not ready.
    Rnr,
    /// The call fails with this Windows Sockets code.
    Fail {
        /// One of [`super::call_codes`].
        code: u32,
    },
}

impl FaultAction {
    /// Its name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay { .. } => "delay",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Corrupt => "corrupt",
            Self::Status { .. } => "status",
            Self::QpErr => "qp_err",
            Self::NicReset => "nic_reset",
            Self::CqOverrun => "cq_overrun",
            Self::Rnr => "rnr",
            Self::Fail { .. } => "fail",
        }
    }
}

/// Which of the occasions that a rule is about it fires at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FaultWhen {
    /// Each.
    #[default]
    Always,
    /// This one alone, from 1.
    Nth(u64),
    /// Each so-manieth.
    Every(u64),
    /// By chance, in parts per million. The draws depend on the rule's seed and the device's alone.
    Random {
        /// 1 to 1 000 000.
        ppm: u32,
    },
}

/// See the module. What is not set matches everything.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FaultRule {
    /// Where it looks.
    pub at: FaultPoint,
    /// What it does.
    pub action: FaultAction,
    /// Name of the node whose functions it is about: who posts the WQE, sends the packet, has to have the receive.
    pub node: Option<String>,
    /// Number of the function.
    pub function: Option<u32>,
    /// Number of the QP.
    pub qpn: Option<u32>,
    /// Name of the operation, or of the provider call.
    pub opcode: Option<String>,
    /// Which occasions.
    pub when: FaultWhen,
    /// Most times it fires.
    pub count: Option<u64>,
    /// For [`FaultWhen::Random`].
    pub seed: u64,
}

/// Opcodes of packets beside those of WQEs, as `packet` numbers them.
const RESPONSES: [(&str, u8); 4] = [
    ("READ_RESPONSE", 0x80),
    ("ACK", 0x81),
    ("NAK", 0x82),
    ("RNR_NAK", 0x83),
];

impl FaultPoint {
    /// Names of the actions it knows.
    #[must_use]
    pub const fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Wqe => &["delay", "status", "qp_err", "nic_reset"],
            Self::Packet => &["delay", "drop", "duplicate", "corrupt"],
            Self::Receive => &["rnr"],
            Self::Completion => &[
                "delay",
                "drop",
                "status",
                "qp_err",
                "cq_overrun",
                "nic_reset",
            ],
            Self::Doorbell | Self::Interrupt => &["delay", "drop"],
            Self::Call => &["fail"],
        }
    }

    /// Operations by name that occasions here are of; none where they are of none.
    #[must_use]
    pub fn opcodes(self) -> Vec<(&'static str, u8)> {
        let requests = |takes: fn(Opcode) -> bool| {
            Opcode::ALL
                .iter()
                .filter(move |&&opcode| opcode != Opcode::NOP && takes(opcode))
                .filter_map(|opcode| Some((opcode.name()?, opcode.0)))
        };
        match self {
            Self::Wqe => requests(|_| true).collect(),
            Self::Packet => requests(|opcode| opcode < Opcode::LOCAL_INV)
                .chain(RESPONSES)
                .collect(),
            Self::Receive => requests(|opcode| {
                matches!(
                    opcode,
                    Opcode::SEND
                        | Opcode::SEND_WITH_IMM
                        | Opcode::SEND_WITH_INV
                        | Opcode::RDMA_WRITE_WITH_IMM
                )
            })
            .collect(),
            Self::Completion => WcOpcode::ALL
                .iter()
                .filter_map(|opcode| Some((opcode.name()?, opcode.0)))
                .collect(),
            Self::Call => call::CALLS.to_vec(),
            Self::Doorbell | Self::Interrupt => Vec::new(),
        }
    }

    /// Name of an operation here.
    pub(crate) fn opcode_name(self, code: u8) -> Option<&'static str> {
        let all = self.opcodes();
        all.into_iter()
            .find(|&(_, known)| known == code)
            .map(|(name, _)| name)
    }

    /// Name of the field that names its operation.
    pub(crate) const fn operation(self) -> &'static str {
        match self {
            Self::Call => "call",
            _ => "opcode",
        }
    }

    const fn has_qpn(self) -> bool {
        !matches!(self, Self::Interrupt | Self::Call)
    }
}

impl FaultRule {
    /// A rule that always fires, for everything at a point.
    #[must_use]
    pub const fn new(at: FaultPoint, action: FaultAction) -> Self {
        Self {
            at,
            action,
            node: None,
            function: None,
            qpn: None,
            opcode: None,
            when: FaultWhen::Always,
            count: None,
            seed: 0,
        }
    }

    /// Only for functions of this node.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.to_owned());
        self
    }

    /// Only for this function.
    #[must_use]
    pub const fn function(mut self, number: u32) -> Self {
        self.function = Some(number);
        self
    }

    /// Only for this QP.
    #[must_use]
    pub const fn qpn(mut self, qpn: u32) -> Self {
        self.qpn = Some(qpn);
        self
    }

    /// Only for this operation.
    #[must_use]
    pub fn opcode(mut self, name: &str) -> Self {
        self.opcode = Some(name.to_owned());
        self
    }

    /// Only at the n-th occasion, from 1.
    #[must_use]
    pub const fn nth(mut self, n: u64) -> Self {
        self.when = FaultWhen::Nth(n);
        self
    }

    /// Only at each n-th occasion.
    #[must_use]
    pub const fn every(mut self, n: u64) -> Self {
        self.when = FaultWhen::Every(n);
        self
    }

    /// By chance, in parts per million.
    #[must_use]
    pub const fn ppm(mut self, ppm: u32) -> Self {
        self.when = FaultWhen::Random { ppm };
        self
    }

    /// At most so often.
    #[must_use]
    pub const fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Decides the draws of [`FaultRule::ppm`].
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Code of the operation it is about; an error when something does not fit the point.
    pub(crate) fn check(&self) -> Result<Option<u8>, FieldError> {
        let at = self.at;
        if !at.actions().contains(&self.action.name()) {
            return Err(FieldError::value(
                "action",
                format!("{:?} at {at}", self.action.name()),
                at.actions().join(", "),
            ));
        }
        if let FaultAction::Delay { ns: 0 } = self.action {
            return Err(FieldError::value("delay_ns", "0", "1 and above"));
        }
        if let FaultAction::Status { status } = self.action
            && (status == WcStatus::SUCCESS || status.name().is_none())
        {
            return Err(FieldError::value("status", status, status_names()));
        }
        if let FaultAction::Fail { code } = self.action
            && call::code_name(code).is_none()
        {
            return Err(FieldError::value("code", code, call::code_names()));
        }
        if self.qpn.is_some() && !at.has_qpn() {
            return Err(not_here("qpn", at, "node, function"));
        }
        match self.when {
            FaultWhen::Nth(0) => return Err(FieldError::value("nth", "0", "1 and above")),
            FaultWhen::Every(0) => return Err(FieldError::value("every", "0", "1 and above")),
            FaultWhen::Random { ppm } if !(1..=1_000_000).contains(&ppm) => {
                return Err(FieldError::value("ppm", ppm, "1 to 1000000"));
            }
            _ => {}
        }
        if self.count == Some(0) {
            return Err(FieldError::value("count", "0", "1 and above"));
        }
        let Some(name) = &self.opcode else {
            return Ok(None);
        };
        let all = at.opcodes();
        if all.is_empty() {
            return Err(not_here("opcode", at, "node, function, qpn"));
        }
        let code = all.iter().find(|(known, _)| known == name);
        let Some(&(_, code)) = code else {
            let names: Vec<_> = all.iter().map(|&(name, _)| name).collect();
            let value = format!("{name:?} at {at}");
            return Err(FieldError::value(at.operation(), value, names.join(", ")));
        };
        Ok(Some(code))
    }
}

fn not_here(field: &'static str, at: FaultPoint, allowed: &str) -> FieldError {
    FieldError::NotHere {
        field,
        place: format!("at {at}"),
        allowed: allowed.to_owned(),
    }
}

/// Statuses that a rule may choose.
pub(crate) fn status_names() -> String {
    let names = WcStatus::ALL
        .iter()
        .filter(|&&status| status != WcStatus::SUCCESS)
        .filter_map(|status| status.name());
    names.collect::<Vec<_>>().join(", ")
}
