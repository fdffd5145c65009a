//! Completion statuses, syndromes, opcodes and QP states: the numbers that both sides speak.
//!
//! Place: written by the device into CQEs, EQEs and admin completions; read by the driver.
//! Invariants: codes are integers with named constants; unknown values are legal to receive. Statuses equal `enum ibv_wc_status`.
//! Source: verbs (infiniband/verbs.h, statuses and QP states); syndromes are ours and name the exact check that failed.

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($raw:ty) { $($(#[$vdoc:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $raw);

        impl $name {
            $($(#[$vdoc])* pub const $variant: Self = Self($value);)*

            /// Every named value, in numerical order of declaration.
            pub const ALL: &'static [Self] = &[$(Self($value)),*];

            /// The name, or `None` for a value that this version does not know.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($variant)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// Status of a completed WQE. Source: `enum ibv_wc_status`.
    WcStatus(u8) {
        /// The operation completed.
        SUCCESS = 0,
        /// Message longer than the local buffers, or than the port allows.
        LOC_LEN_ERR = 1,
        /// The WQE itself or the QP's state made the operation impossible.
        LOC_QP_OP_ERR = 2,
        /// A local SGE names memory it may not use.
        LOC_PROT_ERR = 4,
        /// The QP was in ERR before the operation ran.
        WR_FLUSH_ERR = 5,
        /// Memory window binding failed.
        MW_BIND_ERR = 6,
        /// The transport answered something impossible.
        BAD_RESP_ERR = 7,
        /// A receive buffer was hit by a protection error while a message arrived.
        LOC_ACCESS_ERR = 8,
        /// The responder could not perform the request.
        REM_INV_REQ_ERR = 9,
        /// The responder refused access to its memory.
        REM_ACCESS_ERR = 10,
        /// The responder could not complete the operation.
        REM_OP_ERR = 11,
        /// The transport's retries ran out.
        RETRY_EXC_ERR = 12,
        /// Receiver-not-ready retries ran out.
        RNR_RETRY_EXC_ERR = 13,
        /// Anything else.
        GENERAL_ERR = 21,
    }
}

codes! {
    /// Why a WQE failed: the exact check, beside the verbs status. Zero with success. Source: ours.
    Syndrome(u16) {
        /// No error.
        NONE = 0,
        /// Unknown opcode.
        BAD_OPCODE = 1,
        /// Block count is 0, above 4, or smaller than the SGEs need.
        BAD_BLOCKS = 2,
        /// More SGEs than the WQE can hold.
        BAD_SGE_COUNT = 3,
        /// Inline length above 224 bytes or above the blocks' room.
        BAD_INLINE_LENGTH = 4,
        /// A reserved field or flag bit is not zero.
        RESERVED_NOT_ZERO = 5,
        /// The WQE would wrap across the end of the ring.
        WQE_WRAPS = 6,
        /// The doorbell ran further than the queue is deep, or backwards.
        DOORBELL_OUT_OF_RANGE = 7,
        /// Sum of the SGE lengths overflows or differs from the total.
        BAD_TOTAL = 8,
        /// Message longer than the port's maximum.
        MESSAGE_TOO_LONG = 9,
        /// The local buffer of an atomic operation is not 8 bytes.
        BAD_ATOMIC_LENGTH = 10,
        /// The lkey names no memory region.
        LKEY_UNKNOWN = 16,
        /// The lkey's region belongs to another protection domain.
        LKEY_PD_MISMATCH = 17,
        /// The SGE leaves the region.
        LKEY_OUT_OF_BOUNDS = 18,
        /// The region does not allow the local access.
        LKEY_NO_ACCESS = 19,
        /// The region's window has gone or has no memory behind it.
        WINDOW_GONE = 20,
        /// The rkey names no memory region of the responder.
        RKEY_UNKNOWN = 32,
        /// The rkey's region belongs to another protection domain than the responder's QP.
        RKEY_PD_MISMATCH = 33,
        /// The remote range leaves the region.
        RKEY_OUT_OF_BOUNDS = 34,
        /// The region does not allow the remote access.
        RKEY_NO_ACCESS = 35,
        /// The region belongs to another QP.
        RKEY_WRONG_QP = 36,
        /// The responder's QP does not allow this kind of operation.
        QP_NO_ACCESS = 37,
        /// The remote address of an atomic operation is not a multiple of 8.
        ATOMIC_MISALIGNED = 38,
        /// The key's region was invalidated, or its window is not bound.
        KEY_INVALIDATED = 39,
        /// The message does not fit the posted receive.
        RECV_TOO_SHORT = 48,
        /// The posted receive is malformed or names memory it may not use.
        RECV_BAD_WQE = 49,
        /// Receiver stayed not ready for longer than the QP's retries allow.
        RNR_EXHAUSTED = 50,
        /// The peer's QP is not connected (any more).
        PEER_GONE = 51,
        /// The peer's QP is in ERR.
        PEER_IN_ERROR = 52,
        /// Flushed because the QP went to ERR.
        FLUSHED = 53,
        /// The completion queue overran.
        CQ_OVERRUN = 54,
        /// The QP's state does not allow the operation, or no such change of state exists.
        BAD_QP_STATE = 55,
        /// Flushed because the peer disconnected, was destroyed or reset.
        DISCONNECTED = 56,
        /// The link lost everything for longer than the QP's retries allow.
        RETRIES_EXHAUSTED = 57,
        /// The function's event queue stayed full for too long.
        EQ_OVERRUN = 64,
        /// The device itself failed while it worked for the function.
        INTERNAL_ERROR = 65,
        /// A fault rule of the device's owner wanted it so.
        FAULT_INJECTED = 66,
        /// The state that the caller gave as current is not the QP's.
        CURRENT_STATE_DIFFERS = 80,
        /// The change of state needs an attribute that was not given.
        ATTRIBUTE_MISSING = 81,
        /// An attribute that this change of state does not take, or none that exists.
        ATTRIBUTE_NOT_ALLOWED = 82,
        /// An attribute has a value that it cannot have.
        ATTRIBUTE_OUT_OF_RANGE = 83,
        /// A field is not zero although its attribute is not given.
        ATTRIBUTE_NOT_GIVEN = 84,
        /// The send queue has not drained yet.
        SQ_DRAINING = 85,
        /// The connection manager is connecting the QP.
        QP_CONNECTING = 86,
        /// The QP named as peer does not exist.
        NO_SUCH_PEER = 87,
        /// The new ring has no room for the entries that are not consumed.
        CQ_TOO_SMALL = 88,
        /// Old and new ring of a CQ overlap.
        CQ_RINGS_OVERLAP = 89,
        /// The CQ overran before, or its memory went.
        CQ_BROKEN = 90,
        /// Moderation by count without a period could hold an interrupt back for ever.
        MODERATION_ENDLESS = 91,
        /// A READ or atomic on a QP whose `max_rd_atomic` is 0.
        NO_INITIATOR_DEPTH = 96,
        /// A READ or atomic to a QP whose `max_dest_rd_atomic` is 0.
        NO_RESPONDER_DEPTH = 97,
        /// The port of one of the two ends stayed down for longer than the retries last.
        PORT_DOWN = 98,
        /// The key names no memory window.
        MW_UNKNOWN = 128,
        /// The window is of type 1, which a WQE cannot bind.
        MW_WRONG_TYPE = 129,
        /// The window belongs to another protection domain.
        MW_PD_MISMATCH = 130,
        /// The window is bound; it has to be invalidated first.
        MW_STILL_BOUND = 131,
        /// The new key names another window, or its tag is the present one.
        MW_KEY_NOT_FRESH = 132,
        /// The range to bind is empty.
        MW_ZERO_LENGTH = 133,
        /// A window can have remote rights only.
        MW_BAD_RIGHTS = 134,
        /// The region does not allow windows.
        MW_BIND_NOT_ALLOWED = 135,
        /// A window to be changed by peers needs a region that its owner may write.
        MW_NEEDS_LOCAL_WRITE = 136,
        /// The SRQ of the QP is of no more use.
        SRQ_BROKEN = 137,
        /// The key to invalidate names neither window nor region.
        INV_UNKNOWN_KEY = 144,
        /// The key to invalidate belongs to another protection domain.
        INV_PD_MISMATCH = 145,
        /// The key to invalidate belongs to another QP.
        INV_WRONG_QP = 146,
        /// The key to invalidate is not valid now.
        INV_NOT_VALID = 147,
        /// The key cannot be invalidated in this way: a type 1 window, or a region from afar.
        INV_NOT_ALLOWED = 148,
        /// The region to invalidate has windows.
        INV_REGION_BOUND = 149,
    }
}

codes! {
    /// State of a QP. Source: `enum ibv_qp_state`.
    QpState(u8) {
        /// Created, nothing allowed.
        RESET = 0,
        /// Receives may be posted.
        INIT = 1,
        /// Receives are served.
        RTR = 2,
        /// Sends are served.
        RTS = 3,
        /// Send queue drained.
        SQD = 4,
        /// Send queue error (unconnected transports only).
        SQE = 5,
        /// Error: everything flushes.
        ERR = 6,
    }
}

codes! {
    /// Operation of a send WQE. Source: verbs work-request opcodes by name; numbers ours.
    Opcode(u8) {
        /// Does nothing; fills up to the end of the ring.
        NOP = 0,
        /// Message to the peer's next posted receive.
        SEND = 1,
        /// Message with immediate data.
        SEND_WITH_IMM = 2,
        /// Writes into the peer's memory.
        RDMA_WRITE = 3,
        /// Writes into the peer's memory and consumes a receive for the immediate data.
        RDMA_WRITE_WITH_IMM = 4,
        /// Reads from the peer's memory.
        RDMA_READ = 5,
        /// Message that also invalidates a key of the peer.
        SEND_WITH_INV = 6,
        /// Replaces 8 bytes of the peer's memory when they equal an operand, and fetches what was there.
        ATOMIC_CMP_AND_SWP = 7,
        /// Adds an operand to 8 bytes of the peer's memory, and fetches what was there.
        ATOMIC_FETCH_AND_ADD = 8,
        /// Invalidates a key of this function.
        LOCAL_INV = 9,
        /// Binds a type 2 memory window.
        BIND_MW = 10,
    }
}

codes! {
    /// Operation a CQE reports. Send-side values equal [`Opcode`]; receive-side ones have bit 7. Source: `enum ibv_wc_opcode` by name.
    WcOpcode(u8) {
        /// A SEND completed.
        SEND = 1,
        /// A SEND_WITH_IMM completed.
        SEND_WITH_IMM = 2,
        /// An RDMA WRITE completed.
        RDMA_WRITE = 3,
        /// An RDMA WRITE with immediate completed.
        RDMA_WRITE_WITH_IMM = 4,
        /// An RDMA READ completed.
        RDMA_READ = 5,
        /// A SEND_WITH_INV completed.
        SEND_WITH_INV = 6,
        /// An ATOMIC_CMP_AND_SWP completed.
        COMP_SWAP = 7,
        /// An ATOMIC_FETCH_AND_ADD completed.
        FETCH_ADD = 8,
        /// A LOCAL_INV completed.
        LOCAL_INV = 9,
        /// A BIND_MW completed.
        BIND_MW = 10,
        /// A receive took a message.
        RECV = 0x80,
        /// A receive took the immediate data of an RDMA WRITE.
        RECV_RDMA_WITH_IMM = 0x81,
    }
}
