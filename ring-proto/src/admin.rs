//! Admin commands and completions: creation and control of every object of a function.
//!
//! Place: the driver posts them on the admin ring (doorbell slot 0), the engine answers on the admin completion ring.
//! Invariants: a command is 64 B: a header and a 56 B body by opcode; reserved fields are 0; addresses are IOVAs inside the function's
//! windows. A completion carries the client's command id, so a lock holder that took over can drop replies that are not its own.
//! Source: verbs and rdma_cm by name; layout ours (docs/device.md, section "Admin commands").

#![expect(
    missing_debug_implementations,
    reason = "the layout derives make hidden helper types; every public type here has Debug"
)]

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::{QpState, Syndrome, codes};

/// Admin command: header and body.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Command {
    /// [`AdminOp`].
    pub opcode: u16,
    /// Zero.
    pub flags: u16,
    /// Echoed in the completion.
    pub command_id: u32,
    /// Body by opcode, zero behind its end.
    pub body: Body,
}

/// Room for a body.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Body(pub [u64; 7]);

/// Admin completion.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Completion {
    /// From the command.
    pub command_id: u32,
    /// [`AdminStatus`].
    pub status: u16,
    /// Zero.
    pub reserved: u16,
    /// By opcode.
    pub result: [u64; 2],
    /// Bits 0..32 admin SQ position after the command, 56..64 phase. Stored last with Release.
    pub publish: u64,
}

/// Offset of the publish word in a completion.
pub const COMPLETION_PUBLISH: usize = offset_of!(Completion, publish);

const _: () = {
    assert!(size_of::<Command>() == 64);
    assert!(size_of::<Completion>() == 32 && COMPLETION_PUBLISH == 24);
};

codes! {
    /// Operation of an admin command. In parentheses: body type and results.
    AdminOp(u16) {
        /// Who am I. (no body; result 0: function id | node << 32, result 1: boot cookie)
        IDENTIFY = 1,
        /// Allocates a protection domain. (no body; result 0: pdn)
        PD_ALLOC = 2,
        /// Frees a protection domain. ([`Named`]: pdn)
        PD_FREE = 3,
        /// Registers a memory region. ([`MrReg`]; result 0: lkey | rkey << 32)
        MR_REG = 4,
        /// Deregisters a memory region. ([`Named`]: lkey)
        MR_DEREG = 5,
        /// Creates a CQ. ([`QueueCreate`]; result 0: cqn)
        CQ_CREATE = 6,
        /// Destroys a CQ no QP uses. ([`Named`]: cqn)
        CQ_DESTROY = 7,
        /// Creates the EQ of the function. ([`QueueCreate`]; result 0: eqn)
        EQ_CREATE = 8,
        /// Destroys the EQ. ([`Named`]: eqn)
        EQ_DESTROY = 9,
        /// Creates a QP in RESET. ([`QpCreate`]; result 0: qpn)
        QP_CREATE = 10,
        /// Changes a QP's state and attributes. ([`QpModify`]; refused: result 0 [`Refusal`])
        QP_MODIFY = 11,
        /// Asks for a QP. ([`Named`]: qpn; result 0: state | draining << 8 | peer qpn << 32, result 1: peer function | holders << 32)
        QP_QUERY = 12,
        /// Destroys a QP and disconnects it. ([`Named`]: qpn)
        QP_DESTROY = 13,
        /// Listens on an address and port. ([`CmListen`]; result 0: listener)
        CM_LISTEN = 16,
        /// Stops listening; waiting requests are rejected. ([`Named`]: listener)
        CM_UNLISTEN = 17,
        /// Starts to connect a QP; ends in CM_ESTABLISHED or CM_REJECTED. ([`CmConnect`])
        CM_CONNECT = 18,
        /// Withdraws a connect. ([`Named`]: qpn)
        CM_CANCEL = 19,
        /// Accepts a request with a QP, which goes to RTS. ([`CmAccept`]; result 0: peer function)
        CM_ACCEPT = 20,
        /// Rejects a request. ([`CmAccept`] without QP and listener)
        CM_REJECT = 21,
        /// Writes the [`CmRecord`] of a request or of a connected QP to memory. ([`CmQuery`])
        CM_QUERY = 22,
        /// Disconnects a QP: both ends go to ERR and flush. ([`Named`]: qpn)
        CM_DISCONNECT = 23,
        /// Adds a holder to a QP or listener, or moves a listener's hold to it. ([`Hold`])
        HOLD = 24,
        /// Gives a new holder slot all holds of another one. ([`HoldClone`]; result 0: slot | generation << 32)
        HOLD_CLONE = 25,
        /// Takes a holder away. ([`Hold`]; result 0: holders left)
        RELEASE = 26,
        /// Grants a window to another function. Reserved in this version.
        WINDOW_GRANT = 27,
        /// Asks for a counter block of the function. (no body; result 0: WQEs, result 1: payload bytes sent)
        STATS = 28,
        /// Allocates a memory window, not bound. ([`MwAlloc`]; result 0: rkey)
        MW_ALLOC = 32,
        /// Deallocates a memory window, bound or not. ([`Named`]: rkey)
        MW_DEALLOC = 33,
        /// Binds a type 1 memory window, also one that is bound, or unbinds it with length 0. ([`MwBind`]; result 0: new rkey)
        MW_BIND = 34,
        /// Creates an SRQ. ([`SrqCreate`]; result 0: srqn)
        SRQ_CREATE = 35,
        /// Arms the limit of an SRQ, or with 0 disarms it. ([`SrqModify`])
        SRQ_MODIFY = 36,
        /// Asks for an SRQ. ([`Named`]: srqn; result 0: depth | limit << 32, result 1: receives posted | QPs << 32)
        SRQ_QUERY = 37,
        /// Destroys an SRQ no QP uses. ([`Named`]: srqn)
        SRQ_DESTROY = 38,
        /// Creates a QP in RESET that takes its receives from an SRQ. ([`QpCreateSrq`]; result 0: qpn)
        QP_CREATE_SRQ = 39,
        /// Asks for a QP's attributes. ([`Named`]: qpn; results: [`QpSettings`])
        QP_QUERY_ATTR = 48,
        /// Moves a CQ to another ring. ([`CqResize`]; refused: result 0 [`Refusal`])
        CQ_RESIZE = 49,
        /// Says when a CQ's interrupts come. ([`CqModerate`]; refused: result 0 [`Refusal`])
        CQ_MODERATE = 50,
        /// Asks whether a provider call is to fail by a fault rule. ([`Named`]: [`ProviderCall`]; result 0: its WSA code, or 0)
        CALL_FAULT = 64,
        /// Asks whether the link to a node is cut. ([`Named`]: an IPv4 address of it as a number; result 0: 1 there | 2 back)
        LINK_QUERY = 65,
    }
}

