//! Manifests and indexes, OCI and Docker schema 2 (OCI image-spec manifest.md, image-index.md).

use super::error::Error;
use super::platform::{NoMatch, Platform};
use super::reference::is_digest;
use crate::untrusted::one_line;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Bytes of a manifest or index; the distribution specification asks registries to take at least this much.
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

/// Layers of one image. The kernel's overlay takes far fewer; Docker's own limit is 127.
const MAX_LAYERS: usize = 256;

/// Bytes of one compressed layer: far above what any board holds, and all layers of an image can be added up.
const MAX_LAYER: u64 = 1 << 40;

/// Media types asked for, in one `Accept` header.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What a manifest says of a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Platform, in an index.
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Set for things that are no images.
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// False for attestations and other artifacts.
    pub fn is_image(&self) -> bool {
        self.artifact_type.is_none()
            && !self.annotations.contains_key("vnd.docker.reference.type")
            && self
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os != "unknown" && platform.architecture != "unknown")
    }

    fn check(&self, what: &str) -> Result<(), Error> {
        if is_digest(&self.digest) {
            Ok(())
        } else {
            Err(Error::bad(what, format!("digest {:?} is not sha256", self.digest)))
        }
    }
}

/// A manifest of one image.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    pub layers: Vec<Layer>,
}

/// A layer in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// One of both documents.
#[derive(Debug)]
pub enum Document {
    /// Several images.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Reads a manifest or an index.
///
/// # Errors
/// When the bytes are neither, or break a rule.
pub fn parse(what: &str, bytes: &[u8]) -> Result<Document, Error> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| Error::bad(what, format!("no manifest: {error}")))?;
    if raw.schema_version != 2 {
        return Err(Error::bad(
            what,
            format!("schema version {} is not supported, push the image anew", raw.schema_version),
        ));
    }
    if let Some(artifact) = raw.artifact_type {
        return Err(Error::bad(what, format!("is no image but an artifact of type {artifact}")));
    }
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), Some(layers), None) => manifest(what, config, layers).map(Document::Manifest),
        (None, None, Some(manifests)) => {
            manifests.iter().try_for_each(|descriptor| descriptor.check(what))?;
            Ok(Document::Index(manifests))
        }
        _ => Err(Error::bad(what, "is neither a manifest nor an index")),
    }
}

fn manifest(what: &str, config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest, Error> {
    config.check(what)?;
    if layers.len() > MAX_LAYERS {
        return Err(Error::bad(what, format!("{} layers, at most {MAX_LAYERS} are taken", layers.len())));
    }
    let layers = layers.into_iter().map(|layer| {
        layer.check(what)?;
        if layer.size > MAX_LAYER {
            let reason = format!("layer {} states {} bytes, at most 1 TiB is taken", layer.digest, layer.size);
            return Err(Error::bad(what, reason));
        }
        let compression = compression(&layer.media_type)
            .ok_or_else(|| Error::bad(what, format!("layer type {:?} is not supported", layer.media_type)))?;
        Ok(Layer { digest: layer.digest, size: layer.size, compression })
    });
    Ok(Manifest { config, layers: layers.collect::<Result<_, Error>>()? })
}

fn compression(media_type: &str) -> Option<Compression> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some(Compression::Gzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Some(Compression::Zstd)
        }
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some(Compression::None)
        }
        _ => None,
    }
}

/// The entry of an index for this machine.
///
/// # Errors
/// When there is none, naming what is offered.
pub fn choose<'a>(what: &str, platform: &Platform, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, Error> {
    platform.choose(manifests).map_err(|none| Error::NoPlatform {
        image: what.to_owned(),
        reason: match none {
            NoMatch::HoldsNoImage => "holds no image".to_owned(),
            NoMatch::Offers(offers) => {
                format!("offers {}; this board is {platform}", one_line(&offers.join(", ")))
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_layer_types_and_schema_1_are_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{digest}"}},"layers":[{{"digest":"{digest}","mediaType":"x/y"}}]}}"#
        );
        assert!(parse("i", manifest.as_bytes()).is_err_and(|error| error.to_string().contains("x/y")));
        assert!(parse("i", br#"{"schemaVersion":1}"#).is_err());
        assert!(parse("i", br#"{"schemaVersion":2,"config":{"digest":"sha256:../x"},"layers":[]}"#).is_err());
    }

    #[test]
    fn sizes_that_cannot_be_added_and_messages_of_a_stranger_are_bounded() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let manifest = |size: u64, kind: &str| {
            let kind = if kind.is_empty() { "application/vnd.oci.image.layer.v1.tar" } else { kind };
            format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{digest}"}},"layers":[{{"digest":"{digest}","mediaType":"{kind}","size":{size}}}]}}"#
            )
        };
        let said = |text: String| parse("i", text.as_bytes()).expect_err("refused").to_string();
        assert!(said(manifest(u64::MAX, "")).contains("at most 1 TiB"));
        let long = said(manifest(1, &"x".repeat(100_000)));
        assert!(long.chars().count() < 400, "{} bytes", long.len());
        let lines = said(r#"{"schemaVersion":2,"artifactType":"a\nb\u001b[2J"}"#.to_owned());
        assert!(!lines.contains(['\n', '\u{1b}']), "{lines:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse("i", &bytes);
        }
    }
}
