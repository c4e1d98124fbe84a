//! Variables in values (Compose Specification, interpolation): `$A`, `${A}` and the forms with `-`, `?`, `+`.

use std::collections::BTreeMap;

/// Nesting of `${A:-${B:-…}}`.
const MAX_DEPTH: usize = 32;

/// Bytes of one value after its variables were put in.
const MAX_VALUE: usize = 1024 * 1024;

/// What a value became, and which variables had no value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interpolated {
    /// The value.
    pub text: String,
    /// Names without a value, for a warning.
    pub unset: Vec<String>,
}

/// Puts variables into `text`. A value that came from a variable is not looked at again.
///
/// # Errors
/// One line: a form that is none, or the text of `${A:?text}`.
pub fn interpolate(text: &str, variables: &BTreeMap<String, String>) -> Result<Interpolated, String> {
    let mut result = Interpolated::default();
    expand(text, variables, &mut result, 0)?;
    Ok(result)
}

fn expand(
    text: &str,
    variables: &BTreeMap<String, String>,
    out: &mut Interpolated,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("variables nested deeper than {MAX_DEPTH}"));
    }
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.text.push('$');
            rest = tail;
        } else if let Some(tail) = after.strip_prefix('{') {
            let end = closing(tail)
                .ok_or_else(|| format!("${{{tail}: the closing }} is missing; write $$ for a dollar"))?;
            braced(&tail[..end], variables, out, depth)?;
            rest = &tail[end + 1..];
        } else {
            let length = name_length(after);
            if length == 0 {
                return Err("a single $ names no variable; write $$ for a dollar".to_owned());
            }
            put(&after[..length], variables, out);
            rest = &after[length..];
        }
        if out.text.len() > MAX_VALUE {
            return Err(format!("the value grows larger than {MAX_VALUE} bytes"));
        }
    }
    out.text.push_str(rest);
    Ok(())
}

/// Where the brace that was opened before `text` closes: inner ones are stepped over.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, char) in text.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn braced(
    inner: &str,
    variables: &BTreeMap<String, String>,
    out: &mut Interpolated,
    depth: usize,
) -> Result<(), String> {
    let length = name_length(inner);
    let (name, rest) = inner.split_at(length);
    if name.is_empty() {
        return Err(format!("${{{inner}}} names no variable; write $$ for a dollar"));
    }
    let (colon, operator, argument) = match rest.strip_prefix(':').unwrap_or(rest).chars().next() {
        None if rest.is_empty() => {
            put(name, variables, out);
            return Ok(());
        }
        Some(operator @ ('-' | '?' | '+')) => {
            let colon = rest.starts_with(':');
            (colon, operator, &rest[usize::from(colon) + 1..])
        }
        _ => {
            return Err(format!("${{{inner}}}: after the name come -, ?, +, each with or without a colon before"));
        }
    };
    let value = variables.get(name).filter(|value| !(colon && value.is_empty()));
    match (operator, value) {
        ('-', Some(value)) => out.text.push_str(value),
        ('?', Some(value)) => out.text.push_str(value),
        ('-', None) | ('+', Some(_)) => expand(argument, variables, out, depth + 1)?,
        ('+', None) => {}
        _ => {
            let mut message = Interpolated::default();
            expand(argument, variables, &mut message, depth + 1)?;
            return Err(format!("variable {name} is required: {}", message.text));
        }
    }
    Ok(())
}

fn put(name: &str, variables: &BTreeMap<String, String>, out: &mut Interpolated) {
    match variables.get(name) {
        Some(value) => out.text.push_str(value),
        None => out.unset.push(name.to_owned()),
    }
}

fn name_length(text: &str) -> usize {
    let word =
        |at: usize, byte: u8| byte == b'_' || byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
    text.bytes().enumerate().take_while(|&(at, byte)| word(at, byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<String, String> {
        let variables = [("A", "a"), ("E", ""), ("H", "$2y$05$abc")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        interpolate(text, &variables.into()).map(|it| it.text)
    }

    fn ok(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    // docker/compose#9806, docker/compose#9716, docker/compose#9024, compose-spec/compose-go#219
    #[test]
    fn every_form_of_the_specification_is_known() {
        assert_eq!(check("$A-${A}"), ok("a-a"));
        assert_eq!(check("${N:-b} ${E:-b} ${E-b} ${N-}"), ok("b b  "));
        assert_eq!(check("${A:+set}${E:+set}${E+set}"), ok("setset"));
        assert_eq!(check("$$HOME $${A}"), ok("$HOME ${A}"));
        assert_eq!(check("${A?}${A:?x}"), ok("aa"));
        assert_eq!(check("${N:?give N}"), Err("variable N is required: give N".to_owned()));
        assert_eq!(check("${E:?empty}"), Err("variable E is required: empty".to_owned()));
    }

    #[test]
    fn braces_nest_and_only_the_used_branch_is_evaluated() {
        assert_eq!(check("{{ ${A:-a} }} ${N:-${M:-b}}/x pre-${M:-{}}-post"), ok("{{ a }} b/x pre-{}-post"));
        assert_eq!(check("${A:-${N:?never}}"), ok("a"));
    }

    #[test]
    fn a_value_is_not_looked_at_again() {
        assert_eq!(check("${H}"), ok("$2y$05$abc"));
    }

    #[test]
    fn broken_forms_are_refused() {
        for text in ["${A", "${}", "${1}", "$ ", "${A!}", "${A:}"] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_without_value_are_named() {
        assert_eq!(interpolate("$X${Y}", &BTreeMap::new()).expect("accepted").unset, ["X", "Y"]);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[${}A:?+-]{0,40}|.{0,40}") { let _ = check(&text); }
    }
}
