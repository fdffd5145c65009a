//! Every structure, number, register and constant of the contract as data: what the pages and headers for people are held to.
//!
//! Place: `tests/device_doc.rs` compares docs/device.md with these tables, [`crate::c_header`] prints them as C.
//! Invariants: nothing is written down twice: offsets, sizes and values come from the compiler, and a structure whose field is left
//! out here does not compile. Source: the modules themselves. Leaves out: meanings, which stand in docs/device.md alone.

use core::any::type_name;
use core::fmt::Display;
use core::mem::offset_of;

use crate::{admin, channel, cqe, eqe, ids, regs, status, telemetry, uar, vfio, wqe};

/// A structure in shared memory or on a socket.
#[derive(Clone, Debug)]
pub struct Structure {
    /// Its name on the page.
    pub name: &'static str,
    /// Path of its Rust type.
    pub path: &'static str,
    /// Bytes.
    pub size: usize,
    /// Fields in order.
    pub fields: Vec<Field>,
}

/// A field of a [`Structure`].
#[derive(Clone, Debug)]
pub struct Field {
    /// Name.
    pub name: &'static str,
    /// Rust type.
    pub kind: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A set of named numbers.
#[derive(Clone, Debug)]
pub struct Codes {
    /// Name of the type.
    pub name: &'static str,
    /// Width.
    pub bits: usize,
    /// Whether the values are bits that are combined.
    pub is_flags: bool,
    /// Values with their names.
    pub values: Vec<(u64, String)>,
}

impl Codes {
    fn new<N: Display>(
        name: &'static str,
        size: usize,
        is_flags: bool,
        values: impl IntoIterator<Item = (u64, N)>,
    ) -> Self {
        let values = values
            .into_iter()
            .map(|(value, name)| (value, name.to_string()));
        Self {
            name,
            bits: 8 * size,
            is_flags,
            values: values.collect(),
        }
    }
}

fn describe<T, F>(name: &'static str, offset: usize, _: fn(&T) -> &F) -> Field {
    Field {
        name,
        kind: type_name::<F>(),
        offset,
        size: size_of::<F>(),
    }
}

/// Describes structures. The pattern without `..` does not compile when a field is left out.
macro_rules! structures {
    ($($title:literal: $module:ident::$name:ident { $($field:ident),* $(,)? })*) => {
        vec![$({
            let _is_complete = |value: &$module::$name| {
                let $module::$name { $($field: _),* } = value;
            };
            Structure {
                name: $title,
                path: type_name::<$module::$name>(),
                size: size_of::<$module::$name>(),
                fields: vec![$(describe(
                    stringify!($field),
                    offset_of!($module::$name, $field),
                    |value: &$module::$name| &value.$field,
                )),*],
            }
        }),*]
    };
}

/// Every structure.
#[must_use]
pub fn structures() -> Vec<Structure> {
    structures! {
        "Summary": uar::Summary { dirty, parked, generation, failed, call_faults, link_cuts, reserved }
        "UarHead": uar::UarHead { dirty, reserved, mode }
        "DoorbellLine": uar::DoorbellLine {
            sq_producer, rq_producer, cq_consumer, srq_producer, arm_vectors, arm_sequence, spare, srq_limit, reserved,
            arm_solicited,
        }
        "SqWqe": wqe::SqWqe { opcode, flags, blocks, count, imm, wr_id, remote_addr, rkey, total, sges }
        "SgeBlock": wqe::SgeBlock { sges }
        "AtomicWqe": wqe::AtomicWqe {
            opcode, flags, blocks, count, reserved, wr_id, remote_addr, rkey, total, sge, compare_add, swap,
        }
        "BindWqe": wqe::BindWqe {
            opcode, flags, blocks, count, new_rkey, wr_id, addr, rkey, total, len, lkey, access, reserved,
        }
        "Sge": wqe::Sge { addr, len, lkey }
        "RqWqe": wqe::RqWqe { wr_id, count, reserved, sges }
        "Cqe": cqe::Cqe { wr_id, byte_len, imm, qpn_opcode, src_qpn_flags, publish }
        "Eqe": eqe::Eqe { source, code, publish }
        "Command": admin::Command { opcode, flags, command_id, body }
        "Completion": admin::Completion { command_id, status, reserved, result, publish }
        "Named": admin::Named { id, reserved }
        "MrReg": admin::MrReg { addr, len, pdn, access, owner_qpn, reserved }
        "MwAlloc": admin::MwAlloc { pdn, kind }
        "MwBind": admin::MwBind { addr, len, rkey, lkey, access, reserved }
        "QueueCreate": admin::QueueCreate { ring, depth, slot }
        "CqResize": admin::CqResize { ring, cqn, depth }
        "CqModerate": admin::CqModerate { cqn, count, period_us }
        "QpCreate": admin::QpCreate {
            sq_ring, rq_ring, sq_depth, rq_depth, pdn, send_cqn, recv_cqn, slot, holder, access,
        }
        "QpCreateSrq": admin::QpCreateSrq {
            sq_ring, sq_depth, srqn, pdn, send_cqn, recv_cqn, slot, holder, access,
        }
        "SrqCreate": admin::SrqCreate { ring, depth, pdn, slot, limit }
        "SrqModify": admin::SrqModify { srqn, limit }
        "QpModify": admin::QpModify {
            qpn, state, peer_function, peer_qpn, rnr_retry, attributes, sq_psn, rq_psn, timeout, retry_cnt,
            min_rnr_timer, path_mtu, retry_unlimited, access, current_state, max_rd_atomic, max_dest_rd_atomic, sqd_event, reserved,
        }
        "CmListen": admin::CmListen { local, backlog, holder, flags, reserved }
        "CmQuery": admin::CmQuery { buffer, id, kind }
        "CmConnect": admin::CmConnect { record, qpn, timeout_ms }
        "CmAccept": admin::CmAccept { request, qpn, listener, status }
        "Hold": admin::Hold { id, kind, slot, flags }
        "HoldClone": admin::HoldClone { from, reserved }
        "CmRecord": admin::CmRecord {
            source, destination, peer_function, peer_qpn, private_len, reserved, private_data,
        }
        "SockAddr": admin::SockAddr { family, port, reserved, addr }
        "Header": vfio::Header { message_id, command, size, flags, error }
        "Version": vfio::Version { major, minor }
        "DmaMap": vfio::DmaMap { argsz, flags, offset, address, size }
        "DmaUnmap": vfio::DmaUnmap { argsz, flags, address, size }
        "DeviceInfo": vfio::DeviceInfo { argsz, flags, num_regions, num_irqs }
        "RegionInfo": vfio::RegionInfo { argsz, flags, index, cap_offset, size, offset }
        "RegionIoFds": vfio::RegionIoFds { argsz, flags, index, count }
        "SubRegionIoEventFd": vfio::SubRegionIoEventFd { offset, size, fd_index, kind, flags, padding, datamatch }
        "IrqInfo": vfio::IrqInfo { argsz, flags, index, count }
        "IrqSet": vfio::IrqSet { argsz, flags, index, start, count }
        "RegionAccess": vfio::RegionAccess { offset, region, count }
        "WriteMultiEntry": vfio::WriteMultiEntry { offset, region, count, data }
        "Message": channel::Message { magic, version, kind, a, b, c, reserved }
        "telemetry::Header": telemetry::Header {
            magic, pid, program, san_tx_bytes, san_rx_bytes, tcp_connections, san_connections, entries_used, fallbacks, reserved,
        }
        "telemetry::Entry": telemetry::Entry {
            state, road, local, remote, tx_bytes, rx_bytes, accepted, taken, unsent, flow,
        }
    }
}

/// Every set of numbers and flags.
#[must_use]
pub fn codes() -> Vec<Codes> {
    macro_rules! numbers {
        ($($module:ident::$name:ident),* $(,)?) => {
            vec![$(Codes::new(
                stringify!($name),
                size_of::<$module::$name>(),
                false,
                $module::$name::ALL.iter().map(|code| (u64::from(code.0), *code)),
            )),*]
        };
    }
    macro_rules! flags {
        ($($module:ident::$name:ident),* $(,)?) => {
            [$(Codes::new(
                stringify!($name),
                size_of::<$module::$name>(),
                true,
                $module::$name::all().iter_names().map(|(name, flag)| (u64::from(flag.bits()), name)),
            )),*]
        };
    }
    let mut codes = numbers!(
        status::Opcode,
        status::WcOpcode,
        status::WcStatus,
        status::Syndrome,
        status::QpState,
        eqe::EventType,
        eqe::CmStatus,
        admin::AdminOp,
        admin::AdminStatus,
        admin::ProviderCall,
    );
    codes.push(Codes::new(
        "Reason",
        1,
        false,
        telemetry::Reason::ALL
            .into_iter()
            .map(|reason| (reason as u64, reason.name())),
    ));
    codes.extend(flags!(wqe::WqeFlags, admin::Access, admin::QpAttributes));
    codes
}

/// Every constant but the registers: name with its module, and value, a number in decimal or a text.
#[must_use]
pub fn constants() -> Vec<(&'static str, String)> {
    macro_rules! constants {
        ($($module:ident::$name:ident),* $(,)?) => {
            vec![$((concat!(stringify!($module), "::", stringify!($name)), $module::$name.to_string())),*]
        };
    }
    constants! {
        regs::PCI_VENDOR_ID, regs::PCI_DEVICE_ID, regs::PCI_CLASS_CODE, regs::PCI_REVISION, regs::REGION_BAR0,
        regs::REGION_BAR2, regs::REGION_BAR4, regs::REGION_CONFIG, regs::NUM_REGIONS, regs::NUM_IRQS, regs::IRQ_MSIX,
        regs::BAR0_LEN, regs::BAR4_LEN, regs::CONFIG_LEN, regs::VECTORS, regs::MAGIC_VALUE, regs::ABI_VALUE,
        regs::STATUS_ACKNOWLEDGE, regs::STATUS_DRIVER, regs::STATUS_DRIVER_OK, regs::STATUS_FEATURES_OK,
        regs::STATUS_NEEDS_RESET, regs::STATUS_FAILED, regs::FEATURE_CM, regs::FEATURE_HOLDERS, regs::FEATURE_ATOMICS, regs::FEATURE_MW, regs::FEATURE_SRQ, regs::FEATURES,
        regs::ADMIN_DEPTH_LIMIT, regs::DEPTH_LIMIT, regs::MESSAGE_LIMIT,
        uar::UARS, uar::LINES, uar::SLOTS, uar::UAR_BASE, uar::UAR_LEN, uar::LINES_OFFSET, uar::HOLDERS_BASE, uar::HOLDERS,
        uar::BAR2_LEN, uar::ADMIN_SLOT, uar::SRQ_LIMIT_MASK, uar::MODE_COPY, uar::MODE_WINDOW,
        wqe::BLOCK, wqe::MAX_BLOCKS, wqe::FIRST_SGES, wqe::BLOCK_SGES, wqe::MAX_SGES, wqe::MAX_RECV_SGES, wqe::MAX_INLINE,
        cqe::CQE_IMM, cqe::CQE_SOLICITED, cqe::CQE_INV, cqe::CQE_PUBLISH, eqe::EQE_PUBLISH,
        admin::COMPLETION_PUBLISH, admin::HOLD_QP, admin::HOLD_LISTENER, admin::RELEASE_UNLESS_LAST, admin::LISTEN_SHARED,
        admin::PRIVATE_DATA, admin::MAX_RD_ATOMIC,
        vfio::VERSION_MAJOR, vfio::VERSION_MINOR, vfio::MAX_MESSAGE, vfio::MAX_FDS, vfio::FLAG_REPLY, vfio::FLAG_NO_REPLY,
        vfio::FLAG_ERROR, vfio::CMD_VERSION, vfio::CMD_DMA_MAP, vfio::CMD_DMA_UNMAP, vfio::CMD_DEVICE_GET_INFO,
        vfio::CMD_DEVICE_GET_REGION_INFO, vfio::CMD_DEVICE_GET_REGION_IO_FDS, vfio::CMD_DEVICE_GET_IRQ_INFO,
        vfio::CMD_DEVICE_SET_IRQS, vfio::CMD_REGION_READ, vfio::CMD_REGION_WRITE, vfio::CMD_DEVICE_RESET,
        vfio::CMD_REGION_WRITE_MULTI, vfio::DMA_READ, vfio::DMA_WRITE, vfio::DMA_UNMAP_ALL, vfio::DEVICE_RESETTABLE,
        vfio::DEVICE_PCI, vfio::REGION_READ, vfio::REGION_WRITE, vfio::REGION_MMAP, vfio::IRQ_EVENTFD, vfio::IRQ_MASKABLE, vfio::IRQ_NORESIZE,
        vfio::IRQ_SET_DATA_NONE, vfio::IRQ_SET_DATA_BOOL, vfio::IRQ_SET_DATA_EVENTFD, vfio::IRQ_SET_ACTION_MASK,
        vfio::IRQ_SET_ACTION_UNMASK, vfio::IRQ_SET_ACTION_TRIGGER,
        channel::MAGIC, channel::VERSION, channel::PROCESS, channel::TELEMETRY, channel::OPEN_FUNCTION, channel::HOLDER,
        channel::ENV_CHANNEL, channel::ENV_CONFIG, channel::ENV_CLUSTER, channel::ENV_NODE, channel::ENV_ADDR,
        channel::ENV_ESTATE, channel::ENV_ROLE, channel::ENV_PRELOAD, channel::ENV_REPORT, channel::REPORT_AUDIT,
        telemetry::MAGIC, telemetry::ENTRIES, telemetry::LEN, telemetry::LIVE, telemetry::ROAD_TCP, telemetry::ROAD_SAN,
        ids::INDEX_LIMIT,
    }
}

/// Fields of the publish word of a CQE: name, first bit, bit behind the last.
#[must_use]
pub fn publish_bits() -> [(&'static str, u32, u32); 4] {
    let zero = cqe::Publish {
        wqe_counter: 0,
        status: status::WcStatus(0),
        syndrome: status::Syndrome(0),
        phase: 0,
    };
    // Packing all ones into one field shows where it lies.
    let bits = |publish: cqe::Publish| {
        let word = publish.pack();
        (word.trailing_zeros(), 64 - word.leading_zeros())
    };
    let (counter, status, syndrome, phase) = (
        bits(cqe::Publish {
            wqe_counter: u32::MAX,
            ..zero
        }),
        bits(cqe::Publish {
            status: status::WcStatus(u8::MAX),
            ..zero
        }),
        bits(cqe::Publish {
            syndrome: status::Syndrome(u16::MAX),
            ..zero
        }),
        bits(cqe::Publish {
            phase: u8::MAX,
            ..zero
        }),
    );
    [
        ("wqe_counter", counter.0, counter.1),
        ("status", status.0, status.1),
        ("syndrome", syndrome.0, syndrome.1),
        ("phase", phase.0, phase.1),
    ]
}

/// A table of a Markdown page.
#[derive(Clone, Debug)]
pub struct Table {
    /// The heading above it.
    pub heading: String,
    /// Names of its columns.
    pub columns: Vec<String>,
    /// Its cells.
    pub rows: Vec<Vec<String>>,
}

/// Every table of a Markdown page.
#[must_use]
pub fn page_tables(page: &str) -> Vec<Table> {
    let mut heading = String::new();
    let mut tables: Vec<Table> = Vec::new();
    let mut is_inside = false;
    for line in page.lines() {
        if let Some(title) = line.strip_prefix('#') {
            title
                .trim_start_matches('#')
                .trim()
                .clone_into(&mut heading);
        }
        let Some(row) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            is_inside = false;
            continue;
        };
        let row = row.replace("\\|", "\u{1}");
        let cells = row
            .split('|')
            .map(|cell| cell.trim().replace('\u{1}', "|"))
            .collect();
        match tables.last_mut() {
            Some(table) if is_inside => {
                if !line.starts_with("|---") {
                    table.rows.push(cells);
                }
            }
            _ => {
                is_inside = true;
                tables.push(Table {
                    heading: heading.clone(),
                    columns: cells,
                    rows: Vec::new(),
                });
            }
        }
    }
    tables
}
