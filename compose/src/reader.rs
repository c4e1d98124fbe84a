//! Reading typed values out of nodes, collecting what is refused on the way: one run names everything that is wrong.

use crate::quantity;
use crate::report::{Notice, Refusal};
use crate::words;
use crate::yaml::{Node, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Refusals that are shown; more would only be noise.
const MAX_REFUSALS: usize = 100;

/// Where readers put what they find.
pub struct Reader<'a> {
    /// The first file, as it was given.
    file: &'a str,
    /// The others.
    more_files: RefCell<Vec<String>>,
    refusals: RefCell<Vec<Refusal>>,
    notices: RefCell<Vec<Notice>>,
}

impl<'a> Reader<'a> {
    /// For one file.
    pub fn new(file: &'a str) -> Self {
        Self { file, more_files: RefCell::default(), refusals: RefCell::default(), notices: RefCell::default() }
    }

    /// Names a further file; its number for [`crate::yaml::mark`].
    pub fn add_file(&self, file: &str) -> usize {
        let mut files = self.more_files.borrow_mut();
        files.push(file.to_owned());
        files.len()
    }

    fn place(&self, place: usize) -> (String, usize) {
        let (file, line) = crate::yaml::file_and_line(place);
        let files = self.more_files.borrow();
        let file = file.checked_sub(1).and_then(|at| files.get(at)).map_or(self.file, String::as_str);
        (file.to_owned(), line)
    }

    /// What was found.
    pub fn finish(self) -> (Vec<Refusal>, Vec<Notice>) {
        (self.refusals.into_inner(), self.notices.into_inner())
    }

    /// Notes a refusal.
    pub fn refuse(&self, line: usize, field: &str, reason: impl Into<String>) {
        let (file, line) = self.place(line);
        let mut refusals = self.refusals.borrow_mut();
        if refusals.len() < MAX_REFUSALS {
            refusals.push(Refusal { file, line, field: field.to_owned(), reason: reason.into() });
        }
    }

    /// Notes a notice.
    pub fn notice(&self, line: usize, field: &str, message: impl Into<String>) {
        let message = message.into();
        let (file, line) = self.place(line);
        self.notices.borrow_mut().push(Notice { file, line, field: field.to_owned(), message });
    }

    /// A scalar's text.
    pub fn text(&self, node: &Node, field: &str) -> Option<String> {
        let text = node.text().map(str::to_owned);
        if text.is_none() {
            self.refuse(node.line, field, "must be a word, not a list or mapping");
        }
        text
    }

    /// A scalar read by `parse`.
    pub fn parsed<T>(&self, node: &Node, field: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(node, field)?;
        parse(&text).map_err(|reason| self.refuse(node.line, field, reason)).ok()
    }

    /// A boolean; the words of YAML 1.1 are taken as Compose takes them.
    pub fn boolean(&self, node: &Node, field: &str) -> Option<bool> {
        let text = self.text(node, field)?;
        let word = match text.to_ascii_lowercase().as_str() {
            "yes" | "y" | "on" => Some(true),
            "no" | "n" | "off" => Some(false),
            _ => None,
        };
        if let Some(value) = word {
            self.notice(node.line, field, format!("{text} is no boolean of YAML 1.2: write {value}"));
            return Some(value);
        }
        quantity::boolean(&text).map_err(|reason| self.refuse(node.line, field, reason)).ok()
    }

