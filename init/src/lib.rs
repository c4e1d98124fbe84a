//! The first process of a board: `coracle init`.
//!
//! ```text
//! kernel ─> boot ─> mounts, modules, clock, seed, identity, partitions
//!             └──> loop: reaps, starts and restarts shim, agent, dbus, NetworkManager, feeds the watchdog, shuts down
//! ```
//!
//! One thread, no network beyond the loopback interface, nothing that grows. Whatever is missing is said, and the board
//! comes up as far as it can; nothing here ever makes a file system anew.
//!
//! **Invariants.** This process never ends and never blocks on a partition after boot (a child does). Decisions
//! ([`units`], [`shutdown`], [`partition`], [`clock`], [`settings`]) are functions of their arguments.
#![deny(unsafe_code)]

pub mod boot;
pub mod clock;
mod early;
pub mod files;
pub mod log;
pub mod modules;
pub mod mounts;
mod network;
pub mod partition;
mod pid1;
pub mod random;
pub mod settings;
pub mod shutdown;
pub mod storage;
pub mod swap;
#[allow(unsafe_code)]
pub mod sys;
pub mod units;
pub mod watchdog;

pub use boot::{BOOT, STATE};
pub use pid1::{LACKS, RELEASED};

use log::complain;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Does what this program is called for when it is the first process, or the kernel's helper for modules; otherwise
/// returns `None`. `arguments`: all, with the name.
pub fn called(arguments: &[OsString]) -> Option<u8> {
    let name = arguments.first().and_then(|it| Path::new(it).file_name()).unwrap_or_default();
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|it| it.to_str()).collect();
    if name == "modprobe" {
        return Some(modprobe(&words));
    }
    match words[..] {
        ["init"] => Some(first()),
        ["init", "save"] => Some(save()),
        ["init", "exec", cgroup, program, ref rest @ ..] => Some(exec(cgroup, program, rest)),
        ["init", "give-up"] => Some(pid1::give_up()),
        ["init", "network", program, ref rest @ ..] => Some(network::exec(program, rest)),
        // The kernel hands it words of its command line.
        _ if name == "init" => Some(first()),
        _ => None,
    }
}

fn first() -> u8 {
    if std::process::id() != 1 {
        complain(format_args!(
            "coracle init: this is the first process of a board, not of a machine that runs already"
        ));
        return 2;
    }
    pid1::run()
}

/// Goes into a cgroup and becomes a program.
fn exec(cgroup: &str, program: &str, arguments: &[&str]) -> u8 {
    let folder = Path::new(cgroup);
    let moved = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(folder.join("cgroup.procs"), "0"));
    if let Err(error) = moved {
        // It runs, in the first process's cgroup.
        complain(format_args!("{cgroup}: {error}"));
    }
    // The first process has them all blocked, and a program begins with what it inherits.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    let error = std::process::Command::new(program).args(arguments).exec();
    complain(format_args!("{program}: {error}"));
    127
}

/// Saves the clock, on both partitions: so it is seen whether they can be written.
fn save() -> u8 {
    let saved = clock::save(&Path::new(boot::STATE).join("clock"))
        .and_then(|()| clock::save(&Path::new(boot::DATA).join(".clock")));
    match saved {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("saving the clock: {error}"));
            // A full one is not broken.
            let broken = [libc::EROFS, libc::EIO].map(Some).contains(&error.raw_os_error());
            if broken { pid1::BROKEN } else { 1 }
        }
    }
}

/// `modprobe -q -- NAME`, as the kernel calls it.
fn modprobe(words: &[&str]) -> u8 {
    let modules = boot::Modules::read(&boot::command_line());
    let mut loader = modules.loader();
    let mut names = words.iter().filter(|word| !word.starts_with('-'));
    let loaded = names.all(|name| loader.load(name).is_ok_and(|count| count > 0));
    u8::from(!loaded)
}
