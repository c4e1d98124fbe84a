//! The container's root: an overlay of layers, mounted where only the worker sees it, and made ready inside.
//!
//! Paths that come from an image or a compose file are resolved here, by one rule: links count from the container's
//! root, as they will for its processes. Volumes may be shared with others that change them meanwhile, so whatever was
//! resolved is used through a descriptor of its folder, on a way in which no part may be a link by then.

use crate::beneath::{self, names};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Links followed in one path, as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Bytes of mount options the kernel takes: a page, less the terminator (mount(2)).
const MAX_OPTIONS: usize = 4095;

/// Why the root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Too many layers for one overlay.
    #[error(
        "the image has {layers} layers, their paths do not fit into one mount of {MAX_OPTIONS} bytes: squash it"
    )]
    TooManyLayers {
        /// Number of layers.
        layers: usize,
    },
    /// The kernel refused.
    #[error("{action} {}: {}", path.display(), source.desc())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A mount point of the kernel's is a link in the image.
    #[error(
        "{0} is a symbolic link in the image, but must be mounted on ordinary directory: make it one, or leave it out"
    )]
    LinkedSystemFolder(&'static str),
    /// A path runs through something that is no folder.
    #[error("{path}: {through} is not a folder in the image", path = path.display(), through = through.display())]
    NotAFolder {
        /// The whole path.
        path: PathBuf,
        /// The part that is no folder.
        through: PathBuf,
    },
    /// Links lead in circles.
    #[error("{}: more than {MAX_LINKS} symbolic links", .0.display())]
    TooManyLinks(PathBuf),
    /// The path would name a descriptor or another process.
    #[error("{}: a path below /proc is refused here", .0.display())]
    BelowProc(PathBuf),
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> RootError {
    let path = path.to_owned();
    move |source| RootError::System { action, path, source }
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file.
    File,
}

/// Mounts the overlay of `lower` (topmost first), `upper` and `work` on `target`.
///
/// # Errors
/// When the kernel refuses, or the layers do not fit into one mount.
pub fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), RootError> {
    // Layer folders have long names and one parent: relative names make room for twice as many.
    let parent = lower.first().and_then(|layer| layer.parent()).unwrap_or(Path::new("/"));
    std::env::set_current_dir(parent)
        .map_err(|error| system("entering", parent)(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    let mut options = OsString::from("lowerdir=");
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(escaped(layer.strip_prefix(parent).unwrap_or(layer)));
    }
    for (name, path) in [(",upperdir=", upper), (",workdir=", work)] {
        options.push(name);
        options.push(escaped(path));
    }
    if options.len() > MAX_OPTIONS {
        return Err(RootError::TooManyLayers { layers: lower.len() });
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str()))
        .map_err(system("mounting the overlay on", target))
}

/// Overlay's options separate by `:` and `,` (Documentation/filesystems/overlayfs.rst).
fn escaped(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsStr::from_bytes(&escaped).to_owned()
}

