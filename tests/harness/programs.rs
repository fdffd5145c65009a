//! Programs of the distribution that the suites run.
//!
//! Place: a suite asks for its programs first, and is skipped with a message where one is missing. Invariants: with `SANLAB_REQUIRE_PROGRAMS=1` a
//! missing program is a failure.

use std::path::{Path, PathBuf};

/// Finds all programs, or `None` after a message that says which one is missing.
pub(crate) fn find<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let mut found = Vec::new();
    for name in names {
        match locate(name) {
            Some(path) => found.push(path),
            None => {
                missing(name);
                return None;
            }
        }
    }
    found.try_into().ok()
}

/// Whether a file of a package is there, with a message when it is not.
pub(crate) fn has_file(path: &str) -> bool {
    let is_there = Path::new(path).exists();
    if !is_there {
        missing(path);
    }
    is_there
}

fn missing(name: &str) {
    assert!(
        std::env::var_os("SANLAB_REQUIRE_PROGRAMS").is_none_or(|value| value != "1"),
        "{name} is not installed, and SANLAB_REQUIRE_PROGRAMS=1 asks for it"
    );
    eprintln!("skipped: {name} is not installed");
}

/// Says that a test does not run here, and why.
pub(crate) fn skip(why: std::fmt::Arguments<'_>) {
    eprintln!("skipped: {why}");
}

/// The system's program first: a user's wrapper of the same name may start something else.
fn locate(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/bin", "/usr/sbin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}
