//! Why a program cannot carry the preload library, read from its file before it is started.
//!
//! Place: `sanlab run` and the preload library's `exec` ask [`obstacle`] about the program; a script is judged by its interpreter.
//! Invariants: every number from the file is checked against the file's length; a file that cannot be read or understood has no obstacle, the
//! kernel and the dynamic linker then say what is wrong with it.
//! Source: System V ABI, gABI chapters 4 and 5; ld.so(8) on secure execution; execve(2) on interpreters; GNU symbol versioning (LSB).
//! Leaves out: files for other machines, which the kernel refuses to run anyway.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use driver::sys::Fd;
use ring_proto::telemetry::Reason;
use rustix::fs::{Access, Mode, OFlags};

/// Why a program runs without the library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// Reason as `stat` counts it.
    pub reason: Reason,
    /// The file that has the obstacle: the program, or the interpreter of a script.
    pub file: PathBuf,
    /// What it is, for people.
    pub what: String,
}

/// How many interpreters a script may stand on, as the kernel allows.
const SCRIPT_DEPTH: usize = 4;
/// Largest section or segment that is read.
const PART_MAX: u64 = 16 << 20;

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2010;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const SHT_DYNAMIC: u32 = 6;
const SHT_GNU_VERDEF: u32 = 0x6fff_fffd;
const SHT_GNU_VERNEED: u32 = 0x6fff_fffe;

/// The sanitizer's runtime that a program is linked to, by the name the dynamic linker knows. It must be loaded before any other
/// library.
#[must_use]
pub fn sanitizer(program: &Path) -> Option<String> {
    let needed = Image::read(program)?.needed_libraries;
    let is_runtime = |name: &String| {
        ["libasan.so", "libtsan.so", "libhwasan.so", "liblsan.so"]
            .iter()
            .any(|runtime| name.starts_with(runtime))
    };
    needed.into_iter().find(is_runtime)
}

/// What keeps `program` from carrying the preload library at `library`, if anything.
#[must_use]
pub fn obstacle(program: &Path, library: &Path) -> Option<Obstacle> {
    let mut file = program.to_owned();
    for _ in 0..=SCRIPT_DEPTH {
        if let Some(what) = set_id(&file) {
            return Some(Obstacle {
                reason: Reason::SetidBinary,
                file,
                what,
            });
        }
        match interpreter_of_script(&file) {
            Some(interpreter) => file = interpreter,
            None => break,
        }
    }
    let image = Image::read(&file)?;
    let (reason, what) = image_obstacle(&image, library)?;
    Some(Obstacle { reason, file, what })
}

fn image_obstacle(image: &Image, library: &Path) -> Option<(Reason, String)> {
    if image.is_go {
        return Some((
            Reason::GoBinary,
            "a Go program, which makes its system calls itself".to_owned(),
        ));
    }
    if !image.is_64_bit {
        return Some((
            Reason::NoProvider,
            "a 32-bit program, for which there is no SAN library".to_owned(),
        ));
    }
    let Some(loader) = &image.interpreter else {
        return Some((
            Reason::StaticBinary,
            "statically linked, so no library can be loaded into it".to_owned(),
        ));
    };
    let loader_name = loader.file_name().unwrap_or_default().to_string_lossy();
    if loader_name.starts_with("ld-musl") {
        return Some((
            Reason::MuslBinary,
            "linked against musl, the SAN library needs glibc".to_owned(),
        ));
    }
    let wanted = glibc_minor(&Image::read(library)?.needed_versions)?;
    let offered = glibc_minor(&Image::read(&libc_beside(loader)?)?.defined_versions)?;
    (offered < wanted).then(|| {
        (
            Reason::OldGlibc,
            format!("using glibc 2.{offered}, the SAN library needs 2.{wanted}"),
        )
    })
}

/// Whether the kernel would give the program other rights than ours, which makes the dynamic linker ignore preloaded libraries.
fn set_id(file: &Path) -> Option<String> {
    let about = rustix::fs::stat(file).ok()?;
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    if about.st_mode & SET_USER_ID != 0 && about.st_uid != user.as_raw() {
        return Some(format!("set-user-id of user {}", about.st_uid));
    }
    if about.st_mode & SET_GROUP_ID == SET_GROUP_ID && about.st_gid != group.as_raw() {
        return Some(format!("set-group-id of group {}", about.st_gid));
    }
    let mut capability = [0_u8; 64];
    let has_capability =
        rustix::fs::getxattr(file, c"security.capability", &mut capability[..]).is_ok();
    (has_capability && !user.is_root()).then(|| "given file capabilities".to_owned())
}

