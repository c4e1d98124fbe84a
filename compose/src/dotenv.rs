//! `.env` files and `env_file`s: `NAME=value`, quotes, comments (Compose Specification, `.env` file syntax).

use crate::interpolate::interpolate;
use std::collections::BTreeMap;

/// Bytes of one file.
const MAX_BYTES: usize = 1024 * 1024;

/// One line that set something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Value; `None` when the line is a name alone.
    pub value: Option<String>,
    /// Line, from 1.
    pub line: usize,
    /// Variables in the value that were not set.
    pub unset: Vec<String>,
}

impl Variable {
    /// A line for each variable that was not set.
    pub fn unset_notices(&self) -> impl Iterator<Item = String> {
        self.unset.iter().map(|name| format!("variable {name} is not set and is taken as empty"))
    }
}

/// Reads a file. Values in single quotes are literal; others may name variables of `environment` and of lines above.
///
/// # Errors
/// Line and reason.
pub fn parse(text: &str, environment: &BTreeMap<String, String>) -> Result<Vec<Variable>, (usize, String)> {
    if text.len() > MAX_BYTES {
        return Err((1, format!("larger than {MAX_BYTES} bytes")));
    }
    let mut known = environment.clone();
    let mut variables = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let (entry, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = entry.trim();
        let trimmed = trimmed.strip_prefix("export ").unwrap_or(trimmed).trim_start();
        let began = line;
        line += 1;
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = after;
            continue;
        }
        let Some((name, _)) = trimmed.split_once(['=', ':']).filter(|(name, _)| is_name(name.trim())) else {
            if !is_name(trimmed) {
                return Err((began, "is no NAME=value".to_owned()));
            }
            variables.push(Variable { name: trimmed.to_owned(), value: None, line: began, unset: Vec::new() });
            rest = after;
            continue;
        };
        let (value, unset);
        (value, unset, rest) = match trimmed_value(value_start(rest, entry), &known) {
            Ok(read) => {
                line += rest[..rest.len() - read.2.len()].matches('\n').count().saturating_sub(1);
                read
            }
            Err(reason) => return Err((began, reason)),
        };
        known.insert(name.trim().to_owned(), value.clone());
        variables.push(Variable { name: name.trim().to_owned(), value: Some(value), line: began, unset });
    }
    Ok(variables)
}

/// The text from the value's first character on, to the end of the file: quoted values may have several lines.
fn value_start<'t>(rest: &'t str, entry: &str) -> &'t str {
    let at = entry.find(['=', ':']).map_or(0, |at| at + 1);
    rest[at..].trim_start_matches([' ', '\t'])
}

type Value<'t> = (String, Vec<String>, &'t str);

fn trimmed_value<'t>(text: &'t str, known: &BTreeMap<String, String>) -> Result<Value<'t>, String> {
    let line_end = |text: &'t str| text.split_once('\n').map_or("", |(_, after)| after);
    if let Some(quoted) = text.strip_prefix('\'') {
        let end = quoted.find('\'').ok_or("a single quote is not closed")?;
        return Ok((quoted[..end].to_owned(), Vec::new(), line_end(&quoted[end + 1..])));
    }
    if let Some(quoted) = text.strip_prefix('"') {
        let (raw, after) = double_quoted(quoted)?;
        let value = interpolate(&lone_dollars_doubled(&raw), known)?;
        return Ok((value.text, value.unset, line_end(after)));
    }
    let (raw, after) = text.split_once('\n').unwrap_or((text, ""));
    let raw = raw.find(" #").map_or(raw, |comment| &raw[..comment]).trim();
    let value = interpolate(&lone_dollars_doubled(raw), known)?;
    Ok((value.text, value.unset, after))
}

/// Text in double quotes with its escapes undone; an escaped dollar becomes `$$` for the interpolation after it.
fn double_quoted(text: &str) -> Result<(String, &str), String> {
    let mut raw = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((raw, &text[at + 1..])),
            '\\' => match chars.next().map(|(_, char)| char) {
                Some('n') => raw.push('\n'),
                Some('t') => raw.push('\t'),
                Some('r') => raw.push('\r'),
                Some('$') => raw.push_str("$$"),
                Some(char @ ('"' | '\\')) => raw.push(char),
                Some(char) => raw.extend(['\\', char]),
                None => break,
            },
            char => raw.push(char),
        }
    }
    Err("a double quote is not closed".to_owned())
}

/// In these files, other than in a project's, a dollar that begins no variable is a dollar: password hashes have them.
fn lone_dollars_doubled(text: &str) -> String {
    let mut doubled = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        doubled.push(char);
        if char == '$' {
            match chars.peek() {
                Some('{' | '_' | 'a'..='z' | 'A'..='Z') => {}
                Some('$') => doubled.extend(chars.next()),
                _ => doubled.push('$'),
            }
        }
    }
    doubled
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Vec<(String, Option<String>)> {
        parse(text, &BTreeMap::new()).expect("parses").into_iter().map(|it| (it.name, it.value)).collect()
    }

    // docker/compose#9716, docker/compose#12005
    #[test]
    fn dollars_follow_the_quotes_around_them() {
        let text = "H1='$2y$05$abc'\nH2=\"a\\$b\"\n";
        assert_eq!(check(text), [("H1".into(), Some("$2y$05$abc".into())), ("H2".into(), Some("a$b".into()))]);
        assert_eq!(
            check("A=\"$2y$$05\"\nB=$\nC=\"a$ b\"\nD=${X:-$}\n"),
            [("A", "$2y$05"), ("B", "$"), ("C", "a$ b"), ("D", "$")]
                .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
        );
        let hash = parse("H3=\"$2y$05$abc\"\n", &BTreeMap::new()).expect("parses").remove(0);
        assert_eq!((hash.unset, hash.value), (vec!["abc".to_owned()], Some("$2y$05".to_owned())));
        let unset = parse("\nH3=\"${abc}x\"\n", &BTreeMap::new()).expect("parses").remove(0);
        assert_eq!((unset.line, unset.unset, unset.value), (2, vec!["abc".to_owned()], Some("x".to_owned())));
    }

    #[test]
    fn names_comments_and_several_lines() {
        let text = "# c\nexport A=1 # one\nBARE\nB=\"two\nlines\" # c\nC=${A}x\nD=\n";
        let read = check(text);
        let expected =
            [("A", Some("1")), ("BARE", None), ("B", Some("two\nlines")), ("C", Some("1x")), ("D", Some(""))];
        let expected: Vec<_> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        assert_eq!(read, expected);
        assert_eq!(parse(text, &BTreeMap::new()).expect("parses")[3].line, 6);
    }

    #[test]
    fn broken_lines_are_refused_with_their_number() {
        assert_eq!(parse("A=1\nno name here\n", &BTreeMap::new()).expect_err("refused").0, 2);
        assert!(parse("A='x", &BTreeMap::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[A=:\"'\\\\$\n #]{0,40}|.{0,80}") { let _ = parse(&text, &BTreeMap::new()); }
    }
}
