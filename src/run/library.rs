//! Where the preload library is.
//!
//! Place: `run` and `doctor` ask [`find`].
//! Invariants: only places relative to the program's own file, so an installed `sanlab` never loads a stranger's library.
//! Source: ours. `cargo build` leaves a dependency's shared object in `deps/` and copies it beside the binary only when it is built by name, so
//! of these two the newer one is right.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// File name of the preload library.
const NAME: &str = "libsanlab_preload.so";

/// Finds the preload library.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the file of this program")?;
    let library = find_beside(&own)?;
    let text = library.as_os_str().to_string_lossy();
    // The dynamic linker takes both as separators and knows no quoting.
    if text.contains([' ', ':']) {
        bail!(
            "the path {text} has a space or colon, which LD_PRELOAD cannot express; move sanlab to another directory"
        );
    }
    check_whole(&library)?;
    Ok(library)
}

/// Checks that the library is one for this machine, and whole: the dynamic linker would only ignore it, and the program would run on TCP.
fn check_whole(library: &Path) -> anyhow::Result<()> {
    /// Magic, 64 bits, little-endian.
    const IDENT: &[u8] = b"\x7fELF\x02\x01";
    let unusable = |why: &str| {
        anyhow::anyhow!(
            "the preload library {} is unusable: {why}; build or install it again",
            library.display()
        )
    };
    let mut file = fs::File::open(library).map_err(|error| unusable(&error.to_string()))?;
    let mut header = [0; 64];
    file.read_exact(&mut header)
        .map_err(|_| unusable("it is cut short"))?;
    let short = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (kind, machine) = (short(16), short(18));
    if !header.starts_with(IDENT) || kind != 3 || machine != 62 {
        return Err(unusable("it is no shared object for x86-64"));
    }
    // The table of sections is what linkers write last.
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[40..48]);
    let end = u64::from_le_bytes(offset).saturating_add(short(58) * short(60));
    let len = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    if len < end {
        return Err(unusable("it is cut short"));
    }
    Ok(())
}

fn find_beside(program: &Path) -> anyhow::Result<PathBuf> {
    let directory = program.parent().unwrap_or(Path::new("/"));
    let places = [
        directory.join(NAME),
        directory.join("deps").join(NAME),
        directory.join("../lib/sanlab").join(NAME),
    ];
    let built = places[..2].iter().filter_map(|path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        Some((modified.ok()?, path))
    });
    if let Some((_, path)) = built.max() {
        return Ok(path.clone());
    }
    if let Ok(path) = fs::canonicalize(&places[2]) {
        return Ok(path);
    }
    let tried: Vec<String> = places
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    bail!(
        "the preload library is missing; tried {} (build it with `cargo build`, or install it in one of these places)",
        tried.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_places_are_named_when_there_is_none() {
        let error = find_beside(Path::new("/nonexistent/bin/sanlab"))
            .unwrap_err()
            .to_string();
        for place in [
            "/nonexistent/bin/libsanlab_preload.so",
            "/nonexistent/bin/deps/libsanlab_preload.so",
            "/nonexistent/bin/../lib/sanlab/libsanlab_preload.so",
        ] {
            assert!(error.contains(place), "{error}");
        }
    }
}
