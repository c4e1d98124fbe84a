//! Small files that are old or new after a power cut, never between.

use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes kept free for a document that must be written on a full disk, too. A target of a dozen services has some
/// dozen KiB, and is beside the old one for a moment.
const RESERVE: usize = 256 * 1024;

/// Reads a document; `None` when it is not there, or broken: then it is put aside as `*.broken`.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&bytes) {
        Ok(document) => Ok(Some(document)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "broken file put aside");
            std::fs::rename(path, path.with_extension("broken"))?;
            Ok(None)
        }
    }
}

/// As [`read_json`]; the one before it, when a disk that lies has broken the last.
///
/// # Errors
/// As [`read_json`].
pub fn read_json_or_previous<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match read_json(path)? {
        Some(document) => Ok(Some(document)),
        None => Ok(read_json(&previous(path))?.inspect(|_| {
            tracing::warn!(path = %path.display(), "the document before it is taken");
        })),
    }
}

/// Writes a document: beside, synced, renamed, folder synced.
///
/// # Errors
/// As the file system says; the old document is there then.
pub fn write_json<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    write(path, &serde_json::to_vec(document)?, 0o600)
}

/// As [`write_json`] for the document that everything hangs on: the one before is kept, as `*.previous`, and on a full
/// disk it takes the place of its [`keep_reserve`].
///
/// # Errors
/// As the file system says; the old document is there then.
pub fn write_json_with_care<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    let second_name = beside(&previous(path));
    let _ = std::fs::remove_file(&second_name);
    // A file system without hard links has no one before; the new one does not depend on it.
    let _ = std::fs::hard_link(path, &second_name).and_then(|()| std::fs::rename(&second_name, previous(path)));
    let written = write_json(path, document);
    let no_space = written.as_ref().is_err_and(is_full);
    let written = match no_space && std::fs::remove_file(reserve(path)).is_ok() {
        true => write_json(path, document),
        false => written,
    };
    keep_reserve(path);
    written
}

/// Holds space for a document, if there is some now.
pub fn keep_reserve(path: &Path) {
    let reserve = reserve(path);
    if std::fs::metadata(&reserve).map_or(0, |it| it.len()) < RESERVE as u64 {
        // On a full disk the next write of the document tries again. Noise: zeros may be stored as nothing.
        let noise = (0..RESERVE as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8);
        let _ = write(&reserve, &noise.collect::<Vec<_>>(), 0o600);
    }
}

fn previous(path: &Path) -> std::path::PathBuf {
    path.with_extension("previous")
}

fn reserve(path: &Path) -> std::path::PathBuf {
    path.with_extension("reserve")
}

/// The file system is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// As [`write_json`], for any bytes.
///
/// # Errors
/// As the file system says; the old file is there then.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = beside(path);
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // Half a file takes space on a disk that has none.
        let _ = std::fs::remove_file(&beside);
    })?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Writes a document in memory (tmpfs): renamed, so that a reader sees the old or the new one; not synced.
///
/// # Errors
/// As the file system says.
pub fn write_volatile<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    let beside = beside(path);
    let write = || {
        std::fs::write(&beside, serde_json::to_vec(document)?)?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

/// Makes what was renamed or removed in a folder last.
///
/// # Errors
/// As the file system says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn beside(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_document_is_put_aside_and_the_next_one_takes_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("target.json");
        std::fs::write(&path, "{\"half").expect("written");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("read"), None);
        assert!(folder.path().join("target.broken").exists());
        write_json(&path, &vec![1, 2]).expect("written");
        assert_eq!(read_json::<Vec<u32>>(&path).expect("read"), Some(vec![1, 2]));
    }

    #[test]
    fn the_document_before_a_broken_one_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("target.json");
        for number in 1..=3 {
            write_json_with_care(&path, &vec![number]).expect("written");
        }
        assert_eq!(read_json_or_previous::<Vec<u32>>(&path).expect("read"), Some(vec![3]));
        std::fs::write(&path, "[").expect("written");
        // Each start finds it, until there is another.
        for _ in 0..2 {
            assert_eq!(read_json_or_previous::<Vec<u32>>(&path).expect("read"), Some(vec![2]));
        }
        write_json_with_care(&path, &vec![4]).expect("written");
        assert_eq!(read_json_or_previous::<Vec<u32>>(&path).expect("read"), Some(vec![4]));
        assert!(folder.path().join("target.broken").exists());
    }
}
