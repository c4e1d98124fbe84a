//! Memory that is not needed between two pieces of work goes back to the kernel.
//!
//! A start or a pull needs parsers, TLS and room for a moment, and then nothing happens for days. What the allocator
//! keeps of it, and the pages of the program that only this work ran, are given back once it is quiet. The program's
//! pages stay in the page cache for as long as nobody needs the space: mapped and executed pages the kernel would keep
//! over everybody else's (`folio_check_references`, mm/vmscan.c), which on a board of 64 MB is the wrong order.
use crate::sys;
use std::time::Duration;

/// Time without work before memory is given back: long enough for the next order of a person or a script, which then
/// finds everything in place.
pub const QUIET: Duration = Duration::from_secs(2);

/// One heap for all threads, where the allocator would make one for each. To be called before there are threads.
pub fn use_one_heap() {
    sys::use_one_heap();
}

/// Gives back what the allocator holds and nobody uses, and the read-only pages of this program.
///
/// They come again by themselves when they are used: a page fault for each 64 KiB, from the page cache or the disk.
pub fn give_back() {
    sys::trim_heap();
    sys::release_program();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident bytes of file mappings (`RssFile`, proc_pid_status(5)).
    fn resident_kib() -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("RssFile");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn pages_of_the_program_are_given_back_and_come_again() {
        let before = resident_kib();
        give_back();
        let after = resident_kib();
        // Other tests run beside and fetch some again.
        assert!(after < before, "{before} KiB, then {after} KiB");
        assert_eq!(format!("{:?}", std::net::Ipv4Addr::LOCALHOST), "127.0.0.1");
    }
}
