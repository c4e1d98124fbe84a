//! Limits of `update`, from options or from a file, as `linux.resources` of a configuration.

use super::options::{Options, Usage};
use super::{MAX_FILE, Problem, foreground};
use oci_spec::runtime::LinuxResources;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The limits that are to change.
///
/// # Errors
/// What is no limit.
pub fn resources(options: &Options) -> Result<LinuxResources, Problem> {
    let mut document: Map<String, Value> = match &options.resources {
        Some(path) => {
            let text = foreground::read(path, MAX_FILE)?;
            serde_json::from_slice(&text)
                .map_err(|error| Problem::new(1, format!("{}: {error}", path.display())))?
        }
        None => Map::new(),
    };
    for (name, value) in &options.limits {
        set(&mut document, name, value)?;
    }
    LinuxResources::deserialize(&Value::Object(document))
        .map_err(|error| Problem::new(1, coracle_runtime::one_line(&format!("limits: {error}"))))
}

fn set(document: &mut Map<String, Value>, name: &str, text: &str) -> Result<(), Usage> {
    let (section, field) = match name {
        "memory" => ("memory", "limit"),
        "memory-reservation" => ("memory", "reservation"),
        "memory-swap" => ("memory", "swap"),
        "cpu-period" => ("cpu", "period"),
        "cpu-quota" => ("cpu", "quota"),
        "cpu-burst" => ("cpu", "burst"),
        "cpu-share" => ("cpu", "shares"),
        "cpu-idle" => ("cpu", "idle"),
        "cpu-rt-period" => ("cpu", "realtimePeriod"),
        "cpu-rt-runtime" => ("cpu", "realtimeRuntime"),
        "cpuset-cpus" => ("cpu", "cpus"),
        "cpuset-mems" => ("cpu", "mems"),
        "blkio-weight" => ("blockIO", "weight"),
        _ => ("pids", "limit"),
    };
    let wrong = || Usage(format!("--{name} {text}: is no number"));
    let value = match field {
        "cpus" | "mems" => json!(text),
        _ if section == "memory" => json!(bytes(text).ok_or_else(wrong)?),
        _ => json!(text.parse::<i64>().map_err(|_| wrong())?),
    };
    let section = document.entry(section).or_insert_with(|| json!({}));
    if section.is_null() {
        *section = json!({});
    }
    // One that a file has as something else than an object is told of when it is read.
    if let Some(section) = section.as_object_mut() {
        section.insert(field.to_owned(), value);
    }
    Ok(())
}

/// Bytes, with runc's endings.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match lower.chars().last()? {
        'k' => (&lower[..lower.len() - 1], 1 << 10),
        'm' => (&lower[..lower.len() - 1], 1 << 20),
        'g' => (&lower[..lower.len() - 1], 1 << 30),
        't' => (&lower[..lower.len() - 1], 1_i64 << 40),
        _ => (lower, 1),
    };
    number.parse::<i64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn limits(line: &str) -> Result<LinuxResources, String> {
        let options = Options::parse(line.split_whitespace().map(OsString::from)).map_err(|it| it.0)?;
        resources(&options).map_err(|it| it.message)
    }

    #[test]
    fn options_become_limits() {
        let wanted =
            limits("update --memory 64m --memory-swap -1 --cpu-quota 5000 --cpuset-cpus 0-1 --pids-limit 7 c");
        let wanted = serde_json::to_value(wanted.expect("limits")).expect("JSON");
        assert_eq!(wanted["memory"]["limit"], 64 << 20);
        assert_eq!(wanted["memory"]["swap"], -1);
        assert_eq!(wanted["cpu"]["quota"], 5000);
        assert_eq!(wanted["cpu"]["cpus"], "0-1");
        assert_eq!(wanted["pids"]["limit"], 7);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        assert!(limits("update --memory lots c").is_err_and(|it| it.starts_with("--memory lots")));
        assert!(limits("update --blkio-weight -1 c").is_err());
        assert_eq!(bytes("9223372036854775807k"), None);
    }

    #[test]
    fn a_file_of_another_form_is_refused_with_options_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("limits");
        for text in ["[1]", "\"x\"", "7", "null", r#"{"memory": 7}"#, r#"{"memory": []}"#] {
            std::fs::write(&file, text).expect("written");
            let line = format!("update --memory 64m --resources {} c", file.display());
            assert!(limits(&line).is_err(), "{text}");
        }
        std::fs::write(&file, r#"{"memory": null, "pids": {"limit": 3}}"#).expect("written");
        let both = limits(&format!("update --memory 64m --resources {} c", file.display())).expect("limits");
        let both = serde_json::to_value(both).expect("JSON");
        assert_eq!((&both["memory"]["limit"], &both["pids"]["limit"]), (&json!(64 << 20), &json!(3)));
    }
}
