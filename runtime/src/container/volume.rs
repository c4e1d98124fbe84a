//! First use of a volume: the image's content at the mount point is copied in, whole or not at all.
//!
//! Beside the volume's folder lies a marker. `filling` written in it means that a copy was begun: after a power cut
//! it is done again from the start. `filled` means that the volume belongs to its services and is never touched again.

use super::rootfs::{Kind, Root};
use crate::shim::{Failure, FailureKind};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timestamps, XattrFlags};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Folders in folders that are copied; deeper trees are no image content that anybody makes.
const MAX_DEPTH: usize = 200;

/// Bytes of one extended attribute's value (`XATTR_SIZE_MAX`, linux/limits.h).
const MAX_XATTR: usize = 65536;

/// Copies `source`, the image's content, into `folder` unless the marker says that it was done.
///
/// Services that share the volume wait for each other here.
///
/// # Errors
/// No space, or whatever the file system says; the next start begins anew.
pub fn fill(folder: &Path, marker: &Path, source: Option<&Path>) -> Result<(), Failure> {
    let parent = folder.parent().unwrap_or(folder);
    let lock = File::open(parent).map_err(|error| failed("opening", parent, &error))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("locking", parent, &io::Error::from(errno)))?;
    let state = std::fs::read(marker).unwrap_or_default();
    if state.starts_with(b"filled") {
        return Ok(());
    }
    let copy = || -> io::Result<()> {
        if state.starts_with(b"filling") {
            empty(folder)?;
        }
        if std::fs::read_dir(folder)?.next().is_none()
            && let Some(source) = source.filter(|source| source.is_dir())
        {
            mark(marker, b"filling")?;
            Copy::default().tree(source, folder, 0)?;
            rustix::fs::syncfs(File::open(folder)?)?;
        }
        mark(marker, b"filled")
    };
    copy().map_err(|error| failed("filling the volume", folder, &error))
}

/// Copies what is in a folder into another, with owners, modes, times, links and attributes.
///
/// # Errors
/// No space, or whatever the file system says.
pub(crate) fn copy_tree(source: &Path, target: &Path) -> io::Result<()> {
    Copy::default().tree(source, target, 0)
}

/// Makes the folder inside a volume that a service mounts.
///
/// # Errors
/// When it leads through a file or out of the volume.
pub fn make_subpath(folder: &Path, subpath: &str) -> Result<(), Failure> {
    if !subpath.is_empty() {
        Root::open(folder)?.make(Path::new(subpath), Kind::Folder)?;
    }
    Ok(())
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    let kind = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOSPC | Errno::EDQUOT => FailureKind::NoSpace,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, format!("{what} {}: {error}", path.display()))
}

/// Writes the marker so that it is old or new after a power cut.
fn mark(marker: &Path, state: &[u8]) -> io::Result<()> {
    let beside = marker.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(state)?;
    file.sync_all()?;
    std::fs::rename(&beside, marker)?;
    File::open(marker.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?
        } else {
            std::fs::remove_file(entry.path())?
        }
    }
    Ok(())
}

/// A copy under way: files that have several names keep them.
#[derive(Default)]
struct Copy {
    names: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn tree(&mut self, source: &Path, target: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("{}: folders nested deeper than {MAX_DEPTH}", source.display())));
        }
        for entry in std::fs::read_dir(source)? {
            let entry = entry?;
            let (from, to) = (entry.path(), target.join(entry.file_name()));
            if entry.file_type()?.is_dir() {
                std::fs::create_dir(&to)?;
                self.tree(&from, &to, depth + 1)?;
            } else {
                self.leaf(&from, &to)?;
            }
        }
        // After the content: making entries changes a folder's time.
        attributes(source, target)
    }

    fn leaf(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(from)?;
        if metadata.nlink() > 1 {
            if let Some(first) = self.names.get(&(metadata.dev(), metadata.ino())) {
                return std::fs::hard_link(first, to);
            }
            self.names.insert((metadata.dev(), metadata.ino()), to.to_owned());
        }
        let kind = metadata.file_type();
        if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(from)?, to)?;
        } else if kind.is_file() {
            io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
        } else {
            let kind = match () {
                () if kind.is_fifo() => FileType::Fifo,
                () if kind.is_socket() => FileType::Socket,
                () if kind.is_block_device() => FileType::BlockDevice,
                () => FileType::CharacterDevice,
            };
            rustix::fs::mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), metadata.rdev())?;
        }
        attributes(from, to)
    }
}

