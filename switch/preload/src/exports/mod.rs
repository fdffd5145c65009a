//! The exported functions: thin redirects, by family.
//!
//! Place: the dynamic linker binds the program's calls to these; they call `calls` or the real functions of `real`.
//! Invariants: each calls its real function with nothing alive that has a destructor; what else is to do is in `calls`.

mod data;
mod descriptors;
mod names;
mod outside;

/// Defines exports. The body may use `real!(name(arguments))` for the real function.
macro_rules! exports {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)*) => {$(
        /// Redirect of the C library's function of this name.
        ///
        /// # Safety
        /// As of that function.
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret $body
    )*};
}

/// Calls the real function.
macro_rules! real {
    ($name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the arguments are the program's own, or ours of the same form: whoever called the export promised what the real
        // function asks for.
        unsafe { crate::real::$name($($arg),*) }
    };
}

/// Runs a part of `calls` that takes pointers of the program.
macro_rules! with_program {
    ($call:expr) => {
        crate::calls::guarded(||
            // SAFETY: the pointers are the program's own: whoever called the export promised what the real function asks for.
            unsafe { $call })
    };
}

pub(crate) use {exports, real, with_program};
