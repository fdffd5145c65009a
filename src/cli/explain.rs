//! What `sanlab run` tells of a run.
//!
//! Place: arguments of [`super::Run`]. Source: ours.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

/// How and where to tell what a run did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Explain {
    /// One JSON object instead of tables.
    pub(crate) is_json: bool,
    /// A file instead of standard error.
    pub(crate) file: Option<PathBuf>,
}

impl FromStr for Explain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, file) = match text.split_once(':') {
            Some((_, "")) => return Err("the name of the file is missing".to_owned()),
            Some((format, file)) => (format, Some(PathBuf::from(file))),
            None => (text, None),
        };
        let is_json = match format {
            "text" => false,
            "json" => true,
            _ => return Err(format!("`{format}` is neither `text` nor `json`")),
        };
        Ok(Self { is_json, file })
    }
}

/// What becomes of system calls past the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Audit {
    /// They are reported.
    Report,
    /// They are reported, and the exit code tells of them.
    Fail,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        let read = |text: &str| text.parse::<Explain>();
        let explain = read("json:/tmp/x:y").unwrap();
        assert!(explain.is_json);
        assert_eq!(explain.file, Some(PathBuf::from("/tmp/x:y")));
        assert_eq!(read("text").unwrap().file, None);
        for bad in ["", "yaml", "json:", "text:", ":file"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
