//! From a name to a whole image in the store.
//!
//! Three threads: one downloads and hashes, one inflates, one hashes again and unpacks; small bounded queues lie
//! between.

use super::config::{self, ImageConfig, MAX_CONFIG};
use super::error::Error;
use super::layer::{Hashed, LayerError, decompressed, digest_of, unpack};
use super::manifest::{self, Document, Layer, Manifest};
use super::origin::{BlobRead, Origin};
use super::platform::Platform;
use super::program;
use super::reference::Reference;
use super::registry::Repository;
use super::store::{Image, LayerRecord, Store};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Bytes in one piece between two threads.
const PIECE: usize = 64 * 1024;

/// Pieces between two threads: half a MiB, enough that neither waits for the other's every read. Two queues and the
/// pieces at hand are the memory of a pull.
const QUEUE: usize = 8;

/// Indexes within indexes.
const MAX_NESTING: usize = 3;

/// Unpacked bytes expected of a compressed one, for the check of free space when nothing better is known. Measured
/// on distribution images: 2.2 to 2.9.
const EXPANSION: u64 = 3;

/// Bytes that stay free: for state, and so that services can go on.
pub const RESERVE: u64 = 16 * 1024 * 1024;

/// How images are pulled.
#[derive(Clone)]
pub struct PullOptions {
    /// The machine.
    pub platform: Platform,
    /// Registries (`host[:port]`) that are reached over plain HTTP.
    pub plain_http: Vec<String>,
    /// Certificate authorities beside the system's, PEM.
    pub ca_files: Vec<PathBuf>,
    /// A Docker configuration with credentials.
    pub docker_config: Option<PathBuf>,
    /// For the body of one answer.
    pub timeout: Duration,
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullOptions")
            .field("platform", &self.platform)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::of_this_machine(),
            plain_http: Vec::new(),
            ca_files: Vec::new(),
            docker_config: None,
            timeout: super::registry::BODY,
        }
    }
}

impl PullOptions {
    pub(super) fn allows_plain(&self, host: &str) -> bool {
        self.plain_http.iter().any(|allowed| allowed == host)
    }

    /// `base64(name:password)` for a registry, from the Docker configuration.
    pub(super) fn credentials(&self, registry: &str) -> Result<Option<String>, Error> {
        let Some(path) = &self.docker_config else {
            return Ok(None);
        };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Setting(format!("{}: {error}", path.display()))),
        };
        // The parser's own message could show a part of the file.
        let config: DockerConfig = serde_json::from_slice(&text)
            .map_err(|_| Error::Setting(format!("{}: is no Docker configuration", path.display())))?;
        if config.cred_helpers.contains_key(registry) {
            return Err(Error::Setting(format!(
                "{}: credHelpers for {registry} need a program that is not here: use auths",
                path.display()
            )));
        }
        let keys = match registry {
            "docker.io" => vec!["https://index.docker.io/v1/", "docker.io", "index.docker.io"],
            other => vec![other],
        };
        let with_scheme =
            [format!("https://{registry}"), format!("http://{registry}"), format!("https://{registry}/")];
        let found =
            keys.into_iter().chain(with_scheme.iter().map(String::as_str)).find_map(|key| config.auths.get(key));
        Ok(found.and_then(|auth| auth.auth.clone()).filter(|auth| !auth.is_empty()))
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
    #[serde(default)]
    cred_helpers: std::collections::BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct DockerAuth {
    auth: Option<String>,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// The layer at hand.
    pub layer: String,
    /// What is done.
    pub phase: Phase,
    /// Bytes of all layers that were downloaded.
    pub done: u64,
    /// Bytes of all layers that have to be.
    pub total: u64,
}

/// Phases of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Downloading and unpacking.
    Downloading,
    /// Writing to the disk what was unpacked.
    Syncing,
    /// The layer is whole.
    Done,
}

/// What a pull would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest's digest.
    pub digest: String,
    /// Layers, bottom first.
    pub layers: Vec<ResolvedLayer>,
    /// Bytes to download.
    pub to_download: u64,
    /// Bytes that the store will grow by, estimated.
    pub space_needed: u64,
}

/// A layer of [`Resolved`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// It is in the store.
    pub present: bool,
}

