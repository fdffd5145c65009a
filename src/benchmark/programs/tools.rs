//! Programs of the distribution, and the packages that bring them.
//!
//! Place: each program's file asks for what it needs. Invariants: searched like a shell does, and in the directory of servers, which a
//! user's PATH leaves out on Debian.

use std::env;
use std::path::PathBuf;

use switch::program;

use super::{Lack, Missing};

/// Where servers are.
const SERVERS: &str = "/usr/sbin";

/// A program and the package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

impl Tool {
    /// Where it is.
    pub(super) fn find(self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain([PathBuf::from(SERVERS)])
            .map(|directory| directory.join(self.name))
            .find(|file| program::is_executable(file))
    }

    fn missing(self) -> Missing {
        Missing {
            program: self.name.to_owned(),
            package: self.package.to_owned(),
        }
    }
}

/// Where all of them are; else those that are missing.
pub(super) fn find<const N: usize>(tools: [Tool; N]) -> Result<[PathBuf; N], Lack> {
    let found = tools.map(|tool| tool.find().ok_or(tool));
    let missing: Vec<Missing> = found
        .iter()
        .filter_map(|found| found.as_ref().err())
        .map(|tool| tool.missing())
        .collect();
    if !missing.is_empty() {
        return Err(Lack::Missing(missing));
    }
    Ok(found.map(|found| found.unwrap_or_default()))
}

/// The first of them that is here; else the first is missing.
pub(super) fn first(tools: [Tool; 2]) -> Result<(Tool, PathBuf), Lack> {
    let found = tools.iter().find_map(|&tool| Some((tool, tool.find()?)));
    found.ok_or_else(|| Lack::Missing(vec![tools[0].missing()]))
}
