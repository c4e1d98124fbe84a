//! Images on disk: manifests and configurations as blobs, layers as folders, names in a small index.
//!
//! ```text
//! blobs/sha256/HEX    manifest or configuration
//! layers/HEX/         one layer over those below it, by ChainID (OCI image-spec config.md)
//! images/HEX.json     which layers a manifest has; HEX is the manifest's digest
//! names.json          name -> manifest
//! staging/            everything unfinished; emptied at start
//! ```
//!
//! Something is visible when it is renamed to its place, and it is synced before. So after a power cut it is whole or
//! absent, and no step of recovery needs more than what is here.

use super::config::{self, ImageConfig};
use super::error::Error;
use super::layer::digest_of;
use super::reference::{Reference, is_digest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The image store of a device. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<PathBuf>,
    /// Pulls and removals do not overlap.
    lock: Arc<Mutex<()>>,
    staged: Arc<AtomicU64>,
}

/// An image that is whole in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The full name it was asked for by.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
    /// How it is run.
    pub config: ImageConfig,
    /// ChainIDs of its layers, bottom first.
    pub chain: Vec<String>,
    /// Bytes of its files.
    pub size: u64,
}

/// What was freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// Bytes of files.
    pub bytes: u64,
    /// Layers.
    pub layers: usize,
    /// Images.
    pub images: usize,
}

/// Bytes in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Per image.
    pub images: Vec<ImageUsage>,
    /// All layers, each once.
    pub layers: u64,
    /// Manifests and configurations.
    pub blobs: u64,
    /// Unfinished work.
    pub staging: u64,
}

/// Bytes of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUsage {
    /// Manifest digest.
    pub digest: String,
    /// Names.
    pub names: Vec<String>,
    /// In layers that no other image has.
    pub own: u64,
    /// In layers that others have too.
    pub shared: u64,
}

