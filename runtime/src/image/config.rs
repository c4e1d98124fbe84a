//! An image's configuration (OCI image-spec config.md, with Docker's health check).

use super::error::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes of a configuration; history and labels make the largest ones some hundred KiB.
pub const MAX_CONFIG: u64 = 4 * 1024 * 1024;

/// PATH when neither image nor service has one (Docker's default).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant, empty when there is none.
    pub variant: String,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV in order.
    pub env: Vec<(String, String)>,
    /// USER.
    pub user: String,
    /// WORKDIR.
    pub working_dir: String,
    /// VOLUME.
    pub volumes: Vec<String>,
    /// EXPOSE.
    pub exposed_ports: Vec<String>,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// HEALTHCHECK.
    pub healthcheck: Option<ImageHealth>,
    /// LABEL.
    pub labels: BTreeMap<String, String>,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<String>,
}

/// A health check as Docker stores it; absent fields are zero there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHealth {
    /// `NONE`, or `CMD` and a program, or `CMD-SHELL` and a line.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: Option<Duration>,
    /// Of one check.
    pub timeout: Option<Duration>,
    /// In which failures do not count.
    pub start_period: Option<Duration>,
    /// Between two checks in the start period.
    pub start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    variant: String,
    #[serde(default, deserialize_with = "nullable")]
    config: RawConfig,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "nullable")]
    stop_signal: String,
    healthcheck: Option<RawHealth>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealth {
    #[serde(deserialize_with = "nullable")]
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

/// Go writes empty lists and maps as null.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Reads a configuration.
///
/// # Errors
/// When the bytes are none.
pub fn parse(what: &str, bytes: &[u8]) -> Result<ImageConfig, Error> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| Error::bad(what, format!("configuration: {error}")))?;
    let config = raw.config;
    Ok(ImageConfig {
        os: raw.os,
        architecture: raw.architecture,
        variant: raw.variant,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env.iter().map(|line| line.split_once('=').unwrap_or((line, ""))).map(owned).collect(),
        user: config.user,
        working_dir: config.working_dir,
        volumes: config.volumes.into_keys().collect(),
        exposed_ports: config.exposed_ports.into_keys().collect(),
        stop_signal: Some(config.stop_signal).filter(|signal| !signal.is_empty()),
        healthcheck: config.healthcheck.map(health),
        labels: config.labels,
        diff_ids: raw.rootfs.diff_ids,
    })
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn health(raw: RawHealth) -> ImageHealth {
    let time = |nanoseconds: i64| u64::try_from(nanoseconds).ok().filter(|&it| it > 0).map(Duration::from_nanos);
    ImageHealth {
        test: raw.test,
        interval: time(raw.interval),
        timeout: time(raw.timeout),
        start_period: time(raw.start_period),
        start_interval: time(raw.start_interval),
        retries: u32::try_from(raw.retries).ok().filter(|&it| it > 0),
    }
}
