//! Unpacks one layer into a folder in overlay's form: deleted names are character devices 0:0, folders that hide
//! what lies below carry `trusted.overlay.opaque` (Documentation/filesystems/overlayfs.rst).
//!
//! Every path is walked by descriptors below the layer's own root. A path that leads through a symbolic link is
//! resolved as a process in the container would see it, over the layers below; nothing is ever written outside.

use super::tar::{Archive, Entry, Kind, Part, TarError};
use crate::beneath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Entries of one layer. The largest distribution images have some 200,000.
const MAX_ENTRIES: u64 = 2_000_000;

/// Hard links whose target comes later in the archive.
const MAX_FORWARD_LINKS: usize = 65_536;

/// Bytes of paths that are held until the end: of folders, whose times are set last, and of hard links before their
/// targets. The largest distribution images have some 5 MiB.
const MAX_HELD: usize = 32 * 1024 * 1024;

/// Folders in folders.
const MAX_DEPTH: usize = 256;

/// Symbolic links followed in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Bytes that may be unpacked beside [`RATIO`] times the compressed ones: small layers compress well.
const RATIO_FLOOR: u64 = 64 * 1024 * 1024;

/// Bytes unpacked for one compressed byte. gzip reaches 1,032 on zeros alone; real layers stay below 20.
const RATIO: u64 = 1_000;

/// Bytes read at once from a file's data.
const CHUNK: usize = 64 * 1024;

/// Bytes of a file after which the kernel is told to begin writing them: so the disk works while the next are inflated,
/// and a small board's memory does not fill with what waits for it. Smaller files are left to the sync at the end.
const WRITEBACK: u64 = 1024 * 1024;

pub const OPAQUE: &str = "trusted.overlay.opaque";

/// Why a layer is refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive is bad.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry breaks a rule.
    #[error("entry {entry:?}: {reason}")]
    Entry {
        /// Its path.
        entry: String,
        /// The rule.
        reason: &'static str,
    },
    /// The file system failed.
    #[error("entry {entry:?}: {action}")]
    System {
        /// Its path.
        entry: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl LayerError {
    /// The system's error, when it was one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::System { source, .. } | Self::Tar(TarError::Read(source)) => Some(source),
            _ => None,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Attributes that this file system does not take (`user.*` only).
    pub attributes_left_out: u64,
}

/// Unpacks the archive in `stream` into `target`, an empty folder, over `lower` (topmost first). `compressed` is the
/// size of the blob, for the bound on what it may become.
///
/// # Errors
/// When an entry breaks a rule or the file system fails; `target` is worth nothing then.
pub fn unpack(
    stream: impl Read,
    target: &Path,
    lower: &[PathBuf],
    compressed: u64,
) -> Result<Unpacked, LayerError> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| system(path.as_os_str().as_bytes(), "opening the layer", errno))
    };
    let mut layer = Layer {
        root: open(target)?,
        lower: lower.iter().map(|path| open(path)).collect::<Result<_, _>>()?,
        folder: None,
        times: BTreeMap::new(),
        forward: Vec::new(),
        held: 0,
        unpacked: Unpacked::default(),
        allowed: RATIO_FLOOR.saturating_add(compressed.saturating_mul(RATIO)),
        root_named: false,
    };
    let mut archive = Archive::new(stream);
    while let Some(entry) = archive.next_entry()? {
        layer.unpacked.entries += 1;
        if layer.unpacked.entries > MAX_ENTRIES {
            return Err(refused(&entry.path, "more than 2,000,000 entries"));
        }
        layer.take(&entry, &mut archive)?;
    }
    layer.finish()?;
    layer.drain(archive.into_inner())?;
    Ok(layer.unpacked)
}

fn refused(entry: &[u8], reason: &'static str) -> LayerError {
    LayerError::Entry { entry: shown(entry), reason }
}

fn system(entry: &[u8], action: &'static str, errno: Errno) -> LayerError {
    LayerError::System { entry: shown(entry), action, source: errno.into() }
}

fn shown(entry: &[u8]) -> String {
    String::from_utf8_lossy(entry).chars().take(200).collect()
}

