//! What services do without on a machine whose kernel lacks it, when the device's settings say so by name.

use super::cgroup::entry::CgroupError;
use serde::{Deserialize, Serialize};

/// Something that services have, and that a kernel may be built without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The system call filter (CONFIG_SECCOMP_FILTER).
    Seccomp,
    /// That other devices are closed to a service (CONFIG_CGROUP_BPF, on v1 CONFIG_CGROUP_DEVICE).
    Devices,
    /// Limits of memory (CONFIG_MEMCG; many boards switch it off).
    Memory,
    /// Shares and quotas of processors (CONFIG_CGROUP_SCHED, CONFIG_CFS_BANDWIDTH).
    Cpu,
    /// Which processors (CONFIG_CPUSETS).
    Cpuset,
    /// The limit on the number of tasks (CONFIG_CGROUP_PIDS).
    Pids,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Seccomp, Self::Devices, Self::Memory, Self::Cpu, Self::Cpuset, Self::Pids];

    /// As in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Devices => "devices",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
        }
    }

    /// By its name in the settings.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|loss| loss.name() == name)
    }

    /// What an error about cgroups says is missing; `None`: it says something else.
    pub(crate) fn of_error(error: &CgroupError) -> Option<Self> {
        match error {
            // Any other failure is one of a kernel that has it, and is nobody's to accept.
            CgroupError::Devices { source } => {
                let lacks = matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS));
                lacks.then_some(Self::Devices)
            }
            CgroupError::NoController { controller, .. } => Self::of_name(controller),
            _ => None,
        }
    }

    /// The way out, behind a refusal.
    pub(crate) fn way_out(self) -> String {
        format!(
            "; to run services without it, write {:?} into accepted_losses of the device's settings",
            self.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_settings() {
        for loss in Loss::ALL {
            assert_eq!(Loss::of_name(loss.name()), Some(loss));
            assert_eq!(serde_json::to_value(loss).expect("a word"), loss.name());
        }
        assert_eq!(Loss::of_name("all"), None);
    }

    #[test]
    fn only_what_a_kernel_lacks_is_a_loss() {
        let lacks = |controller: &str| CgroupError::NoController { field: "x", controller: controller.to_owned() };
        assert_eq!(Loss::of_error(&lacks("memory")), Some(Loss::Memory));
        assert_eq!(Loss::of_error(&lacks("hugetlb")), None);
        assert_eq!(Loss::of_error(&CgroupError::None), None);
        assert_eq!(Loss::of_error(&lacks("devices")), Some(Loss::Devices));
        let failed = |source: std::io::Error| Loss::of_error(&CgroupError::Devices { source });
        // bpf(2) on a kernel without the call, and without this kind of program.
        assert_eq!(failed(std::io::Error::from_raw_os_error(libc::ENOSYS)), Some(Loss::Devices));
        assert_eq!(failed(std::io::Error::from_raw_os_error(libc::EINVAL)), Some(Loss::Devices));
        assert_eq!(failed(std::io::Error::from_raw_os_error(libc::EPERM)), None);
        assert_eq!(failed(std::io::Error::other("the program is not in force")), None);
    }
}
