//! Files whose every block differs, so that a block at a wrong place shows.
//!
//! Place: suites write one, let a program carry it, and compare. Invariants: a file is compared to its last byte.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

/// Writes a file of this many bytes.
pub(crate) fn write(path: &Path, len: u64) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut word = len | 1;
    for _ in 0..len / 8 {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        file.write_all(&word.to_le_bytes()).unwrap();
    }
    file.write_all(&vec![7; usize::try_from(len % 8).unwrap()])
        .unwrap();
    file.flush().unwrap();
}

/// Asserts that two files hold the same bytes, and says where they first differ.
pub(crate) fn assert_same(original: &Path, copy: &Path) {
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert_eq!(len(original), len(copy), "length of {}", copy.display());
    let [mut original, mut copied] =
        [original, copy].map(|path| BufReader::new(File::open(path).unwrap()));
    let [mut left, mut right] = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut offset = 0;
    loop {
        let read = original.read(&mut left).unwrap();
        if read == 0 {
            return;
        }
        copied.read_exact(&mut right[..read]).unwrap();
        let differs = (0..read).find(|&at| left[at] != right[at]);
        assert!(
            differs.is_none(),
            "{} differs at byte {}",
            copy.display(),
            offset + differs.unwrap_or_default()
        );
        offset += read;
    }
}
