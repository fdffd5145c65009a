//! What fuzzers call: one function per kind of input that clients write, from bytes alone.
//!
//! Place: `nic-emu/fuzz` wraps each in a libFuzzer target, `.ci/fuzz` runs them; the tests below replay the corpus. Built with the
//! feature `fuzz` and for tests. Invariants: a target returns whatever its input says; it panics when the device panicked, did not come
//! to rest, or answered what no client could read.
//! Source: ours. Leaves out: shared memory that changes while it is read, which the scribbler of `tests/hostile` does.

mod admin;
mod channel;
mod control;
mod rig;
mod stream;
mod telemetry;
mod work;

pub use admin::admin;
pub use channel::channel;
pub use control::control;
pub use stream::stream;
pub use telemetry::telemetry;
pub use work::{packets, wqe};

/// A target by name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("stream", stream),
    ("admin", admin),
    ("wqe", wqe),
    ("packets", packets),
    ("channel", channel),
    ("telemetry", telemetry),
    ("control", control),
];

#[cfg(test)]
mod seeds;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::fuzz::seeds::seeds;

    /// Every file of the corpus of a target.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let files = std::fs::read_dir(directory.join(target)).unwrap();
        files
            .map(|file| {
                let path = file.unwrap().path();
                (path.display().to_string(), std::fs::read(&path).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_corpus_is_survived() {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(corpus.len() > 2, "corpus of {name}");
            for (path, input) in corpus {
                println!("{path}");
                target(&input);
            }
        }
    }

    /// They are replayed as today's layout has them; `SANLAB_BLESS=1` writes them into the corpus.
    #[test]
    fn the_seeds_of_this_layout_are_survived() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, name, bytes) in seeds() {
            if std::env::var_os("SANLAB_BLESS").is_some() {
                std::fs::write(directory.join(target).join(&name), &bytes).unwrap();
            }
            println!("{target} {name}");
            let found = TARGETS.iter().find(|(known, _)| *known == target);
            found.unwrap().1(&bytes);
        }
    }

    /// Not a fuzzer, but it needs no special build: mutates the corpus for a while, without looking at coverage.
    #[test]
    fn mutations_of_the_corpus_are_survived() {
        let mut seed = 0x0bad_5eed_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 16).unwrap()
        };
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            for _ in 0..200 {
                let mut input = corpus[random() % corpus.len()].1.clone();
                for _ in 0..1 + random() % 8 {
                    if input.is_empty() {
                        input.push(0);
                    }
                    let at = random() % input.len();
                    match random() % 4 {
                        0 => input[at] ^= 1 << (random() % 8),
                        1 => input[at] = [0, 1, 0x7f, 0x80, 0xff][random() % 5],
                        2 => input.truncate(at),
                        _ => input.extend_from_within(at..),
                    }
                    input.truncate(4096);
                }
                target(&input);
            }
        }
    }
}
