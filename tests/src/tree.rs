//! A folder as text: everything about its files that an image gives them.

use coracle_runtime::image::digest_of;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most bytes of an extended attribute, and of their names together; the kernel's own bound (xattr(7)).
const MAX_ATTRIBUTE: usize = 65536;

/// One line per file: kind, mode, owner, time, content or target, device, attributes, and the first name of the same
/// inode.
///
/// # Errors
/// As the file system says.
pub fn describe(folder: &Path) -> std::io::Result<String> {
    let (mut text, mut inodes) = (String::new(), BTreeMap::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        describe_one(folder, &next, &mut inodes, &mut text)?;
        let mut entries: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&next)? {
            entries.push(entry?.path());
        }
        entries.sort();
        for path in entries {
            if path.symlink_metadata()?.is_dir() {
                folders.push(path);
            } else {
                describe_one(folder, &path, &mut inodes, &mut text)?;
            }
        }
    }
    Ok(text)
}

fn describe_one(
    folder: &Path,
    path: &Path,
    inodes: &mut BTreeMap<u64, String>,
    text: &mut String,
) -> std::io::Result<()> {
    let about = path.symlink_metadata()?;
    let kind = about.file_type();
    let name = path.strip_prefix(folder).unwrap_or(path).as_os_str().as_bytes().escape_ascii().to_string();
    let content = match kind {
        _ if kind.is_file() => digest_of(&std::fs::read(path)?),
        _ if kind.is_symlink() => std::fs::read_link(path)?.display().to_string(),
        _ if kind.is_dir() => "folder".to_owned(),
        _ if kind.is_fifo() => "fifo".to_owned(),
        _ => format!("device {:x}", about.rdev()),
    };
    let same = match kind.is_dir() {
        true => name.clone(),
        false => inodes.entry(about.ino()).or_insert_with(|| name.clone()).clone(),
    };
    // The folder itself is the reader's; its time is when it was made.
    let time = if name.is_empty() { 0 } else { about.mtime() };
    let (mode, uid, gid) = (about.mode(), about.uid(), about.gid());
    let attributes = attributes(path)?;
    let _ = writeln!(text, "{name} {mode:o} {uid}:{gid} {time} {content} {same} {attributes}");
    Ok(())
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
