//! Before an order is taken: are its images to be had, and do they fit?

use crate::engine::{Handle, Refusal, options};
use crate::exit::Code;
use crate::target::{Registries, Wanted};
use crate::wanted;
use coracle_compose::PullPolicy;
use coracle_runtime::image::{self, Reference};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What would be fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Images that are not in the store.
    pub images: Vec<MissingImage>,
    /// Bytes to download. Layers that two images share are counted once.
    pub to_download: u64,
    /// Bytes that the store will grow by, estimated.
    pub space_needed: u64,
    /// Bytes that images may take now.
    pub space_available: u64,
}

/// An image that is not in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingImage {
    /// Full reference.
    pub name: String,
    /// Its manifest's digest.
    pub digest: String,
    /// Bytes to download.
    pub to_download: u64,
}

/// Asks the registries for every image that a project lacks.
///
/// # Errors
/// An image that cannot be had, with the exit code that says why.
pub async fn project(handle: &Handle, wanted: &Wanted) -> Result<Preflight, Refusal> {
    let mut missing = BTreeSet::new();
    for (name, service) in &wanted.project.services {
        let reference = wanted::reference(service)
            .map_err(|reason| Refusal::new(Code::Configuration, format!("service {name} {reason}")))?;
        let known = handle.store.find(&reference).map_err(|error| refused(&error))?.is_some();
        if known {
            continue;
        }
        if service.pull_policy == PullPolicy::Never {
            let reason = format!("service {name}: {reference} is not in the store and pull_policy is never");
            return Err(Refusal::new(Code::NotFound, reason));
        }
        missing.insert(reference);
    }
    images(handle, missing, &wanted.registries).await
}

/// Asks the registries for some images.
///
/// # Errors
/// An image that cannot be had, with the exit code that says why.
pub async fn images(
    handle: &Handle,
    missing: BTreeSet<Reference>,
    registries: &Registries,
) -> Result<Preflight, Refusal> {
    let (store, options) = (handle.store.clone(), options(registries));
    let ask = move || {
        let mut preflight = Preflight { space_available: store.available(), ..Preflight::default() };
        let mut layers = BTreeSet::new();
        for reference in missing {
            let resolved = image::resolve(&store, &reference, &options)?;
            let fresh: u64 = resolved
                .layers
                .iter()
                .filter(|layer| !layer.present && layers.insert(layer.digest.clone()))
                .map(|layer| layer.size)
                .sum();
            let share = |total: u64| match resolved.to_download {
                0 => 0,
                all => u64::try_from(u128::from(total) * u128::from(fresh) / u128::from(all)).unwrap_or(total),
            };
            preflight.to_download += fresh;
            preflight.space_needed += share(resolved.space_needed);
            preflight.images.push(MissingImage {
                name: reference.to_string(),
                digest: resolved.digest,
                to_download: fresh,
            });
        }
        Ok(preflight)
    };
    let asked = tokio::task::spawn_blocking(ask).await;
    let asked = asked.map_err(|_| Refusal::new(Code::Internal, "asking the registry was broken off"))?;
    asked.map_err(|error| refused(&error))
}

/// Refuses what cannot fit, and says what could be freed.
///
/// # Errors
/// When it does not fit.
pub fn check_space(preflight: &Preflight, freeable: u64) -> Result<(), Refusal> {
    if preflight.space_needed <= preflight.space_available {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    Err(Refusal::new(
        Code::NoSpace,
        format!(
            "no space: the images need {} MiB, {} MiB may be used, `coracle df --free` could free {} MiB",
            mib(preflight.space_needed),
            mib(preflight.space_available),
            mib(freeable)
        ),
    ))
}

/// An image error as a refusal.
pub fn refused(error: &image::Error) -> Refusal {
    Refusal::new(Code::of_image(error.kind()), crate::engine::chain(error))
}
