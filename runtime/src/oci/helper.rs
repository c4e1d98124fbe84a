//! What runs as a hook of libcontainer: hooks of the configuration with their limits, and mounts of cgroups.

use super::error::{OciError, errno, io};
use super::hooks::{self, Moment};
use super::state::{Home, State};
use crate::container::cgroup::hierarchies;
use crate::container::rootfs::{Kind, Root};
use crate::shim::Failure;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use serde::Deserialize;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Bytes of a state on standard input.
const MAX_STATE: u64 = 8 * 1024 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Order {
    moment: String,
    home: PathBuf,
    id: String,
    /// The mount namespace of the command that makes the container.
    mounts: PathBuf,
    rootfs: PathBuf,
    cgroup_mount: Value,
}

/// Does what a helper was started for.
///
/// # Errors
/// The hook that failed, or why a cgroup is not shown.
pub fn run(order: &str) -> Result<(), OciError> {
    let order: Order = serde_json::from_str(order).map_err(|error| OciError::Usage(error.to_string()))?;
    let mut text = Vec::new();
    let _ = std::io::stdin().take(MAX_STATE).read_to_end(&mut text);
    let told: Value = serde_json::from_slice(&text).unwrap_or_default();
    let root = order.home.parent().unwrap_or(Path::new("/"));
    let home = Home::of(root, &order.id)?;
    let (config, state) = (home.config()?, home.read()?);
    let pid = told["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    let run = |moment: Moment| {
        let document = State { pid, ..state.clone() }.document(moment.status());
        hooks::run(&config, moment, &document, &[])
    };
    match order.moment.as_str() {
        "createRuntime" => {
            enter(&order.mounts)?;
            if !order.cgroup_mount.is_null() {
                let own = PathBuf::from("/proc/self/ns/mnt");
                let own = File::open(&own).map_err(io("opening", &own))?;
                show_cgroups(&order, &state.cgroup, pid)?;
                setns(own, CloneFlags::CLONE_NEWNS)
                    .map_err(errno("going back into the machine's mount namespace"))?;
            }
            run(Moment::Prestart)?;
            run(Moment::CreateRuntime)
        }
        "createContainer" => run(Moment::CreateContainer),
        other => Err(OciError::Usage(format!("{other:?} is no moment"))),
    }
}

fn enter(mounts: &Path) -> Result<(), OciError> {
    let file = File::open(mounts).map_err(io("opening", mounts))?;
    setns(file, CloneFlags::CLONE_NEWNS).map_err(errno("entering the mount namespace"))
}

/// Shows the container its own cgroups: copies of the mounts are taken where the hierarchies are seen, and put in place
/// where the container's root is.
fn show_cgroups(order: &Order, cgroup: &str, pid: i32) -> Result<(), OciError> {
    let read_only = order.cgroup_mount["options"].as_array().is_some_and(|all| all.iter().any(|it| it == "ro"));
    let trees = hierarchies(cgroup)
        .into_iter()
        .map(|(name, folder)| Ok((name, copy(&folder, read_only)?)))
        .collect::<Result<Vec<_>, OciError>>();
    enter(Path::new(&format!("/proc/{pid}/ns/mnt")))?;
    let trees = match trees {
        // Before Linux 5.12: a program that looks there finds nothing, as on a machine without cgroups.
        Err(OciError::System { source, .. }) if source.raw_os_error() == Some(libc::ENOSYS) => {
            tracing::warn!("this kernel cannot show a container its cgroups");
            return Ok(());
        }
        trees => trees?,
    };
    let root = Root::open(&order.rootfs).map_err(Failure::from)?;
    let destination = PathBuf::from(order.cgroup_mount["destination"].as_str().unwrap_or_default());
    let place = |path: &Path| -> Result<PathBuf, OciError> {
        // Resolved in the container's root, whose own mounts are there by now.
        let inside = root.make(path, Kind::Folder).map_err(Failure::from)?;
        Ok(order.rootfs.join(inside.strip_prefix("/").unwrap_or(&inside)))
    };
    let several = trees.len() > 1;
    if several {
        // Folders for the hierarchies are made in it.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &place(&destination)?, Some("tmpfs"), flags, Some("mode=755,size=64k"))
            .map_err(errno("mounting a tmpfs for cgroups"))?;
    }
    for (name, tree) in trees {
        let target = place(&if several { destination.join(&name) } else { destination.clone() })?;
        rustix::mount::move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| io("mounting on", &target)(error.into()))?;
        for controller in name.split(',').filter(|_| name.contains(',')) {
            let link = target.with_file_name(controller);
            std::os::unix::fs::symlink(&name, &link).map_err(io("linking", &link))?;
        }
    }
    if several && read_only {
        let target = place(&destination)?;
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)
            .map_err(errno("making cgroups read-only"))?;
    }
    Ok(())
}

fn copy(folder: &Path, read_only: bool) -> Result<OwnedFd, OciError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree =
        rustix::mount::open_tree(CWD, folder, flags).map_err(|error| io("copying", folder)(error.into()))?;
    let mut attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    crate::sys::set_mount_attributes(&tree, attributes.bits())
        .map_err(|errno| io("changing the mount of", folder)(errno.into()))?;
    Ok(tree)
}
