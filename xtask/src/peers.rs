//! Programs of others that ours are compared with, fetched without touching the system: Debian packages of another
//! suite, unpacked below `target/peers`.

use crate::debian::{Suites, run};
use anyhow::ensure;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where they lie.
const FOLDER: &str = "target/peers";

/// The suite that has them (Debian 13).
const SUITE: &str = "trixie";

/// Fetches Docker Compose: `docker compose config` is the judge of compose files.
///
/// # Errors
/// When the package cannot be fetched or unpacked.
pub fn docker_compose() -> anyhow::Result<PathBuf> {
    let program = Path::new(FOLDER).join("docker-compose");
    if program.exists() {
        return Ok(program);
    }
    let root = suites()?.unpack("docker-compose")?;
    let unpacked = root.join("usr/libexec/docker/cli-plugins/docker-compose");
    ensure!(unpacked.exists(), "the package has no {}", unpacked.display());
    std::fs::copy(&unpacked, &program)?;
    Ok(program)
}

/// What crun needs of its own suite.
const CRUN: [&str; 6] = ["crun", "libc6", "libcap2", "libseccomp2", "libsystemd0", "libyajl2"];

/// crun raises this limit before it loads a device program, and gives up where it may not; newer kernels need no such
/// thing.
const STUB: &str = "#define _GNU_SOURCE\n\
    #include <sys/resource.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
    int setrlimit(__rlimit_resource_t r, const struct rlimit *l) {\n\
    return r == RLIMIT_MEMLOCK ? 0 : syscall(SYS_prlimit64, 0, r, l, 0); }\n\
    int setrlimit64(__rlimit_resource_t r, const struct rlimit64 *l) {\n\
    return r == RLIMIT_MEMLOCK ? 0 : syscall(SYS_prlimit64, 0, r, l, 0); }\n";

/// Fetches the newest crun that Debian has, with its own loader and libraries.
///
/// # Errors
/// When a package cannot be fetched or unpacked.
pub fn crun() -> anyhow::Result<PathBuf> {
    let program = std::path::absolute(Path::new(FOLDER).join("crun"))?;
    if program.exists() {
        return Ok(program);
    }
    let libraries = std::path::absolute(Path::new(FOLDER).join("crun-libraries"))?;
    std::fs::create_dir_all(&libraries)?;
    let mut unpacked = PathBuf::new();
    let suites = suites()?;
    for name in CRUN {
        let root = suites.unpack(name)?;
        if name == "crun" {
            unpacked = root.join("usr/bin/crun");
        }
        let arch = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        for entry in std::fs::read_dir(root.join(arch)).into_iter().flatten().flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), libraries.join(entry.file_name()))?;
            }
        }
    }
    let stub = libraries.join("stub.c");
    std::fs::write(&stub, STUB)?;
    let shared = libraries.join("libstub.so");
    run(Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&shared).arg(&stub))?;
    let beside = program.with_extension("new");
    std::fs::copy(&unpacked, &beside)?;
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let loader = if loader.exists() { loader } else { libraries.join("ld-linux-aarch64.so.1") };
    let patch = |words: &[&std::ffi::OsStr]| run(Command::new("patchelf").args(words).arg(&beside));
    patch(&["--set-interpreter".as_ref(), loader.as_os_str()])?;
    patch(&["--force-rpath".as_ref(), "--set-rpath".as_ref(), libraries.as_os_str()])?;
    patch(&["--add-needed".as_ref(), shared.as_os_str()])?;
    std::fs::rename(&beside, &program)?;
    Ok(program)
}

fn suites() -> anyhow::Result<Suites> {
    Suites::open(&Path::new(FOLDER).join(SUITE), &[SUITE])
}
