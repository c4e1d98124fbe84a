//! The only file that names the YAML library: text to a tree of nodes that know their lines.
//!
//! Scalars keep their text as written; what a word means (`no`, `010`, `1.10`) is decided where it is used, by the
//! core schema of YAML 1.2. Anchors, aliases and merge keys are resolved here.

use crate::text::MAX_BYTES;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, SpannedEventReceiver};
use std::collections::HashMap;

/// Nodes after aliases were resolved: an alias of an alias of … must not fill the memory.
const MAX_NODES: usize = 200_000;

/// Nesting.
const MAX_DEPTH: usize = 64;

/// A node of the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Line in the file, from 1; see [`place`].
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A scalar.
    Scalar {
        /// Its text.
        text: String,
        /// It was written without quotes.
        plain: bool,
    },
    /// A sequence.
    Sequence(Vec<Node>),
    /// A mapping in the file's order.
    Mapping(Vec<(String, Node)>),
}

/// Why a text is no YAML that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct YamlError {
    /// Line in the file, from 1.
    pub line: usize,
    /// The reason.
    pub reason: String,
}

impl Node {
    /// An absent value: nothing, `~` or `null`, without quotes.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        if let Value::Scalar { text, .. } = &self.value { Some(text) } else { None }
    }
}

/// Bits of a line number; above them is the number of the file. Files of [`MAX_BYTES`] have fewer lines.
const LINE_BITS: u32 = 22;

/// A line of a file as one number, as nodes keep it.
pub fn place(file: usize, line: usize) -> usize {
    (file << LINE_BITS) | line
}

/// The file and the line of such a number.
pub fn file_and_line(place: usize) -> (usize, usize) {
    (place >> LINE_BITS, place & ((1 << LINE_BITS) - 1))
}

/// Notes in all nodes which file they are from.
pub fn mark(node: &mut Node, file: usize) {
    node.line = place(file, node.line);
    match &mut node.value {
        Value::Scalar { .. } => {}
        Value::Sequence(nodes) => nodes.iter_mut().for_each(|node| mark(node, file)),
        Value::Mapping(entries) => entries.iter_mut().for_each(|(_, node)| mark(node, file)),
    }
}

/// Reads one document.
///
/// # Errors
/// When the text is no YAML, breaks a bound, or a mapping has a key twice.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    if text.len() > MAX_BYTES {
        return Err(YamlError { line: 1, reason: format!("larger than {MAX_BYTES} bytes") });
    }
    let mut builder = Builder::default();
    let parsed = Parser::new_from_str(text).load(&mut builder, true);
    if let Some(error) = builder.error {
        return Err(error);
    }
    if let Err(error) = parsed {
        return Err(YamlError { line: error.marker().line(), reason: format!("no YAML: {}", error.info()) });
    }
    let empty = Node { line: 1, value: Value::Mapping(Vec::new()) };
    Ok(builder.documents.into_iter().next().filter(|node| !node.is_null()).unwrap_or(empty))
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    error: Option<YamlError>,
}

struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<(String, Node)>, merged: Vec<Node>, key: Option<(String, usize)> },
}

impl<'input> SpannedEventReceiver<'input> for Builder {
    fn on_event(&mut self, event: Event<'input>, span: Span) {
        if self.error.is_some() {
            return;
        }
        let line = span.start.line();
        if let Err(reason) = self.event(event, line) {
            self.error = Some(YamlError { line, reason });
        }
    }
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                self.put(Node { line, value: Value::Scalar { text: text.into_owned(), plain } }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(line, anchor, Content::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.open(line, anchor, Content::Mapping { entries: Vec::new(), merged: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let node =
                    self.anchors.get(&anchor).cloned().ok_or("an alias of something that is not complete")?;
                self.nodes += count(&node);
                self.put(Node { line, ..node }, 0)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: usize, anchor: usize, content: Content) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.open.push(Open { line, anchor, content });
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(Open { line, anchor, content }) = self.open.pop() else {
            return Ok(());
        };
        let value = match content {
            Content::Sequence(nodes) => Value::Sequence(nodes),
            Content::Mapping { entries, merged, .. } => Value::Mapping(merge(entries, merged)?),
        };
        self.put(Node { line, value }, anchor)
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values, aliases counted"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.documents.push(node),
            Some(Content::Sequence(nodes)) => nodes.push(node),
            Some(Content::Mapping { entries, merged, key }) => match key.take() {
                None => {
                    let text = node.text().ok_or("a key must be a word")?.to_owned();
                    *key = Some((text, node.line));
                }
                Some((name, _)) if name == "<<" => merged.push(node),
                Some((name, line)) => {
                    if let Some((_, first)) = entries.iter().find(|(known, _)| *known == name) {
                        return Err(format!("{name:?} is there twice, in lines {} and {line}", first.line));
                    }
                    entries.push((name, node));
                }
            },
        }
        Ok(())
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar { .. } => 0,
        Value::Sequence(nodes) => nodes.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|(_, node)| count(node)).sum(),
    }
}

/// Merge keys (yaml.org/type/merge): own entries win, then earlier mappings.
fn merge(mut entries: Vec<(String, Node)>, merged: Vec<Node>) -> Result<Vec<(String, Node)>, String> {
    for node in merged {
        let sources = match node.value {
            Value::Sequence(nodes) => nodes,
            _ => vec![node],
        };
        for source in sources {
            let Value::Mapping(more) = source.value else {
                return Err("<< takes a mapping".to_owned());
            };
            for (name, node) in more {
                if !entries.iter().any(|(known, _)| *known == name) {
                    entries.push((name, node));
                }
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(text: &str) -> Vec<(String, Node)> {
        match parse(text).expect("parses").value {
            Value::Mapping(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_keep_their_text_and_keys_are_never_booleans() {
        let entries = map("on: yes\ny: 010\nv: 1.10\n");
        let texts: Vec<_> =
            entries.iter().map(|(key, node)| (key.as_str(), node.text().expect("a scalar"))).collect();
        assert_eq!(texts, [("on", "yes"), ("y", "010"), ("v", "1.10")]);
        assert_eq!(entries[2].1.line, 3);
    }

    #[test]
    fn own_entries_win_over_merged_ones() {
        let entries = map("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n");
        let Value::Mapping(b) = &entries[1].1.value else { panic!() };
        let mut b: Vec<_> = b.iter().map(|(key, node)| (key.as_str(), node.text().expect("a scalar"))).collect();
        b.sort_unstable();
        assert_eq!(b, [("x", "1"), ("y", "3")]);
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused_with_both_lines() {
        assert_eq!(
            parse("a: 1\nb: 2\na: 3\n").expect_err("refused").reason,
            "\"a\" is there twice, in lines 1 and 3"
        );
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![alias; 9].join(",")));
        }
        assert!(parse(&text).expect_err("refused").reason.contains("aliases counted"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") { let _ = parse(&text); }
        #[test]
        fn any_structure_is_answered(text in "[-a:&*<{}\\[\\], \n'\"#|>!?%@]{0,120}") { let _ = parse(&text); }
    }
}
