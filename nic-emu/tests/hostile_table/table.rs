//! A table: the fields of a structure, each with its bad values and what answers them.

use std::fmt::Debug;

/// A field of a structure.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// What becomes of a field that was good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// This; a field of more than 8 bytes begins with it, and the rest is 0.
    Is(u64),
    /// These bits turned over.
    Flip(u64),
    /// So much more, without a carry out of the field.
    Plus(u64),
    /// Its last byte is this.
    Last(u8),
}

/// A field, and what answers each of its values. A value that any client may choose stands here too, with the good answer.
pub(crate) type Row<'a, E> = (&'a str, &'a [(Value, E)]);

/// The fields of a structure. The pattern without `..` does not compile when one is left out.
macro_rules! fields {
    ($name:path { $($field:ident),* $(,)? }) => {{
        let _is_complete = |value: &$name| {
            let $name { $($field: _),* } = value;
        };
        fn len<T, F>(_: fn(&T) -> &F) -> usize {
            size_of::<F>()
        }
        vec![$($crate::table::Field {
            name: stringify!($field).into(),
            at: std::mem::offset_of!($name, $field),
            len: len(|value: &$name| &value.$field),
        }),*]
    }};
}

/// Puts the fields of a structure in the place of the field that holds `n` of them.
pub(crate) fn nest(outer: Vec<Field>, name: &str, n: usize, inner: &[Field]) -> Vec<Field> {
    let mut all = Vec::new();
    for field in outer {
        if field.name != name {
            all.push(field);
            continue;
        }
        let one = field.len / n;
        for i in 0..n {
            all.extend(inner.iter().map(|part| Field {
                name: if n == 1 {
                    format!("{name}.{}", part.name)
                } else {
                    format!("{name}[{i}].{}", part.name)
                },
                at: field.at + i * one + part.at,
                len: part.len,
            }));
        }
    }
    all
}

/// What one case of a table does to a structure that was good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a>(Option<(&'a Field, Value)>);

impl Change<'_> {
    /// Changes the bytes of the structure.
    pub(crate) fn apply(&self, bytes: &mut [u8]) {
        let Some((field, value)) = self.0 else {
            return;
        };
        let bytes = &mut bytes[field.at..field.at + field.len];
        let word = field.len.min(8);
        let mut old = [0; 8];
        old[..word].copy_from_slice(&bytes[..word]);
        let old = u64::from_le_bytes(old);
        let new = match value {
            Value::Is(new) => {
                bytes.fill(0);
                new
            }
            Value::Flip(bits) => old ^ bits,
            Value::Plus(more) => old.wrapping_add(more),
            Value::Last(byte) => {
                *bytes.last_mut().unwrap() = byte;
                return;
            }
        };
        bytes[..word].copy_from_slice(&new.to_le_bytes()[..word]);
    }
}

/// Runs a table: `outcome` makes a good structure, changes it, and says what answered. Tells all that differs at once.
pub(crate) fn run<E: PartialEq + Debug + Clone>(
    what: &str,
    fields: &[Field],
    rows: &[Row<'_, E>],
    good: &E,
    mut outcome: impl FnMut(Change<'_>) -> E,
) {
    let mut wrong = Vec::new();
    for (name, values) in rows {
        let is_known = fields.iter().any(|field| field.name == *name);
        assert!(is_known, "{what}: no field {name}");
        assert!(!values.is_empty(), "{what}: {name} has an empty row");
    }
    let answer = outcome(Change(None));
    assert_eq!(answer, *good, "{what}: unchanged");
    for field in fields {
        let row = rows.iter().find(|(name, _)| field.name == *name);
        let Some((name, values)) = row else {
            wrong.push(format!("{what}: no row for {}", field.name));
            continue;
        };
        for (value, expected) in *values {
            let answer = outcome(Change(Some((field, *value))));
            if answer != *expected {
                wrong.push(format!(
                    "{what}: {name} {value:x?}: {answer:?}, not {expected:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
