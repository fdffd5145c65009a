//! Ends a test that waits for ever, after it has shown what everybody waits for.
//!
//! Place: part of every [`super::Lab`]. Invariants: the test binary is aborted, so its harness reports a failure; the processes of the test
//! are ended before, because nobody is left to do so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Watched = Arc<Mutex<Vec<(String, u32)>>>;

pub(crate) struct Watchdog {
    watched: Watched,
    _end: Sender<()>,
}

impl Watchdog {
    pub(crate) fn start(test: &str, directory: &Path, patience: Duration) -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let watched = Watched::default();
        let (test, directory, processes) = (test.to_owned(), directory.to_owned(), watched.clone());
        std::thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                // Held to the end: one report is whole before another test of this binary has the same to tell.
                static REPORT: Mutex<()> = Mutex::new(());
                let _report = REPORT.lock();
                dump(&test, &directory, &processes);
                for (_, pid) in processes.lock().unwrap().iter() {
                    super::kernel::end(*pid);
                }
                super::kernel::end_emulators_below(&directory);
                std::process::abort();
            }
        });
        Self { watched, _end: end }
    }

    pub(crate) fn watch(&self, label: &str, pid: u32) {
        self.watched.lock().unwrap().push((label.to_owned(), pid));
    }
}

fn dump(test: &str, directory: &Path, watched: &Watched) {
    super::tell(format_args!(
        "=== the test {test} waits for ever; its processes:"
    ));
    let mut processes = watched.lock().unwrap().clone();
    for pid in super::kernel::emulators_below(directory) {
        processes.push(("emulator".to_owned(), pid));
    }
    for (label, pid) in processes {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let Ok(threads) = fs::read_dir(root.join("task")) else {
            continue;
        };
        super::tell(format_args!("--- {label}, process {pid}"));
        for thread in threads.flatten() {
            let field =
                |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let status = field("status");
            let state = status
                .lines()
                .find(|line| line.starts_with("State:"))
                .unwrap_or_default();
            super::tell(format_args!(
                "    {} {state} in {} system call {}",
                field("comm").trim(),
                field("wchan").trim(),
                field("syscall").trim()
            ));
        }
    }
    super::process::print_outputs(directory);
}
