//! A real distribution base, made with Debian's own tools.

use crate::board::run;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian root as a tar archive at `path`, made by mmdebstrap from the sources that apt uses here; kept there for
/// the next time.
///
/// # Errors
/// When it cannot be made.
pub fn base(path: &Path) -> anyhow::Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    println!("making a Debian base image (once)");
    let beside = path.with_extension("new.tar");
    let mut sources: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    sources
        .extend(std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|it| it.path()));
    let debian = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let known = path.extension().is_some_and(|it| it == "list" || it == "sources");
        known && text.contains("debian")
    };
    sources.retain(debian);
    run(Command::new("mmdebstrap").args(["--mode=root", "--variant=essential", ""]).arg(&beside).args(&sources))?;
    std::fs::rename(&beside, path)?;
    Ok(path.to_owned())
}