    /// An integer in a range.
    pub fn integer(&self, node: &Node, field: &str, min: i64, max: i64) -> Option<i64> {
        self.parsed(node, field, |text| match text.parse::<i64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("{text:?} is no number from {min} to {max}")),
        })
    }

    /// A mapping's entries.
    pub fn mapping<'n>(&self, node: &'n Node, field: &str) -> &'n [(String, Node)] {
        match &node.value {
            Value::Mapping(entries) => entries,
            _ if node.is_null() => &[],
            _ => {
                self.refuse(node.line, field, "must be a mapping");
                &[]
            }
        }
    }

    /// A list's nodes.
    pub fn sequence<'n>(&self, node: &'n Node, field: &str) -> &'n [Node] {
        match &node.value {
            Value::Sequence(nodes) => nodes,
            _ if node.is_null() => &[],
            _ => {
                self.refuse(node.line, field, "must be a list");
                &[]
            }
        }
    }

    /// A list of words; a single word counts as a list of one.
    pub fn words(&self, node: &Node, field: &str) -> Vec<String> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => vec![text.clone()],
            _ => {
                let nodes = self.sequence(node, field).iter().enumerate();
                nodes.filter_map(|(index, node)| self.text(node, &format!("{field}[{index}]"))).collect()
            }
        }
    }

    /// A command: a list of words, or one line split as a shell would. Null: absent; empty: cleared.
    pub fn command(&self, node: &Node, field: &str) -> Option<Vec<String>> {
        match &node.value {
            _ if node.is_null() => None,
            Value::Scalar { text, .. } => {
                words::split(text).map_err(|reason| self.refuse(node.line, field, reason)).ok()
            }
            _ => Some(self.words(node, field)),
        }
    }

    /// `key: value` or a list of `key=value`; a key alone has no value.
    pub fn pairs(&self, node: &Node, field: &str) -> BTreeMap<String, Option<String>> {
        let mut pairs = BTreeMap::new();
        match &node.value {
            Value::Sequence(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    if let Some(text) = self.text(node, &format!("{field}[{index}]")) {
                        let (name, value) =
                            text.split_once('=').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
                        pairs.insert(name.to_owned(), value.map(str::to_owned));
                    }
                }
            }
            _ => {
                for (name, node) in self.mapping(node, field) {
                    let field = format!("{field}.{name}");
                    let value = if node.is_null() { None } else { self.text(node, &field) };
                    pairs.insert(name.clone(), value.map(|text| self.as_compose_writes(node, &field, text)));
                }
            }
        }
        pairs
    }

    /// Numbers without quotes lose their form in Compose: `1.10` is 1.1 and `010` is 8. We do the same, and say so.
    fn as_compose_writes(&self, node: &Node, field: &str, text: String) -> String {
        if !matches!(node.value, Value::Scalar { plain: true, .. }) {
            return text;
        }
        let written = canonical_number(&text);
        match written {
            Some(written) if written != text => {
                self.notice(
                    node.line,
                    field,
                    format!("{text} is read as the number {written}; quotes keep the text"),
                );
                written
            }
            _ => text,
        }
    }

    /// Refuses keys that nobody read, with the nearest known one.
    pub fn unknown(&self, line: usize, field: &str, key: &str, known: &[&str]) {
        if key.starts_with("x-") {
            return;
        }
        let nearest =
            known.iter().min_by_key(|candidate| distance(key, candidate)).filter(|it| distance(key, it) <= 2);
        let field = if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
        self.refuse(
            line,
            &field,
            match nearest {
                Some(nearest) => format!("is not known; did you mean {nearest}?"),
                None => {
                    "is not known to the Compose Specification; remove it, or write x- before its name".to_owned()
                }
            },
        );
    }
}

/// What Compose makes of a plain number (YAML 1.2 core schema, and octal with a leading 0 as its reader has it).
fn canonical_number(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        let number = digits.strip_prefix(prefix).filter(|it| !it.starts_with('+'));
        if let Some(number) = number.and_then(|it| i64::from_str_radix(it, radix).ok()).filter(|&it| it >= 0) {
            return Some(format!("{sign}{number}"));
        }
    }
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return i64::from_str_radix(digits, 8).ok().map(|number| number.to_string());
    }
    let starts = digits.bytes().next().is_some_and(|byte| byte.is_ascii_digit() || byte == b'.');
    if !starts || !digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte)) {
        return None;
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.matches('.').count() > 1 {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    if value.abs() < 1e15 { Some(format!("{value}")) } else { None }
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_compose_writes_them() {
        let check = |text: &str| canonical_number(text).unwrap_or_else(|| text.to_owned());
        for (text, expected) in [
            ("010", "8"),
            ("1.10", "1.1"),
            ("1e3", "1000"),
            ("0x10", "16"),
            ("-0o17", "-15"),
            ("0b101", "5"),
            ("0x", "0x"),
            ("0x-1", "0x-1"),
            ("0xfffffffffffffffff", "0xfffffffffffffffff"),
            ("12345678901234567890", "12345678901234567890"),
            ("2024-01-02", "2024-01-02"),
            ("1.2.3", "1.2.3"),
            ("yes", "yes"),
            ("0", "0"),
        ] {
            assert_eq!(check(text), expected, "{text}");
        }
    }

    #[test]
    fn nearest_names_are_found() {
        assert_eq!(distance("imgae", "image"), 2);
        assert_eq!(distance("ports", "ports"), 0);
    }
}