/// The program that the kernel starts for a script; looks through `env`, which starts another one.
fn interpreter_of_script(file: &Path) -> Option<PathBuf> {
    let mut start = [0; 256];
    let len = rustix::io::pread(&open(file)?, &mut start, 0).ok()?;
    let line = start.get(..len)?.strip_prefix(b"#!")?;
    let line = line.split(|&byte| byte == b'\n').next()?;
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
        .map(OsStr::from_bytes);
    let interpreter = PathBuf::from(words.next()?);
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return Some(interpreter);
    }
    let named = words.find(|word| {
        let bytes = word.as_bytes();
        !bytes.starts_with(b"-") && !bytes.contains(&b'=')
    });
    named.and_then(find_in_path).or(Some(interpreter))
}

/// The executable file of this name in the directories of PATH.
#[must_use]
pub fn find_in_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

/// Whether a file is one that this user may execute.
#[must_use]
pub fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok()
}

/// The C library that a dynamic linker brings: it lies beside the linker's real file.
fn libc_beside(loader: &Path) -> Option<PathBuf> {
    let beside = |path: &Path| Some(path.parent()?.join("libc.so.6"));
    let real = fs::canonicalize(loader).ok()?;
    [beside(&real), beside(loader)]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}

/// Highest N of the versions GLIBC_2.N.
fn glibc_minor(versions: &[String]) -> Option<u32> {
    let minors = versions.iter().filter_map(|version| {
        let minor = version.strip_prefix("GLIBC_2.")?;
        minor.split('.').next()?.parse().ok()
    });
    minors.max()
}

/// What matters of an ELF file.
#[derive(Debug, Default)]
struct Image {
    is_64_bit: bool,
    is_go: bool,
    interpreter: Option<PathBuf>,
    needed_libraries: Vec<String>,
    needed_versions: Vec<String>,
    defined_versions: Vec<String>,
}

/// A program header or section header, as far as it matters.
#[derive(Clone, Copy)]
struct Part {
    kind: u32,
    offset: u64,
    len: u64,
    link: u32,
}

impl Image {
    fn read(path: &Path) -> Option<Self> {
        let file = open(path)?;
        let header = bytes_at(&file, 0, 64)?;
        if !header.starts_with(b"\x7fELF") || header[5] != 1 {
            return None;
        }
        let mut image = Self {
            is_64_bit: header[4] == 2,
            ..Self::default()
        };
        if !image.is_64_bit {
            return Some(image);
        }
        let segments = parts(&file, u64_at(&header, 32)?, &header[54..58], segment)?;
        for segment in &segments {
            match segment.kind {
                PT_INTERP => {
                    let name = part_bytes(&file, segment)?;
                    let name = name.split(|&byte| byte == 0).next()?;
                    image.interpreter = Some(PathBuf::from(OsStr::from_bytes(name)));
                }
                PT_NOTE => {
                    image.is_go |= notes_name_go(&part_bytes(&file, segment).unwrap_or_default());
                }
                _ => {}
            }
        }
        // A shared object has no interpreter and a dynamic segment; only its versions matter.
        if segments.iter().any(|segment| segment.kind == PT_DYNAMIC) {
            image.read_versions(&file, &header);
        }
        Some(image)
    }

    fn read_versions(&mut self, file: &Fd, header: &[u8]) -> Option<()> {
        let sections = parts(file, u64_at(header, 40)?, &header[58..62], section)?;
        for section in &sections {
            let walk: Walk = match section.kind {
                SHT_DYNAMIC => needed_files,
                SHT_GNU_VERNEED => needed_names,
                SHT_GNU_VERDEF => defined_names,
                _ => continue,
            };
            let strings = sections.get(usize::try_from(section.link).ok()?)?;
            let strings = part_bytes(file, strings)?;
            let names: Vec<String> = walk(&part_bytes(file, section)?)
                .into_iter()
                .filter_map(|offset| text_at(&strings, offset))
                .collect();
            match section.kind {
                SHT_DYNAMIC => self.needed_libraries = names,
                SHT_GNU_VERNEED => self.needed_versions = names,
                _ => self.defined_versions = names,
            }
        }
        Some(())
    }
}

