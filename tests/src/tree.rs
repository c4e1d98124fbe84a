//! A folder as text: everything about its files that an image gives them.

use coracle_runtime::image::digest_of;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Most bytes of an extended attribute, and of their names together; the kernel's own bound (xattr(7)).
const MAX_ATTRIBUTE: usize = 65536;

/// One line for each file by its path: kind, mode, owner, time, content or target, device, the first name of the same
/// inode, attributes.
///
/// # Errors
/// As the file system says.
pub fn describe(folder: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let (mut lines, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&next)? {
            paths.push(entry?.path());
        }
        paths.sort();
        for path in paths {
            let name =
                path.strip_prefix(folder).unwrap_or(&path).as_os_str().as_bytes().escape_ascii().to_string();
            let about = path.symlink_metadata()?;
            if about.is_dir() {
                folders.push(path.clone());
            }
            let same = inodes.entry((about.dev(), about.ino())).or_insert_with(|| name.clone()).clone();
            lines.insert(name, line(&path, &about, &same)?);
        }
    }
    Ok(lines)
}

fn line(path: &Path, about: &Metadata, same: &str) -> std::io::Result<String> {
    let kind = about.file_type();
    let content = match kind {
        _ if kind.is_file() => digest_of(&std::fs::read(path)?),
        _ if kind.is_symlink() => std::fs::read_link(path)?.display().to_string(),
        _ if kind.is_dir() => "folder".to_owned(),
        _ if kind.is_fifo() => "fifo".to_owned(),
        _ => format!("device {:x}", about.rdev()),
    };
    // Folders that no entry names, and whiteouts, are made at the moment of unpacking.
    let time = if kind.is_file() || kind.is_symlink() { about.mtime() } else { 0 };
    let (mode, uid, gid) = (about.mode(), about.uid(), about.gid());
    Ok(format!("{mode:o} {uid}:{gid} {time} {content} {same} {}", attributes(path)?))
}

fn attributes(path: &Path) -> std::io::Result<String> {
    let mut names = vec![0; MAX_ATTRIBUTE];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; MAX_ATTRIBUTE];
        let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        let _ = write!(text, "{}={} ", name.escape_ascii(), value[..length].escape_ascii());
    }
    Ok(text)
}
