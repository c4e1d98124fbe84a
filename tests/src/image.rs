//! Images made of a list of files, as OCI image layouts.

use anyhow::Context;
use coracle_runtime::image::digest_of;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A file of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A folder.
    Folder(String, u32),
    /// A regular file: path, mode, bytes.
    File(String, u32, Vec<u8>),
    /// A symbolic link: path, target.
    Link(String, String),
    /// A hard link: path, target.
    Hard(String, String),
    /// An owner for everything that follows.
    Owner(u64, u64),
}

/// An image to be made.
#[derive(Debug, Clone, Default)]
pub struct Image {
    layers: Vec<Layer>,
    config: Value,
    /// In OCI's words.
    architecture: &'static str,
    /// In its layout's index.
    name: Option<String>,
}

#[derive(Debug, Clone)]
enum Layer {
    Entries(Vec<Entry>),
    Archive(PathBuf),
}

impl Image {
    /// One without layers.
    pub fn new() -> Self {
        Self { layers: Vec::new(), config: json!({}), architecture: ARCHITECTURE, name: None }
    }

    /// One with the static busybox of this machine as its shell and tools.
    ///
    /// # Errors
    /// When there is none.
    pub fn busybox() -> anyhow::Result<Self> {
        Self::busybox_at(Path::new("/bin/busybox")).context("the package is busybox-static")
    }

    /// The same with another static busybox.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn busybox_at(program: &Path) -> anyhow::Result<Self> {
        let program = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
        let mut entries = vec![
            Entry::Folder("bin".into(), 0o755),
            Entry::Folder("etc".into(), 0o755),
            Entry::Folder("tmp".into(), 0o1777),
            Entry::File("bin/busybox".into(), 0o755, program),
            Entry::File(
                "etc/passwd".into(),
                0o644,
                b"root:x:0:0:root:/root:/bin/sh\npump:x:1000:1000::/home/pump:/bin/sh\n".to_vec(),
            ),
            Entry::File(
                "etc/group".into(),
                0o644,
                b"root:x:0:\npump:x:1000:\ndialout:x:20:pump\ngpio:x:27:pump,other\n".to_vec(),
            ),
        ];
        for tool in TOOLS {
            entries.push(Entry::Link(format!("bin/{tool}"), "busybox".into()));
        }
        Ok(Self::new().layer(entries).with("Cmd", json!(["/bin/sh"])))
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, entries: Vec<Entry>) -> Self {
        self.layers.push(Layer::Entries(entries));
        self
    }

    /// Adds a layer that is a tar archive already.
    #[must_use]
    pub fn archive(mut self, path: &Path) -> Self {
        self.layers.push(Layer::Archive(path.to_owned()));
        self
    }

    /// Sets a field of the configuration, by its name in OCI's `config`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Names it in its layout.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Names another architecture than this machine's.
    #[must_use]
    pub fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    /// Writes an OCI image layout.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let put = |bytes: &[u8]| -> anyhow::Result<(String, usize)> {
            let digest = digest_of(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok((digest, bytes.len()))
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let plain = match layer {
                Layer::Entries(entries) => tar_of(entries)?,
                Layer::Archive(path) => {
                    std::fs::read(path).with_context(|| format!("reading {}", path.display()))?
                }
            };
            diff_ids.push(digest_of(&plain));
            let (digest, size) = put(&gzip(&plain)?)?;
            layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}));
        }
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (digest, size) = put(&serde_json::to_vec(&config)?)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size},
            "layers": layers,
        });
        let (digest, size) = put(&serde_json::to_vec(&manifest)?)?;
        let mut index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}],
        });
        if let Some(name) = &self.name {
            index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        std::fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        Ok(())
    }
}

/// This machine, in OCI's words.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };

/// What busybox is linked as.
pub(crate) const TOOLS: &[&str] = &[
    "sh", "cat", "echo", "env", "id", "ls", "nc", "nslookup", "ping", "ps", "pwd", "setsid", "sleep", "stat",
    "tail", "test", "touch", "true", "false", "wget", "yes", "mount", "umount", "hostname", "ip", "httpd", "kill",
    "dd", "date", "mkdir", "rm", "seq", "readlink", "printf", "head", "wc", "grep", "cut", "tr", "df", "stty",
    "tty", "timeout", "chmod", "od",
];

fn tar_of(entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut owner = (0, 0);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000_000);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_size(0);
        match entry {
            Entry::Owner(uid, gid) => owner = (*uid, *gid),
            Entry::Folder(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, path, std::io::empty())?;
            }
            Entry::File(path, mode, bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())?;
            }
            Entry::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, target)?;
            }
            Entry::Hard(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(builder.into_inner()?)
}

fn gzip(plain: &[u8]) -> anyhow::Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?)
}
