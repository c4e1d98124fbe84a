//! A layer: a stream of compressed tar, checked by two digests, unpacked into one folder.

mod decompress;
mod tar;
mod unpack;

pub use decompress::decompressed;
pub use tar::{Archive, Kind};
pub use unpack::{LayerError, OPAQUE, unpack};

use ring::digest::{Context, SHA256};
use std::io::{self, Read};

/// Counts and hashes what passes.
pub struct Hashed<R> {
    inner: R,
    context: Context,
    count: u64,
}

impl<R: Read> Hashed<R> {
    /// Wraps a reader.
    pub fn new(inner: R) -> Self {
        Self { inner, context: Context::new(&SHA256), count: 0 }
    }

    /// `sha256:…` of everything that passed, and the number of bytes.
    pub fn finish(self) -> (String, u64) {
        (hex(self.context.finish().as_ref()), self.count)
    }

    /// Bytes that passed.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// `sha256:` and hex digits.
pub fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity("sha256:".len() + 2 * digest.len());
    text.push_str("sha256:");
    for byte in digest {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

/// `sha256:…` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}
