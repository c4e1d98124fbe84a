//! What a stranger wrote, where a person reads it.

/// Characters of a message's part that come from outside: a manifest may hold 4 MiB of anything.
const MAX_TEXT: usize = 300;

/// Text that others wrote as one line of bearable length.
pub fn one_line(text: &str) -> String {
    let cut = text.char_indices().nth(MAX_TEXT).map(|(at, _)| at);
    let mut line = String::new();
    for char in text[..cut.unwrap_or(text.len())].chars() {
        if char.is_control() { line.extend(char.escape_default()) } else { line.push(char) }
    }
    if cut.is_some() {
        line.push('…');
    }
    line
}
