//! Images in files: an OCI image layout (folder or tar archive), or what `docker save` writes.
//!
//! An archive is read by a table of its members' places: nothing of it is unpacked but the layers themselves.

use super::error::Error;
use super::layer::{Archive, Kind, digest_of};
use super::manifest::{self, Document, MAX_MANIFEST};
use super::origin::{BlobRead, Origin};
use super::platform::Platform;
use super::reference::is_digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Members of an archive: a blob for each layer and some documents.
const MAX_MEMBERS: usize = 10_000;

/// Steps of links between members (`docker save` links equal layers).
const MAX_LINKS: usize = 8;

/// An image in files.
pub struct Files {
    path: PathBuf,
    /// Members of an archive; `None`: a folder.
    members: Option<BTreeMap<String, Member>>,
    /// Manifests that are not files: made from what `docker save` wrote.
    made: BTreeMap<String, Vec<u8>>,
    /// Where blobs lie that are not under `blobs/`.
    places: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
enum Member {
    Bytes { offset: u64, size: u64 },
    Link(String),
}

/// An image that the files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name, when the files give one.
    pub name: Option<String>,
    /// Digest of its manifest or index.
    pub digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Files {
    /// Opens a folder or an archive.
    ///
    /// # Errors
    /// When it is neither, or compressed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let mut files =
            Self { path: path.to_owned(), members: None, made: BTreeMap::new(), places: BTreeMap::new() };
        if !path.is_dir() {
            let file = File::open(path).map_err(Error::store("opening", path))?;
            files.members = Some(table(&shown, file)?);
        }
        Ok(files)
    }

    /// The images that it holds.
    ///
    /// # Errors
    /// When it holds none, or its documents break a rule.
    pub fn images(&mut self, platform: &Platform) -> Result<Vec<Found>, Error> {
        if self.has("index.json") {
            return self.layout(platform);
        }
        if self.has("manifest.json") {
            return self.saved();
        }
        Err(self.bad("is neither an OCI image layout (index.json) nor a docker save archive (manifest.json)"))
    }

    fn layout(&mut self, platform: &Platform) -> Result<Vec<Found>, Error> {
        let shown = self.path.display().to_string();
        let bytes = self.document("index.json")?;
        let Document::Index(manifests) = manifest::parse(&shown, &bytes)? else {
            return Err(self.bad("its index.json is no index"));
        };
        let name = |annotations: &BTreeMap<String, String>| {
            let full = annotations.get("io.containerd.image.name");
            let short = annotations.get("org.opencontainers.image.ref.name").filter(|it| it.contains(['/', ':']));
            full.or(short).cloned()
        };
        let named: Vec<Found> = manifests
            .iter()
            .filter(|it| name(&it.annotations).is_some())
            .map(|it| Found { name: name(&it.annotations), digest: it.digest.clone() })
            .collect();
        if !named.is_empty() {
            return Ok(named);
        }
        match manifests.as_slice() {
            [only] => Ok(vec![Found { name: None, digest: only.digest.clone() }]),
            several => {
                let best = manifest::choose(&shown, platform, several)?;
                Ok(vec![Found { name: None, digest: best.digest.clone() }])
            }
        }
    }