/// Owner, mode, attributes, times: in this order, since a change of owner clears setuid bits and capabilities.
fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    // The standard library's times end in 2038 on 32-bit machines.
    let stat = rustix::fs::statat(CWD, from, AtFlags::SYMLINK_NOFOLLOW)?;
    std::os::unix::fs::lchown(to, Some(stat.st_uid), Some(stat.st_gid))?;
    if FileType::from_raw_mode(stat.st_mode as _) != FileType::Symlink {
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(stat.st_mode as u32 & 0o7777))?;
    }
    xattrs(from, to)?;
    let times = Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut value = vec![0_u8; MAX_XATTR];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        // Overlay's own marks mean nothing outside of a layer.
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        let length = rustix::fs::lgetxattr(from, name.as_c_str(), &mut value[..])?;
        match rustix::fs::lsetxattr(to, name.as_c_str(), &value[..length], XattrFlags::empty()) {
            Err(rustix::io::Errno::NOTSUP) if !name.as_bytes().starts_with(b"security.") => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("sub")).expect("made");
        std::fs::write(data.join("sub/file"), "content").expect("written");
        std::fs::set_permissions(data.join("sub/file"), std::fs::Permissions::from_mode(0o640)).expect("set");
        std::fs::hard_link(data.join("sub/file"), data.join("hard")).expect("linked");
        std::os::unix::fs::symlink("sub/file", data.join("soft")).expect("linked");
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).expect("set");
        folder
    }

    fn volume() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("_data");
        std::fs::create_dir(&data).expect("made");
        let marker = folder.path().join("state");
        (folder, data, marker)
    }

    // podman#7130, moby/moby#25854, podman#9768, podman#19652
    #[test]
    fn content_links_and_modes_are_copied_and_the_root_gets_the_images_mode() {
        let (image, (_folder, data, marker)) = (image(), volume());
        fill(&data, &marker, Some(&image.path().join("data"))).expect("filled");
        assert_eq!(std::fs::read(data.join("sub/file")).expect("there"), b"content");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!((mode(&data), mode(&data.join("sub/file"))), (0o700, 0o640));
        assert_eq!(std::fs::metadata(data.join("hard")).expect("there").nlink(), 2);
        assert_eq!(std::fs::read_link(data.join("soft")).expect("a link"), Path::new("sub/file"));
        let time = |path: &Path| std::fs::metadata(path).expect("there").mtime_nsec();
        assert_eq!(time(&data), time(&image.path().join("data")));
    }

    #[test]
    fn a_filled_volume_is_never_touched_again() {
        let (image, (_folder, data, marker)) = (image(), volume());
        fill(&data, &marker, Some(&image.path().join("data"))).expect("filled");
        std::fs::remove_file(data.join("hard")).expect("removed by its service");
        fill(&data, &marker, Some(&image.path().join("data"))).expect("nothing to do");
        assert!(!data.join("hard").exists());
    }

    #[test]
    fn a_copy_cut_by_power_loss_is_begun_anew() {
        let (image, (_folder, data, marker)) = (image(), volume());
        std::fs::write(data.join("half"), "a half copied file").expect("written");
        std::fs::write(&marker, "filling").expect("written");
        fill(&data, &marker, Some(&image.path().join("data"))).expect("filled");
        assert!(!data.join("half").exists() && data.join("sub/file").exists());
    }

    #[test]
    fn a_volume_with_data_is_left_alone() {
        let (image, (_folder, data, marker)) = (image(), volume());
        std::fs::write(data.join("mine"), "x").expect("written");
        fill(&data, &marker, Some(&image.path().join("data"))).expect("marked");
        assert!(!data.join("sub").exists());
    }
}
