//! All that `sdxl` writes: results to standard output, everything else to standard error. Nothing is done about a
//! reader that has gone away, which `println!` would panic at.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// A line of the result.
pub(crate) fn result(line: impl Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Bytes of the result as they are, such as a picture for the terminal.
pub(crate) fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// A line for the person who watches.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