    /// Makes manifests from a `docker save` archive: its layers are plain, so their digests are their diff_ids.
    fn saved(&mut self) -> Result<Vec<Found>, Error> {
        let bytes = self.document("manifest.json")?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&bytes).map_err(|error| self.bad(&format!("manifest.json: {error}")))?;
        let mut found = Vec::new();
        for image in saved {
            let config = self.document(&image.config)?;
            let parsed = super::config::parse(&self.path.display().to_string(), &config)?;
            if parsed.diff_ids.len() != image.layers.len() {
                return Err(self.bad("manifest.json has another number of layers than the configuration"));
            }
            let mut layers = Vec::new();
            for (file, diff_id) in image.layers.iter().zip(&parsed.diff_ids) {
                let size = self.size(file)?;
                self.places.insert(diff_id.clone(), file.clone());
                layers.push(serde_json::json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size,
                }));
            }
            let config_digest = digest_of(&config);
            self.places.insert(config_digest.clone(), image.config.clone());
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": config_digest, "size": config.len(),
                },
            });
            let bytes = serde_json::to_vec(&manifest).unwrap_or_default();
            let digest = digest_of(&bytes);
            self.made.insert(digest.clone(), bytes);
            let names = image.repo_tags.unwrap_or_default();
            if names.is_empty() {
                found.push(Found { name: None, digest: digest.clone() });
            }
            found.extend(names.into_iter().map(|name| Found { name: Some(name), digest: digest.clone() }));
        }
        if found.is_empty() { Err(self.bad("holds no image")) } else { Ok(found) }
    }

    fn bad(&self, reason: &str) -> Error {
        Error::bad(self.path.display().to_string(), reason)
    }

    fn has(&self, name: &str) -> bool {
        match &self.members {
            Some(members) => members.contains_key(name),
            None => self.path.join(name).is_file(),
        }
    }

    fn size(&self, name: &str) -> Result<u64, Error> {
        self.member(name).map(|(_, size)| size)
    }

    /// A stream at the beginning of a member, and its size.
    fn member(&self, name: &str) -> Result<(File, u64), Error> {
        let Some(members) = &self.members else {
            // Names come from the files themselves: they may not lead out of the folder.
            if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                return Err(self.bad(&format!("names a file outside of itself: {name:?}")));
            }
            let path = self.path.join(name);
            let file = File::open(&path).map_err(Error::store("opening", &path))?;
            let size = file.metadata().map_err(Error::store("reading", &path))?.len();
            return Ok((file, size));
        };
        let mut name = name.to_owned();
        for _ in 0..MAX_LINKS {
            match members.get(&name) {
                Some(Member::Bytes { offset, size }) => {
                    let mut file = File::open(&self.path).map_err(Error::store("opening", &self.path))?;
                    file.seek(SeekFrom::Start(*offset)).map_err(Error::store("reading", &self.path))?;
                    return Ok((file, *size));
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => return Err(self.bad(&format!("has no member {name:?}"))),
            }
        }
        Err(self.bad(&format!("member {name:?} is a link without an end")))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let (file, size) = self.member(name)?;
        if size > MAX_MANIFEST {
            return Err(self.bad(&format!("{name} is larger than {MAX_MANIFEST} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(Error::store("reading", &self.path))?;
        Ok(bytes)
    }

    fn place(&self, digest: &str) -> String {
        let made = self.places.get(digest).cloned();
        made.unwrap_or_else(|| format!("blobs/{}", digest.replacen(':', "/", 1)))
    }
}

impl Origin for Files {
    fn manifest(&mut self, wanted: &str) -> Result<Vec<u8>, Error> {
        if let Some(made) = self.made.get(wanted) {
            return Ok(made.clone());
        }
        if !is_digest(wanted) {
            return Err(self.bad(&format!("{wanted:?} is no digest")));
        }
        self.document(&self.place(wanted))
    }

    fn blob<'b>(&'b mut self, digest: &str, size: u64) -> Box<dyn BlobRead + 'b> {
        let opened = if is_digest(digest) {
            self.member(&self.place(digest))
        } else {
            Err(self.bad(&format!("{digest:?} is no digest")))
        };
        let (file, failure) = match opened {
            Ok((file, there)) if there == size => (Some(file.take(size)), None),
            Ok(_) => (None, Some(self.bad(&format!("blob {digest} has another size than its descriptor says")))),
            Err(error) => (None, Some(error)),
        };
        Box::new(FileBlob { file, failure })
    }
}

struct FileBlob {
    file: Option<io::Take<File>>,
    failure: Option<Error>,
}

impl Read for FileBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.read(buffer),
            None => Err(io::Error::other("there is no such blob")),
        }
    }
}

impl BlobRead for FileBlob {
    fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

/// Counts what was read, and skips by seeking.
struct Counted {
    file: BufReader<File>,
    at: std::rc::Rc<std::cell::Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

/// The places of an archive's members.
fn table(shown: &str, mut file: File) -> Result<BTreeMap<String, Member>, Error> {
    let mut magic = [0; 4];
    let read = file.read(&mut magic).map_err(Error::store("reading", shown))?;
    if magic[..read].starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(Error::bad(shown, "is compressed: unpack it first (gunzip, zstd -d)"));
    }
    file.seek(SeekFrom::Start(0)).map_err(Error::store("reading", shown))?;
    let at = std::rc::Rc::new(std::cell::Cell::new(0));
    let mut archive = Archive::new(Counted { file: BufReader::new(file), at: std::rc::Rc::clone(&at) });
    let mut members = BTreeMap::new();
    loop {
        let entry = archive.next_entry().map_err(|error| Error::bad(shown, error.to_string()))?;
        let Some(entry) = entry else { return Ok(members) };
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        let name = name.trim_start_matches("./").to_owned();
        let member = match entry.kind {
            Kind::File if entry.parts.is_none() => Member::Bytes { offset: at.get(), size: entry.size },
            Kind::SymLink(target) | Kind::HardLink(target) => Member::Link(resolve(&name, &target)),
            _ => continue,
        };
        if members.len() == MAX_MEMBERS {
            return Err(Error::bad(shown, format!("has more than {MAX_MEMBERS} members")));
        }
        members.insert(name, member);
    }
}

/// The member that a link names: relative to its own folder, as in `docker save` archives (`../HEX/layer.tar`).
fn resolve(name: &str, target: &[u8]) -> String {
    let target = String::from_utf8_lossy(target);
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_from_their_own_folder() {
        assert_eq!(resolve("abc/layer.tar", b"../def/layer.tar"), "def/layer.tar");
        assert_eq!(resolve("layer.tar", b"../../x"), "x");
    }
}
