//! Blobs and manifests as they are into a registry: a client of ours, since others check what they send.

use anyhow::{Context, ensure};
use coracle_runtime::image::digest_of;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::image::ARCHITECTURE;

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A repository of a registry that is reached over plain HTTP.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// Host and port.
    pub registry: &'a str,
    /// Name of the repository.
    pub repository: &'a str,
}

/// A compressed layer, and what it is said to be.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `tar`, `tar+gzip` or `tar+zstd`.
    pub form: &'static str,
    /// The blob.
    pub blob: Vec<u8>,
    /// `sha256:…` of the plain archive.
    pub diff_id: String,
}

impl Layer {
    /// An archive, gzipped.
    pub fn of(plain: &[u8]) -> Self {
        Self { form: "tar+gzip", blob: crate::archive::gzip(plain), diff_id: digest_of(plain) }
    }
}

impl Upload<'_> {
    /// Puts a blob there; its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn blob(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let digest = digest_of(bytes);
        let answer = self.send("POST", &format!("/v2/{}/blobs/uploads/", self.repository), "", &[])?;
        let place = answer.lines().find_map(|line| line.strip_prefix("Location: ")).context("no Location")?;
        let path = place.split_once(self.registry).map_or(place, |(_, path)| path);
        let target = format!("{path}&digest={digest}");
        self.send("PUT", &target, "application/octet-stream", bytes)?;
        Ok(digest)
    }

    /// Puts a manifest or an index there under a tag; its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn manifest(&self, tag: &str, kind: &str, document: &Value) -> anyhow::Result<String> {
        let bytes = serde_json::to_vec(document)?;
        self.send("PUT", &format!("/v2/{}/manifests/{tag}", self.repository), kind, &bytes)?;
        Ok(digest_of(&bytes))
    }

    /// Puts an image of layers there; its manifest, for changes.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn image(&self, tag: &str, layers: &[Layer]) -> anyhow::Result<Value> {
        let described = layers.iter().map(|layer| {
            let digest = self.blob(&layer.blob)?;
            let kind = format!("application/vnd.oci.image.layer.v1.{}", layer.form);
            Ok(json!({"mediaType": kind, "digest": digest, "size": layer.blob.len()}))
        });
        let described: Vec<Value> = described.collect::<anyhow::Result<_>>()?;
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": ARCHITECTURE, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config)?;
        let digest = self.blob(&config)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()},
        });
        self.manifest(tag, MANIFEST, &manifest)?;
        Ok(manifest)
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.registry)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.registry,
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {answer}");
        Ok(answer)
    }
}
