//! What fuzzing feeds, see `fuzz/README.md`.

use crate::oci::Options;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The OCI command line, a word a line: refused in one line, or understood in the same way behind its own command.
pub fn command_line(data: &[u8]) {
    let words: Vec<OsString> = data.split(|it| *it == b'\n').map(|it| OsString::from_vec(it.to_vec())).collect();
    match Options::parse(words.clone()) {
        Ok(options) => {
            assert!(options.capabilities.iter().all(|name| name.starts_with("CAP_")), "{options:?}");
            assert_eq!(Options::parse(words).map_err(|usage| usage.0), Ok(options));
        }
        Err(usage) => {
            let said = coracle_runtime::one_line(&usage.0);
            assert!(!said.is_empty() && !said.contains('\n'), "{said:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_that_was_hurt_is_refused_in_one_line_or_understood() {
        let lines = [
            "--root\n/r\n--log=/l\n--log-format\njson\ncreate\n--bundle\n/b\n--pid-file\n/p\n--preserve-fds\n2\nc1",
            "exec\n-t\n-u\n5:6\n--env\nA=1\n--cap\nkill\n--cwd\n/w\nc1\nls\n--all",
            "update\n--memory\n1g\n--cpu-quota=5\n--pids-limit\n-1\nc1",
            "kill\n--all\nc1\nSIGTERM",
            "events\n--stats\n--interval\n5s\nc1",
        ];
        let seeds = lines.map(|line| line.as_bytes().to_vec());
        let words: [&[u8]; 9] =
            [b"--", b"\n", b"=", b"-1", b"18446744073709551616", b"\xff", b"--resources\n-", b"--no-", b"true"];
        coracle_mutate::campaign(&seeds, &words, 30_000, command_line);
    }
}
