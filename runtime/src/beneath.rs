//! Paths below a folder that somebody else may change at any moment: no part of one may be a link, nor lead out.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens a path below `root`, which is relative and without `..`.
///
/// # Errors
/// ELOOP or ENOTDIR for a link, ENOENT when it is not there, and what openat(2) says of the last part.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, path, flags, mode, BELOW) {
        Err(Errno::NOSYS) => open_by_parts(&root, path, flags, mode),
        opened => opened,
    }
}

/// Before Linux 5.6: part by part.
fn open_by_parts(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(root, ".", folder, Mode::empty())?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let name = match part {
            Component::Normal(name) => name,
            Component::CurDir => OsStr::new("."),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(Errno::XDEV),
        };
        if parts.peek().is_none() {
            return rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW, mode);
        }
        at = rustix::fs::openat(at, name, folder, Mode::empty())?;
    }
    rustix::fs::openat(at, ".", flags | OFlags::NOFOLLOW, mode)
}

/// Names of a path, `..` among them; where it begins does not matter.
pub fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn kernels_without_openat2_open_the_same_and_refuse_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir_all(at("root/a/b")).expect("made");
        std::fs::write(at("root/a/b/file"), "x").expect("written");
        std::fs::write(at("outside"), "x").expect("written");
        symlink("b", at("root/a/link")).expect("linked");
        symlink("b/file", at("root/a/to-file")).expect("linked");
        symlink("../../outside", at("root/a/out")).expect("linked");
        let root = std::fs::File::open(at("root")).expect("opened");
        let folders = OFlags::RDONLY | OFlags::DIRECTORY;
        let place = OFlags::PATH | OFlags::NOFOLLOW;
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        for (path, flags) in [
            ("a/b/file", OFlags::RDONLY),
            ("a/b", folders),
            (".", folders),
            ("a/link", place),
            ("a/b/file", place),
            ("a/link/file", OFlags::RDONLY),
            ("a/to-file", OFlags::RDONLY),
            ("a/out", OFlags::RDONLY),
            ("a/link", folders),
            ("a/b/file", folders),
            ("none/file", OFlags::RDONLY),
            ("a/b/file", create),
            ("a/link/new", create),
            ("a/to-file", create),
        ] {
            let flags = flags | OFlags::CLOEXEC;
            let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
            let one = rustix::fs::openat2(&root, path, flags, mode, BELOW);
            if matches!(one, Err(Errno::NOSYS)) {
                println!("skipped: there is no openat2 to compare with");
                return;
            }
            let other = open_by_parts(&root, Path::new(path), flags, mode);
            assert_eq!(one.is_ok(), other.is_ok(), "{path} {flags:?}: {one:?} {other:?}");
        }
        assert_eq!(
            open_by_parts(&root, Path::new("../outside"), OFlags::RDONLY, Mode::empty()).err(),
            Some(Errno::XDEV)
        );
    }
}
