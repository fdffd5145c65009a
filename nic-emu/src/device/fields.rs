//! Fields of JSON requests, looked at by name, and what is said of a wrong one.
//!
//! Place: fault rules and changes of links come from the control socket as objects and are read here. Invariants: every error names the
//! field and what it may be; nothing is guessed and nothing ignored. Source: ours (docs/control.md). Hot: nothing.

use std::fmt::Display;

use serde_json::{Map, Value};

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// No such field.
    #[error("unknown field {field:?}; allowed: {allowed}")]
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
    /// A field that means nothing beside the others.
    #[error("field {field:?} means nothing {place}; allowed: {allowed}")]
    NotHere {
        /// Its name.
        field: &'static str,
        /// Beside what.
        place: String,
        /// What would be right.
        allowed: String,
    },
}

impl FieldError {
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
}

/// The fields of a request.
pub(crate) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// Looks at an object that may have these fields.
    pub(crate) fn new(fields: &'a Map<String, Value>, known: &[&str]) -> Result<Self, FieldError> {
        match fields.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(Self(fields)),
            Some(field) => Err(FieldError::Unknown {
                field: field.clone(),
                allowed: known.join(", "),
            }),
        }
    }

    /// Whether a field is there and not null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(
        &self,
        field: &'static str,
        allowed: &str,
    ) -> Result<Option<&'a str>, FieldError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some)
            .ok_or_else(|| FieldError::value(field, value, allowed))
    }

    pub(crate) fn flag(&self, field: &'static str) -> Result<Option<bool>, FieldError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| FieldError::value(field, value, "true, false"))
    }

    pub(crate) fn number(&self, field: &'static str) -> Result<Option<u64>, FieldError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let number = value.as_u64();
        number
            .map(Some)
            .ok_or_else(|| FieldError::value(field, value, "whole numbers from 0"))
    }

    /// A number up to `most`.
    pub(crate) fn small(&self, field: &'static str, most: u32) -> Result<Option<u32>, FieldError> {
        let number = self.number(field)?;
        number
            .map(|number| {
                u32::try_from(number)
                    .ok()
                    .filter(|&number| number <= most)
                    .ok_or_else(|| FieldError::value(field, number, format!("0 to {most}")))
            })
            .transpose()
    }
}
