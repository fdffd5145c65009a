//! The `sanlab` command.
fn main() {}