struct Wanted {
    digest: String,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    config: ImageConfig,
    /// ChainIDs, bottom first.
    chain: Vec<String>,
}

/// Asks the registry what a pull would fetch. Blocks.
///
/// # Errors
/// As [`pull`], before the first layer.
pub fn resolve(store: &Store, reference: &Reference, options: &PullOptions) -> Result<Resolved, Error> {
    let name = reference.to_string();
    let found = find(&mut Repository::new(reference, options)?, &name, reference.wanted(), &options.platform)?;
    let layers: Vec<ResolvedLayer> = found
        .manifest
        .layers
        .iter()
        .zip(&found.chain)
        .map(|(layer, chain)| ResolvedLayer {
            digest: layer.digest.clone(),
            size: layer.size,
            present: store.has_layer(chain),
        })
        .collect();
    let to_download = layers.iter().filter(|layer| !layer.present).map(|layer| layer.size).sum();
    Ok(Resolved { digest: found.digest, layers, to_download, space_needed: expected(to_download) })
}

fn expected(compressed: u64) -> u64 {
    compressed.saturating_mul(EXPANSION)
}

/// Pulls an image into the store. Blocks; `cancel` ends it at the next piece.
///
/// # Errors
/// Nothing of a layer that failed is left; whole layers stay for the next try.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    cancel: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image, Error> {
    let mut repository = Repository::new(reference, options)?;
    let name = reference.to_string();
    fetch(store, &mut repository, (&name, reference.wanted()), &options.platform, cancel, progress)
}

