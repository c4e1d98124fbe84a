//! Files that were hurt: nothing panics, and what is still accepted prints and reads back the same.

use coracle_compose::{LoadOptions, parse_str, to_yaml};
use proptest::prelude::*;

const WHOLE: &str = include_str!("everything.yaml");

/// Scalars that mean something elsewhere.
const WORDS: [&str; 18] = [
    "null", "~", "true", "-1", "0", "1e9", "\"\"", "[]", "{}", "${X}", "${X:?no}", "$$", "4294967296", "0o17",
    "a:b:c:d", "/", "../..", "\u{fffd}",
];

fn options(folder: &std::path::Path) -> LoadOptions {
    LoadOptions {
        folder: folder.to_owned(),
        environment: [("FROM_HOST".to_owned(), "h".to_owned())].into(),
        ..LoadOptions::default()
    }
}

#[derive(Debug, Clone)]
enum Hurt {
    DropLine(usize),
    DoubleLine(usize),
    SwapLines(usize, usize),
    ReplaceValue(usize, usize),
    Byte(usize, char),
}

fn hurt() -> impl Strategy<Value = Hurt> {
    let line = 0..200_usize;
    prop_oneof![
        line.clone().prop_map(Hurt::DropLine),
        line.clone().prop_map(Hurt::DoubleLine),
        (line.clone(), line.clone()).prop_map(|(a, b)| Hurt::SwapLines(a, b)),
        (line, 0..WORDS.len()).prop_map(|(at, word)| Hurt::ReplaceValue(at, word)),
        (any::<usize>(), any::<char>()).prop_map(|(at, char)| Hurt::Byte(at, char)),
    ]
}

fn apply(text: &str, hurts: &[Hurt]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for hurt in hurts {
        let count = lines.len().max(1);
        match hurt {
            Hurt::DropLine(at) => drop(lines.remove(at % count)),
            Hurt::DoubleLine(at) => lines.insert(at % count, lines[at % count].clone()),
            Hurt::SwapLines(a, b) => lines.swap(a % count, b % count),
            Hurt::ReplaceValue(at, word) => {
                let line = &mut lines[at % count];
                if let Some((key, _)) = line.split_once(": ") {
                    *line = format!("{key}: {}", WORDS[*word]);
                }
            }
            Hurt::Byte(at, char) => {
                let line = &mut lines[at % count];
                let mut chars: Vec<char> = line.chars().collect();
                if !chars.is_empty() {
                    let place = at % chars.len();
                    chars[place] = *char;
                    *line = chars.into_iter().collect();
                }
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_was_hurt_is_refused_or_prints_as_what_it_means(hurts in proptest::collection::vec(hurt(), 1..4)) {
        let folder = std::env::temp_dir();
        let text = apply(WHOLE, &hurts);
        match parse_str("hurt.yaml", &text, &options(&folder)) {
            Ok(loaded) => {
                let printed = to_yaml(&loaded.project);
                let again = parse_str("printed.yaml", &printed, &options(&folder));
                let again = again.map_err(|refusals| TestCaseError::fail(format!("{refusals}\n{printed}")))?;
                prop_assert_eq!(again.project, loaded.project, "{}", printed);
            }
            Err(refusals) => prop_assert!(!refusals.0.is_empty()),
        }
    }
}
