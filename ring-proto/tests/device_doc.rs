//! docs/device.md against the code: every offset, size, number and register, in both directions.
//!
//! A table row that differs, that the code does not know, or that is missing fails, and so does a public constant or a field of a
//! listed structure that the page leaves out. Meanings are for people and not compared.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ring_proto::tables::{self, Table, page_tables};
use ring_proto::{admin, c_header, figure, regs, status};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    fs::read_to_string(root().join("../docs/device.md")).expect("docs/device.md is there")
}

fn tables() -> Vec<Table> {
    page_tables(&page())
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

#[test]
fn structures() {
    let listed = tables::structures();
    for layout in &listed {
        let heading = format!("`{}` ({} bytes)", layout.name, layout.size);
        let documented: Vec<_> = rows(&heading, &["offset", "bytes", "field"])
            .iter()
            .map(|row| (row[2].clone(), number(&row[0]), number(&row[1])))
            .collect();
        let real: Vec<_> = layout
            .fields
            .iter()
            .map(|field| {
                let name = field.name.to_owned();
                (name, Some(field.offset as u64), Some(field.size as u64))
            })
            .collect();
        assert_eq!(documented, real, "fields of {}", layout.name);
        // No padding: each field begins where the one before ends.
        let mut end = 0;
        for field in &layout.fields {
            assert_eq!(field.offset, end, "{}::{}", layout.name, field.name);
            end = field.offset + field.size;
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

#[test]
fn codes_and_flags() {
    let listed = tables::codes();
    for codes in &listed {
        let kind = if codes.is_flags { "flags" } else { "numbers" };
        let heading = format!("`{}` ({kind} of {} bits)", codes.name, codes.bits);
        let documented: Vec<_> = rows(&heading, &["value", "name"])
            .iter()
            .map(|row| (number(&row[0]), row[1].clone()))
            .collect();
        let real: Vec<_> = codes
            .values
            .iter()
            .map(|(value, name)| (Some(*value), name.clone()))
            .collect();
        assert_eq!(documented, real, "{}", codes.name);
    }
    let documented = count("bits)", "value");
    assert_eq!(
        documented,
        listed.len(),
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
    let real = tables::publish_bits()
        .map(|(name, start, end)| vec![format!("{start}..{end}"), name.to_owned()]);
    assert_eq!(
        rows(
            "`Publish` (bits of the publish word of a CQE)",
            &["bits", "field"]
        ),
        real
    );
}

/// Bits that a packed value has, as the page writes them.
fn run(words: [u64; 2], name: &str) -> Vec<String> {
    let word = u128::from(words[0]) | u128::from(words[1]) << 64;
    vec![
        format!("{}..{}", word.trailing_zeros(), 128 - word.leading_zeros()),
        name.to_owned(),
    ]
}

/// Each field alone, all ones: its name and the packed words.
macro_rules! packed {
    ($module:ident::$name:ident: $($field:ident = $ones:expr),* $(,)?) => {{
        let _is_complete = |value: &$module::$name| {
            let $module::$name { $($field: _),* } = value;
        };
        [$((stringify!($field), $module::$name { $field: $ones, ..$module::$name::default() })),*]
    }};
}

#[test]
fn packed_results() {
    let real = packed! {
        admin::Refusal: syndrome = status::Syndrome(u16::MAX), from = status::QpState(u8::MAX), to = status::QpState(u8::MAX),
        attributes = u32::MAX,
    }
    .map(|(name, value)| {
        assert_eq!(admin::Refusal::unpack(value.pack()), value);
        run([value.pack(), 0], name)
    });
    let heading = "`Refusal` (bits of result 0 of a refused command)";
    assert_eq!(rows(heading, &["bits", "field"]), real);
    let real = packed! {
        admin::QpSettings: access = u8::MAX, max_rd_atomic = u8::MAX, max_dest_rd_atomic = u8::MAX, min_rnr_timer = u8::MAX,
        path_mtu = u8::MAX, timeout = u8::MAX, retry_cnt = u8::MAX, rnr_retry = u8::MAX, sq_psn = 0xff_ffff,
        retry_unlimited = u8::MAX, rq_psn = 0xff_ffff,
    }
    .map(|(name, value)| {
        assert_eq!(admin::QpSettings::unpack(value.pack()), value);
        run(value.pack(), name)
    });
    let heading = "`QpSettings` (bits of the results of QP_QUERY_ATTR)";
    assert_eq!(rows(heading, &["bits", "field"]), real);
}

#[test]
fn a_refusal_reads_as_both_states_and_the_attributes() {
    let refusal = admin::Refusal {
        syndrome: status::Syndrome::ATTRIBUTE_MISSING,
        from: status::QpState::INIT,
        to: status::QpState::RTR,
        attributes: (admin::QpAttributes::PATH_MTU | admin::QpAttributes::RQ_PSN).bits(),
    };
    let text = "ATTRIBUTE_MISSING: INIT -> RTR, attributes PATH_MTU | RQ_PSN";
    assert_eq!(refusal.to_string(), text);
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

#[test]
fn constants() {
    let mut real: BTreeMap<String, String> = tables::constants()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
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
    let page = page();
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

/// The page with the figure of every structure below its heading, in place of one that stands there.
fn with_figures(page: &str) -> String {
    let structures = tables::structures();
    let mut out = String::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let drawn = structures
            .iter()
            .find(|s| line == format!("### `{}` ({} bytes)", s.name, s.size));
        let Some(structure) = drawn else { continue };
        while lines.next_if(|line| line.is_empty()).is_some() {}
        if lines.next_if(|line| *line == "```text").is_some() {
            for _ in lines.by_ref().take_while(|line| *line != "```") {}
            while lines.next_if(|line| line.is_empty()).is_some() {}
        }
        out.push_str(&format!("\n```text\n{}```\n\n", figure::draw(structure)));
    }
    out
}

#[test]
fn figures_show_the_structures() {
    let page = page();
    let drawn = with_figures(&page);
    if std::env::var_os("SANLAB_BLESS").is_some() {
        // Other tests read the page meanwhile.
        let fresh = root().join("../docs/device.md.new");
        fs::write(&fresh, &drawn).expect("the page can be written");
        fs::rename(&fresh, root().join("../docs/device.md")).expect("the page can be replaced");
        return;
    }
    assert!(
        page == drawn,
        "a figure of docs/device.md is not that of its structure; renew all by \
         SANLAB_BLESS=1 cargo test -p ring-proto --test device_doc figures"
    );
}

#[test]
fn the_c_header_is_the_generated_one() {
    let path = root().join("../examples/minidriver/sanlab_nic.h");
    let generated = c_header::generate(&page());
    if std::env::var_os("SANLAB_BLESS").is_some() {
        fs::write(&path, &generated).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let first = generated
        .lines()
        .zip(committed.lines().chain(std::iter::repeat("")))
        .find(|(generated, committed)| generated != committed);
    assert!(
        generated == committed,
        "examples/minidriver/sanlab_nic.h is not what is generated; renew it by \
         SANLAB_BLESS=1 cargo test -p ring-proto --test device_doc c_header\nfirst difference: {first:?}"
    );
}
