//! The initial ramdisk: it has this program and the drivers of what the root is on, finds the root, and goes there.
//!
//! A root that cannot be mounted, or has no first process, is passed over for the other one. When there is none the
//! board says so, waits and boots again, not faster than once a minute: a card may only have a bad contact.

use crate::boot;
use crate::log::{Log, error, info};
use crate::storage;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::mount::{MountFlags, mount, mount_move};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

/// There in an initial ramdisk of ours.
const MARK: &str = "/etc/coracle/initial-ramdisk";

/// Where the root is put together.
const ROOT: &str = "/root";

/// The first process of a root.
const INIT: &str = "sbin/init";

/// What the root's own first process is told of its way.
pub const SLOT: &str = "/run/coracle-init/root";

/// Before a board without a root boots again.
const PAUSE: Duration = Duration::from_secs(60);

/// Whether this is one.
pub fn is_here() -> bool {
    Path::new(MARK).exists()
}

/// Goes to the root. Returns only with what kept it from that.
pub fn leave(log: &Log) -> String {
    let (settings, command_line) = boot::read_settings(log);
    let sys = Path::new("/sys");
    // Many boards' kernels have the driver of their card built in; looking at every device takes seconds on a slow one.
    if settings.roots.first().is_none_or(|root| storage::find(sys, root, &settings.boot).is_none()) {
        boot::Modules::read(&command_line).coldplug(log);
    }
    let mut reasons = Vec::new();
    for root in &settings.roots {
        // One that is not there yet may come; once one was there the others are too, or never.
        let device = match reasons.is_empty() {
            true => boot::wait_for(root, &settings.boot),
            false => storage::find(sys, root, &settings.boot),
        };
        let Some(device) = device else {
            reasons.push(format!("there is no {root}"));
            continue;
        };
        let failed = match mount_root(&device.node) {
            Ok(()) => {
                info!(log, "root {root}: {}", device.node.display());
                match enter(&format!("{root}"), &reasons) {
                    Ok(never) => match never {},
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        error!(log, "root {root} ({}): {failed}", device.node.display());
        reasons.push(format!("{root}: {failed}"));
        let _ = rustix::mount::unmount(ROOT, rustix::mount::UnmountFlags::DETACH);
    }
    reasons.join("; ")
}

/// Without a root.
pub fn wait_and_reboot(log: &Log, reason: &str) -> ! {
    error!(log, "no root: {reason}; booting again in {} s", PAUSE.as_secs());
    std::thread::sleep(PAUSE);
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // The kernel's own way: it reboots when its first process ends.
    std::process::exit(1)
}

fn mount_root(node: &Path) -> io::Result<()> {
    let content = storage::content(node)?.ok_or_else(|| io::Error::other("there is no file system on it"))?;
    std::fs::create_dir_all(ROOT)?;
    mount(node, ROOT, content.kind(), MountFlags::RDONLY | MountFlags::NODEV, c"")?;
    let init = Path::new(ROOT).join(INIT);
    if init.symlink_metadata().is_err() {
        return Err(io::Error::other(format!("there is no /{INIT} in it")));
    }
    readable(&init).map_err(|error| io::Error::other(format!("/{INIT} cannot be read: {error}")))
}

/// Reads all of it: a file system may be damaged anywhere, and there is no way back from a first process that ends. What
/// is read is in the kernel's memory then, for who runs it.
fn readable(path: &Path) -> io::Result<()> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut piece = [0; 16 * 1024];
    let mut whole = 0;
    loop {
        match file.read(&mut piece)? {
            0 if whole == 0 => return Err(io::Error::other("it is empty")),
            0 => return Ok(()),
            count => whole += count,
        }
    }
}

enum Never {}

/// The kernel's file systems go along; the ramdisk's memory is given back.
fn enter(name: &str, lacks: &[String]) -> io::Result<Never> {
    let told = Path::new(SLOT);
    std::fs::create_dir_all(told.parent().unwrap_or(Path::new("/run")))?;
    let lacks = lacks.iter().map(|lack| format!("{lack}\n")).collect::<String>();
    std::fs::write(told, format!("{name}\n{lacks}"))?;
    for folder in ["dev", "proc", "run", "sys"] {
        mount_move(Path::new("/").join(folder), Path::new(ROOT).join(folder))?;
    }
    let old = openat(rustix::fs::CWD, "/", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::env::set_current_dir(ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;
    remove_all(old.as_fd(), rustix::fs::fstat(&old)?.st_dev);
    drop(old);
    Err(std::process::Command::new(Path::new("/").join(INIT)).arg0("init").exec())
}

/// Everything below, but nothing of another file system. What stays only costs memory.
fn remove_all(folder: BorrowedFd<'_>, device: rustix::fs::Dev) {
    let Ok(mut entries) = Dir::read_from(folder) else { return };
    while let Some(Ok(entry)) = entries.read() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(folder, name, flags, Mode::empty()) {
            Ok(inner) => {
                if rustix::fs::fstat(&inner).is_ok_and(|it| it.st_dev == device) {
                    remove_all(inner.as_fd(), device);
                    let _ = unlinkat(folder, name, AtFlags::REMOVEDIR);
                }
            }
            Err(_) => {
                let _ = unlinkat(folder, name, AtFlags::empty());
            }
        }
    }
}
