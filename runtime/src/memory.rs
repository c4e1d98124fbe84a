//! Memory that is not needed between two pieces of work goes back to the kernel.
//!
//! A start or a pull needs parsers, TLS and room for a moment, and then nothing happens for days. What the allocator
//! keeps of it, and the pages of the program that only this work ran, are given back once it is quiet. The program's
//! pages stay in the page cache for as long as nobody needs the space: mapped and executed pages the kernel would keep
//! over everybody else's (`folio_check_references`, mm/vmscan.c), which on a board of 64 MB is the wrong order.
#![allow(unsafe_code)]

use std::time::Duration;

/// Time without work before memory is given back: long enough for the next order of a person or a script, which then
/// finds everything in place.
pub const QUIET: Duration = Duration::from_secs(2);

/// One heap for all threads, where the allocator would make one for each. To be called before there are threads.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread allocates yet, and nothing but this process's allocator changes.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what the allocator holds and nobody uses, and the read-only pages of this program.
///
/// They come again by themselves when they are used: a page fault for each 64 KiB, from the page cache or the disk.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks; releases only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: `each_object` keeps to what dl_iterate_phdr(3) asks of a callback.
    unsafe {
        libc::dl_iterate_phdr(Some(each_object), std::ptr::null_mut());
    }
}

/// Called for the program first (dl_iterate_phdr(3)); ends the iteration there.
unsafe extern "C" fn each_object(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid object; its program headers are mapped as long as it is.
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 1;
        }
        (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    // What was written to, relocations too, is in writable segments and is no copy of the file.
    let read_only = headers.iter().filter(|it| it.p_type == libc::PT_LOAD && it.p_flags & libc::PF_W == 0);
    let page = rustix::param::page_size();
    for header in read_only {
        let start = (base + header.p_vaddr as usize).next_multiple_of(page);
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize) / page * page;
        if start < end {
            // SAFETY: whole pages of a private mapping of a file that was never written to; they are read from the
            // file again when they are used. An error leaves everything as it is.
            unsafe {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
    1
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
