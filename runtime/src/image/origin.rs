//! Where an image's bytes come from: a registry, or files for boards without a network.

use super::error::Error;
use super::registry::{Blob, Repository};
use std::io::Read;

/// A source of manifests and blobs. What it gives is checked by whoever takes it.
pub trait Origin {
    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// When there is none, or it cannot be had.
    fn manifest(&mut self, wanted: &str) -> Result<Vec<u8>, Error>;

    /// A stream of a blob's bytes.
    fn blob<'b>(&'b mut self, digest: &str, size: u64) -> Box<dyn BlobRead + 'b>;
}

/// A blob's bytes, and why they ended early.
pub trait BlobRead: Read {
    /// What ended the stream early; its `read` said less.
    fn failure(&mut self) -> Option<Error>;
}

impl BlobRead for Blob<'_, '_> {
    fn failure(&mut self) -> Option<Error> {
        Blob::failure(self)
    }
}

impl Origin for Repository<'_> {
    fn manifest(&mut self, wanted: &str) -> Result<Vec<u8>, Error> {
        Repository::manifest(self, wanted)
    }

    fn blob<'b>(&'b mut self, digest: &str, size: u64) -> Box<dyn BlobRead + 'b> {
        Box::new(Repository::blob(self, digest, size))
    }
}