codes! {
    /// Call of a service provider, as CALL_FAULT names it and as a bit in `call_faults`. Source: Windows Sockets Direct by name; numbers ours.
    ProviderCall(u8) {
        /// WSPSocket.
        WSP_SOCKET = 0,
        /// WSPBind.
        WSP_BIND = 1,
        /// WSPListen.
        WSP_LISTEN = 2,
        /// WSPEventSelect.
        WSP_EVENT_SELECT = 3,
        /// WSPAccept.
        WSP_ACCEPT = 4,
        /// WSPConnect.
        WSP_CONNECT = 5,
        /// WSPSetSockOpt.
        WSP_SET_SOCK_OPT = 6,
        /// WSPGetSockOpt.
        WSP_GET_SOCK_OPT = 7,
    }
}

codes! {
    /// Status of an admin command. Values equal errno numbers where one fits.
    AdminStatus(u16) {
        /// Done.
        OK = 0,
        /// No such object (ENOENT).
        NO_OBJECT = 2,
        /// Try again later (EAGAIN): nothing waits.
        AGAIN = 11,
        /// Out of a resource or over a limit (ENOMEM).
        NO_RESOURCE = 12,
        /// Not the owner (EACCES).
        NO_ACCESS = 13,
        /// Address outside the windows (EFAULT).
        BAD_ADDRESS = 14,
        /// Object in use (EBUSY).
        BUSY = 16,
        /// A field has an impossible value (EINVAL).
        INVALID = 22,
        /// Unknown or unsupported opcode (EOPNOTSUPP).
        UNSUPPORTED = 95,
        /// Address and port cannot be used from this node (EADDRNOTAVAIL).
        BAD_NODE_ADDRESS = 99,
        /// The QP is in the wrong state (EISCONN, ENOTCONN and their kind).
        BAD_STATE = 107,
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }

        const _: () = assert!(size_of::<$name>() <= size_of::<Body>());

        impl $name {
            /// Puts the body into the room of a command.
            #[must_use]
            pub fn to_body(self) -> Body {
                let mut body = Body::default();
                body.as_mut_bytes()[..size_of::<Self>()].copy_from_slice(self.as_bytes());
                body
            }

            /// Reads the body of a command; `None` when its reserved field or the room behind it is not zero.
            #[must_use]
            pub fn from_body(body: &Body) -> Option<Self> {
                let (own, rest) = Self::read_from_prefix(body.as_bytes()).ok()?;
                $(if stringify!($field) == "reserved" && own.$field.as_bytes().iter().any(|&b| b != 0) {
                    return None;
                })*
                rest.iter().all(|&b| b == 0).then_some(own)
            }
        }
    )*};
}

