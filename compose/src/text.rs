//! Files that a project names, read up to a bound: `/dev/zero` is a file too.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of one file. The largest compose files seen have some hundred KiB.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// A whole file as text.
///
/// # Errors
/// As the file system says; when it is no UTF-8, or larger than [`MAX_BYTES`].
pub fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        let error = read(Path::new("/dev/zero")).expect_err("refused");
        assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
    }
}
