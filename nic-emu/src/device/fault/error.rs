//! Why a fault rule is refused.
//!
//! Place: the control socket hands the text on as it is. Invariants: every text names the field and what it may be. Source: ours.

use std::fmt::Display;

use super::rule::FaultPoint;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No such field.
    #[error("unknown field {field:?}; a fault rule has {allowed}")]
    Unknown {
        /// As it was given.
        field: String,
        /// Fields there are.
        allowed: String,
    },
    /// A field that must be there.
    #[error("field {field:?} is missing; allowed: {allowed}")]
    Missing {
        /// Its name.
        field: &'static str,
        /// What it may be.
        allowed: String,
    },
    /// A value that the field cannot have.
    #[error("field {field:?} cannot be {value}; allowed: {allowed}")]
    Value {
        /// Its name.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A field that means nothing where the rule looks.
    #[error("field {field:?} means nothing {place}; allowed: {allowed}")]
    NotHere {
        /// Its name.
        field: &'static str,
        /// Where the rule looks, or beside what.
        place: String,
        /// Fields that can be used.
        allowed: String,
    },
    /// Too many rules.
    #[error("there are {limit} rules already; remove some")]
    Full {
        /// Most of them.
        limit: usize,
    },
    /// No rule has this number.
    #[error("there is no fault rule {id}; allowed: {known}")]
    NoRule {
        /// Number asked for.
        id: u32,
        /// Numbers there are.
        known: String,
    },
}

impl FaultError {
    pub(crate) fn value(
        field: &'static str,
        value: impl Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Value {
            field,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    pub(crate) fn not_here(field: &'static str, at: FaultPoint, allowed: &str) -> Self {
        Self::NotHere {
            field,
            place: format!("at {at}"),
            allowed: allowed.to_owned(),
        }
    }
}
