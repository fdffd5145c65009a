//! libFuzzer around [`nic_emu::fuzz::telemetry`].
//!
//! Place: `.ci/fuzz` runs it. Source: ours.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nic_emu::fuzz::telemetry(data));