bodies! {
    /// Body that names one object.
    Named {
        /// PDN, lkey, rkey of a window, CQN, EQN, QPN, SRQN or listener.
        id: u32,
        /// Zero.
        reserved: u32,
    }

    /// Body of MR_REG.
    MrReg {
        /// IOVA of the first byte.
        addr: u64,
        /// Bytes; the range lies in one window.
        len: u64,
        /// Protection domain.
        pdn: u32,
        /// [`Access`] bits.
        access: u32,
        /// QPN that alone may be used for remote access; 0 for any QP of the protection domain.
        owner_qpn: u32,
        /// Zero.
        reserved: u32,
    }

    /// Body of MW_ALLOC.
    MwAlloc {
        /// Protection domain.
        pdn: u32,
        /// 1 or 2, as in `enum ibv_mw_type`.
        kind: u32,
    }

    /// Body of MW_BIND.
    MwBind {
        /// IOVA of the first byte.
        addr: u64,
        /// Bytes; 0 unbinds, and then all but `rkey` is 0.
        len: u64,
        /// Present key of the window.
        rkey: u32,
        /// Region, which must allow MW_BIND.
        lkey: u32,
        /// [`Access`] bits: remote ones.
        access: u32,
        /// Zero.
        reserved: u32,
    }

    /// Body of CQ_CREATE and EQ_CREATE.
    QueueCreate {
        /// IOVA of the ring, 64 B aligned, zeroed by the client.
        ring: u64,
        /// Entries, a power of two.
        depth: u32,
        /// Doorbell slot for consumer and arm.
        slot: u32,
    }

    /// Body of CQ_RESIZE.
    CqResize {
        /// IOVA of the new ring, 64 B aligned, zeroed by the client, apart from the old one.
        ring: u64,
        /// CQ.
        cqn: u32,
        /// Entries of the new ring, a power of two; at least those not consumed.
        depth: u32,
    }

    /// Body of CQ_MODERATE.
    CqModerate {
        /// CQ.
        cqn: u32,
        /// Interrupt after this many entries; 0: only the period counts.
        count: u16,
        /// Interrupt this many microseconds after the first entry; 0 with `count` 0 switches moderation off.
        period_us: u16,
    }

    /// Body of QP_CREATE.
    QpCreate {
        /// IOVA of the SQ ring, 64 B aligned.
        sq_ring: u64,
        /// IOVA of the RQ ring, 64 B aligned.
        rq_ring: u64,
        /// SQ blocks of 64 B, a power of two.
        sq_depth: u32,
        /// RQ WQEs, a power of two.
        rq_depth: u32,
        /// Protection domain.
        pdn: u32,
        /// CQ of the SQ.
        send_cqn: u32,
        /// CQ of the RQ.
        recv_cqn: u32,
        /// Doorbell slot for both producers.
        slot: u32,
        /// Holder slot of the creator.
        holder: u32,
        /// [`Access`] bits the QP grants to its peer.
        access: u32,
    }

    /// Body of QP_CREATE_SRQ.
    QpCreateSrq {
        /// IOVA of the SQ ring, 64 B aligned.
        sq_ring: u64,
        /// SQ blocks of 64 B, a power of two.
        sq_depth: u32,
        /// SRQ.
        srqn: u32,
        /// Protection domain of the QP; that of the receives is the SRQ's.
        pdn: u32,
        /// CQ of the SQ.
        send_cqn: u32,
        /// CQ of the receives.
        recv_cqn: u32,
        /// Doorbell slot for the SQ producer.
        slot: u32,
        /// Holder slot of the creator.
        holder: u32,
        /// [`Access`] bits the QP grants to its peer.
        access: u32,
    }

    /// Body of SRQ_CREATE.
    SrqCreate {
        /// IOVA of the ring of receive WQEs, 64 B aligned.
        ring: u64,
        /// WQEs, a power of two.
        depth: u32,
        /// Protection domain of the receives.
        pdn: u32,
        /// Doorbell slot for producer and limit.
        slot: u32,
        /// First limit, at most `depth`; 0 for none.
        limit: u32,
    }

    /// Body of SRQ_MODIFY.
    SrqModify {
        /// SRQ.
        srqn: u32,
        /// Limit, at most the depth; 0 disarms.
        limit: u32,
    }

    /// Body of QP_MODIFY.
    QpModify {
        /// QP.
        qpn: u32,
        /// Wanted [`crate::status::QpState`].
        state: u32,
        /// Function of the peer.
        peer_function: u32,
        /// QPN of the peer.
        peer_qpn: u32,
        /// Receiver-not-ready retries 0..=7, where 7 means without end.
        rnr_retry: u32,
        /// [`QpAttributes`]: which fields are given; the others are 0 and change nothing.
        attributes: u32,
        /// PSN of the first packet sent, 24 bits.
        sq_psn: u32,
        /// PSN of the first packet expected, 24 bits.
        rq_psn: u32,
        /// Local ACK timeout: 4.096 us * 2^code, code 0..=31; 0 waits without end.
        timeout: u8,
        /// Transport retries 0..=7.
        retry_cnt: u8,
        /// Code 0..=31 of the wait that a receiver-not-ready answer asks for.
        min_rnr_timer: u8,
        /// Payload of a packet: 1 = 256 B to 5 = 4096 B.
        path_mtu: u8,
        /// 1: transport retries never end, they back off from 20 ms to 2 s.
        retry_unlimited: u32,
        /// [`Access`] bits the QP grants to its peer.
        access: u32,
        /// State the caller believes the QP to be in.
        current_state: u8,
        /// Most READs and atomics of ours under way, 0..=[`MAX_RD_ATOMIC`].
        max_rd_atomic: u8,
        /// Most READs and atomics of the peer under way, 0..=[`MAX_RD_ATOMIC`].
        max_dest_rd_atomic: u8,
        /// 1: report SQ_DRAINED when the send queue has drained.
        sqd_event: u8,
        /// Zero.
        reserved: u32,
    }

    /// Body of CM_LISTEN.
    CmListen {
        /// Local address; an all-zero address of the family is the wildcard.
        local: SockAddr,
        /// Most waiting requests.
        backlog: u32,
        /// Holder slot of the caller.
        holder: u32,
        /// [`LISTEN_SHARED`] or 0.
        flags: u32,
        /// Zero.
        reserved: u32,
    }

    /// Body of CM_QUERY.
    CmQuery {
        /// Where the [`CmRecord`] goes.
        buffer: u64,
        /// Request id, or QPN.
        id: u32,
        /// 0: `id` is a request id; 1: a QPN.
        kind: u32,
    }

    /// Body of CM_CONNECT. The addresses and the private data stand in a [`CmRecord`] in memory.
    CmConnect {
        /// IOVA of a [`CmRecord`]: source, destination and private data.
        record: u64,
        /// QP in INIT.
        qpn: u32,
        /// Limit in milliseconds.
        timeout_ms: u32,
    }

    /// Body of CM_ACCEPT and CM_REJECT.
    CmAccept {
        /// Request.
        request: u32,
        /// QP in INIT.
        qpn: u32,
        /// Listener that holds the QP until somebody takes it, or 0 for the QP's own holders.
        listener: u32,
        /// CM_REJECT: the `CmStatus` that the connector is told, 0 for REJECTED; NO_RESOURCE is the only other one. CM_ACCEPT: zero.
        status: u32,
    }

    /// Body of HOLD and RELEASE.
    Hold {
        /// QPN or listener, by `kind`.
        id: u32,
        /// [`HOLD_QP`] or [`HOLD_LISTENER`].
        kind: u32,
        /// Holder slot.
        slot: u32,
        /// HOLD: listener whose hold moves to `slot`, or 0. RELEASE: [`RELEASE_UNLESS_LAST`] or 0.
        flags: u32,
    }

    /// Body of HOLD_CLONE.
    HoldClone {
        /// Slot whose holds are copied.
        from: u32,
        /// Zero.
        reserved: u32,
    }
}

