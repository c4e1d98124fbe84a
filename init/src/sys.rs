//! Calls of the kernel that neither rustix nor nix wraps. Nothing else of this crate is unsafe.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `_IOC` of asm-generic/ioctl.h, as on all machines that we build for.
const fn ioc(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32
}
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// linux/watchdog.h
const WDIOC_SETTIMEOUT: u32 = ioc(READ | WRITE, b'W', 6, size_of::<libc::c_int>());
/// linux/random.h
const RNDADDENTROPY: u32 = ioc(WRITE, b'R', 3, 2 * size_of::<libc::c_int>());
/// linux/fs.h; the size in the number is that of `size_t`, what is written has 64 bits.
const BLKGETSIZE64: u32 = ioc(READ, 0x12, 114, size_of::<usize>());
const BLKPG: u32 = ioc(NONE, 0x12, 105, 0);
/// linux/ext4.h
const EXT4_IOC_RESIZE_FS: u32 = ioc(WRITE, b'f', 16, size_of::<u64>());
/// linux/rtc.h
const RTC_RD_TIME: u32 = ioc(READ, b'p', 9, size_of::<RtcTime>());

/// `struct rtc_time`: as `struct tm`, UTC.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct RtcTime {
    /// Seconds.
    pub sec: i32,
    /// Minutes.
    pub min: i32,
    /// Hours.
    pub hour: i32,
    /// Day of the month, from 1.
    pub mday: i32,
    /// Month, from 0.
    pub mon: i32,
    /// Year, from 1900.
    pub year: i32,
    /// Not read.
    pub wday: i32,
    /// Not read.
    pub yday: i32,
    /// Not read.
    pub isdst: i32,
}

/// Calls ioctl(2) with a pointer to `argument`.
///
/// # Safety
/// `request` must be one whose argument is a `T`, with no pointers in it that do not live as long as the call.
unsafe fn ioctl<T>(file: BorrowedFd<'_>, request: u32, argument: *mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the pair of request and argument; the descriptor is open as long as it is borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets a watchdog's time limit in seconds; what it took, which may be another.
///
/// # Errors
/// What the driver says.
pub fn set_watchdog_timeout(watchdog: BorrowedFd<'_>, seconds: i32) -> io::Result<i32> {
    let mut seconds: libc::c_int = seconds;
    // SAFETY: the argument of WDIOC_SETTIMEOUT is an int, read and written.
    unsafe { ioctl(watchdog, WDIOC_SETTIMEOUT, &raw mut seconds) }?;
    Ok(seconds)
}

/// Gives bytes to the kernel's random numbers as good ones (random(4)).
///
/// # Errors
/// What the kernel says.
pub fn add_entropy(random: BorrowedFd<'_>, seed: &[u8; SEED]) -> io::Result<()> {
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        bytes: libc::c_int,
        seed: [u8; SEED],
    }
    let mut pool = Pool { bits: SEED as i32 * 8, bytes: SEED as i32, seed: *seed };
    // SAFETY: the argument is `struct rand_pool_info`, two ints and so many bytes as the second says.
    unsafe { ioctl(random, RNDADDENTROPY, &raw mut pool) }
}

/// Bytes of a saved seed: twice the pool of the kernel's generator (random(4) wants 512 at most).
pub const SEED: usize = 512;

/// Bytes of a block device.
///
/// # Errors
/// When it is none.
pub fn device_size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the argument is a u64 that is written, on 32-bit machines too (blkdev_ioctl in block/ioctl.c).
    unsafe { ioctl(device, BLKGETSIZE64, &raw mut size) }?;
    Ok(size)
}

/// Tells the kernel the new length of a partition that is in use.
///
/// # Errors
/// What the kernel says.
pub fn resize_partition(disk: BorrowedFd<'_>, number: i32, start: u64, length: u64) -> io::Result<()> {
    /// linux/blkpg.h
    const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: libc::c_int,
        device: [u8; 64],
        volume: [u8; 64],
    }
    #[repr(C)]
    struct Argument {
        operation: libc::c_int,
        flags: libc::c_int,
        length: libc::c_int,
        data: *mut Partition,
    }
    let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (start, length) = (signed(start)?, signed(length)?);
    let mut partition = Partition { start, length, number, device: [0; 64], volume: [0; 64] };
    let length = size_of::<Partition>() as libc::c_int;
    let mut argument = Argument { operation: BLKPG_RESIZE_PARTITION, flags: 0, length, data: &raw mut partition };
    // SAFETY: the argument is `struct blkpg_ioctl_arg` with a pointer to a `struct blkpg_partition` that outlives the call.
    unsafe { ioctl(disk, BLKPG, &raw mut argument) }
}

/// Lets a mounted ext4 file system grow to so many blocks.
///
/// # Errors
/// What the file system says.
pub fn resize_ext4(folder: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    let mut blocks = blocks;
    // SAFETY: the argument is a u64 that is read.
    unsafe { ioctl(folder, EXT4_IOC_RESIZE_FS, &raw mut blocks) }
}

/// Reads a real-time clock.
///
/// # Errors
/// When there is no time in it.
pub fn read_rtc(clock: BorrowedFd<'_>) -> io::Result<RtcTime> {
    let mut time = RtcTime::default();
    // SAFETY: the argument is a `struct rtc_time` that is written.
    unsafe { ioctl(clock, RTC_RD_TIME, &raw mut time) }?;
    Ok(time)
}

/// Swaps to a device with a priority (swapon(2)).
///
/// # Errors
/// What the kernel says.
pub fn swap_on(device: &Path, priority: i32) -> io::Result<()> {
    /// linux/swap.h
    const SWAP_FLAG_PREFER: i32 = 0x8000;
    let path = CString::new(device.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte and outlives the call.
    let result = unsafe { libc::swapon(path.as_ptr(), SWAP_FLAG_PREFER | priority) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// No longer swaps to a device.
///
/// # Errors
/// What the kernel says.
pub fn swap_off(device: &Path) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte and outlives the call.
    let result = unsafe { libc::swapoff(path.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Switches the loopback interface on (netdevice(7), `SIOCSIFFLAGS`).
///
/// # Errors
/// What the kernel says.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        // The kernel copies the whole `struct ifreq`: its union has 24 bytes at most.
        rest: [u8; 24],
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 24] };
    request.name[..2].copy_from_slice(b"lo");
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the argument is a `struct ifreq` of at least the kernel's size, read alone.
    unsafe { ioctl(socket, libc::SIOCSIFFLAGS as u32, &raw mut request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        assert_eq!(WDIOC_SETTIMEOUT, 0xc004_5706);
        assert_eq!(RNDADDENTROPY, 0x4008_5203);
        assert_eq!(BLKPG, 0x1269);
        assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
        assert_eq!(RTC_RD_TIME, 0x8024_7009);
        let size = if cfg!(target_pointer_width = "64") { 0x8008_1272 } else { 0x8004_1272 };
        assert_eq!(BLKGETSIZE64, size);
    }
}
