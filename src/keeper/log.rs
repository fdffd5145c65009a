//! What programs of a cluster said, and what became of them: one file, one JSON object a line.
//!
//! Place: the keeper writes it; `up` in the foreground and `sanlab logs` read it. Invariants: lines keep the order in which the keeper got
//! them; the file has a limit, beyond which the older half goes. Source: ours, docs/cluster.md.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Size at which the file moves aside; at most twice this is kept.
const LIMIT: u64 = 32 << 20;

/// A line of a program, or about one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The node; absent when it is about the whole cluster.
    pub(crate) node: Option<String>,
    /// The program.
    pub(crate) program: Option<String>,
    /// Where it comes from.
    pub(crate) stream: Stream,
    /// The line, without its end.
    pub(crate) text: String,
}

/// Where a line comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stream {
    /// Standard output of the program.
    Stdout,
    /// Its standard error.
    Stderr,
    /// The keeper, about the program.
    Lab,
}

/// The log of a cluster.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join("programs.log")
}

/// What it held before the file reached its limit.
fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The side of the keeper.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Writer {
    /// Makes the log of a cluster.
    pub(crate) fn make(directory: &Path) -> io::Result<Self> {
        let path = path(directory);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { path, file, len: 0 })
    }

    /// Adds a line. A full disk loses lines and stops no program.
    pub(crate) fn add(
        &mut self,
        node: Option<&str>,
        program: Option<&str>,
        stream: Stream,
        text: &str,
    ) {
        let entry = Entry {
            at_ms: now_ms(),
            node: node.map(str::to_owned),
            program: program.map(str::to_owned),
            stream,
            text: text.to_owned(),
        };
        let Ok(mut line) = serde_json::to_vec(&entry) else {
            return;
        };
        line.push(b'\n');
        if self.file.write_all(&line).is_ok() {
            self.len += line.len() as u64;
        }
        if self.len > LIMIT && fs::rename(&self.path, older(&self.path)).is_ok() {
            let fresh = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path);
            if let Ok(file) = fresh {
                self.file = file;
                self.len = 0;
            }
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The side of whoever shows it.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// The start of a line whose end has not been written yet.
    part: Vec<u8>,
}

impl Reader {
    /// Opens the log of a cluster.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = path(directory);
        Ok(Self {
            file: BufReader::new(File::open(&path)?),
            path,
            part: Vec::new(),
        })
    }

    /// What the file that moved aside holds.
    pub(crate) fn older(&self) -> Vec<Entry> {
        let text = fs::read(older(&self.path)).unwrap_or_default();
        text.split(|&byte| byte == b'\n')
            .filter_map(parse)
            .collect()
    }

    /// The lines that are new since the last call.
    pub(crate) fn take(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        loop {
            self.read_on(&mut entries)?;
            // Another file stands there once this one has moved aside; a cluster that ended has none.
            let own = self.file.get_ref().metadata()?;
            match fs::metadata(&self.path) {
                Ok(other) if other.ino() != own.ino() => {
                    self.read_on(&mut entries)?;
                    self.file = BufReader::new(File::open(&self.path)?);
                    self.part.clear();
                }
                _ => return Ok(entries),
            }
        }
    }

    fn read_on(&mut self, entries: &mut Vec<Entry>) -> io::Result<()> {
        loop {
            let read = self.file.read_until(b'\n', &mut self.part)?;
            if !self.part.ends_with(b"\n") {
                if read == 0 {
                    return Ok(());
                }
                continue;
            }
            entries.extend(parse(&self.part));
            self.part.clear();
        }
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_once_and_in_order() {
        let directory = std::env::temp_dir().join(format!("sanlab-log-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut writer = Writer::make(&directory).unwrap();
        let mut reader = Reader::open(&directory).unwrap();
        assert_eq!(reader.take().unwrap(), []);
        writer.add(Some("a"), Some("redis"), Stream::Stdout, "one \"quoted\"");
        writer.add(None, None, Stream::Lab, "two");
        let texts = |entries: Vec<Entry>| -> Vec<String> {
            entries.into_iter().map(|entry| entry.text).collect()
        };
        assert_eq!(texts(reader.take().unwrap()), ["one \"quoted\"", "two"]);
        assert_eq!(reader.take().unwrap(), []);
        // Half a line is none.
        writer.file.write_all(b"{\"at_ms\":1,").unwrap();
        assert_eq!(reader.take().unwrap(), []);
        writer
            .file
            .write_all(b"\"node\":null,\"program\":null,\"stream\":\"lab\",\"text\":\"three\"}\n")
            .unwrap();
        assert_eq!(texts(reader.take().unwrap()), ["three"]);
        // Nothing is lost when the file moves aside.
        writer.add(None, None, Stream::Lab, "four");
        fs::rename(&writer.path, older(&writer.path)).unwrap();
        writer = Writer::make(&directory).unwrap();
        writer.add(None, None, Stream::Lab, "five");
        assert_eq!(texts(reader.take().unwrap()), ["four", "five"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
