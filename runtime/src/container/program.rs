//! Finding the program that a container runs, and saying why the kernel will not run it.
//!
//! Runs inside the container, as its user. `execve(2)` answers ENOENT for a file that is there, or ENOEXEC for half a
//! dozen reasons; the file itself tells which.

use crate::image::DEFAULT_PATH;
use crate::sys;
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Bytes of the program that are looked at: the kernel itself reads 256 of a `#!` line (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;

/// A program that does not run: what a shell's exit code would be, and one line that says why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NotRunnable {
    /// 127: not found; 126: found, but cannot be executed.
    pub code: i32,
    /// The reason.
    pub reason: String,
}

impl NotRunnable {
    fn not_found(reason: String) -> Self {
        Self { code: 127, reason }
    }

    fn not_executable(reason: String) -> Self {
        Self { code: 126, reason }
    }
}

/// Replaces this process by the program `args[0]`, searched in the `PATH` of `env`. Returns only on failure.
pub fn run(args: &[String], env: &[(String, String)]) -> NotRunnable {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return NotRunnable::not_found("the command is empty".to_owned());
    };
    let Ok(argv) = args.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>() else {
        return NotRunnable::not_executable("an argument contains a NUL byte".to_owned());
    };
    let variables = env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
    let Ok(envp) = variables.collect::<Result<Vec<_>, _>>() else {
        return NotRunnable::not_executable("an environment variable contains a NUL byte".to_owned());
    };
    let mut failure = None;
    for candidate in candidates(name, env) {
        let Ok(path) = CString::new(candidate.as_bytes()) else {
            return NotRunnable::not_found("the command contains a NUL byte".to_owned());
        };
        match sys::execve(&path, &argv, &envp) {
            // As execvp(3): a missing candidate is passed over, another failure is remembered.
            Errno::ENOENT | Errno::ENOTDIR if !Path::new(&candidate).exists() => {}
            errno => failure = failure.or_else(|| Some(explain(&candidate, errno))),
        }
    }
    failure.unwrap_or_else(|| match name.contains('/') {
        true => NotRunnable::not_found(format!("{name}: no such file in the container")),
        false => NotRunnable::not_found(format!("{name}: not found in the container's PATH")),
    })
}

/// Looks whether there is a program that may be run, without running it; the words are runc's, which engines look for.
///
/// # Errors
/// That it is not there, or may not be run.
pub fn find(args: &[String], env: &[(String, String)]) -> Result<(), NotRunnable> {
    let name = args.first().map(String::as_str).unwrap_or_default();
    let mut denied = None;
    for candidate in candidates(name, env) {
        match std::fs::metadata(&candidate) {
            Ok(metadata) if metadata.is_dir() => denied = denied.or(Some("is a directory")),
            Ok(_) if nix::unistd::access(candidate.as_str(), nix::unistd::AccessFlags::X_OK).is_ok() => {
                return Ok(());
            }
            Ok(_) => denied = denied.or(Some("permission denied")),
            Err(_) => {}
        }
    }
    Err(match (denied, name.contains('/')) {
        (Some(why), _) => NotRunnable::not_executable(format!("exec: {name:?}: {why}")),
        (None, true) => NotRunnable::not_found(format!("exec: {name:?}: stat {name}: no such file or directory")),
        (None, false) => NotRunnable::not_found(format!("exec: {name:?}: executable file not found in $PATH")),
    })
}

/// The paths to try: the name itself when it has a slash, else one for each folder of `PATH`.
fn candidates(name: &str, env: &[(String, String)]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let folder = |folder: &str| {
        if folder.is_empty() { format!("./{name}") } else { format!("{folder}/{name}") }
    };
    path.split(':').map(folder).collect()
}

/// Why `execve(2)` of `path` gave `errno`.
fn explain(path: &str, errno: Errno) -> NotRunnable {
    let Ok(metadata) = std::fs::metadata(path) else {
        return NotRunnable::not_executable(format!("{path}: {}", errno.desc()));
    };
    if metadata.is_dir() || metadata.file_type().is_fifo() || metadata.file_type().is_socket() {
        return NotRunnable::not_executable(format!("{path}: is not a program"));
    }
    if errno == Errno::EACCES && metadata.mode() & 0o111 == 0 {
        return NotRunnable::not_executable(format!("{path}: not executable (no x permission)"));
    }
    let head = head_of(path);
    match errno {
        Errno::ENOENT | Errno::ENOEXEC | Errno::EACCES => judge(path, &head, errno),
        Errno::E2BIG => NotRunnable::not_executable(format!("{path}: arguments and environment are too long")),
        _ => NotRunnable::not_executable(format!("{path}: {}", errno.desc())),
    }
}

