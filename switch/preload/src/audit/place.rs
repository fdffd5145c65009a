//! Where code is: this library's own, and that of a call past it.
//!
//! Place: `super::arm` asks for our own text; `trap` names a place once. Invariants: safe in a signal handler: no lock, no allocation.
//! Source: proc_pid_maps(5), elf(5). Leaves out: names of functions, which the launcher finds in the files.
#![expect(unsafe_code, reason = "reads our own file's headers in memory")]

use core::ffi::c_void;

use switch::report::MODULE_LEN;
use switch::sys;

use super::memory;

/// First address and length of this library's code.
pub(super) fn own_text() -> Option<(usize, usize)> {
    let mut about = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let here: *const c_void = (own_text as fn() -> Option<(usize, usize)> as *const ()).cast();
    // SAFETY: an address, and room for the answer.
    let found = unsafe { libc::dladdr(here, about.as_mut_ptr()) };
    // SAFETY: all bytes zero is a valid answer, and the call wrote the rest.
    let base = unsafe { about.assume_init() }.dli_fbase.cast::<u8>();
    if found == 0 || base.is_null() {
        return None;
    }
    // SAFETY: a loaded object begins with its ELF header.
    let header = unsafe { base.cast::<libc::Elf64_Ehdr>().read() };
    for n in 0..usize::from(header.e_phnum) {
        let at = usize::try_from(header.e_phoff).ok()? + n * size_of::<libc::Elf64_Phdr>();
        // SAFETY: the program headers of a loaded object lie in its first segment.
        let part = unsafe { base.wrapping_add(at).cast::<libc::Elf64_Phdr>().read() };
        if part.p_type == libc::PT_LOAD && part.p_flags & libc::PF_X != 0 {
            let offset = usize::try_from(part.p_vaddr).ok()?;
            let len = usize::try_from(part.p_memsz).ok()?;
            return Some((base.expose_provenance() + offset, len));
        }
    }
    None
}

/// Bytes of the list of mappings that are read at once, and its longest line.
const PIECE: usize = 1024;

/// The file of the code at an address, written into `name`, and the place in that file; the address itself for code without a file.
pub(super) fn of(address: usize, name: &mut [u8; MODULE_LEN]) -> (usize, u64) {
    let here = (0, address as u64);
    let Ok(maps) = memory::open(c"/proc/self/maps") else {
        return here;
    };
    let mut piece = [0_u8; PIECE];
    let mut held = 0;
    let mut found = here;
    while let Ok(read @ 1..) = memory::read(maps, &mut piece[held..]) {
        held += read;
        let mut from = 0;
        while let Some(len) = piece[from..held].iter().position(|&byte| byte == b'\n') {
            if let Some((path, offset)) = covers(&piece[from..from + len], address) {
                let len = path.len().min(name.len());
                name[..len].copy_from_slice(&path[..len]);
                found = (len, offset);
            }
            from += len + 1;
        }
        if from == 0 && held == PIECE {
            // A line that does not fit.
            break;
        }
        piece.copy_within(from..held, 0);
        held -= from;
    }
    // It was for reading.
    sys::close(maps).ok();
    found
}

/// Path and place in the file of a line `start-end perms offset device inode path`, if it covers an address.
fn covers(line: &[u8], address: usize) -> Option<(&[u8], u64)> {
    let mut words = line.splitn(6, |&byte| byte == b' ');
    let range = words.next()?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
    let address = address as u64;
    if !(start..end).contains(&address) {
        return None;
    }
    let offset = hex(words.nth(1)?)?;
    let path = words.nth(2)?.trim_ascii_start();
    path.starts_with(b"/")
        .then_some((path, address - start + offset))
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_list_are_read() {
        let line = b"7f1200001000-7f1200003000 r-xp 00002000 08:01 1234                       /usr/lib/libc.so.6";
        let path = b"/usr/lib/libc.so.6".as_slice();
        assert_eq!(covers(line, 0x7f12_0000_1010), Some((path, 0x2010)));
        assert_eq!(covers(line, 0x7f12_0000_3000), None);
        let line =
            b"7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(covers(line, 0x7ffc_0000_0001), None);
        assert_eq!(covers(b"garbage", 1), None);
    }

    #[test]
    fn this_test_lies_in_its_own_file() {
        let here = this_test_lies_in_its_own_file as fn() as *const () as usize;
        let mut name = [0; MODULE_LEN];
        let (len, offset) = of(here, &mut name);
        let own = std::env::current_exe().unwrap();
        let own = own.as_os_str().as_encoded_bytes();
        let len_max = own.len().min(MODULE_LEN);
        assert_eq!(&name[..len], &own[..len_max]);
        assert!(offset > 0);
        let (start, len) = own_text().unwrap();
        assert!((start..start + len).contains(&here));
    }
}
