//! Standard output that may be closed by its reader at any moment (`coracle ps | head -1`).

use std::io::{ErrorKind, Write};

/// Exit code of a program that SIGPIPE ended, as a shell shows it.
const NOBODY_READS: i32 = 128 + libc::SIGPIPE;

/// Writes a text. Ends the program when it cannot be written: in silence when nobody reads it any more.
pub fn write(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(NOBODY_READS);
    }
    eprintln!("coracle: writing the output: {error}");
    std::process::exit(crate::exit::Code::Internal.number().into());
}

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints a part of a line.
macro_rules! say_part {
    ($($text:tt)*) => {
        $crate::cli::output::write(format_args!($($text)*))
    };
}
