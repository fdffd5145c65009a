//! docs/device.md against the code: every offset, size, number and register, in both directions.
//!
//! A table row that differs, that the code does not know, or that is missing fails, and so does a public constant or a field of a
//! listed structure that the page leaves out. Meanings are for people and not compared.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::mem::offset_of;
use std::path::Path;

use ring_proto::{admin, channel, cqe, eqe, ids, regs, status, telemetry, uar, vfio, wqe};

/// A table of the page: the heading above it, its column names, its rows.
#[derive(Debug)]
struct Table {
    heading: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tables() -> Vec<Table> {
    let page = root().join("../docs/device.md");
    let text = fs::read_to_string(page).expect("docs/device.md is there");
    let mut heading = String::new();
    let mut tables: Vec<Table> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix('#') {
            heading = title.trim_start_matches('#').trim().to_owned();
        }
        let Some(row) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            is_inside = false;
            continue;
        };
        let row = row.replace("\\|", "\u{1}");
        let cells = row.split('|').map(|cell| cell.trim().replace('\u{1}', "|"));
        if !is_inside {
            is_inside = true;
            let heading = heading.clone();
            tables.push(Table {
                heading,
                columns: cells.collect(),
                rows: Vec::new(),
            });
        } else if !line.starts_with("|---") {
            tables
                .last_mut()
                .expect("one was pushed")
                .rows
                .push(cells.collect());
        }
    }
    tables
}

