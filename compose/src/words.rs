//! A command line as words, as a shell would quote them, without a shell.

/// Splits by blanks; single and double quotes and backslashes work, nothing is expanded.
///
/// # Errors
/// When a quote is not closed.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(char) => word.push(char),
                        None => return Err("a single quote is not closed".to_owned()),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().extend(chars.next()),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), String> {
    loop {
        match chars.next() {
            Some('"') => return Ok(()),
            Some('\\') => match chars.next() {
                Some(char @ ('"' | '\\' | '$' | '`')) => word.push(char),
                Some(char) => word.extend(['\\', char]),
                None => break,
            },
            Some(char) => word.push(char),
            None => break,
        }
    }
    Err("a double quote is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_keep_words_together_and_operators_are_words() {
        assert_eq!(split("sh -c 'a > $F'").expect("split"), ["sh", "-c", "a > $F"]);
        assert_eq!(split(r#"a "b \"c" d\ e '' f"g"h"#).expect("split"), ["a", "b \"c", "d e", "", "fgh"]);
        assert!(split("").expect("split").is_empty());
        assert!(split("'a").is_err() && split("\"a").is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line in ".{0,60}") { let _ = split(&line); }
    }
}
