//! What fuzzing feeds: see `fuzz/README.md`.

use crate::{LoadOptions, parse_str, to_yaml};

/// A compose file is refused, or prints as what it means.
///
/// # Panics
/// When it is neither.
pub fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let options = LoadOptions {
        // Has no files that a project could name.
        folder: "/proc/self/fdinfo".into(),
        environment: [("FROM_HOST".to_owned(), "h".to_owned())].into(),
        ..LoadOptions::default()
    };
    match parse_str("hurt.yaml", text, &options) {
        Ok(loaded) => {
            let printed = to_yaml(&loaded.project);
            match parse_str("printed.yaml", &printed, &options) {
                Ok(again) => assert_eq!(again.project, loaded.project, "{printed}"),
                Err(refusals) => panic!("{refusals}\n{printed}"),
            }
        }
        Err(refusals) => assert!(!refusals.0.is_empty(), "refused without a reason"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = include_str!("../tests/everything.yaml");

    /// Scalars that mean something elsewhere, and pieces of the syntax.
    const WORDS: [&[u8]; 30] = [
        b"null",
        b"~",
        b"true",
        b"-1",
        b"0",
        b"1e9",
        b"\"\"",
        b"[]",
        b"{}",
        b"${X}",
        b"${X:?no}",
        b"$$",
        b"0o17",
        b"4294967296",
        b"a:b:c:d",
        b"/",
        b"../..",
        "\u{fffd}".as_bytes(),
        b"\\0",
        b"\t",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!binary ",
        b"|\n",
        b"'",
        b"\r\n",
        b"--- ",
    ];

    #[test]
    fn a_file_that_was_hurt_is_refused_or_prints_as_what_it_means() {
        let small = "name: a\nservices:\n  s:\n    image: \"i:1\"\n    command: [\"a\", \"b c\"]\n    ports:\n      - \"80:80\"\n";
        coracle_mutate::campaign(&[WHOLE.into(), WHOLE.into(), small.into()], &WORDS, 6_000, file);
    }
}
