//! Queues of a C shared object.
//!
//! Place: `sanlab bench ring --subject ./my_ring.so`. Invariants: the object is loaded as any library is, so it can do what it likes to this
//! process; its queue has its state in the memory it is given and nowhere else when it says that it spans processes.
//!
//! ```c
//! size_t sanlab_ring_bytes(uint32_t depth, uint32_t element_bytes);                 // memory that a queue needs
//! int    sanlab_ring_init(void *memory, uint32_t depth, uint32_t element_bytes);    // zeroed memory; 0 when all is well
//! size_t sanlab_ring_push(void *memory, const void *elements, size_t count);        // how many went in
//! size_t sanlab_ring_pop(void *memory, void *elements, size_t count);               // how many came out
//! int    sanlab_ring_spans_processes(void);                                         // may be missing: no
//! ```
#![expect(unsafe_code, reason = "calls functions of a shared object")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::BenchError;
use super::memory::Memory;
use super::queue::{Consumer, Element, Producer, Queue};

type Bytes = unsafe extern "C" fn(u32, u32) -> usize;
type Init = unsafe extern "C" fn(*mut c_void, u32, u32) -> c_int;
type Push = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> usize;
type Pop = unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> usize;
type Spans = unsafe extern "C" fn() -> c_int;

/// A queue of a shared object. It stays loaded until the program ends.
#[derive(Clone, Debug)]
pub struct Foreign {
    path: PathBuf,
    bytes: Bytes,
    init: Init,
    push: Push,
    pop: Pop,
    spans_processes: bool,
}

/// The end that is written to.
#[derive(Debug)]
pub struct Sender {
    memory: Memory,
    push: Push,
}

/// The end that is read from.
#[derive(Debug)]
pub struct Receiver {
    memory: Memory,
    pop: Pop,
}

impl Foreign {
    /// Loads a shared object.
    ///
    /// # Errors
    /// [`BenchError::Foreign`] when it cannot be loaded or lacks a function.
    pub fn load(path: &Path) -> Result<Self, BenchError> {
        let problem = |problem: String| BenchError::Foreign {
            path: path.to_owned(),
            problem,
        };
        // A name without a slash would be looked for among the system's libraries.
        let full = path
            .canonicalize()
            .map_err(|error| problem(error.to_string()))?;
        let name = CString::new(full.as_os_str().as_bytes())
            .map_err(|error| problem(error.to_string()))?;
        // SAFETY: a terminated string; the object's initialisers run, which is what whoever names it asks for.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: takes nothing.
            let text = unsafe { libc::dlerror() };
            // SAFETY: dlopen has just failed, so there is a text, which lives until the next call.
            let text = unsafe { CStr::from_ptr(text) };
            return Err(problem(text.to_string_lossy().into_owned()));
        }
        let find = |symbol: &CStr| {
            // SAFETY: an open handle and a terminated string.
            let place = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
            (!place.is_null()).then_some(place)
        };
        let need = |symbol: &CStr| {
            let missing = || problem(format!("it has no function {}", symbol.to_string_lossy()));
            find(symbol).ok_or_else(missing)
        };
        let bytes = need(c"sanlab_ring_bytes")?;
        let init = need(c"sanlab_ring_init")?;
        let push = need(c"sanlab_ring_push")?;
        let pop = need(c"sanlab_ring_pop")?;
        let spans = find(c"sanlab_ring_spans_processes").is_some_and(|place| {
            // SAFETY: the function of that name has this type (module).
            let spans = unsafe { std::mem::transmute::<*mut c_void, Spans>(place) };
            // SAFETY: takes nothing.
            unsafe { spans() != 0 }
        });
        Ok(Self {
            path: path.to_owned(),
            // SAFETY: the function of that name has this type (module).
            bytes: unsafe { std::mem::transmute::<*mut c_void, Bytes>(bytes) },
            // SAFETY: as above.
            init: unsafe { std::mem::transmute::<*mut c_void, Init>(init) },
            // SAFETY: as above.
            push: unsafe { std::mem::transmute::<*mut c_void, Push>(push) },
            // SAFETY: as above.
            pop: unsafe { std::mem::transmute::<*mut c_void, Pop>(pop) },
            spans_processes: spans,
        })
    }
}

/// Bytes of an element.
#[expect(clippy::cast_possible_truncation, reason = "at most 32 words")]
const fn element_bytes<const W: usize>() -> u32 {
    8 * W as u32
}

impl<const W: usize> Queue<W> for Foreign {
    type Producer = Sender;
    type Consumer = Receiver;

    fn name(&self) -> String {
        let stem = self.path.file_stem();
        stem.map_or("foreign".into(), |stem| stem.to_string_lossy().into_owned())
    }

    fn bytes(&self, depth: u32) -> usize {
        // SAFETY: plain numbers.
        unsafe { (self.bytes)(depth, element_bytes::<W>()) }
    }

    fn spans_processes(&self) -> bool {
        self.spans_processes
    }

    fn make(&self, depth: u32, memory: &Memory) -> Result<(Sender, Receiver), BenchError> {
        // SAFETY: zeroed memory of at least the size that the object asked for.
        let code =
            unsafe { (self.init)(memory.base().as_ptr().cast(), depth, element_bytes::<W>()) };
        if code != 0 {
            return Err(BenchError::Foreign {
                path: self.path.clone(),
                problem: format!("sanlab_ring_init answered {code}"),
            });
        }
        let sender = Sender {
            memory: memory.clone(),
            push: self.push,
        };
        let receiver = Receiver {
            memory: memory.clone(),
            pop: self.pop,
        };
        Ok((sender, receiver))
    }
}

impl<const W: usize> Producer<W> for Sender {
    #[inline]
    fn push(&mut self, elements: &[Element<W>]) -> usize {
        let (memory, from) = (self.memory.base().as_ptr(), elements.as_ptr());
        // SAFETY: the memory was initialised by the object; it reads at most `elements.len()` elements.
        let pushed = unsafe { (self.push)(memory.cast(), from.cast(), elements.len()) };
        pushed.min(elements.len())
    }
}

impl<const W: usize> Consumer<W> for Receiver {
    #[inline]
    fn pop(&mut self, room: &mut [Element<W>]) -> usize {
        let (memory, to) = (self.memory.base().as_ptr(), room.as_mut_ptr());
        // SAFETY: the memory was initialised by the object; it writes at most `room.len()` elements.
        let popped = unsafe { (self.pop)(memory.cast(), to.cast(), room.len()) };
        popped.min(room.len())
    }
}
