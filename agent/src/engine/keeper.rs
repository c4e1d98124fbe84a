//! Copies logs from the shim's memory into files, for services that ask for it.

use super::{Engine, Handle};
use crate::logfile::{Bounds, LogFiles, Place};
use crate::paths::Paths;
use crate::status::Status;
use coracle_runtime::shim::{Client, ClientError};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Time in which lines are gathered before they are written: one wakeup a second for a service that always writes. The
/// shim's memory holds what comes meanwhile, up to 256 KiB.
const GATHER: Duration = Duration::from_secs(1);

/// Copies logs.
pub struct Keeper {
    client: Rc<RefCell<Client>>,
    /// Each container's last record that is in its files.
    last: Mutex<BTreeMap<String, Place>>,
}

/// A container's log and where it is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The container.
    pub id: String,
    /// The service's files.
    pub folder: PathBuf,
    /// How much is kept.
    pub bounds: Bounds,
}

/// Why a log was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The shim did not give it.
    #[error(transparent)]
    Shim(#[from] ClientError),
    /// A file.
    #[error("writing {}", folder.display())]
    File {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Keeper {
    /// For containers of the shim that `client` is connected with.
    pub fn new(client: Rc<RefCell<Client>>) -> Self {
        Self { client, last: Mutex::default() }
    }

    /// Copies what is new of one container's log.
    ///
    /// # Errors
    /// When the shim is gone, or as the file system says; what was not copied is tried again the next time.
    pub async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        // One at a time: two copies would write the same lines twice.
        let mut places = self.last.lock().await;
        let client = self.client.borrow().clone();
        if let Some(last) = places.remove(&kept.id) {
            let next = after(&client, &kept.id, Some(last)).await?;
            if next > 0 && client.read_log(&kept.id, next).await?.records.is_empty() {
                places.insert(kept.id.clone(), last);
                return Ok(());
            }
        }
        let (folder, bounds) = (kept.folder.clone(), kept.bounds);
        let failed = |source| KeepError::File { folder: kept.folder.clone(), source };
        let mut files = blocking(move || LogFiles::open(&folder, bounds)).await.map_err(failed)?;
        let mut next = after(&client, &kept.id, files.last()).await?;
        loop {
            let page = client.read_log(&kept.id, next).await?;
            if page.records.is_empty() {
                break;
            }
            next = page.next;
            let append = move || files.append(&page.records).map(|()| files);
            files = blocking(append).await.map_err(failed)?;
        }
        places.extend(files.last().map(|last| (kept.id.clone(), last)));
        Ok(())
    }
}

/// Where a container's log goes on behind the record that was written last.
///
/// # Errors
/// When the shim is gone, or has no such container.
pub async fn after(client: &Client, id: &str, last: Option<Place>) -> Result<u64, ClientError> {
    let Some(last) = last else { return Ok(0) };
    let page = client.read_log(id, last.sequence).await?;
    // Another container's record, or the shim's memory begins later: then everything there is new.
    let same = |it: &coracle_runtime::shim::LogRecord| it.sequence == last.sequence && it.unix_ns == last.unix_ns;
    Ok(if page.records.first().is_some_and(same) { last.sequence + 1 } else { 0 })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// The logs that are kept, of all services.
pub fn kept(status: &Status, paths: &Paths) -> Vec<Kept> {
    let services = status.projects.iter().flat_map(|(project, it)| {
        it.services.iter().map(move |(name, service)| (project.as_str(), name.as_str(), service))
    });
    let kept = services.filter_map(|(project, name, service)| {
        let folder = paths.log_folder(project, name);
        Some(Kept { id: service.container.clone(), folder, bounds: service.log_files? })
    });
    kept.collect()
}

impl Engine {
    /// Removes the files of services that went when nobody saw it.
    pub(super) fn remove_unwanted_logs(&self) {
        let paths = &self.context.paths;
        let services = self.target.projects.iter().flat_map(|(project, wanted)| {
            wanted.project.services.iter().map(move |(name, service)| (project, name, service))
        });
        let wanted = services.filter(|(.., service)| service.logging.files);
        remove_others(paths, &wanted.map(|(project, name, _)| paths.log_folder(project, name)).collect());
    }
}

/// Removes the files of services that are not there any more, or do not want them.
pub fn remove_others(paths: &Paths, wanted: &BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(paths.data.join("logs")).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !wanted.contains(&folder)
            && let Err(error) = paths.remove_folder(&folder)
        {
            tracing::warn!(folder = %folder.display(), %error, "a log could not be removed");
        }
    }
}

/// Copies logs for as long as there is an agent.
pub async fn run(handle: Handle, keeper: Rc<Keeper>) {
    let (mut logs, mut status) = (handle.logs.clone(), handle.status.clone());
    let mut complained = BTreeSet::new();
    // Before the first snapshot nothing is known to be wanted.
    while status.changed().await.is_ok() {
        loop {
            logs.mark_unchanged();
            let kept = kept(&status.borrow_and_update(), &handle.paths);
            remove_others(&handle.paths, &kept.iter().map(|it| it.folder.clone()).collect());
            for kept in kept.iter().filter(|it| !it.id.is_empty()) {
                match keeper.keep(kept).await {
                    Ok(()) => drop(complained.remove(&kept.folder)),
                    // Once for each service until it works again: a full disk stays full.
                    Err(error) if complained.insert(kept.folder.clone()) => {
                        tracing::warn!(container = %kept.id, error = super::chain(&error), "its log is not kept");
                    }
                    Err(_) => {}
                }
            }
            if kept.is_empty() {
                break;
            }
            tokio::select! {
                changed = logs.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}
