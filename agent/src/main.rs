//! The `coracle` binary: every role of the device in one file.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    coracle::cli::main().into()
}