/// `kind` of a hold on a QP.
pub const HOLD_QP: u32 = 0;
/// `kind` of a hold on a listener.
pub const HOLD_LISTENER: u32 = 1;
/// RELEASE: when `slot` is the last holder keep the hold and answer BUSY.
pub const RELEASE_UNLESS_LAST: u32 = 1;
/// CM_LISTEN: several listeners may share the address and port.
pub const LISTEN_SHARED: u32 = 1;

/// Most outstanding READs and atomics that a QP can be given, in each direction.
pub const MAX_RD_ATOMIC: u8 = 16;

bitflags::bitflags! {
    /// Attributes that a QP_MODIFY gives. Source: `enum ibv_qp_attr_mask`, but for what has no meaning here; RETRY_UNLIMITED is ours.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct QpAttributes: u32 {
        /// The full form: every attribute that the change of state needs is given.
        const STATE = 1;
        /// `current_state`.
        const CUR_STATE = 1 << 1;
        /// `sqd_event`.
        const EN_SQD_ASYNC_NOTIFY = 1 << 2;
        /// `access`.
        const ACCESS_FLAGS = 1 << 3;
        /// `peer_function`, in place of an address vector.
        const AV = 1 << 7;
        /// `path_mtu`.
        const PATH_MTU = 1 << 8;
        /// `timeout`.
        const TIMEOUT = 1 << 9;
        /// `retry_cnt`.
        const RETRY_CNT = 1 << 10;
        /// `rnr_retry`.
        const RNR_RETRY = 1 << 11;
        /// `rq_psn`.
        const RQ_PSN = 1 << 12;
        /// `max_rd_atomic`.
        const MAX_QP_RD_ATOMIC = 1 << 13;
        /// `min_rnr_timer`.
        const MIN_RNR_TIMER = 1 << 15;
        /// `sq_psn`.
        const SQ_PSN = 1 << 16;
        /// `max_dest_rd_atomic`.
        const MAX_DEST_RD_ATOMIC = 1 << 17;
        /// `peer_qpn`.
        const DEST_QPN = 1 << 20;
        /// `retry_unlimited`.
        const RETRY_UNLIMITED = 1 << 31;
    }
}