/// Takes an image from files into the store under a name. Blocks; `cancel` ends it at the next piece.
///
/// # Errors
/// As [`pull`].
pub fn import(
    store: &Store,
    files: &mut super::files::Files,
    (name, digest): (&Reference, &str),
    platform: &Platform,
    cancel: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image, Error> {
    fetch(store, files, (&name.to_string(), digest), platform, cancel, progress)
}

fn fetch(
    store: &Store,
    origin: &mut dyn Origin,
    (name, wanted): (&str, &str),
    platform: &Platform,
    cancel: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image, Error> {
    let _lock = store.lock();
    let found = find(origin, name, wanted, platform)?;
    if let Some(image) = store.load(name, &found.digest) {
        // The name may be new.
        let layers = records(store, &found.chain);
        return store.commit_image(name, &image.digest, &found.manifest.config.digest, layers);
    }
    let missing = |it: &(&Layer, &String)| !store.has_layer(it.1);
    let total: u64 = found.manifest.layers.iter().zip(&found.chain).filter(missing).map(|it| it.0.size).sum();
    let (needed, available) = (expected(total), store.available());
    if needed > available {
        return Err(Error::NoSpace { needed, available });
    }
    store.write_blob(&found.manifest.config.digest, &found.config_bytes)?;
    store.write_blob(&found.digest, &found.manifest_bytes)?;
    let mut done = 0;
    let mut layers = Vec::new();
    for (index, layer) in found.manifest.layers.iter().enumerate() {
        let chain = &found.chain[index];
        if store.has_layer(chain) {
            layers.push(LayerRecord { chain: chain.clone(), bytes: store.layer_bytes(chain) });
            continue;
        }
        let lower: Vec<PathBuf> = found.chain[..index].iter().rev().map(|chain| store.layer_path(chain)).collect();
        let tell =
            |phase, bytes| progress(Progress { layer: layer.digest.clone(), phase, done: done + bytes, total });
        let work = LayerWork {
            store,
            layer,
            lower: &lower,
            diff_id: &found.config.diff_ids[index],
            chain,
            cancel,
            tell: &tell,
        };
        let bytes = work.run(origin)?;
        done += layer.size;
        layers.push(LayerRecord { chain: chain.clone(), bytes });
    }
    let folders: Vec<PathBuf> = found.chain.iter().rev().map(|chain| store.layer_path(chain)).collect();
    // Before it is an image: whatever runs now goes on.
    if let Some(reason) = program::unfit(&found.config, &folders, platform) {
        return Err(Error::NoPlatform { image: name.to_owned(), reason });
    }
    store.commit_image(name, &found.digest, &found.manifest.config.digest, layers)
}

fn records(store: &Store, chain: &[String]) -> Vec<LayerRecord> {
    chain.iter().map(|chain| LayerRecord { chain: chain.clone(), bytes: store.layer_bytes(chain) }).collect()
}

/// Fetches manifest and configuration, and checks that they belong together and to this machine.
fn find(origin: &mut dyn Origin, name: &str, wanted: &str, platform: &Platform) -> Result<Wanted, Error> {
    let mut wanted = wanted.to_owned();
    let mut chosen_by_index = false;
    for _ in 0..=MAX_NESTING {
        let bytes = origin.manifest(&wanted)?;
        let digest = digest_of(&bytes);
        if wanted.starts_with("sha256:") && digest != wanted {
            return Err(Error::bad(name, format!("its origin gave another manifest than {wanted}")));
        }
        match manifest::parse(name, &bytes)? {
            Document::Index(manifests) => {
                let chosen = manifest::choose(name, platform, &manifests)?;
                chosen_by_index |= chosen.platform.is_some();
                wanted = chosen.digest.clone();
            }
            Document::Manifest(manifest) => {
                let config_bytes = config_bytes(origin, name, &manifest)?;
                return check(name, platform, digest, manifest, bytes, config_bytes, chosen_by_index);
            }
        }
    }
    Err(Error::bad(name, "indexes are nested too deep"))
}

fn config_bytes(origin: &mut dyn Origin, name: &str, manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let descriptor = &manifest.config;
    if descriptor.size > MAX_CONFIG {
        return Err(Error::bad(name, format!("its configuration is larger than {MAX_CONFIG} bytes")));
    }
    let mut blob = origin.blob(&descriptor.digest, descriptor.size);
    let mut bytes = Vec::new();
    if blob.read_to_end(&mut bytes).is_err() {
        return Err(blob.failure().unwrap_or(Error::Cancelled));
    }
    if digest_of(&bytes) == descriptor.digest {
        Ok(bytes)
    } else {
        Err(Error::bad(name, "its configuration's digest is wrong"))
    }
}

fn check(
    name: &str,
    platform: &Platform,
    digest: String,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    chosen_by_index: bool,
) -> Result<Wanted, Error> {
    let config = config::parse(name, &config_bytes)?;
    let stated = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    // A configuration without variant is accepted under an index entry that names one: the index decides.
    let indexed = chosen_by_index && stated.variant.is_empty() && stated.architecture == platform.architecture;
    if platform.rank(&stated).is_none() && !indexed {
        return Err(Error::NoPlatform {
            image: name.to_owned(),
            reason: format!(
                "is for {}; this board is {platform}",
                crate::untrusted::one_line(&stated.to_string())
            ),
        });
    }
    if config.diff_ids.len() != manifest.layers.len() {
        let reason = format!("{} layers, but {} diff_ids", manifest.layers.len(), config.diff_ids.len());
        return Err(Error::bad(name, reason));
    }
    Ok(Wanted { digest, manifest, manifest_bytes, config_bytes, chain: chain_ids(&config.diff_ids), config })
}

/// ChainIDs, bottom first (OCI image-spec config.md, "Layer ChainID").
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let id = chain
            .last()
            .map_or_else(|| diff_id.clone(), |below| digest_of(format!("{below} {diff_id}").as_bytes()));
        chain.push(id);
    }
    chain
}

struct LayerWork<'a> {
    store: &'a Store,
    layer: &'a Layer,
    lower: &'a [PathBuf],
    diff_id: &'a str,
    chain: &'a str,
    cancel: &'a AtomicBool,
    tell: &'a (dyn Fn(Phase, u64) + Sync),
}