/// The first `cells` cells of all rows of the one table under `heading` that has these columns first.
fn rows(heading: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let found: Vec<_> = tables()
        .into_iter()
        .filter(|table| {
            table.heading == heading
                && table
                    .columns
                    .starts_with(&columns.iter().map(|&c| c.to_owned()).collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        found.len(),
        1,
        "one table with columns {columns:?} under `{heading}`"
    );
    let table = &found[0];
    table
        .rows
        .iter()
        .map(|row| row[..columns.len()].to_vec())
        .collect()
}

/// Tables under headings with that end whose first column has that name.
fn count(heading_end: &str, column: &str) -> usize {
    tables()
        .iter()
        .filter(|table| table.heading.ends_with(heading_end) && table.columns[0] == column)
        .count()
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A structure: heading and size, and its fields with offset and size.
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize, usize)>,
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Describes structures. The pattern without `..` does not compile when a field is left out.
macro_rules! layouts {
    ($($title:literal: $module:ident::$name:ident { $($field:ident),* $(,)? })*) => {
        vec![$({
            let _is_complete = |value: &$module::$name| {
                let $module::$name { $($field: _),* } = value;
            };
            Layout {
                name: $title,
                size: size_of::<$module::$name>(),
                fields: vec![$((
                    stringify!($field),
                    offset_of!($module::$name, $field),
                    size_of_field(|value: &$module::$name| &value.$field),
                )),*],
            }
        }),*]
    };
}

fn layouts() -> Vec<Layout> {
    layouts! {
        "Summary": uar::Summary { dirty, parked, generation, failed, reserved }
        "UarHead": uar::UarHead { dirty, reserved, mode }
        "DoorbellLine": uar::DoorbellLine {
            sq_producer, rq_producer, cq_consumer, srq_producer, arm_vectors, arm_sequence, arm_solicited, srq_limit, reserved,
        }
        "SqWqe": wqe::SqWqe { opcode, flags, blocks, count, imm, wr_id, remote_addr, rkey, total, sges }
        "SgeBlock": wqe::SgeBlock { sges }
        "Sge": wqe::Sge { addr, len, lkey }
        "RqWqe": wqe::RqWqe { wr_id, count, reserved, sges }
        "Cqe": cqe::Cqe { wr_id, byte_len, imm, qpn_opcode, src_qpn_flags, publish }
        "Eqe": eqe::Eqe { source, code, publish }
        "Command": admin::Command { opcode, flags, command_id, body }
        "Completion": admin::Completion { command_id, status, reserved, result, publish }
        "Named": admin::Named { id, reserved }
        "MrReg": admin::MrReg { addr, len, pdn, access, owner_qpn, reserved }
        "QueueCreate": admin::QueueCreate { ring, depth, slot }
        "QpCreate": admin::QpCreate {
            sq_ring, rq_ring, sq_depth, rq_depth, pdn, send_cqn, recv_cqn, slot, holder, access,
        }
        "QpModify": admin::QpModify {
            qpn, state, peer_function, peer_qpn, rnr_retry, attributes, sq_psn, rq_psn, timeout, retry_cnt,
            min_rnr_timer, path_mtu, retry_unlimited, reserved,
        }
        "CmListen": admin::CmListen { local, backlog, holder, flags, reserved }
        "CmQuery": admin::CmQuery { buffer, id, kind }
        "CmConnect": admin::CmConnect { record, qpn, timeout_ms }
        "CmAccept": admin::CmAccept { request, qpn, listener, reserved }
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
        "telemetry::Entry": telemetry::Entry { state, road, local, remote, tx_bytes, rx_bytes }
    }
}

#[test]
fn structures() {
    let listed = layouts();
    for layout in &listed {
        let heading = format!("`{}` ({} bytes)", layout.name, layout.size);
        let documented: Vec<_> = rows(&heading, &["offset", "bytes", "field"])
            .iter()
            .map(|row| (row[2].clone(), number(&row[0]), number(&row[1])))
            .collect();
        let real: Vec<_> = layout
            .fields
            .iter()
            .map(|&(field, offset, size)| {
                (field.to_owned(), Some(offset as u64), Some(size as u64))
            })
            .collect();
        assert_eq!(documented, real, "fields of {}", layout.name);
        // No padding: each field begins where the one before ends.
        let mut end = 0;
        for &(field, offset, size) in &layout.fields {
            assert_eq!(offset, end, "{}::{field}", layout.name);
            end = offset + size;
        }
        assert_eq!(end, layout.size, "end of {}", layout.name);
    }
    let documented = count("bytes)", "offset");
    assert_eq!(
        documented,
        listed.len(),
        "the page describes structures that are not compared"
    );
}

/// Rows of value and name under a heading that tells the width.
fn numbered(
    name: &str,
    kind: &str,
    bits: usize,
    values: impl Iterator<Item = (u64, impl Display)>,
) {
    let documented: Vec<_> = rows(
        &format!("`{name}` ({kind} of {bits} bits)"),
        &["value", "name"],
    )
    .iter()
    .map(|row| (number(&row[0]), row[1].clone()))
    .collect();
    let real: Vec<_> = values
        .map(|(value, name)| (Some(value), name.to_string()))
        .collect();
    assert_eq!(documented, real, "{name}");
}

macro_rules! codes {
    ($($module:ident::$name:ident),*) => {$(
        let values = $module::$name::ALL.iter().map(|code| (u64::from(code.0), *code));
        numbered(stringify!($name), "numbers", 8 * size_of::<$module::$name>(), values);
    )*};
}

#[test]
fn codes_and_flags() {
    codes!(
        status::Opcode,
        status::WcOpcode,
        status::WcStatus,
        status::Syndrome,
        status::QpState,
        eqe::EventType,
        eqe::CmStatus,
        admin::AdminOp,
        admin::AdminStatus
    );
    let reasons = telemetry::Reason::ALL
        .into_iter()
        .map(|r| (r as u64, r.name()));
    numbered("Reason", "numbers", 8, reasons);
    let flags = wqe::WqeFlags::all();
    let flags = flags
        .iter_names()
        .map(|(name, flag)| (flag.bits().into(), name));
    numbered("WqeFlags", "flags", 8, flags);
    let access = admin::Access::all();
    let access = access
        .iter_names()
        .map(|(name, flag)| (flag.bits().into(), name));
    numbered("Access", "flags", 32, access);
    let attributes = admin::QpAttributes::all();
    let attributes = attributes
        .iter_names()
        .map(|(name, flag)| (flag.bits().into(), name));
    numbered("QpAttributes", "flags", 32, attributes);
    let documented = count("bits)", "value");
    assert_eq!(
        documented, 13,
        "the page lists numbers that are not compared"
    );
}

#[test]
fn registers() {
    let documented: Vec<_> = rows("Registers", &["offset", "bytes", "register", "access"])
        .iter()
        .map(|row| {
            assert!(
                ["read", "write", "read/write"].contains(&&*row[3]),
                "{row:?}"
            );
            (row[2].clone(), number(&row[0]), number(&row[1]))
        })
        .collect();
    let real: Vec<_> = regs::REGISTERS
        .iter()
        .map(|&(name, offset, len)| (name.to_owned(), Some(offset), Some(u64::from(len))))
        .collect();
    assert_eq!(documented, real);
    for pair in regs::REGISTERS.windows(2) {
        assert!(
            pair[0].1 + u64::from(pair[0].2) <= pair[1].1,
            "{} overlaps {}",
            pair[0].0,
            pair[1].0
        );
    }
}

#[test]
fn publish_word() {
    // One bit run each: packing all ones into a field shows where it lies.
    let zero = cqe::Publish {
        wqe_counter: 0,
        status: status::WcStatus(0),
        syndrome: status::Syndrome(0),
        phase: 0,
    };
    let real = [
        (
            "wqe_counter",
            cqe::Publish {
                wqe_counter: u32::MAX,
                ..zero
            },
        ),
        (
            "status",
            cqe::Publish {
                status: status::WcStatus(u8::MAX),
                ..zero
            },
        ),
        (
            "syndrome",
            cqe::Publish {
                syndrome: status::Syndrome(u16::MAX),
                ..zero
            },
        ),
        (
            "phase",
            cqe::Publish {
                phase: u8::MAX,
                ..zero
            },
        ),
    ]
    .map(|(name, publish)| {
        let word = publish.pack();
        vec![
            format!("{}..{}", word.trailing_zeros(), 64 - word.leading_zeros()),
            name.to_owned(),
        ]
    });
    assert_eq!(
        rows(
            "`Publish` (bits of the publish word of a CQE)",
            &["bits", "field"]
        ),
        real
    );
}

/// Names of the public constants at the top level of a module, in source order.
fn constants_of(module: &str) -> Vec<String> {
    let source = root().join("src").join(module).with_extension("rs");
    let source = fs::read_to_string(source).expect("the module is there");
    source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter(|rest| !rest.starts_with("fn "))
        .filter_map(|rest| rest.split_once(':'))
        .map(|(name, _)| format!("{module}::{name}"))
        .collect()
}

macro_rules! constants {
    ($($module:ident::$name:ident),* $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name.to_string())),*]
    };
}