struct Layer {
    root: OwnedFd,
    lower: Vec<OwnedFd>,
    /// The folder of the entry before, which the next entry mostly shares.
    folder: Option<(PathBuf, OwnedFd)>,
    /// Times of folders, set at the end: making entries changes them.
    times: BTreeMap<PathBuf, Timestamps>,
    /// Hard links whose target was not there yet: link, target.
    forward: Vec<(PathBuf, PathBuf)>,
    /// Bytes of the paths in both.
    held: usize,
    unpacked: Unpacked,
    allowed: u64,
    root_named: bool,
}

impl Layer {
    fn take(&mut self, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<(), LayerError> {
        let path = cleaned(&entry.path)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.take_root(entry);
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new("")), &entry.path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden, &entry.path);
        }
        let path = parent.join(&name);
        if entry.kind == Kind::Folder {
            return self.folder_entry(&path, entry);
        }
        if let Kind::HardLink(target) = &entry.kind {
            let target = cleaned(target)?;
            return self.hard_link(&path, &target, &entry.path);
        }
        self.clear(&path, &entry.path)?;
        self.make(&path, entry, archive)?;
        self.attributes(&path, entry)
    }

    /// The archive's own root gives the layer's root its attributes.
    fn take_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Folder {
            return Err(refused(&entry.path, "the root must be a folder"));
        }
        self.root_named = true;
        self.attributes(Path::new(""), entry)
    }

    /// The real folder for `parent`, made if it has to be, and opened as the present one.
    fn parent(&mut self, parent: &Path, entry: &[u8]) -> Result<PathBuf, LayerError> {
        if let Some((path, _)) = &self.folder
            && path == parent
        {
            return Ok(parent.to_owned());
        }
        if let Ok(fd) = self.open_own(parent) {
            self.folder = Some((parent.to_owned(), fd));
            return Ok(parent.to_owned());
        }
        let real = self.make_parents(parent, entry)?;
        let fd = self.open_own(&real).map_err(|errno| system(entry, "opening its folder", errno))?;
        self.folder = Some((real.clone(), fd));
        Ok(real)
    }

    fn open_own(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_below(&self.root, path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Walks `parent`, following links as the container will see them, and makes what this layer lacks with the
    /// attributes it has in the layers below.
    fn make_parents(&mut self, parent: &Path, entry: &[u8]) -> Result<PathBuf, LayerError> {
        let mut todo: Vec<PathBuf> = parent.iter().rev().map(PathBuf::from).collect();
        let (mut at, mut links) = (PathBuf::new(), 0);
        while let Some(name) = todo.pop() {
            if name == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            match self.look(&next, entry)? {
                Some((_, stat)) if kind_of(&stat) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refused(entry, "its path has too many symbolic links"));
                    }
                    let target = self.link_text(&next, entry)?;
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    todo.extend(target.components().rev().filter_map(|part| match part {
                        Component::Normal(name) => Some(PathBuf::from(name)),
                        Component::ParentDir => Some(PathBuf::from("..")),
                        _ => None,
                    }));
                }
                Some((_, stat)) if kind_of(&stat) != FileType::Directory => {
                    return Err(refused(entry, "its path leads through something that is no folder"));
                }
                Some((0, _)) => at = next,
                Some((level, stat)) => {
                    self.copy_folder(&next, level, &stat, entry)?;
                    at = next;
                }
                None => {
                    self.new_folder(&next, entry)?;
                    at = next;
                }
            }
            if at.iter().count() > MAX_DEPTH {
                return Err(refused(entry, "folders nested deeper than 256"));
            }
        }
        Ok(at)
    }

    fn new_folder(&mut self, path: &Path, entry: &[u8]) -> Result<(), LayerError> {
        let was_hidden = self.clear(path, entry)?;
        rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o755))
            .map_err(|errno| system(entry, "making its folder", errno))?;
        // The mask of this process must not decide.
        self.chmod(path, 0o755, entry)?;
        if was_hidden { self.set_opaque(path, entry) } else { Ok(()) }
    }

    /// Makes a folder of a lower layer here, with its attributes: else the overlay would show ours.
    fn copy_folder(
        &mut self,
        path: &Path,
        level: usize,
        stat: &rustix::fs::Stat,
        entry: &[u8],
    ) -> Result<(), LayerError> {
        self.new_folder(path, entry)?;
        let from = open_below(&self.lower[level - 1], path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| system(entry, "opening a lower folder", errno))?;
        let to = open_below(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| system(entry, "opening its folder", errno))?;
        copy_attributes(&from, &to, stat)
            .map_err(|errno| system(entry, "copying a lower folder's attributes", errno))?;
        self.set_time_later(path, times_of(stat), entry)
    }

    /// A folder's time is set at the end.
    fn set_time_later(&mut self, path: &Path, times: Timestamps, entry: &[u8]) -> Result<(), LayerError> {
        match self.times.insert(path.to_owned(), times) {
            Some(_) => Ok(()),
            None => self.hold(path.as_os_str().len() + size_of::<(PathBuf, Timestamps)>(), entry),
        }
    }

    /// What is below a folder follows it in the map.
    fn forget_times(&mut self, folder: &Path) {
        let from = (Bound::Included(folder), Bound::Unbounded);
        let below = self.times.range::<Path, _>(from).map(|(path, _)| path);
        let below: Vec<PathBuf> = below.take_while(|path| path.starts_with(folder)).cloned().collect();
        for path in below {
            self.times.remove(&path);
        }
    }

    fn hold(&mut self, bytes: usize, entry: &[u8]) -> Result<(), LayerError> {
        self.held += bytes;
        if self.held > MAX_HELD {
            return Err(refused(entry, "more than 32 MiB of folders and of hard links before their targets"));
        }
        Ok(())
    }

    /// Looks for `path` in this layer (0) and those below (1 is the topmost), as the overlay would.
    fn look(&self, path: &Path, entry: &[u8]) -> Result<Option<(usize, rustix::fs::Stat)>, LayerError> {
        for (level, root) in std::iter::once(&self.root).chain(&self.lower).enumerate() {
            match stat_below(root, path) {
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => return Ok(Some((level, stat))),
                Err(Errno::NOENT) if !hides(root, path) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
                Err(errno) => return Err(system(entry, "looking at its path", errno)),
            }
        }
        Ok(None)
    }

    fn link_text(&self, path: &Path, entry: &[u8]) -> Result<PathBuf, LayerError> {
        let Some((level, _)) = self.look(path, entry)? else {
            return Err(refused(entry, "its path changed"));
        };
        let root = if level == 0 { &self.root } else { &self.lower[level - 1] };
        let text = rustix::fs::readlinkat(root, path, Vec::new())
            .map_err(|errno| system(entry, "reading a link", errno))?;
        Ok(PathBuf::from(OsStr::from_bytes(text.as_bytes())))
    }

    fn folder_entry(&mut self, path: &Path, entry: &Entry) -> Result<(), LayerError> {
        match stat_below(&self.root, path) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => {}
            Ok(_) | Err(Errno::NOENT) => self.new_folder(path, &entry.path)?,
            Err(errno) => return Err(system(&entry.path, "looking at its path", errno)),
        }
        self.attributes(path, entry)
    }

    /// Hides `name` of the layers below, or everything of the folder. What this layer itself holds stays.
    fn whiteout(&mut self, parent: &Path, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        if name == b".wh..opq" {
            return self.set_opaque(parent, entry);
        }
        if name.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(name, b"" | b"." | b"..") {
            return Err(refused(entry, "it hides no name"));
        }
        let path = parent.join(OsStr::from_bytes(name));
        match stat_below(&self.root, &path) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => self.set_opaque(&path, entry),
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(&self.root, &path, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|errno| system(entry, "making a whiteout", errno))
            }
            Err(errno) => Err(system(entry, "looking at its path", errno)),
        }
    }

    fn set_opaque(&self, path: &Path, entry: &[u8]) -> Result<(), LayerError> {
        let fd = self.open_readable(path).map_err(|errno| system(entry, "opening its folder", errno))?;
        rustix::fs::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty())
            .map_err(|errno| system(entry, "making a folder opaque", errno))
    }

    fn open_readable(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_below(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Removes what this layer has at `path`; true when it was a whiteout.
    fn clear(&mut self, path: &Path, entry: &[u8]) -> Result<bool, LayerError> {
        let stat = match stat_below(&self.root, path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(system(entry, "looking at its path", errno)),
        };
        if kind_of(&stat) == FileType::Directory {
            self.remove_tree(path, entry, 0)?;
            self.forget_times(path);
            self.folder = None;
        } else {
            rustix::fs::unlinkat(&self.root, path, AtFlags::empty())
                .map_err(|errno| system(entry, "replacing", errno))?;
        }
        Ok(is_whiteout(&stat))
    }

    fn remove_tree(&self, path: &Path, entry: &[u8], depth: usize) -> Result<(), LayerError> {
        let failed = |errno| system(entry, "replacing a folder", errno);
        if depth > MAX_DEPTH {
            return Err(refused(entry, "folders nested deeper than 256"));
        }
        let fd = self.open_readable(path).map_err(failed)?;
        for child in rustix::fs::Dir::read_from(&fd).map_err(failed)? {
            let child = child.map_err(failed)?;
            let name = OsStr::from_bytes(child.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let child = path.join(name);
            let stat = stat_below(&self.root, &child).map_err(failed)?;
            if kind_of(&stat) == FileType::Directory {
                self.remove_tree(&child, entry, depth + 1)?;
            } else {
                rustix::fs::unlinkat(&self.root, &child, AtFlags::empty()).map_err(failed)?;
            }
        }
        rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR).map_err(failed)
    }

    fn hard_link(&mut self, path: &Path, target: &Path, entry: &[u8]) -> Result<(), LayerError> {
        if self.try_hard_link(path, target, entry)? {
            return Ok(());
        }
        if self.forward.len() >= MAX_FORWARD_LINKS {
            return Err(refused(entry, "too many hard links before their targets"));
        }
        self.forward.push((path.to_owned(), target.to_owned()));
        self.hold(path.as_os_str().len() + target.as_os_str().len(), entry)
    }

    /// Links `path` to `target` of this layer, or to a copy of the lower layers' file; false when there is none yet.
    fn try_hard_link(&mut self, path: &Path, target: &Path, entry: &[u8]) -> Result<bool, LayerError> {
        let target = match (target.parent(), target.file_name()) {
            (Some(parent), Some(name)) => match self.existing_folder(parent, entry)? {
                Some(parent) => parent.join(name),
                None => return Ok(false),
            },
            _ => return Err(refused(entry, "a hard link to the root")),
        };
        match self.look(&target, entry)? {
            None => return Ok(false),
            Some((_, stat)) if kind_of(&stat) == FileType::Directory => {
                return Err(refused(entry, "a hard link to a folder"));
            }
            Some((0, _)) => {}
            Some((level, stat)) => self.copy_up(&target, level, &stat, entry)?,
        }
        if target != path {
            self.clear(path, entry)?;
            rustix::fs::linkat(&self.root, &target, &self.root, path, AtFlags::empty())
                .map_err(|errno| system(entry, "linking", errno))?;
        }
        Ok(true)
    }

    /// Where a folder of the merged view really is, without making anything.
    fn existing_folder(&self, path: &Path, entry: &[u8]) -> Result<Option<PathBuf>, LayerError> {
        let mut at = PathBuf::new();
        for name in path {
            at.push(name);
            match self.look(&at, entry)? {
                Some((_, stat)) if kind_of(&stat) == FileType::Directory => {}
                Some((_, stat)) if kind_of(&stat) == FileType::Symlink => {
                    return Err(refused(entry, "a hard link through a symbolic link"));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Copies a file of a lower layer into this one, as the overlay does when it is linked to.
    fn copy_up(
        &mut self,
        path: &Path,
        level: usize,
        stat: &rustix::fs::Stat,
        entry: &[u8],
    ) -> Result<(), LayerError> {
        if kind_of(stat) != FileType::RegularFile {
            return Err(refused(entry, "a hard link to a lower layer's special file"));
        }
        self.make_parents(path.parent().unwrap_or(Path::new("")), entry)?;
        let failed = |errno| system(entry, "copying a lower layer's file", errno);
        let from = open_below(&self.lower[level - 1], path, OFlags::RDONLY).map_err(failed)?;
        let to = create_below(&self.root, path).map_err(failed)?;
        let bytes = io::copy(
            &mut std::fs::File::from(from.try_clone().map_err(|_| failed(Errno::MFILE))?),
            &mut std::fs::File::from(to.try_clone().map_err(|_| failed(Errno::MFILE))?),
        )
        .map_err(|source| LayerError::System {
            entry: shown(entry),
            action: "copying a lower layer's file",
            source,
        })?;
        self.unpacked.bytes += bytes;
        copy_attributes(&from, &to, stat).map_err(failed)?;
        rustix::fs::futimens(&to, &times_of(stat)).map_err(failed)
    }

    fn make(&mut self, path: &Path, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<(), LayerError> {
        let failed = |errno| system(&entry.path, "making it", errno);
        let node = |kind, device| rustix::fs::mknodat(&self.root, path, kind, Mode::from_raw_mode(0o600), device);
        match &entry.kind {
            Kind::File => return self.file(path, entry, archive),
            Kind::SymLink(target) => rustix::fs::symlinkat(OsStr::from_bytes(target), &self.root, path),
            Kind::Fifo => node(FileType::Fifo, 0),
            // Overlay would take it for a whiteout.
            Kind::CharDevice(0, 0) => return Err(refused(&entry.path, "a character device 0:0")),
            Kind::CharDevice(major, minor) => node(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor)),
            Kind::BlockDevice(major, minor) => node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor)),
            Kind::Folder | Kind::HardLink(_) => Ok(()),
        }
        .map_err(failed)
    }

    fn file(&mut self, path: &Path, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<(), LayerError> {
        let whole = [Part { offset: 0, length: entry.size }];
        let parts = entry.parts.as_deref().unwrap_or(&whole);
        self.unpacked.bytes += parts.iter().map(|part| part.length).sum::<u64>();
        if self.unpacked.bytes > self.allowed {
            return Err(refused(&entry.path, "the layer unpacks to more than 1,000 times its size"));
        }
        let fd = create_below(&self.root, path).map_err(|errno| system(&entry.path, "making it", errno))?;
        let mut file = std::fs::File::from(fd);
        let failed = |action| move |source| LayerError::System { entry: shown(&entry.path), action, source };
        let mut buffer = vec![0; CHUNK.min(usize::try_from(entry.size).unwrap_or(CHUNK))];
        for part in parts {
            if entry.parts.is_some() {
                file.seek(SeekFrom::Start(part.offset)).map_err(failed("writing"))?;
            }
            let (mut written, mut begun) = (0, 0);
            while written < part.length {
                let room = usize::try_from(part.length - written).unwrap_or(CHUNK).min(buffer.len());
                let count = archive.read_data(&mut buffer[..room]).map_err(|error| match error {
                    TarError::Read(source) => failed("reading its bytes")(source),
                    error => error.into(),
                })?;
                file.write_all(&buffer[..count]).map_err(failed("writing"))?;
                written += count as u64;
                if written - begun >= WRITEBACK {
                    // It is synced in the end, whatever this says.
                    let _ = crate::sys::begin_writeback(&file, part.offset + begun, written - begun);
                    begun = written;
                }
            }
        }
        if entry.parts.is_some() { file.set_len(entry.size).map_err(failed("writing")) } else { Ok(()) }
    }

    /// Owner, mode, attributes, times, in this order: a change of owner clears setuid bits and capabilities.
    fn attributes(&mut self, path: &Path, entry: &Entry) -> Result<(), LayerError> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let (uid, gid) = (rustix::fs::Uid::from_raw(entry.uid), rustix::fs::Gid::from_raw(entry.gid));
        rustix::fs::chownat(&self.root, here, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| system(&entry.path, "setting its owner", errno))?;
        if !matches!(entry.kind, Kind::SymLink(_)) {
            self.chmod(here, entry.mode, &entry.path)?;
        }
        self.xattrs(here, entry)?;
        let times = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
            last_modification: rustix::fs::Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1 as _ },
        };
        if entry.kind == Kind::Folder {
            return self.set_time_later(path, times, &entry.path);
        }
        rustix::fs::utimensat(&self.root, here, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| system(&entry.path, "setting its time", errno))
    }

    /// The path has no links here: every part of it is this layer's own.
    fn chmod(&self, path: &Path, mode: u32, entry: &[u8]) -> Result<(), LayerError> {
        rustix::fs::chmodat(&self.root, path, Mode::from_raw_mode(mode as RawMode), AtFlags::empty())
            .map_err(|errno| system(entry, "setting its mode", errno))
    }

    fn xattrs(&mut self, path: &Path, entry: &Entry) -> Result<(), LayerError> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        // A link's attributes are its own.
        let fd = open_below(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|errno| system(&entry.path, "opening it", errno))?;
        let by_number = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        for (name, value) in &entry.xattrs {
            if name.contains(&0) || name.is_empty() || name.len() > 255 {
                return Err(refused(&entry.path, "an extended attribute's name is bad"));
            }
            if name.starts_with(b"trusted.overlay.") {
                return Err(refused(&entry.path, "an attribute of the overlay's own"));
            }
            match rustix::fs::setxattr(by_number.as_str(), OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Ok(()) => {}
                // Links and devices take no user attributes; a file system may take none at all.
                Err(Errno::NOTSUP | Errno::PERM) if name.starts_with(b"user.") => {
                    self.unpacked.attributes_left_out += 1
                }
                Err(errno) => return Err(system(&entry.path, "setting an extended attribute", errno)),
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        for (path, target) in std::mem::take(&mut self.forward) {
            let entry = path.as_os_str().as_bytes().to_vec();
            if !self.try_hard_link(&path, &target, &entry)? {
                return Err(refused(&entry, "a hard link to a file that is nowhere"));
            }
        }
        if !self.root_named {
            self.inherit_root()?;
        }
        // Deepest first, so that setting one does not change another.
        for (path, times) in std::mem::take(&mut self.times).into_iter().rev() {
            let here = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
            rustix::fs::utimensat(&self.root, here, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| system(here.as_os_str().as_bytes(), "setting a folder's time", errno))?;
        }
        Ok(())
    }

    /// A layer that does not name its root has the root of the layer below, or 0755.
    fn inherit_root(&mut self) -> Result<(), LayerError> {
        let failed = |errno| system(b"/", "setting the root's attributes", errno);
        let root = self.open_readable(Path::new("")).map_err(failed)?;
        match self.lower.first() {
            Some(lower) => {
                let from =
                    open_below(lower, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
                let stat = rustix::fs::fstat(&from).map_err(failed)?;
                copy_attributes(&from, &root, &stat).map_err(failed)?;
                self.times.insert(PathBuf::new(), times_of(&stat));
                Ok(())
            }
            None => rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed),
        }
    }

    /// Reads what lies behind the archive: padding, which counts for the digest and is bounded.
    fn drain(&self, mut stream: impl Read) -> Result<(), LayerError> {
        let allowed = self.allowed.saturating_sub(self.unpacked.bytes);
        let read = io::copy(&mut (&mut stream).take(allowed.saturating_add(1)), &mut io::sink())
            .map_err(TarError::Read)?;
        if read > allowed { Err(refused(b"", "more padding behind the archive than allowed")) } else { Ok(()) }
    }
}

/// A path of an archive, relative to its root.
fn cleaned(path: &[u8]) -> Result<PathBuf, LayerError> {
    let mut clean = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(path, "its path leads upwards (..)"));
            }
        }
    }
    if clean.iter().count() > MAX_DEPTH {
        return Err(refused(path, "folders nested deeper than 256"));
    }
    Ok(clean)
}

