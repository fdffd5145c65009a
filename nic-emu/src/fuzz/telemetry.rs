//! Fuzz target of telemetry files.
//!
//! Place: [`super::TARGETS`]. Source: ring_proto::telemetry.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pwrite;
use ring_proto::telemetry;

use crate::server::telemetry::Telemetry;

/// Contents of a telemetry file: what comes out is bounded and printable.
pub fn telemetry(data: &[u8]) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let Ok(file) = memfd_create(c"fuzz", flags) else {
        return;
    };
    let data = &data[..data.len().min(telemetry::LEN)];
    let len = i64::try_from(telemetry::LEN).expect("small");
    let sealed = nix::unistd::ftruncate(&file, len)
        .and_then(|()| fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)))
        .and_then(|_| pwrite(&file, data, 0));
    if sealed.is_err() {
        return;
    }
    let Ok(mut telemetry) = Telemetry::new(file) else {
        return;
    };
    let before = *telemetry.totals();
    let report = telemetry.report();
    assert!(report.connections.len() <= telemetry::ENTRIES);
    assert!(!report.program.chars().any(char::is_control));
    assert_eq!(*telemetry.totals(), before);
}
