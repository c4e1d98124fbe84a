//! Refusals and notices: where something stands, what is wrong, and what to write instead.

use std::fmt;

/// Something that is taken, but not as a reader might think.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// File as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Dotted path of the field.
    pub field: String,
    /// What happens.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file, self.line, &self.field)?;
        write!(f, "{}", self.message)
    }
}

/// Something that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// File as it was given; empty for a setting.
    pub file: String,
    /// Line, from 1; 0 when it is about the whole file.
    pub line: usize,
    /// Dotted path of the field.
    pub field: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file, self.line, &self.field)?;
        write!(f, "{}", self.reason)
    }
}

fn place(f: &mut fmt::Formatter<'_>, file: &str, line: usize, field: &str) -> fmt::Result {
    if !file.is_empty() {
        write!(f, "{file}:")?;
        if line > 0 {
            write!(f, "{line}:")?;
        }
        write!(f, " ")?;
    }
    if field.is_empty() { Ok(()) } else { write!(f, "{field}: ") }
}

/// All refusals of a project, one line each. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{refusal}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusals {}

impl From<Refusal> for Refusals {
    fn from(refusal: Refusal) -> Self {
        Self(vec![refusal])
    }
}