/// Why a command was refused: result 0 of its completion, 0 where the status says all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusal {
    /// The exact check that failed.
    pub syndrome: Syndrome,
    /// State the QP is in.
    pub from: QpState,
    /// State that was wanted.
    pub to: QpState,
    /// [`QpAttributes`] bits that are missing, not allowed or out of range.
    pub attributes: u32,
}

impl Refusal {
    /// Packs the word.
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.syndrome.0 as u64
            | (self.from.0 as u64) << 16
            | (self.to.0 as u64) << 24
            | (self.attributes as u64) << 32
    }

    /// Unpacks the word.
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        let b = word.to_le_bytes();
        Self {
            syndrome: Syndrome(u16::from_le_bytes([b[0], b[1]])),
            from: QpState(b[2]),
            to: QpState(b[3]),
            attributes: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {} -> {}", self.syndrome, self.from, self.to)?;
        if self.attributes != 0 {
            write!(f, ", attributes ")?;
            bitflags::parser::to_writer(&QpAttributes::from_bits_retain(self.attributes), f)?;
        }
        Ok(())
    }
}

/// Attributes of a QP as QP_QUERY_ATTR answers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QpSettings {
    /// [`Access`] bits the QP grants to its peer.
    pub access: u8,
    /// As in [`QpModify`].
    pub max_rd_atomic: u8,
    /// As in [`QpModify`].
    pub max_dest_rd_atomic: u8,
    /// As in [`QpModify`].
    pub min_rnr_timer: u8,
    /// As in [`QpModify`].
    pub path_mtu: u8,
    /// As in [`QpModify`].
    pub timeout: u8,
    /// As in [`QpModify`].
    pub retry_cnt: u8,
    /// As in [`QpModify`].
    pub rnr_retry: u8,
    /// As in [`QpModify`]; 24 bits.
    pub sq_psn: u32,
    /// As in [`QpModify`].
    pub retry_unlimited: u8,
    /// As in [`QpModify`]; 24 bits.
    pub rq_psn: u32,
}