/// Lists the string offsets of the names in a section.
type Walk = fn(&[u8]) -> Vec<u32>;

fn needed_files(data: &[u8]) -> Vec<u32> {
    const DT_NEEDED: u64 = 1;
    let entries = data.chunks_exact(16);
    let needed = entries.filter(|entry| u64_at(entry, 0) == Some(DT_NEEDED));
    needed.filter_map(|entry| u32_at(entry, 8)).collect()
}

fn needed_names(data: &[u8]) -> Vec<u32> {
    let mut names = Vec::new();
    walk_chain(data, 0, 12, |entry, at| {
        // Elfxx_Verneed: aux offset at 8; Elfxx_Vernaux: name at 8, next at 12.
        let aux = u32_at(entry, 8).and_then(|aux| at.checked_add(usize::try_from(aux).ok()?));
        walk_chain(data, aux.unwrap_or(usize::MAX), 12, |aux, _| {
            names.extend(u32_at(aux, 8));
        });
    });
    names
}

fn defined_names(data: &[u8]) -> Vec<u32> {
    let mut names = Vec::new();
    walk_chain(data, 0, 16, |entry, at| {
        // Elfxx_Verdef: aux offset at 12, next at 16; Elfxx_Verdaux: name at 0, the first one is the version's own.
        let aux = u32_at(entry, 12).and_then(|aux| at.checked_add(usize::try_from(aux).ok()?));
        names.extend(aux.and_then(|aux| u32_at(data.get(aux..)?, 0)));
    });
    names
}

/// Calls `visit` for each record of a chain whose word at `next_at` is the distance to the next one.
fn walk_chain(data: &[u8], start: usize, next_at: usize, mut visit: impl FnMut(&[u8], usize)) {
    let mut at = start;
    while let Some(record) = data.get(at..) {
        let Some(next) = u32_at(record, next_at) else {
            return;
        };
        visit(record, at);
        let Some(following) = usize::try_from(next)
            .ok()
            .and_then(|next| at.checked_add(next))
        else {
            return;
        };
        // Distances only grow, so the walk ends with the data.
        if following <= at {
            return;
        }
        at = following;
    }
}

/// Whether an ELF note says that the Go linker made the file.
fn notes_name_go(notes: &[u8]) -> bool {
    let mut rest = notes;
    while let (Some(name_len), Some(desc_len)) = (u32_at(rest, 0), u32_at(rest, 4)) {
        let padded = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
        let (Some(name_len), Some(desc_len)) = (padded(name_len), padded(desc_len)) else {
            return false;
        };
        let Some(name) = rest.get(12..).and_then(|rest| rest.get(..name_len)) else {
            return false;
        };
        if name == b"Go\0\0" {
            return true;
        }
        let Some(following) = 12_usize
            .checked_add(name_len)
            .and_then(|len| len.checked_add(desc_len))
            .and_then(|len| rest.get(len..))
        else {
            return false;
        };
        rest = following;
    }
    false
}

fn segment(header: &[u8]) -> Option<Part> {
    Some(Part {
        kind: u32_at(header, 0)?,
        offset: u64_at(header, 8)?,
        len: u64_at(header, 32)?,
        link: 0,
    })
}

fn section(header: &[u8]) -> Option<Part> {
    Some(Part {
        kind: u32_at(header, 4)?,
        offset: u64_at(header, 24)?,
        len: u64_at(header, 32)?,
        link: u32_at(header, 40)?,
    })
}

/// Reads a table of headers; `shape` is the pair of entry size and count from the file's header.
fn parts(
    file: &Fd,
    offset: u64,
    shape: &[u8],
    read: fn(&[u8]) -> Option<Part>,
) -> Option<Vec<Part>> {
    let size = usize::from(u16::from_le_bytes(shape.get(..2)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(shape.get(2..4)?.try_into().ok()?));
    if count == 0 {
        return Some(Vec::new());
    }
    let table = bytes_at(file, offset, u64::try_from(size.checked_mul(count)?).ok()?)?;
    table.chunks_exact(size.max(1)).map(read).collect()
}

fn part_bytes(file: &Fd, part: &Part) -> Option<Vec<u8>> {
    bytes_at(file, part.offset, part.len)
}

fn bytes_at(file: &Fd, offset: u64, len: u64) -> Option<Vec<u8>> {
    if len > PART_MAX {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    let mut done = 0;
    while done < bytes.len() {
        let at = offset.checked_add(done as u64)?;
        match rustix::io::pread(file, bytes.get_mut(done..)?, at).ok()? {
            0 => return None,
            read => done += read,
        }
    }
    Some(bytes)
}

/// Opens a file for reading, past the C library, whose functions are the preload library's own.
fn open(path: &Path) -> Option<Fd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    Some(Fd::from_owned(file))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*word))
}

