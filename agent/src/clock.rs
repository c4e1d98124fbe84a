//! The two clocks: boot time for pauses, wall time for people.

use crate::current::Moment;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since boot, sleep included (`CLOCK_BOOTTIME`).
pub fn boot_now() -> Moment {
    // Cannot fail: the clock is there since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Seconds since 1970; a clock before that reads as 0.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

/// The kernel's id of this boot (random(4), `boot_id`).
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Nanoseconds since 1970 as RFC 3339 in UTC, with that many digits of the second's fraction.
pub fn rfc3339(unix_ns: u64, digits: usize) -> String {
    let (seconds, fraction) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if digits > 0 {
        text.push('.');
        text.push_str(&format!("{fraction:09}")[..digits.min(9)]);
    }
    text + "Z"
}

/// Days since 1970 as year, month, day (proleptic Gregorian calendar, eras of 400 years beginning in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Reads RFC 3339 in UTC, or a date; nanoseconds since 1970.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let mut parts = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some()
        || !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
    {
        return None;
    }
    let (clock, fraction) = match time.trim_end_matches('Z').split_once('.') {
        Some((clock, fraction)) => (clock, format!("{fraction:0<9}").get(..9)?.parse::<u64>().ok()?),
        None => (time.trim_end_matches('Z'), 0),
    };
    let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The inverse of `civil`.
    let (year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let days = (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)?;
    Some((days * 86400 + hour * 3600 + minute * 60 + second) * 1_000_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_right() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_123_456_789, 3), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(2_147_483_648_000_000_000, 9), "2038-01-19T03:14:08.000000000Z");
        assert_eq!(parse_rfc3339("2000-02-29"), Some(951_782_400_000_000_000));
        assert_eq!(parse_rfc3339("2000-13-01"), None);
    }

    proptest! {
        #[test]
        fn every_moment_is_read_back(unix_ns in 0_u64..250_000_000_000_000_000) {
            prop_assert_eq!(parse_rfc3339(&rfc3339(unix_ns, 9)), Some(unix_ns));
        }
    }
}
