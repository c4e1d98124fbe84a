//! Compiles the default system call filters of this target, with the compiler that the runtime has for all others.

#[path = "src/seccomp/calls.rs"]
#[allow(dead_code, reason = "a part of it is for the runtime alone")]
mod calls;
#[path = "src/seccomp/default.rs"]
mod default;
#[path = "src/seccomp/profile.rs"]
#[allow(dead_code, reason = "a part of it is for the runtime alone")]
mod profile;
#[path = "src/seccomp/program.rs"]
#[allow(dead_code, reason = "a part of it is for the runtime alone")]
mod program;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;

/// What a service has without a word, and what one of a user other than root has (`DEFAULT_CAPABILITIES`); a test looks
/// whether these are still the sets.
const SETS: [&[&str]; 2] = [&["SYS_CHROOT"], &[]];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/seccomp");
    let arches = profile::Arch::of(&std::env::var("CARGO_CFG_TARGET_ARCH")?);
    let mut text = String::from("static BUILT: &[Built] = &[\n");
    for set in SETS.iter().filter(|_| !arches.is_empty()) {
        let capabilities = default::that_matter(set);
        writeln!(text, "    Built {{ capabilities: &{capabilities:?}, program: &[")?;
        for it in program::compile(&default::profile(set), arches)? {
            let program::Instruction { code, jump_true, jump_false, operand } = it;
            writeln!(
                text,
                "        Instruction {{ code: {code}, jump_true: {jump_true}, jump_false: {jump_false}, operand: {operand} }},"
            )?;
        }
        text.push_str("    ] },\n");
    }
    text.push_str("];\n");
    println!("cargo::rustc-env=CORACLE_FILTER_COMPILER={:016x}", compiler()?);
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("default_filters.rs"), text)?;
    Ok(())
}

/// A number for the sources of the compiler: programs of another one are not taken for its own.
fn compiler() -> std::io::Result<u64> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir("src/seccomp")?.map(|entry| entry.map(|it| it.path())).collect::<Result<_, _>>()?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        hasher.write(&std::fs::read(file)?);
    }
    Ok(hasher.finish())
}
