//! Takes requests, one a connection.

use super::{DataUsage, ImageInfo, MAX_REQUEST, Reply, Request, logs, preflight};
use crate::engine::{Handle, Message, Order, Refusal, options};
use crate::exit::Code;
use crate::target::{Registries, Wanted};
use coracle_runtime::image::{self, Image, Reference};
use coracle_runtime::shim::Request as ShimRequest;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Connections at once: people and a few programs. More wait in the socket's queue.
const MAX_CONNECTIONS: usize = 32;

/// Time for sending the request: it is one line from this host.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two tellings of a pull's progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// Serves the agent's socket until its task is aborted.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(handle: Handle) -> std::io::Result<()> {
    let path = handle.paths.agent_socket();
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let (stream, _) = listener.accept().await?;
        let handle = handle.clone();
        tokio::task::spawn_local(async move {
            let _permit = permit;
            if let Err(error) = connection(handle, stream).await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
}

/// The side that answers.
pub struct Answers {
    writer: OwnedWriteHalf,
}

impl Answers {
    /// Sends one line.
    ///
    /// # Errors
    /// When the asker is gone.
    pub async fn send(&mut self, reply: &Reply) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }
}

async fn connection(handle: Handle, stream: UnixStream) -> std::io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut answers = Answers { writer };
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = Vec::new();
    let read = tokio::time::timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut line)).await;
    let request = match read {
        Ok(Ok(_)) => serde_json::from_slice::<Request>(&line).map_err(|error| error.to_string()),
        Ok(Err(error)) => return Err(error),
        Err(_) => Err("no request came".to_owned()),
    };
    let reader = reader.into_inner().into_inner();
    let answered = match request {
        Ok(request) => tokio::select! {
            answered = answer(&handle, request, &mut answers) => answered?,
            // Whoever leaves needs no answer.
            () = left(reader) => return Ok(()),
        },
        Err(reason) => Err(Refusal::new(Code::Configuration, format!("request: {reason}"))),
    };
    match answered {
        Ok(()) => answers.send(&Reply::Done).await,
        Err(refusal) => answers.send(&Reply::Refused(refusal)).await,
    }
}

async fn left(mut reader: OwnedReadHalf) {
    let mut byte = [0];
    while matches!(reader.read(&mut byte).await, Ok(1..)) {}
}

type Answered = std::io::Result<Result<(), Refusal>>;

async fn answer(handle: &Handle, request: Request, answers: &mut Answers) -> Answered {
    match request {
        Request::Up { wanted, recreate, pull } => match up(handle, *wanted, recreate, pull).await {
            Ok(reply) => answers.send(&reply).await.map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        },
        Request::Down { project, volumes } => order(handle, answers, Order::Down { project, volumes }).await,
        Request::Stop { project, services } => order(handle, answers, Order::Stop(project, services)).await,
        Request::Start { project, services } => order(handle, answers, Order::Start(project, services)).await,
        Request::Restart { project, services } => order(handle, answers, Order::Restart(project, services)).await,
        Request::Plan { wanted } => match planned(handle, wanted).await {
            Ok(reply) => answers.send(&reply).await.map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        },
        Request::Status => {
            let status = (**handle.status.borrow()).clone();
            answers.send(&Reply::Status(Box::new(status))).await.map(Ok)
        }
        Request::Watch => watch(handle, answers).await.map(Ok),
        Request::Logs(request) => logs::answer(handle, &request, answers).await,
        Request::Pull { images, registries } => pull(handle, images, registries, answers).await,
        Request::Import { path, name } => import(handle, path, name, answers).await,
        Request::Images => images(handle, answers).await,
        Request::Usage => match usage(handle).await {
            Ok(usage) => answers.send(&Reply::Usage(Box::new(usage))).await.map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        },
        Request::Free => order(handle, answers, Order::Free).await,
        Request::Shutdown => {
            let client = handle.client.borrow().clone();
            // Refused while containers run: then the shim stays with them.
            let _ = client.tell(ShimRequest::Shutdown, &[]).await;
            let _ = handle.sender.send(Message::End).await;
            Ok(Ok(()))
        }
    }
}

