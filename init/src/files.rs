//! Files of the state partition: the old one or the new one, whenever power goes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Writes a file beside, syncs it, renames it, syncs the folder.
///
/// # Errors
/// As the file system says.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// Reads a text of at most `most` bytes; what is longer is cut.
///
/// # Errors
/// As the file system says.
pub fn read_text(path: impl AsRef<Path>, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_read_back_in_bounds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clock");
        replace(&path, b"1\n").expect("written");
        replace(&path, b"22\n").expect("replaced");
        assert_eq!(read_text(&path, 100).expect("read"), "22\n");
        assert_eq!(read_text(&path, 1).expect("read"), "2");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing is left beside it");
    }
}
