//! Words of the first process: records in the kernel's log (`/dev/kmsg`), so that console, agent and pstore have them.

use std::fs::File;
use std::io::Write;

/// How bad it is (syslog(3)), as the kernel's records have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The board lacks something.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// What is done.
    Info = 6,
}

/// Bytes of a record: the kernel takes some 1000 at once (`PRINTKRB_RECORD_MAX` in kernel/printk/printk.c).
const MAX_RECORD: usize = 900;

/// `LOG_DAEMON` (syslog(3)), in the place that a record has for it.
const FACILITY: u8 = 3 << 3;

/// What a child of the first process says before it ends: at once, because where standard error is the kernel's log each
/// write is a record.
pub fn complain(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Writes records.
#[derive(Debug)]
pub struct Log {
    kmsg: Option<File>,
}

impl Log {
    /// To the kernel, or to standard error where that cannot be.
    pub fn open() -> Self {
        Self { kmsg: File::options().write(true).open("/dev/kmsg").ok() }
    }

    /// Says one thing. What it holds of others' words cannot make a second record.
    pub fn say(&self, level: Level, text: std::fmt::Arguments<'_>) {
        let record = record(level, &text.to_string());
        // Nobody is left who could be told that this failed.
        let _ = match &self.kmsg {
            Some(kmsg) => (&mut &*kmsg).write_all(record.as_bytes()),
            None => std::io::stderr().write_all(record.as_bytes()),
        };
    }
}

/// The kernel takes one write as one record.
fn record(level: Level, text: &str) -> String {
    let mut record = format!("<{}>coracle-init: ", FACILITY | level as u8);
    for letter in text.chars() {
        if record.len() + letter.len_utf8() >= MAX_RECORD {
            break;
        }
        record.push(if letter.is_control() { ' ' } else { letter });
    }
    record.push('\n');
    record
}

/// Says what is done.
macro_rules! info {
    ($log:expr, $($text:tt)*) => { $log.say($crate::log::Level::Info, format_args!($($text)*)) };
}

/// Says what is not as it should be.
macro_rules! warning {
    ($log:expr, $($text:tt)*) => { $log.say($crate::log::Level::Warning, format_args!($($text)*)) };
}

/// Says what the board lacks.
macro_rules! error {
    ($log:expr, $($text:tt)*) => { $log.say($crate::log::Level::Error, format_args!($($text)*)) };
}

pub(crate) use {error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_and_not_too_long() {
        assert_eq!(record(Level::Error, "a\n<0>b"), "<27>coracle-init: a <0>b\n");
        let long = record(Level::Info, &"ä".repeat(2000));
        assert!(long.len() <= MAX_RECORD + 1 && long.ends_with("ä\n"), "{}", long.len());
    }
}
