//! Starting, stopping and removing containers.

use super::{Context, StepError, blocking};
use crate::current::Identity;
use crate::durable;
use crate::paths::Paths;
use crate::translate::{Content, Made, MadeFile};
use coracle_runtime::container::SPEC_FILE;
use coracle_runtime::network::links::{LinkError, Links};
use coracle_runtime::network::namespace::{self, Interface};
use coracle_runtime::shim::{Client, ClientError, FailureKind, Reply, Request};
use nix::fcntl::OFlag;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Time for making a container: a slow card with a cold cache needs some seconds; a stuck file system all of it.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for removing one.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that a killed container may take to be gone: a core dump or a slow disk, not more.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a secret or config that is read from a file (Docker's limit on a secret).
const MAX_GRANT: u64 = 500 * 1024;

/// An interface that is made for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Name of the end outside.
    pub outer: String,
    /// The bridge.
    pub bridge: String,
    /// Address, if the file gives one.
    pub mac: Option<[u8; 6]>,
    /// The end inside.
    pub interface: Interface,
}

/// A container that is to be started, with everything decided.
pub struct StartJob {
    /// Description and files.
    pub made: Made,
    /// Written beside the writable layer when the container is new.
    pub identity: Identity,
    /// It gets a network namespace of its own, with these interfaces.
    pub links: Option<Vec<Link>>,
    /// Its program runs when the [`Gate`] opens.
    pub barrier: Option<OwnedFd>,
}

/// Keeps the program of a container that is made from running: until it is opened, or for ever when it is dropped.
#[derive(Debug)]
pub struct Gate(OwnedFd);

impl Gate {
    /// A gate and what is behind it.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn new() -> nix::Result<(Self, OwnedFd)> {
        let (barrier, gate) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok((Self(gate), barrier))
    }

    /// Lets the program run.
    pub fn open(self) {
        // Who waited behind it may be gone: its end is told by other ways.
        let _ = nix::unistd::write(&self.0, &[1]);
    }
}

/// What became of a start.
#[derive(Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs.
    Running {
        /// Process id of its main process.
        pid: i32,
    },
    /// Its program cannot be run; it counts as an end with this code.
    NotRunnable {
        /// 126 or 127.
        code: i32,
        /// One line.
        reason: String,
    },
}

/// Starts a container: folders and files, namespace, then the shim.
///
/// # Errors
/// Nothing of a namespace that was made here is left then.
pub async fn start(context: Context, job: StartJob) -> Result<Started, StepError> {
    let id = job.made.spec.id.clone();
    let paths = context.paths.as_ref().clone();
    let client = &context.client;
    let StartJob { made, identity, links, barrier } = job;
    let namespace = async {
        match links {
            Some(links) => hold_namespace(client, &id, links).await,
            None => Ok(false),
        }
    };
    // One waits for the disk, the other for the kernel.
    let (prepared, namespace) = tokio::join!(blocking(move || prepare(&paths, made, &identity)), namespace);
    let made_namespace = matches!(namespace, Ok(true));
    let result = match prepared.and(namespace) {
        Ok(_) => ask_start(client, &id, barrier).await,
        Err(error) => Err(error),
    };
    if result.is_err() && made_namespace {
        let _ = client.tell(Request::DropNamespace { name: id.clone() }, &[]).await;
    }
    result
}