fn text_at(strings: &[u8], offset: u32) -> Option<String> {
    let text = strings.get(usize::try_from(offset).ok()?..)?;
    let text = text.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit little-endian file with these program headers' kinds and contents.
    fn elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, data) in segments {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
            file.extend_from_slice(&header);
            offset += data.len() as u64;
        }
        for (_, data) in segments {
            file.extend_from_slice(data);
        }
        file
    }

    fn image(segments: &[(u32, &[u8])]) -> Image {
        let file = tempfile(&elf(segments));
        Image::read(&file.path).unwrap()
    }

    struct TempFile {
        path: PathBuf,
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            fs::remove_file(&self.path).unwrap();
        }
    }

    fn tempfile(bytes: &[u8]) -> TempFile {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sanlab-elf-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).unwrap();
        TempFile { path }
    }

    fn reason(image: &Image) -> Option<Reason> {
        image_obstacle(image, Path::new("/nonexistent")).map(|(reason, _)| reason)
    }

    #[test]
    fn programs_without_a_dynamic_linker_are_static() {
        assert_eq!(reason(&image(&[(1, b"")])), Some(Reason::StaticBinary));
        assert_eq!(
            reason(&image(&[(PT_DYNAMIC, b"")])),
            Some(Reason::StaticBinary)
        );
    }

    #[test]
    fn musl_and_go_are_told_by_linker_and_note() {
        let musl = image(&[(PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0")]);
        assert_eq!(reason(&musl), Some(Reason::MuslBinary));
        let mut note = Vec::new();
        for word in [4_u32, 8, 4] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"Go\0\0buildidx");
        let go = image(&[
            (PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0"),
            (PT_NOTE, &note),
        ]);
        assert_eq!(reason(&go), Some(Reason::GoBinary));
    }

    #[test]
    fn a_file_that_lies_about_itself_is_not_an_obstacle() {
        let mut file = elf(&[(PT_INTERP, b"x\0")]);
        file[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Image::read(&tempfile(&file).path).is_none());
        let mut file = elf(&[(PT_INTERP, b"x\0")]);
        file[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Image::read(&tempfile(&file).path).is_none());
        assert!(Image::read(&tempfile(b"\x7fELF").path).is_none());
    }

    #[test]
    fn this_test_itself_can_carry_the_library() {
        let own = std::env::current_exe().unwrap();
        let image = Image::read(&own).unwrap();
        assert!(image.interpreter.is_some());
        let wanted = glibc_minor(&image.needed_versions);
        let libc = libc_beside(image.interpreter.as_deref().unwrap()).unwrap();
        let offered = glibc_minor(&Image::read(&libc).unwrap().defined_versions);
        assert!(
            offered >= wanted && wanted.is_some(),
            "{offered:?} {wanted:?}"
        );
        assert_eq!(obstacle(&own, &own), None);
        assert!(
            image
                .needed_libraries
                .iter()
                .any(|name| name == "libc.so.6")
        );
        assert_eq!(sanitizer(&own), None);
    }

    #[test]
    fn a_script_is_judged_by_its_interpreter_also_behind_env() {
        let script = tempfile(b"#!/usr/bin/env -S LANG=C sh -e\n");
        let interpreter = interpreter_of_script(&script.path).unwrap();
        assert_eq!(interpreter.file_name(), Some(OsStr::new("sh")));
        let script = tempfile(b"#! /bin/sh -e\n");
        assert_eq!(
            interpreter_of_script(&script.path).unwrap(),
            Path::new("/bin/sh")
        );
        let circle = tempfile(b"");
        fs::write(&circle.path, format!("#!{}\n", circle.path.display())).unwrap();
        assert_eq!(obstacle(&circle.path, &circle.path), None);
    }

    #[test]
    fn chains_that_do_not_advance_end() {
        let mut data = vec![0; 64];
        data[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(needed_names(&data).len(), 1);
        assert_eq!(defined_names(&data).len(), 0);
    }
}
