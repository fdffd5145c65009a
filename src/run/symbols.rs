//! Names of places in ELF files: which function an instruction lies in.
//!
//! Place: [`super::audit`] names its findings. Invariants: a file that is no ELF file of this machine, or lies, has no names; every offset
//! read from it is checked. Source: elf(5). Leaves out: debug information, and names as their language writes them.

use std::fs;

/// Largest file that is read.
const LEN_MAX: u64 = 1 << 30;

const PT_LOAD: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
const STT_FUNC: u8 = 2;

/// The function that holds the byte at `offset` of the file, and how far into it that is; if none does, the last one before it.
pub(crate) fn nearest(path: &str, offset: u64) -> Option<(String, u64)> {
    let about = fs::metadata(path).ok()?;
    if !about.is_file() || about.len() > LEN_MAX {
        return None;
    }
    nearest_in(&fs::read(path).ok()?, offset)
}

fn nearest_in(file: &[u8], offset: u64) -> Option<(String, u64)> {
    // 64 bits, little-endian.
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let address = address_of(file, offset)?;
    let sections = Sections::of(file)?;
    let kinds = [SHT_SYMTAB, SHT_DYNSYM];
    let best = kinds
        .iter()
        .filter_map(|&kind| sections.best_of(kind, address))
        .max_by_key(|&(start, _)| start)?;
    let (start, name) = best;
    Some((name, address - start))
}

fn number<const N: usize>(file: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: u64) -> Option<u64> {
    number(file, at).map(u16::from_le_bytes).map(u64::from)
}

fn u32_at(file: &[u8], at: u64) -> Option<u32> {
    number(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: u64) -> Option<u64> {
    number(file, at).map(u64::from_le_bytes)
}

/// Where the loader puts a byte of the file, before any shift.
fn address_of(file: &[u8], offset: u64) -> Option<u64> {
    let (table, size, count) = (u64_at(file, 32)?, u16_at(file, 54)?, u16_at(file, 56)?);
    (0..count).find_map(|n| {
        let header = table.checked_add(n * size)?;
        if u32_at(file, header)? != PT_LOAD {
            return None;
        }
        let (from, address, len) = (
            u64_at(file, header + 8)?,
            u64_at(file, header + 16)?,
            u64_at(file, header + 32)?,
        );
        let into = offset.checked_sub(from).filter(|&into| into < len)?;
        address.checked_add(into)
    })
}

struct Sections<'a> {
    file: &'a [u8],
    table: u64,
    size: u64,
    count: u64,
}

impl<'a> Sections<'a> {
    fn of(file: &'a [u8]) -> Option<Self> {
        Some(Self {
            file,
            table: u64_at(file, 40)?,
            size: u16_at(file, 58)?,
            count: u16_at(file, 60)?,
        })
    }

    fn header(&self, number: u64) -> Option<u64> {
        let at = self.table.checked_add(number.checked_mul(self.size)?)?;
        (number < self.count).then_some(at)
    }

    /// The last function of a table that starts at or before `address`.
    fn best_of(&self, kind: u32, address: u64) -> Option<(u64, String)> {
        let file = self.file;
        let header = (0..self.count)
            .filter_map(|n| self.header(n))
            .find(|&header| u32_at(file, header + 4) == Some(kind))?;
        let (from, len) = (u64_at(file, header + 24)?, u64_at(file, header + 32)?);
        let names = self.header(u64::from(u32_at(file, header + 40)?))?;
        let names = u64_at(file, names + 24)?;
        let best = (0..len / 24)
            .map_while(|n| {
                let symbol = from.checked_add(n * 24)?;
                let kind = number::<1>(file, symbol.checked_add(4)?)?[0] & 15;
                Some((u64_at(file, symbol + 8)?, symbol, kind))
            })
            .filter(|&(start, _, kind)| kind == STT_FUNC && start != 0 && start <= address)
            .max_by_key(|&(start, ..)| start)?;
        let (start, symbol, _) = best;
        let name = names.checked_add(u64::from(u32_at(file, symbol)?))?;
        let name = file.get(usize::try_from(name).ok()?..)?;
        let end = name.iter().position(|&byte| byte == 0)?;
        let name = String::from_utf8_lossy(&name[..end]);
        Some((start, name.replace(char::is_control, "?")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where in this program's file the code at `address` lies.
    fn offset_of(address: u64) -> u64 {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let offset = maps.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (from, to) = words.next()?.split_once('-')?;
            let hex = |text: &str| u64::from_str_radix(text, 16).ok();
            let (from, to, offset) = (hex(from)?, hex(to)?, hex(words.nth(1)?)?);
            (from..to)
                .contains(&address)
                .then(|| address - from + offset)
        });
        offset.unwrap()
    }

    #[test]
    fn a_function_of_this_program_has_its_name() {
        let file = fs::read(std::env::current_exe().unwrap()).unwrap();
        let function: fn(&[u8], u64) -> _ = nearest_in;
        let start = offset_of((function as *const ()).expose_provenance() as u64);
        for into in [0, 1] {
            let (name, offset) = nearest_in(&file, start + into).unwrap();
            assert!(name.contains("nearest_in"), "{name}");
            assert_eq!(offset, into);
        }
    }

    #[test]
    fn files_that_lie_have_no_names() {
        assert_eq!(nearest("/nonexistent", 0), None);
        assert_eq!(nearest("/dev/null", 0), None);
        assert_eq!(nearest("/proc/self/status", 0), None);
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let head = &own[..4096];
        for at in 16..64 {
            let mut file = head.to_vec();
            file[at] = 0xff;
            nearest_in(&file, 100);
            file[at..64].fill(0xff);
            nearest_in(&file, 100);
        }
        for len in 0..200 {
            nearest_in(&head[..len], 100);
        }
    }
}