fn open_below(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    beneath::open(root, path, flags, Mode::empty())
}

fn create_below(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    beneath::open(root, path, flags, Mode::from_raw_mode(0o600))
}

/// Looks at `path` without following any link in it.
fn stat_below(root: impl AsFd, path: &Path) -> Result<rustix::fs::Stat, Errno> {
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
    let Some(name) = name else {
        return rustix::fs::statat(root, ".", AtFlags::SYMLINK_NOFOLLOW);
    };
    if parent.as_os_str().is_empty() {
        return rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW);
    }
    let parent = open_below(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// True when a layer that lacks `path` also hides it below: one of its folders is opaque or no folder.
fn hides(root: impl AsFd, path: &Path) -> bool {
    path.ancestors().skip(1).any(|folder| {
        if folder.as_os_str().is_empty() {
            return false;
        }
        match stat_below(&root, folder) {
            Ok(stat) if kind_of(&stat) != FileType::Directory => true,
            Ok(_) => open_below(&root, folder, OFlags::RDONLY | OFlags::DIRECTORY)
                .is_ok_and(|fd| rustix::fs::fgetxattr(&fd, OPAQUE, &mut [0_u8; 1][..]) == Ok(1)),
            Err(_) => false,
        }
    })
}

fn kind_of(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn times_of(stat: &rustix::fs::Stat) -> Timestamps {
    Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Owner, mode and attributes of one descriptor to another.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd, stat: &rustix::fs::Stat) -> Result<(), Errno> {
    rustix::fs::fchown(
        to,
        Some(rustix::fs::Uid::from_raw(stat.st_uid)),
        Some(rustix::fs::Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0_u8; 64 * 1024];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0_u8; 64 * 1024];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"trusted.overlay.") {
            let name = OsStr::from_bytes(name);
            let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
            rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
        }
    }
    Ok(())
}
