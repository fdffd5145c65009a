//! What helps to find faults: the validation layer, the pause, dumps of the recorder, last errors.
//!
//! Place: one field of [`super::Device`]; the parts live in [`super::validate`], [`super::pause`], [`super::recorder`], [`super::inspect`].
//! Invariants: nothing here decides what the device does, but for standing still. Hot: the two looks at `validator` and `pause`.

use std::collections::HashMap;

use ring_proto::ids::FunctionId;

use super::DeviceOptions;
use super::inspect::LastError;
use super::pause::Pause;
use super::recorder::Dumps;
use super::validate::Validator;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// The validation layer, when it is on.
    pub(crate) validator: Option<Box<Validator>>,
    pub(crate) pause: Pause,
    pub(crate) dumps: Dumps,
    /// By function and QPN; as many as there are QPs at most.
    pub(crate) last_errors: HashMap<(FunctionId, u32), LastError>,
}

impl Diagnosis {
    pub(crate) fn new(options: &DeviceOptions) -> Self {
        let validates =
            options.validate || options.pause_on.is_some_and(|on| on.needs_validation());
        Self {
            validator: validates.then(Box::default),
            pause: Pause::new(options.pause_on),
            ..Self::default()
        }
    }
}
