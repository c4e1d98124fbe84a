//! Compressed swap in memory (zram): the only swap that a board has. Flash is never swapped to.

use crate::sys;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

const DEVICE: &str = "/dev/zram0";

/// Before any other swap.
const PRIORITY: i32 = 100;

/// The first page of a swap device (`union swap_header` in linux/swap.h): version 1, so many pages after it.
fn header(page: usize, pages: u32) -> Vec<u8> {
    let mut header = vec![0; page];
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&pages.saturating_sub(1).to_ne_bytes());
    header[page - 10..].copy_from_slice(b"SWAPSPACE2");
    header
}

/// Makes a swap of so many bytes, on a device that the module `zram` made.
///
/// # Errors
/// What the kernel lacks or says.
pub fn begin(sys: &Path, bytes: u64) -> io::Result<()> {
    let block = sys.join("block/zram0");
    // As much of a page as 32-bit processors pack in a reasonable time; a kernel without it keeps its own.
    let _ = std::fs::write(block.join("comp_algorithm"), "lz4");
    std::fs::write(block.join("disksize"), bytes.to_string())?;
    let page = rustix::param::page_size();
    let pages = u32::try_from(bytes / page as u64).unwrap_or(u32::MAX);
    let mut device = File::options().write(true).open(DEVICE)?;
    device.seek(SeekFrom::Start(0))?;
    device.write_all(&header(page, pages))?;
    device.sync_all()?;
    drop(device);
    sys::swap_on(Path::new(DEVICE), PRIORITY)
}

/// Ends all swapping.
pub fn end() {
    let text = crate::files::read_text("/proc/swaps", 16 * 1024).unwrap_or_default();
    for device in text.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        // Without the memory to take it back it stays, and goes with the power.
        let _ = sys::swap_off(Path::new(device));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_mkswap() {
        let header = header(4096, 1000);
        assert_eq!(header.len(), 4096);
        assert_eq!(&header[4086..], b"SWAPSPACE2");
        assert_eq!(header[1024..1032], [1_u32.to_ne_bytes(), 999_u32.to_ne_bytes()].concat());
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("swap");
        File::create(&path).expect("made").set_len(1000 * 4096).expect("sized");
        std::os::unix::fs::PermissionsExt::set_mode(&mut path.metadata().expect("it").permissions(), 0o600);
        let mkswap = std::process::Command::new("mkswap").arg("--pagesize=4096").arg(&path).output();
        if !mkswap.is_ok_and(|it| it.status.success()) {
            println!("skipped: there is no mkswap");
            return;
        }
        let mut theirs = std::fs::read(&path).expect("read")[..4096].to_vec();
        // Its UUID and label, which nothing of ours looks for.
        theirs[1036..1068].fill(0);
        assert!(theirs == header, "they differ");
    }
}