async fn ask_start(client: &Client, id: &str, barrier: Option<OwnedFd>) -> Result<Started, StepError> {
    let request = Request::Start { id: id.to_owned(), timeout: START_TIMEOUT };
    let descriptors: Vec<RawFd> = barrier.iter().map(AsRawFd::as_raw_fd).collect();
    match client.ask(request, &descriptors).await {
        Ok((Reply::Started { pid }, _)) => Ok(Started::Running { pid }),
        Ok(_) => Err(ClientError::Unexpected.into()),
        Err(ClientError::Failed(failure)) => match failure.kind {
            FailureKind::NotRunnable { code } => Ok(Started::NotRunnable { code, reason: failure.message }),
            _ => Err(ClientError::Failed(failure).into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Makes folders and files; the identity comes last, so that a folder without one is unfinished.
fn prepare(paths: &Paths, made: Made, identity: &Identity) -> Result<(), StepError> {
    let id = &made.spec.id;
    let folder = paths.container(id);
    let make = |path: &Path| {
        std::fs::create_dir_all(path).map_err(StepError::file(format!("making the folder {}", path.display())))
    };
    for path in [&made.spec.upper, &made.spec.work] {
        make(path)?;
    }
    for path in &made.folders {
        make(path)?;
    }
    let identity_file = folder.join("identity.json");
    if !identity_file.exists() {
        durable::write_json(&identity_file, identity)
            .and_then(|()| durable::sync_folder(&paths.containers()))
            .map_err(StepError::file(format!("writing {}", identity_file.display())))?;
    }
    let files = paths.files(id);
    make(&files)?;
    for file in &made.files {
        write_file(&files, file)?;
    }
    // Processes that a lost shim left behind.
    coracle_runtime::container::cgroup::kill_all(&made.spec.cgroup);
    let shim = paths.shim_container(id);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&shim)
        .and_then(|()| durable::write_volatile(&shim.join(SPEC_FILE), &made.spec))
        .map_err(StepError::file(format!("writing {}", shim.display())))
}

/// Written in place: a file that is mounted in a running container keeps its inode.
fn write_file(folder: &Path, file: &MadeFile) -> Result<(), StepError> {
    let path = folder.join(&file.name);
    let content = match &file.content {
        Content::Text(text) => text.clone().into_bytes(),
        Content::Of(source) => {
            let failed = |error| StepError::file(format!("reading {}", source.display()))(error);
            let mut bytes = Vec::new();
            let opened = std::fs::File::open(source).map_err(failed)?;
            opened.take(MAX_GRANT + 1).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 > MAX_GRANT {
                return Err(StepError::Description(format!(
                    "{}: is larger than {MAX_GRANT} bytes, the limit of secrets and configs",
                    source.display()
                )));
            }
            bytes
        }
    };
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        let mut opened = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        opened.write_all(&content)?;
        std::os::unix::fs::fchown(&opened, Some(file.owner.0), Some(file.owner.1))?;
        opened.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(file.mode))
    };
    write().map_err(StepError::file(format!("writing {}", path.display())))
}

/// Makes the container's namespace unless the shim holds one already. True when it was made. One that was made for
/// other ranges is of no use any more.
async fn hold_namespace(client: &Client, id: &str, links: Vec<Link>) -> Result<bool, StepError> {
    let held = client.ask(Request::GetNamespace { name: id.to_owned() }, &[]).await;
    if let Some(held) = held.ok().and_then(|(_, descriptors)| descriptors.into_iter().next()) {
        let ranges = blocking(move || Ok(namespace::ranges(&held)?)).await?;
        if links.iter().all(|link| ranges.contains(&link.interface.range)) {
            return Ok(false);
        }
        client.tell(Request::DropNamespace { name: id.to_owned() }, &[]).await?;
    }
    let namespace = blocking(move || Ok(make_namespace(&links)?)).await?;
    client.tell(Request::HoldNamespace { name: id.to_owned() }, &[namespace.as_raw_fd()]).await?;
    Ok(true)
}

fn make_namespace(wanted: &[Link]) -> Result<OwnedFd, LinkError> {
    let namespace = namespace::create()?;
    let mut links = Links::open()?;
    for link in wanted {
        // Left from a start that was cut short: its namespace is gone with the agent's descriptor, or will be.
        links.remove(&link.outer)?;
        let bridge = links.index(&link.bridge)?.ok_or_else(|| LinkError::Missing(link.bridge.clone()))?;
        links.make_pair(&link.outer, &link.interface.name, bridge, &namespace, link.mac)?;
    }
    let interfaces: Vec<Interface> = wanted.iter().map(|link| link.interface.clone()).collect();
    namespace::configure(&namespace, &interfaces)?;
    Ok(namespace)
}

/// Asks a container to end, and kills all of it after its grace time.
///
/// # Errors
/// When it does not end although it was killed.
pub async fn stop(context: Context, id: String, signal: i32, grace: Duration) -> Result<(), StepError> {
    let client = &context.client;
    client.tell(Request::Signal { id: id.clone(), signal }, &[]).await?;
    let mut running = context.running.clone();
    if tokio::time::timeout(grace, ended(&mut running, &id)).await.is_ok() {
        return Ok(());
    }
    client.tell(Request::KillAll { id: id.clone() }, &[]).await?;
    match tokio::time::timeout(KILL_TIMEOUT, ended(&mut running, &id)).await {
        Ok(()) => Ok(()),
        Err(_) => Err(StepError::WillNotDie(id)),
    }
}

async fn ended(running: &mut tokio::sync::watch::Receiver<std::collections::BTreeSet<String>>, id: &str) {
    // The sender lives as long as the agent.
    let _ = running.wait_for(|running| !running.contains(id)).await;
}

/// Removes what an ended container left: in the shim, in memory, on disk.
///
/// # Errors
/// What was removed so far stays so; the next try goes on.
pub async fn remove(context: Context, id: String, outer: Vec<String>) -> Result<(), StepError> {
    let client = &context.client;
    match client.tell(Request::Delete { id: id.clone(), timeout: DELETE_TIMEOUT }, &[]).await {
        Err(ClientError::Failed(failure)) if failure.kind == FailureKind::NotFound => {}
        result => result?,
    }
    client.tell(Request::DropNamespace { name: id.clone() }, &[]).await?;
    let paths = context.paths.as_ref().clone();
    blocking(move || {
        let mut links = Links::open()?;
        for outer in &outer {
            links.remove(outer)?;
        }
        let forget = |path: &Path| match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StepError::file(format!("removing {}", path.display()))(error))
            }
            _ => Ok(()),
        };
        forget(&paths.files(&id))?;
        forget(&paths.shim_container(&id))?;
        paths
            .remove_folder(&paths.container(&id))
            .map_err(StepError::file(format!("removing the container {id}")))?;
        let _ = std::fs::remove_file(paths.state(&id));
        Ok(())
    })
    .await
}
