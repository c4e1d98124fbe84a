//! Where things lie: the data folder (flash) and the run folder (memory).

use std::path::{Path, PathBuf};

/// Default data folder.
pub const DATA: &str = "/var/lib/coracle";
/// Default run folder.
pub const RUN: &str = "/run/coracle";

/// The two folders of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// On flash: images, containers, volumes, the target.
    pub data: PathBuf,
    /// In memory: sockets, and what is true until the next boot.
    pub run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { data: DATA.into(), run: RUN.into() }
    }
}

impl Paths {
    /// What is wanted.
    pub fn target(&self) -> PathBuf {
        self.data.join("target.json")
    }
    /// What the device's owner decides for it.
    pub fn settings(&self) -> PathBuf {
        self.data.join("settings.json")
    }
    /// Folder of a container's writable layer and identity.
    pub fn container(&self, id: &str) -> PathBuf {
        self.data.join("containers").join(id)
    }
    /// All of them.
    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    /// Folder of a project's volumes.
    pub fn volumes(&self, project: &str) -> PathBuf {
        self.data.join("volumes").join(project)
    }
    /// Folder that a named volume shows.
    pub fn volume(&self, project: &str, name: &str) -> PathBuf {
        self.volumes(project).join(name).join("_data")
    }
    /// What became of a container since boot.
    pub fn state(&self, id: &str) -> PathBuf {
        self.run.join("state").join(format!("{id}.json"))
    }
    /// A network that was made.
    pub fn network(&self, bridge: &str) -> PathBuf {
        self.run.join("networks").join(format!("{bridge}.json"))
    }
    /// Files made for a container: hosts, resolv.conf, secrets.
    pub fn files(&self, id: &str) -> PathBuf {
        self.run.join("files").join(id)
    }
    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }
    /// The shim's socket.
    pub fn shim_socket(&self) -> PathBuf {
        self.run.join("shim.sock")
    }
    /// The shim's description of a container.
    pub fn shim_container(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }
    /// Where its containers are in the cgroup hierarchy. Agents with other folders have another place: a container's
    /// cgroup is killed before it is started, and that must never meet somebody else's.
    pub fn cgroup(&self) -> String {
        if self.run == Path::new(RUN) {
            return "/coracle".to_owned();
        }
        let digest = coracle_runtime::image::digest_of(self.run.as_os_str().as_encoded_bytes());
        format!("/coracle-{}", &digest["sha256:".len()..][..8])
    }

    /// A container's cgroup. Compose's `cgroup_parent` is refused: all lie below one, and privileged ones below another,
    /// because what the one forbids is forbidden to everything below it.
    pub fn cgroup_of(&self, id: &str, privileged: bool) -> String {
        let beside = if privileged { ".privileged" } else { "" };
        format!("{}{beside}/{id}", self.cgroup())
    }

    /// Log files. A colon is in no name.
    pub fn log_folder(&self, project: &str, service: &str) -> PathBuf {
        self.data.join("logs").join(format!("{project}:{service}"))
    }

    /// Unfinished removals, on the data folder's file system.
    pub fn staging(&self) -> PathBuf {
        self.data.join("removed")
    }

    /// Makes the folders, both closed to others: volumes and secrets lie in them.
    ///
    /// # Errors
    /// As the file system says.
    pub fn make(&self) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for folder in [&self.data, &self.run] {
            std::fs::create_dir_all(folder)?;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
        for folder in ["state", "networks", "files", "containers"] {
            std::fs::create_dir_all(self.run.join(folder))?;
        }
        for folder in ["containers", "logs", "removed", "volumes"] {
            std::fs::create_dir_all(self.data.join(folder))?;
        }
        Ok(())
    }

    /// Removes a folder of the data folder: renamed away first, so that a power cut leaves nothing half there.
    ///
    /// # Errors
    /// As the file system says.
    pub fn remove_folder(&self, path: &Path) -> std::io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.staging().join(format!("{name}-{}", std::process::id()));
        if aside.exists() {
            std::fs::remove_dir_all(&aside)?;
        }
        match std::fs::rename(path, &aside) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        if let Some(parent) = path.parent() {
            crate::durable::sync_folder(parent)?;
        }
        std::fs::remove_dir_all(&aside)
    }

    /// Removes what a crash left of removals.
    ///
    /// # Errors
    /// As the file system says.
    pub fn empty_staging(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.staging())? {
            std::fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }
}
