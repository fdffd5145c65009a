//! Why a fault rule is refused.
//!
//! Place: the control socket hands the text on as it is. Invariants: every text names what is wrong and what would be right. Source: ours.

use crate::device::fields::FieldError;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Too many rules.
    #[error("there are {limit} fault rules already; remove some")]
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
