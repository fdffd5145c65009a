//! Figures of structures for people: four bytes a row, as in the documents of the Internet.
//!
//! Place: `tests/device_doc.rs` holds the figures of docs/device.md to them, or draws them there. Invariants: drawn from
//! [`crate::tables`] alone. Source: the style of RFC 791. Leaves out: bits inside of a field.

use core::fmt::Write;

use crate::tables::{Field, Structure};

/// Bytes of a row.
const ROW: usize = 4;
/// Letters of a byte, its border included.
const CELL: usize = 16;

/// Draws a structure.
#[must_use]
pub fn draw(structure: &Structure) -> String {
    let mut out = String::from("       +0              +1              +2              +3\n");
    let mut was_hidden = false;
    for row in (0..structure.size).step_by(ROW) {
        let cells: Vec<_> = structure
            .fields
            .iter()
            .filter_map(|field| cell(field, row))
            .collect();
        // The inside of a long field is one row of dots.
        let is_hidden = cells.iter().all(|cell| cell.is_inside);
        if is_hidden && was_hidden {
            continue;
        }
        was_hidden = is_hidden;
        let border = if is_hidden { ':' } else { '|' };
        // Writing to a String cannot fail.
        let _ = if is_hidden {
            write!(out, "      {border}")
        } else {
            write!(out, "{row:#05x} {border}")
        };
        for Cell { text, len, .. } in cells {
            let width = CELL * len - 2;
            let _ = write!(out, " {text:<width$}{border}");
        }
        out.push('\n');
    }
    out
}

/// The part of a field in a row.
struct Cell {
    text: String,
    len: usize,
    /// A whole row of a long field, and not its first.
    is_inside: bool,
}

fn cell(field: &Field, row: usize) -> Option<Cell> {
    let start = field.offset.max(row);
    let end = (field.offset + field.size).min(row + ROW);
    let len = end.checked_sub(start).filter(|&len| len > 0)?;
    let is_first = start == field.offset;
    let text = match (is_first, field.size) {
        (false, _) => String::new(),
        (true, 0..=8) => field.name.to_owned(),
        (true, size) => format!("{} ({size} bytes)", field.name),
    };
    Some(Cell {
        text,
        len,
        is_inside: !is_first && len == ROW && field.size > 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_their_offsets_and_long_ones_are_cut() {
        let field = |name, offset, size| Field {
            name,
            kind: "",
            offset,
            size,
        };
        let structure = Structure {
            name: "",
            path: "",
            size: 28,
            fields: vec![
                field("a", 0, 1),
                field("b", 1, 3),
                field("c", 4, 8),
                field("d", 12, 16),
            ],
        };
        let wanted = [
            "       +0              +1              +2              +3",
            "0x000 | a             | b                                             |",
            "0x004 | c                                                             |",
            "0x008 |                                                               |",
            "0x00c | d (16 bytes)                                                  |",
            "      :                                                               :",
            "",
        ];
        assert_eq!(draw(&structure), wanted.join("\n"));
    }
}