/// A root, open, in which paths are resolved and made.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the folder that is the container's root.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let fd = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(system("opening", path))?;
        Ok(Self { fd: crate::sys::own(fd) })
    }

    /// Its number.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Makes what is missing, as [`Root::make`] does, and opens the place.
    ///
    /// # Errors
    /// As for [`Root::make`].
    pub fn make_open(&self, path: &Path, kind: Kind) -> Result<OwnedFd, RootError> {
        self.open_place(&self.make(path, kind)?)
    }

    /// Opens a path that was resolved before, without looking into it. One that has a link in it by now was changed by
    /// somebody, and is refused.
    ///
    /// # Errors
    /// ELOOP or ENOTDIR for a link, ENOENT when it is gone.
    pub fn open_place(&self, resolved: &Path) -> Result<OwnedFd, RootError> {
        self.walk(resolved).map_err(system("opening", resolved))
    }

    /// Opens a path in which no part may be a link: others may change a volume's content at any moment.
    fn walk(&self, resolved: &Path) -> Result<OwnedFd, Errno> {
        use rustix::fs::{Mode as Bits, OFlags};
        let relative = resolved.strip_prefix("/").unwrap_or(resolved);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let opened = beneath::open(&self.fd, relative, OFlags::PATH | OFlags::NOFOLLOW, Bits::empty());
        opened.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    /// The folder that a resolved path lies in, open, and its name there.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Errno> {
        let name = path.file_name().map_or_else(|| OsString::from("."), OsStr::to_owned);
        Ok((self.walk(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// Refuses an image whose `/proc`, `/sys` or `/dev` is a link: what the kernel mounts there would land elsewhere.
    ///
    /// # Errors
    /// When one of them is a link.
    pub fn refuse_linked_system_folders(&self) -> Result<(), RootError> {
        for (name, path) in [("proc", "/proc"), ("sys", "/sys"), ("dev", "/dev")] {
            if let Ok(stat) = fstatat(Some(self.fd.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW)
                && is(&stat, SFlag::S_IFLNK)
            {
                return Err(RootError::LinkedSystemFolder(path));
            }
        }
        Ok(())
    }

    /// Resolves `path` inside the root, makes what is missing (0755 root, or an empty file), and returns the path
    /// without links, absolute from the root.
    ///
    /// # Errors
    /// When a part is no folder, links go in circles, or the file system is full.
    pub fn make(&self, path: &Path, kind: Kind) -> Result<PathBuf, RootError> {
        if let Some((at, stat)) = self.plain(path)
            && (kind == Kind::Folder) == is(&stat, SFlag::S_IFDIR)
        {
            return Ok(Path::new("/").join(at));
        }
        let (resolved, missing) = self.resolve(path)?;
        let mut at = resolved;
        let last = missing.len();
        for (index, name) in missing.into_iter().enumerate() {
            at.push(name);
            if index + 1 == last && kind == Kind::File {
                self.make_file(&at)?;
            } else {
                self.make_folder(&at)?;
            }
        }
        let absolute = Path::new("/").join(&at);
        match self.stat(&at)? {
            Some(stat) if (kind == Kind::Folder) == is(&stat, SFlag::S_IFDIR) => Ok(absolute),
            _ if kind == Kind::Folder => Err(RootError::NotAFolder { path: path.to_owned(), through: absolute }),
            _ => Err(RootError::System {
                action: "a file is mounted on a folder:",
                path: absolute,
                source: Errno::EISDIR,
            }),
        }
    }

    /// Opens a file of the image for reading, following links inside the root; `None` when it is not there.
    ///
    /// # Errors
    /// When a part is no folder, or links go in circles.
    pub fn open_file(&self, path: &Path) -> Result<Option<std::fs::File>, RootError> {
        let (resolved, missing) = self.resolve(path)?;
        if !missing.is_empty() || !self.stat(&resolved)?.is_some_and(|stat| is(&stat, SFlag::S_IFREG)) {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (folder, name) = self.parent(&resolved).map_err(system("opening", &resolved))?;
        let fd = openat(Some(folder.as_raw_fd()), name.as_os_str(), flags, Mode::empty())
            .map_err(system("opening", &resolved))?;
        Ok(Some(crate::sys::own(fd).into()))
    }

    /// Where `path` leads inside the root when it is there whole, relative to the root.
    ///
    /// # Errors
    /// When a part is no folder, or links go in circles.
    pub fn existing(&self, path: &Path) -> Result<Option<PathBuf>, RootError> {
        if let Some((at, _)) = self.plain(path) {
            return Ok(Some(at));
        }
        let (resolved, missing) = self.resolve(path)?;
        Ok(missing.is_empty().then_some(resolved))
    }

    /// What most paths are: there, with no link in them, so that one call finds what [`Root::resolve`] finds part by part.
    /// `None`: this one must be resolved.
    fn plain(&self, path: &Path) -> Option<(PathBuf, FileStat)> {
        let at: PathBuf = names(path).collect();
        if names(path).any(|name| name == "..") {
            return None;
        }
        let place = self.walk(&at).ok()?;
        let stat = fstat(place.as_raw_fd()).ok()?;
        (!is(&stat, SFlag::S_IFLNK)).then_some((at, stat))
    }

    /// Splits `path` into the part that is there, without links and relative to the root, and the names missing.
    fn resolve(&self, path: &Path) -> Result<(PathBuf, Vec<OsString>), RootError> {
        let mut todo: VecDeque<OsString> = names(path).collect();
        let (mut at, mut missing, mut links) = (PathBuf::new(), Vec::new(), 0);
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                if missing.pop().is_none() {
                    at.pop();
                }
                continue;
            }
            if !missing.is_empty() {
                missing.push(name);
                continue;
            }
            let next = at.join(&name);
            match self.stat(&next)? {
                None => missing.push(name),
                Some(stat) if is(&stat, SFlag::S_IFLNK) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(RootError::TooManyLinks(path.to_owned()));
                    }
                    let target = self
                        .parent(&next)
                        .and_then(|(folder, name)| readlinkat(Some(folder.as_raw_fd()), name.as_os_str()))
                        .map_err(system("reading the link", &next))?;
                    let target = PathBuf::from(target);
                    if target.is_absolute() {
                        at.clear();
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                Some(stat) if is(&stat, SFlag::S_IFDIR) || todo.is_empty() => at = next,
                Some(_) => {
                    return Err(RootError::NotAFolder {
                        path: path.to_owned(),
                        through: Path::new("/").join(next),
                    });
                }
            }
        }
        Ok((at, missing))
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStat>, RootError> {
        let stat = self.parent(path).and_then(|(folder, name)| {
            fstatat(Some(folder.as_raw_fd()), name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
        });
        match stat {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(system("looking at", path)(errno)),
        }
    }

    fn make_folder(&self, path: &Path) -> Result<(), RootError> {
        let made = self.parent(path).and_then(|(folder, name)| {
            mkdirat(Some(folder.as_raw_fd()), name.as_os_str(), Mode::from_bits_truncate(0o755))
        });
        match made {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(system("making the folder", path)(errno)),
        }
    }

    fn make_file(&self, path: &Path) -> Result<(), RootError> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
        let made = self.parent(path).and_then(|(folder, name)| {
            openat(Some(folder.as_raw_fd()), name.as_os_str(), flags, Mode::from_bits_truncate(0o644))
        });
        match made {
            Ok(fd) => drop(crate::sys::own(fd)),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(system("making the file", path)(errno)),
        }
        Ok(())
    }
}

/// Working folders below `/proc` could name a leaked descriptor (CVE-2024-21626).
///
/// # Errors
/// When `path` is below `/proc`.
pub fn refuse_below_proc(path: &Path) -> Result<(), RootError> {
    let mut cleaned = PathBuf::new();
    for name in names(path) {
        if name == ".." {
            cleaned.pop();
        } else {
            cleaned.push(name);
        }
    }
    if cleaned.starts_with("proc") { Err(RootError::BelowProc(path.to_owned())) } else { Ok(()) }
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn image() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        std::fs::create_dir_all(path.join("etc")).expect("made");
        std::fs::write(path.join("etc/passwd"), "x").expect("written");
        symlink("/tmp/none/r", path.join("etc/resolv.conf")).expect("linked");
        std::fs::create_dir(path.join("var")).expect("made");
        symlink("/run", path.join("var/run")).expect("linked");
        symlink("../../../../real", path.join("conf")).expect("linked");
        symlink("loop", path.join("loop")).expect("linked");
        let root = Root::open(path).expect("opened");
        (folder, root)
    }

    // opencontainers/runc#5090, opencontainers/runc#2683, podman#15541
    #[test]
    fn mount_points_are_made_where_links_lead_inside_the_root() {
        let (folder, root) = image();
        let made = |path: &str, kind| root.make(Path::new(path), kind).expect("made");
        assert_eq!(made("/etc/resolv.conf", Kind::File), Path::new("/tmp/none/r"));
        assert_eq!(made("/var/run/x", Kind::Folder), Path::new("/run/x"));
        assert_eq!(made("/conf/stack", Kind::Folder), Path::new("/real/stack"));
        assert!(folder.path().join("tmp/none/r").is_file());
        assert!(folder.path().join("real/stack").is_dir());
        assert!(folder.path().join("etc/resolv.conf").is_symlink(), "links stay links");
        assert_eq!(made("/etc/resolv.conf", Kind::File), Path::new("/tmp/none/r"), "a second time is the same");
    }

    #[test]
    fn a_path_through_a_file_or_a_loop_is_refused() {
        let (_folder, root) = image();
        assert!(matches!(root.make(Path::new("/etc/passwd/x"), Kind::Folder), Err(RootError::NotAFolder { .. })));
        assert!(matches!(root.make(Path::new("/loop/x"), Kind::Folder), Err(RootError::TooManyLinks(_))));
        assert!(matches!(root.make(Path::new("/etc"), Kind::File), Err(RootError::System { .. })));
    }

    #[test]
    fn parents_of_the_root_are_the_root() {
        let (folder, root) = image();
        assert_eq!(root.make(Path::new("/../../up"), Kind::Folder).expect("made"), Path::new("/up"));
        assert!(folder.path().join("up").is_dir());
    }

    #[test]
    fn linked_system_folders_are_refused() {
        let (folder, root) = image();
        root.refuse_linked_system_folders().expect("none is a link");
        symlink("/etc", folder.path().join("proc")).expect("linked");
        assert!(matches!(root.refuse_linked_system_folders(), Err(RootError::LinkedSystemFolder("/proc"))));
    }

    #[test]
    fn working_folders_below_proc_are_refused() {
        for path in ["/proc/self/fd/7", "/x/../proc/1/root", "//proc"] {
            assert!(refuse_below_proc(Path::new(path)).is_err(), "{path}");
        }
        refuse_below_proc(Path::new("/srv/proc")).expect("another folder");
    }
}