#[test]
fn constants() {
    let values = constants! {
        regs::PCI_VENDOR_ID, regs::PCI_DEVICE_ID, regs::PCI_CLASS_CODE, regs::PCI_REVISION, regs::REGION_BAR0,
        regs::REGION_BAR2, regs::REGION_BAR4, regs::REGION_CONFIG, regs::NUM_REGIONS, regs::NUM_IRQS, regs::IRQ_MSIX,
        regs::BAR0_LEN, regs::BAR4_LEN, regs::CONFIG_LEN, regs::VECTORS, regs::MAGIC_VALUE, regs::ABI_VALUE,
        regs::STATUS_ACKNOWLEDGE, regs::STATUS_DRIVER, regs::STATUS_DRIVER_OK, regs::STATUS_FEATURES_OK,
        regs::STATUS_NEEDS_RESET, regs::STATUS_FAILED, regs::FEATURE_CM, regs::FEATURE_HOLDERS, regs::FEATURES,
        regs::ADMIN_DEPTH_LIMIT, regs::DEPTH_LIMIT, regs::MESSAGE_LIMIT,
        uar::UARS, uar::LINES, uar::SLOTS, uar::UAR_BASE, uar::UAR_LEN, uar::LINES_OFFSET, uar::HOLDERS_BASE, uar::HOLDERS,
        uar::BAR2_LEN, uar::ADMIN_SLOT, uar::MODE_COPY, uar::MODE_WINDOW,
        wqe::BLOCK, wqe::MAX_BLOCKS, wqe::FIRST_SGES, wqe::BLOCK_SGES, wqe::MAX_SGES, wqe::MAX_RECV_SGES, wqe::MAX_INLINE,
        cqe::CQE_IMM, cqe::CQE_SOLICITED, cqe::CQE_PUBLISH, eqe::EQE_PUBLISH,
        admin::COMPLETION_PUBLISH, admin::HOLD_QP, admin::HOLD_LISTENER, admin::RELEASE_UNLESS_LAST, admin::LISTEN_SHARED,
        admin::PRIVATE_DATA,
        vfio::VERSION_MAJOR, vfio::VERSION_MINOR, vfio::MAX_MESSAGE, vfio::MAX_FDS, vfio::FLAG_REPLY, vfio::FLAG_NO_REPLY,
        vfio::FLAG_ERROR, vfio::CMD_VERSION, vfio::CMD_DMA_MAP, vfio::CMD_DMA_UNMAP, vfio::CMD_DEVICE_GET_INFO,
        vfio::CMD_DEVICE_GET_REGION_INFO, vfio::CMD_DEVICE_GET_REGION_IO_FDS, vfio::CMD_DEVICE_GET_IRQ_INFO,
        vfio::CMD_DEVICE_SET_IRQS, vfio::CMD_REGION_READ, vfio::CMD_REGION_WRITE, vfio::CMD_DEVICE_RESET,
        vfio::CMD_REGION_WRITE_MULTI, vfio::DMA_READ, vfio::DMA_WRITE, vfio::DMA_UNMAP_ALL, vfio::DEVICE_RESETTABLE,
        vfio::DEVICE_PCI, vfio::REGION_READ, vfio::REGION_WRITE, vfio::REGION_MMAP, vfio::IRQ_EVENTFD, vfio::IRQ_NORESIZE,
        vfio::IRQ_SET_DATA_NONE, vfio::IRQ_SET_DATA_BOOL, vfio::IRQ_SET_DATA_EVENTFD, vfio::IRQ_SET_ACTION_MASK,
        vfio::IRQ_SET_ACTION_UNMASK, vfio::IRQ_SET_ACTION_TRIGGER,
        channel::MAGIC, channel::VERSION, channel::PROCESS, channel::TELEMETRY, channel::OPEN_FUNCTION, channel::HOLDER,
        channel::ENV_CHANNEL, channel::ENV_CONFIG, channel::ENV_CLUSTER, channel::ENV_NODE, channel::ENV_ADDR,
        telemetry::MAGIC, telemetry::ENTRIES, telemetry::LEN, telemetry::LIVE, telemetry::ROAD_TCP, telemetry::ROAD_SAN,
        ids::INDEX_LIMIT,
    };
    let mut real: BTreeMap<String, String> =
        values.map(|(name, value)| (name.to_owned(), value)).into();
    let mut documented = BTreeMap::new();
    for table in tables() {
        if table
            .columns
            .starts_with(&["constant".to_owned(), "value".to_owned()])
        {
            for row in table.rows {
                let value = number(&row[1]).map_or(row[1].clone(), |value| value.to_string());
                let twice = documented.insert(row[0].clone(), value);
                assert_eq!(twice, None, "{} stands twice", row[0]);
            }
        }
    }
    // What the sources have and neither list names.
    let register = |name: &str| {
        regs::REGISTERS
            .iter()
            .any(|(known, ..)| name.strip_prefix("regs::") == Some(known))
    };
    for module in [
        "admin",
        "channel",
        "cqe",
        "eqe",
        "ids",
        "regs",
        "status",
        "telemetry",
        "uar",
        "vfio",
        "wqe",
    ] {
        for name in constants_of(module) {
            if !register(&name) && name != "regs::REGISTERS" {
                real.entry(name)
                    .or_insert_with(|| "not compared".to_owned());
            }
        }
    }
    assert_eq!(documented, real);
}

#[test]
fn links_lead_somewhere() {
    let page =
        fs::read_to_string(root().join("../docs/device.md")).expect("docs/device.md is there");
    let anchors: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-"))
        .collect();
    for link in page.split("](#").skip(1) {
        let anchor = link.split(')').next().unwrap_or(link);
        assert!(
            anchors.iter().any(|known| known == anchor),
            "no section #{anchor}"
        );
    }
}
