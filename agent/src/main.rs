//! The `coracle` binary: every role of the device in one file.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = coracle_init::called(&arguments) {
        return code.into();
    }
    if let Some(code) = coracle::oci::called_as_helper() {
        return code.into();
    }
    match coracle::oci::called() {
        Some(arguments) => coracle::oci::main(arguments).into(),
        None => coracle::cli::main().into(),
    }
}
