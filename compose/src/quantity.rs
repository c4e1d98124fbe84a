//! Words that carry numbers: durations, sizes, CPU counts, booleans (Compose Specification).

use std::time::Duration;

/// A duration: `1h5m30s20ms`, with `us` and `ns` too, fractions allowed (`1.5s`).
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write 90s, 1m30s or 500ms");
    let mut rest = text.trim();
    let mut total = 0_f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let value: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        total += value
            * match &rest[..letters] {
                "h" => 3600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" => 1e3,
                "ns" => 1.0,
                _ => return Err(wrong()),
            };
        rest = &rest[letters..];
    }
    // Two centuries: what a u64 of nanoseconds holds with room for sums.
    if total < 6e18 { Ok(Duration::from_nanos(total as u64)) } else { Err(format!("{text:?} is too long")) }
}

/// A size in bytes: `64m`, `1gb`, `512k`, `100`, powers of 1024; `1.5g` is allowed.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write bytes or a number with b, k, m, g");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = lower.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"));
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if value < 1e18 { Ok(value as u64) } else { Err(format!("{text:?} is too large")) }
}

/// A boolean of YAML 1.2's core schema, or quoted.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// CPUs in billionths.
pub fn nano_cpus(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.0..=4096.0).contains(&cpus) => Ok((cpus * 1e9).round() as u64),
        _ => Err(format!("{text:?} is no number of CPUs: write 0.5 or 2")),
    }
}

/// Mode bits: octal with a leading 0 or `0o`, also in quotes; else decimal as Compose has it.
pub fn mode(text: &str) -> Result<u32, String> {
    let parsed = if let Some(octal) = text.strip_prefix("0o") {
        u32::from_str_radix(octal, 8)
    } else if text.len() > 1 && text.starts_with('0') {
        u32::from_str_radix(text, 8)
    } else {
        text.parse()
    };
    parsed.ok().filter(|&mode| mode <= 0o7777).ok_or_else(|| format!("{text:?} is no file mode: write 0440"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_add_their_parts() {
        assert_eq!(duration("1h5m30s20ms"), Ok(Duration::from_millis(3_930_020)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("10us"), Ok(Duration::from_micros(10)));
        for text in ["", "5", "s", "1x", "1s2", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("64kb"), Ok(65_536));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("0.5m"), Ok(524_288));
        for text in ["", "m", "1x", "-1", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    // compose-spec/compose-go#738, docker/compose#12717
    #[test]
    fn modes_are_octal_however_they_are_written() {
        for text in ["0400", "0o400", "256"] {
            assert_eq!(mode(text), Ok(0o400), "{text}");
        }
        assert_eq!(mode("400"), Ok(0o620));
        assert!(mode("rwx").is_err() && mode("077777").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9.a-z]{0,20}|.{0,20}") {
            let _ = (duration(&text), size(&text), boolean(&text), nano_cpus(&text), mode(&text));
        }
    }
}
