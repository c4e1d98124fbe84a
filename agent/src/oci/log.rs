//! What the OCI command line says beside its output: lines of text or JSON, as engines read runc's.

use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Where lines go.
#[derive(Debug)]
struct Log {
    out: Mutex<std::fs::File>,
    form: Form,
    most: Level,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people, and for engines that show it to people.
    Plain,
    /// Name and value pairs.
    Text,
    /// An object.
    Json,
}

/// Sends what is logged from now on to `out`.
pub fn begin(out: std::fs::File, form: Form, debug: bool) {
    let most = if debug { Level::DEBUG } else { Level::WARN };
    // A second one would be a mistake of ours, and no reason to fail.
    let _ = tracing_subscriber::registry().with(Log { out: Mutex::new(out), form, most }).try_init();
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // What libcontainer finds wrong comes back as an error too, in better words.
        let ours = metadata.target().starts_with("coracle");
        if *metadata.level() > self.most || !(ours || self.most == Level::DEBUG) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let text = line_of(level, &format!("{}{}", line.message, line.fields), self.form);
        if let Ok(mut out) = self.out.lock() {
            // There is nowhere else to say that it cannot be said.
            let _ = out.write_all(text.as_bytes());
        }
    }
}

fn line_of(level: &str, message: &str, form: Form) -> String {
    let time = crate::clock::rfc3339(crate::clock::unix_now().saturating_mul(1_000_000_000), 0);
    match form {
        Form::Plain => format!("{level}: {message}\n"),
        Form::Text => format!("time={time:?} level={level} msg={message:?}\n"),
        Form::Json => format!("{}\n", json!({ "level": level, "msg": message, "time": time })),
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_engines_read() {
        let line = line_of("error", "a \"b\"", Form::Json);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((value["level"].as_str(), value["msg"].as_str()), (Some("error"), Some("a \"b\"")));
        assert!(line_of("error", "a", Form::Text).contains("level=error msg=\"a\""));
    }
}
