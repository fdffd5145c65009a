//! Where the preload library is.
//!
//! Place: `run` and `doctor` ask [`find`].
//! Invariants: only places relative to the program's own file, so an installed `sanlab` never loads a stranger's library.
//! Source: ours. `cargo build` leaves a dependency's shared object in `deps/` and copies it beside the binary only when it is built by name, so
//! of these two the newer one is right.

use std::fs;
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
    Ok(library)
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
