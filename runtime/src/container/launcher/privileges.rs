//! From root to what the process may be: limits, groups, user, capabilities (capabilities(7), credentials(7)).

use crate::sys;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process};
use std::str::FromStr;

fn failed(what: &'static str) -> impl FnOnce(Errno) -> String {
    move |errno| format!("{what}: {}", errno.desc())
}

/// Sets resource limits.
///
/// # Errors
/// The limit, and what the kernel said.
pub(super) fn set_limits(process: &Process) -> Result<(), String> {
    for limit in process.rlimits().iter().flatten() {
        let kind = limit.typ();
        let number = crate::oci::limit_number(&kind.to_string())
            .ok_or_else(|| format!("process.rlimits: {kind:?}: not known"))?;
        sys::set_limit(number, limit.soft(), limit.hard())
            .map_err(|errno| format!("process.rlimits: {kind:?}: {}", errno.desc()))?;
    }
    Ok(())
}

/// Becomes root of a user namespace that was entered; until then it has no number there.
///
/// # Errors
/// When 0 is not in its mappings.
pub(super) fn become_root() -> Result<(), String> {
    setgroups(&[]).map_err(failed("groups of the user namespace"))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(failed("group 0 of the user namespace"))?;
    setresuid(uid, uid, uid).map_err(failed("user 0 of the user namespace"))
}

/// Drops everything that the process is not to have.
///
/// # Errors
/// What the kernel refuses, by the field that wants it.
pub(super) fn drop_to(process: &Process) -> Result<(), String> {
    let nothing = LinuxCapabilities::default();
    let wanted = process.capabilities().as_ref().unwrap_or(&nothing);
    let bounding = set_of(wanted.bounding())?;
    let present = caps::read(None, CapSet::Bounding).map_err(|error| format!("capabilities: {error}"))?;
    for capability in present.difference(&bounding) {
        caps::drop(None, CapSet::Bounding, *capability)
            .map_err(|error| format!("process.capabilities.bounding: {capability}: {error}"))?;
    }
    nix::sys::prctl::set_keepcaps(true).map_err(failed("keeping capabilities"))?;
    let user = process.user();
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|it| Gid::from_raw(*it)).collect();
    setgroups(&groups).map_err(failed("process.user.additionalGids"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(failed("process.user.gid"))?;
    setresuid(uid, uid, uid).map_err(failed("process.user.uid"))?;
    nix::sys::prctl::set_keepcaps(false).map_err(failed("keeping capabilities"))?;
    let set = |set: CapSet, names: &Option<Capabilities>, field: &str| -> Result<(), String> {
        caps::set(None, set, &set_of(names)?).map_err(|error| format!("process.capabilities.{field}: {error}"))
    };
    // What is effective must be permitted, so more comes into force last; each call writes all three sets, and the
    // permitted one can only shrink.
    set(CapSet::Inheritable, wanted.inheritable(), "inheritable")?;
    caps::set(None, CapSet::Effective, &CapsHashSet::new()).map_err(|error| format!("capabilities: {error}"))?;
    set(CapSet::Permitted, wanted.permitted(), "permitted")?;
    set(CapSet::Effective, wanted.effective(), "effective")?;
    for capability in set_of(wanted.ambient())? {
        // As runc: an ambient one that is not inheritable too is said, and left out.
        if let Err(error) = caps::raise(None, CapSet::Ambient, capability) {
            tracing::warn!(%capability, %error, "cannot be ambient");
        }
    }
    if process.no_new_privileges() == Some(true) {
        nix::sys::prctl::set_no_new_privs().map_err(failed("process.noNewPrivileges"))?;
    }
    Ok(())
}

fn set_of(names: &Option<Capabilities>) -> Result<CapsHashSet, String> {
    let one = |name: &oci_spec::runtime::Capability| {
        let text = name.to_string();
        let text = if text.starts_with("CAP_") { text } else { format!("CAP_{text}") };
        Capability::from_str(&text).map_err(|error| format!("process.capabilities: {error}"))
    };
    names.iter().flatten().map(one).collect()
}
