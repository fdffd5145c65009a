//! The variables that carry the library into the programs that this one starts.
//!
//! Place: read once by the constructor; `calls::exec` puts them back where a program has cleared its environment, and into the
//! environments of processes of our own. Invariants: nothing here changes the program's environment but [`take`], which removes what
//! is for the library alone, before the program runs.
//! Source: ld.so(8), `ring_proto::channel`. Leaves out: what the variables mean.
#![expect(
    unsafe_code,
    reason = "reads the environment, and asks for our own file"
)]

use core::ffi::{CStr, c_char, c_void};
use std::ffi::CString;

use ring_proto::channel;

/// Name of the variable that names us to the dynamic linker.
pub(crate) const PRELOAD: &str = "LD_PRELOAD";

/// What a program on the node inherits.
const CARRIED: [&str; 6] = [
    channel::ENV_CONFIG,
    channel::ENV_CHANNEL,
    channel::ENV_CLUSTER,
    channel::ENV_NODE,
    channel::ENV_ADDR,
    channel::ENV_REPORT,
];

/// The variables as they were when the program began.
#[derive(Debug)]
pub(crate) struct Environment {
    /// File of this library, as the dynamic linker knows it.
    pub(crate) library: CString,
    /// `NAME=value` of those that a program on the node inherits.
    pub(crate) carried: Vec<CString>,
    /// `LD_LIBRARY_PATH=…`, for processes of our own.
    pub(crate) search_path: Option<CString>,
}

impl Environment {
    /// Reads it. `None` when nobody knows where the library's file is.
    pub(crate) fn read() -> Option<Self> {
        let entry = |name: &str| {
            let value = variable(name)?;
            let mut text = format!("{name}=").into_bytes();
            text.extend_from_slice(value.to_bytes());
            CString::new(text).ok()
        };
        Some(Self {
            library: own_file()?,
            carried: CARRIED.iter().filter_map(|name| entry(name)).collect(),
            search_path: entry("LD_LIBRARY_PATH"),
        })
    }

    /// Whether a node's configuration is that of this program.
    pub(crate) fn is_own_node(&self, config: &[u8]) -> bool {
        self.carried.iter().any(|entry| {
            let value = entry
                .to_bytes()
                .strip_prefix(channel::ENV_CONFIG.as_bytes());
            value.and_then(|value| value.strip_prefix(b"=")) == Some(config)
        })
    }

    /// Whether a value of `LD_PRELOAD` names this library.
    pub(crate) fn is_in(&self, list: &[u8]) -> bool {
        files(list).any(|file| file == self.library.to_bytes())
    }

    /// A value of `LD_PRELOAD` with this library, first unless it has a place already: a sanitizer's runtime must come before it.
    pub(crate) fn with_library(&self, list: &[u8]) -> Vec<u8> {
        if self.is_in(list) {
            return list.to_vec();
        }
        let mut with = self.library.to_bytes().to_vec();
        for file in files(list) {
            with.push(b':');
            with.extend_from_slice(file);
        }
        with
    }

    /// A value of `LD_PRELOAD` without this library.
    pub(crate) fn without_library(&self, list: &[u8]) -> Vec<u8> {
        let others: Vec<&[u8]> = files(list)
            .filter(|file| *file != self.library.to_bytes())
            .collect();
        others.join(&b':')
    }
}

fn files(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| matches!(byte, b' ' | b':'))
        .filter(|file| !file.is_empty())
}

/// A variable of the environment. For the constructor only: later the program may be changing it.
pub(crate) fn variable(name: &str) -> Option<&'static CStr> {
    let name = CString::new(name).ok()?;
    // SAFETY: a C string; no other thread runs yet.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the environment holds C strings, which stay where they are while the constructor runs.
    Some(unsafe { CStr::from_ptr(value) })
}

/// Takes a variable out of the environment. For the constructor only.
pub(crate) fn take(name: &str) -> Option<CString> {
    let value = variable(name)?.to_owned();
    let name = CString::new(name).ok()?;
    // SAFETY: a C string; no other thread runs yet.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Some(value)
}

/// The file this code was loaded from.
fn own_file() -> Option<CString> {
    let mut about = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let here: *const c_void = (own_file as fn() -> Option<CString> as *const ()).cast();
    // SAFETY: an address, and room for the answer.
    let found = unsafe { libc::dladdr(here, about.as_mut_ptr()) };
    // SAFETY: all bytes zero is a valid answer, and the call wrote the rest.
    let about = unsafe { about.assume_init() };
    if found == 0 || about.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a C string of the dynamic linker, which keeps it as long as we are loaded.
    Some(unsafe { CStr::from_ptr(about.dli_fname) }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart_and_put_together() {
        let environment = Environment {
            library: c"/x/lib.so".to_owned(),
            carried: Vec::new(),
            search_path: None,
        };
        assert!(environment.is_in(b"/a.so /x/lib.so"));
        assert!(!environment.is_in(b"/a.so:/x/lib.so.1"));
        assert_eq!(environment.with_library(b""), b"/x/lib.so");
        assert_eq!(
            environment.with_library(b"/a.so:/x/lib.so"),
            b"/a.so:/x/lib.so"
        );
        assert_eq!(
            environment.without_library(b"/x/lib.so /a.so:/b.so"),
            b"/a.so:/b.so"
        );
        assert_eq!(environment.without_library(b"/x/lib.so"), b"");
    }
}