impl LayerWork<'_> {
    fn run(&self, origin: &mut dyn Origin) -> Result<u64, Error> {
        let staged = self.store.stage()?;
        let result = self.fetch(origin, &staged);
        match result {
            Ok(bytes) => {
                (self.tell)(Phase::Syncing, self.layer.size);
                self.store.commit_layer(&staged, self.chain)?;
                (self.tell)(Phase::Done, self.layer.size);
                Ok(bytes)
            }
            Err(error) => {
                self.store.discard(&staged);
                Err(error)
            }
        }
    }

    /// Downloads in this thread, inflates and unpacks in two others.
    fn fetch(&self, origin: &mut dyn Origin, staged: &std::path::Path) -> Result<u64, Error> {
        let (sender, receiver) = sync_channel::<Vec<u8>>(QUEUE);
        let mut blob = origin.blob(&self.layer.digest, self.layer.size);
        let (downloaded, unpacked) = std::thread::scope(|scope| {
            let unpacker = scope.spawn(|| self.unpack(receiver, staged));
            let downloaded = self.download(blob.as_mut(), sender);
            (downloaded, unpacker.join())
        });
        // A download that failed ends the unpacker's stream: its error says less.
        if let Some(error) = blob.failure() {
            return Err(error);
        }
        let unpacked = unpacked.unwrap_or_else(|_| Err(Error::bad(&self.layer.digest, "unpacking failed")));
        let (bytes, diff_id) = match (unpacked, downloaded) {
            (_, Err(Error::Cancelled)) => return Err(Error::Cancelled),
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(unpacked), Ok(digest)) if digest == self.layer.digest => unpacked,
            (Ok(_), Ok(_)) => {
                return Err(Error::bad(format!("layer {}", self.layer.digest), "its digest is wrong"));
            }
        };
        if diff_id == self.diff_id {
            Ok(bytes)
        } else {
            Err(Error::bad(format!("layer {}", self.layer.digest), "its diff_id is wrong"))
        }
    }

    fn download(&self, blob: &mut dyn BlobRead, sender: SyncSender<Vec<u8>>) -> Result<String, Error> {
        let mut hashed = Hashed::new(blob);
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let mut piece = vec![0; PIECE];
            match hashed.read(&mut piece) {
                Ok(0) => return Ok(hashed.finish().0),
                Ok(count) => {
                    piece.truncate(count);
                    (self.tell)(Phase::Downloading, hashed.count());
                    if sender.send(piece).is_err() {
                        // The unpacker gave up; its error is told.
                        return Ok(String::new());
                    }
                }
                Err(_) => return Ok(String::new()),
            }
        }
    }

    fn unpack(&self, receiver: Receiver<Vec<u8>>, staged: &std::path::Path) -> Result<(u64, String), Error> {
        let (sender, inflated) = sync_channel::<io::Result<Vec<u8>>>(QUEUE);
        let compression = self.layer.compression;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut plain = decompressed(compression, Pieces::new(receiver.into_iter().map(Ok)));
                while let Some(piece) = next_piece(&mut plain) {
                    let failed = piece.is_err();
                    // The unpacker gave up, or the stream is broken: both end it.
                    if sender.send(piece).is_err() || failed {
                        return;
                    }
                }
            });
            let mut plain = Hashed::new(Pieces::new(inflated.into_iter()));
            let unpacked = unpack(&mut plain, staged, self.lower, self.layer.size)
                .map_err(|error| self.layer_failed(error))?;
            if unpacked.attributes_left_out > 0 {
                let (layer, count) = (&self.layer.digest, unpacked.attributes_left_out);
                tracing::warn!(
                    layer,
                    count,
                    "extended attributes (user.*) that links or this file system do not take"
                );
            }
            Ok((unpacked.bytes, plain.finish().0))
        })
    }

    fn layer_failed(&self, error: LayerError) -> Error {
        let full = error
            .io()
            .and_then(io::Error::raw_os_error)
            .is_some_and(|code| code == libc::ENOSPC || code == libc::EDQUOT);
        if full {
            return match self.store.has_no_inodes() {
                true => Error::NoInodes,
                false => Error::Full { what: format!("layer {}", self.layer.digest) },
            };
        }
        let reason = match error.io() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        Error::bad(format!("layer {}", self.layer.digest), reason)
    }
}

/// A full piece of a stream, the last one shorter; `None` at its end.
fn next_piece(stream: &mut dyn Read) -> Option<io::Result<Vec<u8>>> {
    let mut piece = vec![0; PIECE];
    let mut filled = 0;
    while filled < PIECE {
        match stream.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Some(Err(error)),
        }
    }
    piece.truncate(filled);
    (filled > 0).then_some(Ok(piece))
}

/// A queue as a stream.
struct Pieces<I> {
    pieces: I,
    piece: Vec<u8>,
    at: usize,
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Pieces<I> {
    fn new(pieces: I) -> Self {
        Self { pieces, piece: Vec::new(), at: 0 }
    }
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.next() {
                Some(piece) => (self.piece, self.at) = (piece?, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