/// `images/HEX.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    config: String,
    layers: Vec<LayerRecord>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// ChainID.
    pub chain: String,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Store {
    /// Opens the store below `root`, makes what is missing, and clears what a crash left.
    ///
    /// Broken index entries are put aside as `*.broken`; the image is pulled again when it is wanted.
    ///
    /// # Errors
    /// When a folder cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let store = Self { root: Arc::new(root.to_owned()), lock: Arc::default(), staged: Arc::default() };
        let staging = store.path("staging");
        remove_tree(&staging).map_err(Error::store("emptying", &staging))?;
        for folder in ["blobs/sha256", "layers", "images", "staging"] {
            let path = store.path(folder);
            std::fs::create_dir_all(&path).map_err(Error::store("making the folder", &path))?;
        }
        store.put_broken_aside()?;
        Ok(store)
    }

    /// All whole images, one for each name.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, Error> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|(name, digest)| self.load(name, digest)).collect())
    }

    /// The image that `reference` names here, if it is whole.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn find(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let name = reference.to_string();
        let digest = self.names()?.get(&name).cloned().or_else(|| reference.digest().map(str::to_owned));
        Ok(digest.and_then(|digest| self.load(&name, &digest)))
    }

    /// Folders for the overlay's `lowerdir`, topmost first.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image.chain.iter().rev().map(|chain| self.layer_path(chain)).collect()
    }

    /// Manifest digests of images that lost their name to another.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn unnamed(&self) -> Result<BTreeSet<String>, Error> {
        let named: BTreeSet<String> = self.names()?.into_values().collect();
        Ok(self.records()?.into_keys().filter(|digest| !named.contains(digest)).collect())
    }

    /// There are layers or blobs that no image has: a pull was broken off.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn has_remains(&self) -> Result<bool, Error> {
        Ok(self.parts_beside(&parts_of(&self.records()?))?.next().is_some())
    }

    /// Bytes that [`Self::remove_unused`] would free.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn freeable(&self, keep: &BTreeSet<String>) -> Result<u64, Error> {
        let mut records = self.records()?;
        records.retain(|digest, _| keep.contains(digest));
        Ok(self.parts_beside(&parts_of(&records))?.map(|path| tree_bytes(&path)).sum())
    }

    fn parts_beside(&self, used: &BTreeSet<String>) -> Result<impl Iterator<Item = PathBuf>, Error> {
        let parts = [self.entries("layers")?, self.entries("blobs/sha256")?];
        Ok(parts.into_iter().flatten().filter(move |path| !used.contains(&named(path))))
    }

    /// Removes images that `keep` does not name, and layers that then nobody has.
    ///
    /// # Errors
    /// When a file cannot be removed; what was removed so far stays so.
    pub fn remove_unused(&self, keep: &BTreeSet<String>) -> Result<Freed, Error> {
        let _lock = self.lock();
        let mut freed = Freed::default();
        let mut records = self.records()?;
        for (digest, _) in records.extract_if(.., |digest, _| !keep.contains(digest)) {
            self.remove(&self.record_path(&digest))?;
            freed.images += 1;
        }
        let broken =
            self.entries("images")?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "broken"));
        for path in broken.filter(|path| !keep.contains(&named(path))) {
            self.remove(&path)?;
        }
        for path in self.parts_beside(&parts_of(&records))? {
            freed.bytes += tree_bytes(&path);
            freed.layers += usize::from(path.is_dir());
            self.remove(&path)?;
        }
        // Last: on a full disk it needs the room that was made. Until then a name of nothing names nothing.
        let mut names = self.names()?;
        let before = names.len();
        names.retain(|_, digest| keep.contains(digest));
        if names.len() != before {
            self.write_names(&names)?;
        }
        Ok(freed)
    }

    /// What lies in the store.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn usage(&self) -> Result<Usage, Error> {
        let (records, names) = (self.records()?, self.names()?);
        let mut users: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in records.values().flat_map(|record| &record.layers) {
            *users.entry(&layer.chain).or_default() += 1;
        }
        let images = records.iter().map(|(digest, record)| {
            let sum = |shared: bool| {
                let layers = record.layers.iter().filter(|layer| (users[layer.chain.as_str()] > 1) == shared);
                layers.map(|layer| layer.bytes).sum()
            };
            let names = names.iter().filter(|(_, it)| *it == digest).map(|(name, _)| name.clone()).collect();
            ImageUsage { digest: digest.clone(), names, own: sum(false), shared: sum(true) }
        });
        Ok(Usage {
            images: images.collect(),
            layers: tree_bytes(&self.path("layers")),
            blobs: tree_bytes(&self.path("blobs")),
            staging: tree_bytes(&self.path("staging")),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folder of a layer, whether it is there or not.
    pub(super) fn layer_path(&self, chain: &str) -> PathBuf {
        self.path("layers").join(hex_of(chain))
    }

    pub(super) fn has_layer(&self, chain: &str) -> bool {
        self.layer_path(chain).is_dir()
    }

    /// A new empty folder for unfinished work.
    pub(super) fn stage(&self) -> Result<PathBuf, Error> {
        let path = self.path("staging").join(format!("layer-{}", self.staged.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).map_err(Error::store("making the folder", &path))?;
        Ok(path)
    }

    /// Syncs a staged layer and makes it visible.
    pub(super) fn commit_layer(&self, staged: &Path, chain: &str) -> Result<(), Error> {
        let target = self.layer_path(chain);
        let folder = File::open(staged).map_err(Error::store("opening", staged))?;
        rustix::fs::syncfs(&folder).map_err(|errno| Error::store("syncing", staged)(errno.into()))?;
        if target.exists() {
            return remove_tree(staged).map_err(Error::store("removing", staged));
        }
        std::fs::rename(staged, &target).map_err(Error::store("renaming", staged))?;
        sync_folder(&self.path("layers"))
    }

    /// Gives unfinished work up.
    pub(super) fn discard(&self, staged: &Path) {
        // What cannot be removed now is removed at the next start.
        let _ = remove_tree(staged);
    }

    /// Writes a manifest or configuration, unless it is there and whole: a disk that lies may have made it another.
    pub(super) fn write_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path("blobs/sha256").join(hex_of(digest));
        let whole = std::fs::read(&path).is_ok_and(|it| it == bytes);
        if whole { Ok(()) } else { write_whole(&self.path("staging"), &path, bytes) }
    }

    /// Makes a whole image visible under a name.
    pub(super) fn commit_image(
        &self,
        name: &str,
        digest: &str,
        config: &str,
        layers: Vec<LayerRecord>,
    ) -> Result<Image, Error> {
        let record = Record { config: config.to_owned(), layers };
        let text = serde_json::to_vec(&record).unwrap_or_default();
        write_whole(&self.path("staging"), &self.record_path(digest), &text)?;
        let mut names = self.names()?;
        if names.get(name).is_none_or(|known| known != digest) {
            names.insert(name.to_owned(), digest.to_owned());
            self.write_names(&names)?;
        }
        self.load(name, digest).ok_or_else(|| Error::bad(name, "could not be read back from the store"))
    }

    /// Bytes that images may take: what is free, less what stays so.
    pub fn available(&self) -> u64 {
        self.free_bytes().saturating_sub(super::pull::RESERVE)
    }

    /// The file system takes no more files, whatever their size.
    pub(super) fn has_no_inodes(&self) -> bool {
        rustix::fs::statvfs(self.root.as_path()).is_ok_and(|it| it.f_files > 0 && it.f_favail == 0)
    }

    /// Bytes free on the file system.
    pub(super) fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(self.root.as_path()).map_or(u64::MAX, |it| it.f_bavail.saturating_mul(it.f_frsize))
    }

    /// Reads an image whose every part is there.
    pub(super) fn load(&self, name: &str, digest: &str) -> Option<Image> {
        let record = self.record(digest)?;
        if !record.layers.iter().all(|layer| self.has_layer(&layer.chain)) {
            return None;
        }
        let bytes = std::fs::read(self.path("blobs/sha256").join(hex_of(&record.config))).ok()?;
        if digest_of(&bytes) != record.config {
            return None;
        }
        Some(Image {
            reference: name.to_owned(),
            digest: digest.to_owned(),
            config: config::parse(name, &bytes).ok()?,
            size: record.layers.iter().map(|layer| layer.bytes).sum(),
            chain: record.layers.into_iter().map(|layer| layer.chain).collect(),
        })
    }

    pub(super) fn layer_bytes(&self, chain: &str) -> u64 {
        let records = self.records().unwrap_or_default();
        let mut layers = records.values().flat_map(|record| &record.layers);
        layers
            .find(|layer| layer.chain == chain)
            .map_or_else(|| tree_bytes(&self.layer_path(chain)), |layer| layer.bytes)
    }

    fn path(&self, part: &str) -> PathBuf {
        self.root.join(part)
    }

    fn record_path(&self, digest: &str) -> PathBuf {
        self.path("images").join(format!("{}.json", hex_of(digest)))
    }

    fn record(&self, digest: &str) -> Option<Record> {
        if !is_digest(digest) {
            return None;
        }
        serde_json::from_slice(&std::fs::read(self.record_path(digest)).ok()?).ok()
    }

    fn records(&self) -> Result<BTreeMap<String, Record>, Error> {
        let digests =
            self.entries("images")?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "json"));
        Ok(digests
            .map(|path| named(&path))
            .filter_map(|digest| Some((digest.clone(), self.record(&digest)?)))
            .collect())
    }

    fn names(&self) -> Result<BTreeMap<String, String>, Error> {
        let path = self.path("names.json");
        match std::fs::read(&path) {
            // Broken names were put aside at start; later ones are ours and whole.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(Error::store("reading", path)(error)),
        }
    }

    fn write_names(&self, names: &BTreeMap<String, String>) -> Result<(), Error> {
        let text = serde_json::to_vec(names).unwrap_or_default();
        write_whole(&self.path("staging"), &self.path("names.json"), &text)
    }

    fn entries(&self, folder: &str) -> Result<Vec<PathBuf>, Error> {
        let path = self.path(folder);
        let entries = std::fs::read_dir(&path).map_err(Error::store("reading", &path))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
    }

    fn put_broken_aside(&self) -> Result<(), Error> {
        let names = self.path("names.json");
        let readable = |path: &Path| {
            std::fs::read(path).is_ok_and(|it| serde_json::from_slice::<serde_json::Value>(&it).is_ok())
        };
        let mut suspects: Vec<PathBuf> = self.entries("images")?;
        suspects.retain(|path| path.extension().is_some_and(|it| it == "json"));
        suspects.extend(names.exists().then_some(names));
        for path in suspects.into_iter().filter(|path| !readable(path)) {
            tracing::warn!(path = %path.display(), "broken index entry put aside");
            let aside = path.with_extension("broken");
            std::fs::rename(&path, &aside).map_err(Error::store("putting aside", &path))?;
        }
        Ok(())
    }

    /// Removes by renaming away first: a power cut leaves nothing half there.
    fn remove(&self, path: &Path) -> Result<(), Error> {
        let aside = self.path("staging").join(format!("removed-{}", self.staged.fetch_add(1, Ordering::Relaxed)));
        std::fs::rename(path, &aside).map_err(Error::store("removing", path))?;
        remove_tree(&aside).map_err(Error::store("removing", &aside))
    }
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// ChainIDs and digests of blobs that some images have.
fn parts_of(records: &BTreeMap<String, Record>) -> BTreeSet<String> {
    let parts = |(digest, record): (&String, &Record)| {
        let layers = record.layers.iter().map(|layer| layer.chain.clone());
        layers.chain([digest.clone(), record.config.clone()]).collect::<Vec<_>>()
    };
    records.iter().flat_map(parts).collect()
}

/// The digest that a file or folder is named after.
fn named(path: &Path) -> String {
    format!("sha256:{}", path.file_stem().unwrap_or_default().to_string_lossy())
}

/// Bytes of the regular files below `path`.
pub fn tree_bytes(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    if !metadata.is_dir() {
        return if metadata.is_file() { metadata.len() } else { 0 };
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| tree_bytes(&entry.path())).sum()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::store("syncing", path))
}

/// Writes beside, syncs, renames, syncs the folder.
fn write_whole(staging: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = staging.join(format!("write-{name}"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| {
        // Half a file takes space on a disk that has none.
        let _ = std::fs::remove_file(&beside);
        Error::store("writing", path)(error)
    })?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}