async fn order(handle: &Handle, answers: &mut Answers, order: Order) -> Answered {
    match handle.order(order).await {
        Ok(taken) => answers.send(&Reply::Taken { order: taken.order, plan: taken.plan }).await.map(Ok),
        Err(refusal) => Ok(Err(refusal)),
    }
}

async fn up(handle: &Handle, wanted: Wanted, recreate: bool, pull: bool) -> Result<Reply, Refusal> {
    let needed = preflight::project(handle, &wanted).await?;
    if needed.space_needed > needed.space_available {
        preflight::check_space(&needed, usage(handle).await?.freeable)?;
    }
    let taken = handle.order(Order::Up { wanted: Box::new(wanted), recreate, pull }).await?;
    Ok(Reply::Taken { order: taken.order, plan: taken.plan })
}

async fn planned(handle: &Handle, wanted: Box<Wanted>) -> Result<Reply, Refusal> {
    let preflight = preflight::project(handle, &wanted).await?;
    let plan = handle.order(Order::Plan(wanted)).await?.plan;
    Ok(Reply::Planned { plan, preflight })
}

async fn watch(handle: &Handle, answers: &mut Answers) -> std::io::Result<()> {
    let mut status = handle.status.clone();
    loop {
        let now = (**status.borrow_and_update()).clone();
        answers.send(&Reply::Status(Box::new(now))).await?;
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn pull(handle: &Handle, images: Vec<String>, registries: Registries, answers: &mut Answers) -> Answered {
    let mut references = BTreeSet::new();
    for image in images {
        match image.parse::<Reference>() {
            Ok(reference) => drop(references.insert(reference)),
            Err(error) => return Ok(Err(Refusal::new(Code::Configuration, error.to_string()))),
        }
    }
    let needed = match preflight::images(handle, references.clone(), &registries).await {
        Ok(needed) => needed,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let Err(refusal) = preflight::check_space(&needed, 0) {
        return Ok(Err(refusal));
    }
    for reference in references {
        match pull_one(handle, &reference, &registries, answers).await? {
            Ok(image) => answers.send(&Reply::Image(info(&image))).await?,
            Err(error) => return Ok(Err(preflight::refused(&error))),
        }
        // The engine reads the index again, and does not collect what nobody wants yet.
        if let Err(refusal) = handle.order(Order::Keep(vec![reference.to_string()])).await {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(()))
}

async fn pull_one(
    handle: &Handle,
    reference: &Reference,
    registries: &Registries,
    answers: &mut Answers,
) -> std::io::Result<Result<Image, image::Error>> {
    let (store, options, name) = (handle.store.clone(), options(registries), reference.clone());
    let progress = Arc::new(Mutex::new(None));
    // Whoever leaves ends the pull: dropping this future sets the flag.
    let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
    let (flag, told) = (Arc::clone(&cancel.0), Arc::clone(&progress));
    let tell = move |now: image::Progress| *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    let mut work = tokio::task::spawn_blocking(move || image::pull(&store, &name, &options, &flag, &tell));
    loop {
        tokio::select! {
            done = &mut work => return Ok(done.unwrap_or(Err(image::Error::Cancelled))),
            () = tokio::time::sleep(PROGRESS_PAUSE) => {
                let now = progress.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(now) = now {
                    let image = reference.to_string();
                    answers.send(&Reply::Progress { image, done: now.done, total: now.total }).await?;
                }
            }
        }
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Takes every image of an archive or folder; one without a name needs `name`.
async fn import(
    handle: &Handle,
    path: std::path::PathBuf,
    name: Option<String>,
    answers: &mut Answers,
) -> Answered {
    let store = handle.store.clone();
    let take = move || take_files(&store, &path, name);
    let taken = tokio::task::spawn_blocking(take).await.unwrap_or(Err(image::Error::Cancelled));
    let images = match taken {
        Ok(images) => images,
        Err(error) => return Ok(Err(preflight::refused(&error))),
    };
    let names = images.iter().map(|image| image.reference.clone()).collect();
    if let Err(refusal) = handle.order(Order::Keep(names)).await {
        return Ok(Err(refusal));
    }
    for image in &images {
        answers.send(&Reply::Image(info(image))).await?;
    }
    Ok(Ok(()))
}

fn take_files(store: &image::Store, path: &Path, name: Option<String>) -> Result<Vec<Image>, image::Error> {
    let platform = image::Platform::of_this_machine();
    let mut files = image::Files::open(path)?;
    let found = files.images(&platform)?;
    let refuse = |reason: &str| image::Error::Setting(format!("{}: {reason}", path.display()));
    if name.is_some() && found.len() > 1 {
        return Err(refuse("holds several images, each with its name"));
    }
    let mut images = Vec::new();
    for found in found {
        let named = name.clone().or(found.name);
        let name: Reference =
            named.ok_or_else(|| refuse("its image has no name: give one with --name"))?.parse()?;
        let cancel = AtomicBool::new(false);
        images.push(image::import(store, &mut files, (&name, &found.digest), &platform, &cancel, &|_| {})?);
    }
    Ok(images)
}

async fn images(handle: &Handle, answers: &mut Answers) -> Answered {
    let images = match handle.store.images() {
        Ok(images) => images,
        Err(error) => return Ok(Err(preflight::refused(&error))),
    };
    for image in &images {
        answers.send(&Reply::Image(info(image))).await?;
    }
    Ok(Ok(()))
}

fn info(image: &Image) -> ImageInfo {
    let config = &image.config;
    let variant = if config.variant.is_empty() { String::new() } else { format!("/{}", config.variant) };
    ImageInfo {
        name: image.reference.clone(),
        digest: image.digest.clone(),
        platform: format!("{}/{}{variant}", config.os, config.architecture),
        layers: image.chain.len(),
        size: image.size,
    }
}

async fn usage(handle: &Handle) -> Result<DataUsage, Refusal> {
    let (store, paths) = (handle.store.clone(), handle.paths.as_ref().clone());
    let wanted: BTreeSet<String> = {
        let status = handle.status.borrow();
        let services = status.projects.values().flat_map(|project| project.services.values());
        services.map(|service| service.image_digest.clone()).collect()
    };
    let measure = move || -> Result<DataUsage, image::Error> {
        let images = store.usage()?;
        let freeable = store.freeable(&wanted)?;
        let folders = |path: &Path| -> Vec<std::path::PathBuf> {
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let containers =
            folders(&paths.containers()).iter().map(|path| (name(path), image::tree_bytes(path))).collect();
        let mut volumes = Vec::new();
        for project in folders(&paths.data.join("volumes")) {
            for volume in folders(&project) {
                let shown = format!("{}/{}", name(&project), name(&volume));
                volumes.push((shown, image::tree_bytes(&volume)));
            }
        }
        let other =
            folders(&paths.data).iter().filter(|path| path.is_file()).map(|path| image::tree_bytes(path)).sum();
        Ok(DataUsage {
            images,
            containers,
            volumes,
            staging: image::tree_bytes(&paths.staging()),
            other,
            logs: folders(&paths.data.join("logs"))
                .iter()
                .map(|path| (name(path).replace(':', "/"), image::tree_bytes(path)))
                .collect(),
            freeable,
            available: store.available() + image::RESERVE,
        })
    };
    let measured = tokio::task::spawn_blocking(measure).await;
    let measured = measured.map_err(|_| Refusal::new(Code::Internal, "measuring was broken off"))?;
    measured.map_err(|error| preflight::refused(&error))
}