impl QpSettings {
    /// Packs the two result words.
    #[must_use]
    pub const fn pack(self) -> [u64; 2] {
        let first = [
            self.access,
            self.max_rd_atomic,
            self.max_dest_rd_atomic,
            self.min_rnr_timer,
            self.path_mtu,
            self.timeout,
            self.retry_cnt,
            self.rnr_retry,
        ];
        [
            u64::from_le_bytes(first),
            (self.sq_psn & 0xff_ffff) as u64
                | (self.retry_unlimited as u64) << 24
                | ((self.rq_psn & 0xff_ffff) as u64) << 32,
        ]
    }

    /// Unpacks the two result words.
    #[must_use]
    pub const fn unpack(words: [u64; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = words[0].to_le_bytes();
        let [i, j, k, unlimited, m, n, o, _] = words[1].to_le_bytes();
        Self {
            access: a,
            max_rd_atomic: b,
            max_dest_rd_atomic: c,
            min_rnr_timer: d,
            path_mtu: e,
            timeout: f,
            retry_cnt: g,
            rnr_retry: h,
            sq_psn: u32::from_le_bytes([i, j, k, 0]),
            retry_unlimited: unlimited,
            rq_psn: u32::from_le_bytes([m, n, o, 0]),
        }
    }
}

bitflags::bitflags! {
    /// What a region or a QP allows. Source: `enum ibv_access_flags`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Access: u32 {
        /// Receives and READ responses may be written here.
        const LOCAL_WRITE = 1;
        /// The peer may RDMA WRITE.
        const REMOTE_WRITE = 2;
        /// The peer may RDMA READ.
        const REMOTE_READ = 4;
        /// The peer may do atomic operations.
        const REMOTE_ATOMIC = 8;
        /// Memory windows may be bound to the region.
        const MW_BIND = 16;
    }
}

/// An IP address and port.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SockAddr {
    /// 4 or 6.
    pub family: u16,
    /// Port number (not in network order).
    pub port: u16,
    /// Zero.
    pub reserved: u32,
    /// Address bytes in network order; the last 12 are 0 for IPv4.
    pub addr: [u8; 16],
}

/// Most bytes of private data in a connection request.
pub const PRIVATE_DATA: usize = 256;

/// What travels with a connection request.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CmRecord {
    /// Address of the side that connects.
    pub source: SockAddr,
    /// Address it dialled.
    pub destination: SockAddr,
    /// Function of the other side; filled in by the device.
    pub peer_function: u32,
    /// QPN of the other side; filled in by the device.
    pub peer_qpn: u32,
    /// Bytes of private data in use.
    pub private_len: u32,
    /// Zero.
    pub reserved: u32,
    /// Private data.
    pub private_data: [u8; PRIVATE_DATA],
}

const _: () = assert!(size_of::<SockAddr>() == 24 && size_of::<CmRecord>() == 320);

impl Default for CmRecord {
    fn default() -> Self {
        Self {
            source: SockAddr::default(),
            destination: SockAddr::default(),
            peer_function: 0,
            peer_qpn: 0,
            private_len: 0,
            reserved: 0,
            private_data: [0; PRIVATE_DATA],
        }
    }
}

impl From<core::net::SocketAddr> for SockAddr {
    fn from(from: core::net::SocketAddr) -> Self {
        let mut addr = [0; 16];
        let family = match from.ip() {
            core::net::IpAddr::V4(v4) => {
                addr[..4].copy_from_slice(&v4.octets());
                4
            }
            core::net::IpAddr::V6(v6) => {
                addr = v6.octets();
                6
            }
        };
        Self {
            family,
            port: from.port(),
            reserved: 0,
            addr,
        }
    }
}

impl TryFrom<SockAddr> for core::net::SocketAddr {
    type Error = BadSockAddr;

    fn try_from(from: SockAddr) -> Result<Self, BadSockAddr> {
        let [a, b, c, d, rest @ ..] = from.addr;
        let ip = match from.family {
            4 if rest == [0; 12] => core::net::Ipv4Addr::new(a, b, c, d).into(),
            6 => core::net::Ipv6Addr::from(from.addr).into(),
            family => return Err(BadSockAddr { family }),
        };
        if from.reserved != 0 {
            return Err(BadSockAddr {
                family: from.family,
            });
        }
        Ok(Self::new(ip, from.port))
    }
}

/// A [`SockAddr`] that is neither IPv4 nor IPv6, or not zero where it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "address of family {family}: the family is neither 4 nor 6, or bytes that must be 0 are not"
)]
pub struct BadSockAddr {
    /// Family seen.
    pub family: u16,
}