fn head_of(path: &str) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD);
    if let Ok(file) = File::open(path) {
        // What cannot be read is judged as an empty file.
        let _ = file.take(HEAD as u64).read_to_end(&mut head);
    }
    head
}

/// Judges a program by its first bytes.
fn judge(path: &str, head: &[u8], errno: Errno) -> NotRunnable {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let interpreter =
            line.trim_ascii_start().split(|byte| *byte == b' ' || *byte == b'\t').next().unwrap_or_default();
        let shown = interpreter.escape_ascii();
        if interpreter.ends_with(b"\r") {
            return NotRunnable::not_found(format!("{path}: interpreter `{shown}` not found: Windows line ends"));
        }
        if interpreter.is_empty() {
            return NotRunnable::not_executable(format!("{path}: its #! line names no interpreter"));
        }
        if errno == Errno::EACCES {
            return NotRunnable::not_executable(format!("{path}: interpreter `{shown}` is not executable"));
        }
        return NotRunnable::not_found(format!("{path}: interpreter `{shown}` not found in the container"));
    }
    if let Some(architecture) = elf_architecture(head) {
        return match errno {
            Errno::ENOENT => NotRunnable::not_found(format!(
                "{path}: its dynamic loader is not in the container (a program for another C library?)"
            )),
            Errno::ENOEXEC => NotRunnable::not_executable(format!("{path}: program is for {architecture}")),
            _ => NotRunnable::not_executable(format!("{path}: {}", errno.desc())),
        };
    }
    match errno {
        Errno::ENOEXEC if head.is_empty() => NotRunnable::not_executable(format!("{path}: is an empty file")),
        Errno::ENOEXEC => {
            NotRunnable::not_executable(format!("{path}: has no #! line, name an interpreter (such as /bin/sh)"))
        }
        _ => NotRunnable::not_executable(format!("{path}: {}", errno.desc())),
    }
}

/// Name of the machine an ELF file is for (elf(5), `e_machine`), in OCI's words where there are some.
fn elf_architecture(head: &[u8]) -> Option<&'static str> {
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return None;
    }
    let machine = [head[18], head[19]];
    let machine = if head[5] == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    Some(match machine {
        3 => "386",
        8 => "mips",
        20 | 21 => "ppc64le",
        22 => "s390x",
        40 => "arm",
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        _ => "another machine",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &[u8], errno: Errno) -> (i32, String) {
        let judged = judge("/p", head, errno);
        (judged.code, judged.reason)
    }

    // opencontainers/runc#1773, moby/moby#10738, moby/moby#20211
    #[test]
    fn a_script_without_interpreter_says_so() {
        let (code, reason) = judged(b"echo hi\n", Errno::ENOEXEC);
        assert_eq!((code, reason.contains("has no #! line, name an interpreter")), (126, true), "{reason}");
    }

    #[test]
    fn windows_line_ends_are_named() {
        let (code, reason) = judged(b"#!/bin/sh\r\necho hi\r\n", Errno::ENOENT);
        assert_eq!((code, reason.as_str()), (127, "/p: interpreter `/bin/sh\\r` not found: Windows line ends"));
    }

    #[test]
    fn a_program_for_another_machine_is_named() {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 183;
        assert_eq!(judged(&elf, Errno::ENOEXEC), (126, "/p: program is for arm64".to_owned()));
    }

    #[test]
    fn a_file_without_x_is_not_executable() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("b.sh");
        std::fs::write(&path, "#!/bin/sh\n").expect("written");
        let failure = run(&[path.display().to_string()], &[]);
        assert_eq!(
            (failure.code, failure.reason.ends_with("not executable (no x permission)")),
            (126, true),
            "{failure:?}"
        );
    }

    #[test]
    fn a_missing_program_is_127() {
        assert_eq!(run(&["no-such-program".to_owned()], &[]).code, 127);
        assert_eq!(run(&["/no/such/program".to_owned()], &[]).code, 127);
        assert_eq!(run(&[], &[]).code, 127);
    }

    #[test]
    fn path_of_the_container_is_searched_in_order() {
        let env = [("PATH".to_owned(), "/a::/b".to_owned())];
        assert_eq!(candidates("x", &env), ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates("./x", &env), ["./x"]);
        assert_eq!(candidates("x", &[]).len(), 6);
    }
}
