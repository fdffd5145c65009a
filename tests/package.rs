//! The tarball and the Debian package: they work elsewhere, and say what they need.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::{Lab, programs};

/// The newest version of glibc's symbols that the programs may need: Debian 12, Ubuntu 22.04 and all later have it.
const GLIBC: &str = "GLIBC_2.34";

/// Makes both packages from the binaries under test, or `None` where a tool is missing.
fn make(lab: &Lab) -> Option<PathBuf> {
    programs::find(["bash", "tar", "gzip", "strip", "objdump", "dpkg-deb"])?;
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_BIN_EXE_sanlab")).parent().unwrap();
    let out = lab.directory().join("out");
    let mut script = Command::new(top.join(".ci/package"));
    script.arg("--built").arg(built).arg(&out).current_dir("/");
    let said = lab.spawn("package", script).succeed();
    assert!(said.ends_with(&format!("needs {GLIBC}\n")), "{said}");
    Some(out)
}

/// The one file in a directory whose name ends so.
fn file(directory: &Path, end: &str) -> PathBuf {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn run(lab: &Lab, mut command: Command) -> Output {
    command
        .env("SANLAB_RUN_DIR", lab.run_directory())
        .env_remove("LD_PRELOAD")
        .current_dir("/");
    command.output().unwrap()
}

fn sanlab(lab: &Lab, program: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(words);
    run(lab, command)
}

#[test]
fn packages_work_in_another_place_and_without_their_source() {
    let lab = Lab::patient(
        "packages_work_in_another_place",
        std::time::Duration::from_secs(240),
    );
    let Some(out) = make(&lab) else {
        return;
    };
    // The tarball, under another name than it was packed with.
    let place = lab.directory().join("elsewhere");
    std::fs::create_dir(&place).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xzf")
        .arg(file(&out, ".tar.gz"))
        .arg("-C")
        .arg(&place)
        .arg("--strip-components=1");
    assert!(run(&lab, tar).status.success());
    works(&lab, &place);
    for page in ["sanlab.1", "sanlab-up.1", "sanlab-link-set.1"] {
        let text = std::fs::read_to_string(place.join("share/man/man1").join(page)).unwrap();
        assert!(
            text.contains(".TH ") && !text.contains("__keeper"),
            "{page}: {text}"
        );
    }
    let completion = place.join("share/bash-completion/completions/sanlab");
    let mut bash = Command::new("bash");
    bash.arg("-n").arg(&completion);
    assert!(run(&lab, bash).status.success());
    let text = std::fs::read_to_string(&completion).unwrap();
    assert!(text.contains("--exit-code-from") && !text.contains("__keeper"));
    let glibc = std::fs::read_to_string(place.join("share/doc/sanlab/GLIBC")).unwrap();
    assert_eq!(glibc.trim(), GLIBC);

    // A library that is cut short, or is none, or is not there, is one line, and nothing runs without it unseen.
    let program = place.join("bin/sanlab");
    let library = place.join("lib/sanlab/libsanlab_preload.so");
    assert!(sanlab(&lab, &program, &["up", "--detach"]).status.success());
    let whole = std::fs::read(&library).unwrap();
    for (content, why) in [
        (
            Some(&whole[..whole.len() / 2]),
            "is unusable: it is cut short",
        ),
        (Some(&b"\x7fELF"[..]), "is unusable: it is cut short"),
        (
            Some(&[b'x'; 4096][..]),
            "is unusable: it is no shared object for x86-64",
        ),
        (None, "the preload library is missing; tried "),
    ] {
        match content {
            Some(content) => std::fs::write(&library, content).unwrap(),
            None => std::fs::remove_file(&library).unwrap(),
        }
        let output = sanlab(&lab, &program, &["run", "--node", "a", "--", "true"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(why) && said.lines().count() == 1, "{said}");
    }
    assert!(sanlab(&lab, &program, &["down"]).status.success());

    // The Debian package, unpacked.
    let root = lab.directory().join("root");
    let deb = file(&out, ".deb");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&deb).arg(&root);
    assert!(run(&lab, unpack).status.success());
    works(&lab, &root.join("usr"));
    let mut field = Command::new("dpkg-deb");
    field.arg("-f").arg(&deb).arg("Depends");
    let depends = String::from_utf8(run(&lab, field).stdout).unwrap();
    assert_eq!(
        depends,
        format!(
            "libc6 (>= {}), libgcc-s1\n",
            GLIBC.trim_start_matches("GLIBC_")
        )
    );
    for path in [
        "share/man/man1/sanlab.1.gz",
        "share/doc/sanlab/copyright",
        "share/zsh/vendor-completions/_sanlab",
    ] {
        assert!(root.join("usr").join(path).is_file(), "{path}");
    }
}

/// A cluster with a program, started from this tree alone.
fn works(lab: &Lab, tree: &Path) {
    let program = tree.join("bin/sanlab");
    let path = lab.write(
        "one.toml",
        "[[node]]\nname = \"a\"\nrun = [\"cat\", \"/proc/self/maps\"]\n",
    );
    let output = sanlab(
        lab,
        &program,
        &["up", "--exit-code-from", "a", path.to_str().unwrap()],
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{:?}",
        String::from_utf8(output.stderr)
    );
    let library = std::fs::canonicalize(tree.join("lib/sanlab/libsanlab_preload.so")).unwrap();
    assert!(said.contains(&library.display().to_string()), "{said}");
    assert!(!said.contains(env!("CARGO_MANIFEST_DIR")), "{said}");
}
