//! The clock before anybody was asked for the time: never before the image was built, nor before what was once known.
//!
//! Most boards have no clock that runs without power. Certificates are checked against this one, so it must not be in
//! 1970; that it may be behind is known to who asks for the time (`coracle-timesync`).

use crate::sys::{RtcTime, read_rtc};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the time is saved: what a board without a clock is behind after it lost power.
pub const SAVED_EVERY: Duration = Duration::from_secs(3600);

/// A saved time or a real-time clock that is further from the image's than this is taken for broken: 30 years.
const LONGEST_S: u64 = 30 * 365 * 86_400;

/// What is known of the time. Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The clock as it runs now.
    pub clock_s: u64,
    /// When the image was built.
    pub built_s: u64,
    /// Saved last.
    pub saved_s: Option<u64>,
    /// The real-time clock.
    pub rtc_s: Option<u64>,
}

/// Where a time is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The clock was right enough: the kernel set it.
    Clock,
    /// The image's age.
    Built,
    /// The time that was saved.
    Saved,
    /// The real-time clock.
    Rtc,
}

impl Known {
    /// What the clock is to be set to, and why; the clock's own time, when it is not behind.
    pub fn decide(self) -> (u64, Origin) {
        let plausible = |time: Option<u64>| time.filter(|&it| it <= self.built_s.saturating_add(LONGEST_S));
        let floor = [(Some(self.built_s), Origin::Built), (plausible(self.saved_s), Origin::Saved)]
            .into_iter()
            .filter_map(|(time, origin)| Some((time?, origin)))
            .max_by_key(|&(time, _)| time)
            .unwrap_or((self.built_s, Origin::Built));
        let clocks = [(Some(self.clock_s), Origin::Clock), (self.rtc_s, Origin::Rtc)];
        let found = clocks.into_iter().find_map(|(time, origin)| {
            let time = plausible(time).filter(|&time| time >= floor.0)?;
            Some((time, origin))
        });
        found.unwrap_or(floor)
    }
}

/// Seconds since 1970 of a calendar's date, for years from 1970 on.
pub fn unix_of(time: RtcTime) -> Option<u64> {
    let number =
        |value: i32, least: i32, most: i32| u64::try_from(value).ok().filter(|_| (least..=most).contains(&value));
    let year = number(time.year, 70, 1000)? + 1900;
    let month = number(time.mon, 0, 11)? + 1;
    let day = number(time.mday, 1, 31)?;
    let seconds = number(time.hour, 0, 23)? * 3600 + number(time.min, 0, 59)? * 60 + number(time.sec, 0, 60)?;
    // Days of years that begin in March, whose leap day is the last (a common way to count them).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // 1970-01-01 in that count.
    Some((days - 719_468) * 86_400 + seconds)
}

/// What this board knows. `saved`: the file that says the time that was saved, or has it as its time of change.
pub fn known(built_unix_s: u64, saved: &Path) -> Known {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|it| it.as_secs());
    let rtc = File::open("/dev/rtc0").and_then(|clock| read_rtc(clock.as_fd())).ok();
    Known {
        clock_s: u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0),
        built_s: built_unix_s,
        saved_s: saved_time(saved).or_else(|| seconds(saved.metadata().and_then(|it| it.modified()).ok()?)),
        rtc_s: rtc.and_then(unix_of),
    }
}

/// The text, rather than the time of change: file times of 32-bit machines end in 2038.
fn saved_time(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Sets the clock.
///
/// # Errors
/// What the kernel says.
pub fn set(unix_s: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_s).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: 0 })?)
}

/// Saves the time, old or new.
///
/// # Errors
/// As the file system says.
pub fn save(path: &Path) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    crate::files::replace(path, format!("{now}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUILT: u64 = 1_790_000_000;

    #[test]
    fn the_clock_is_never_behind_what_is_known() {
        let known = Known { clock_s: 0, built_s: BUILT, saved_s: None, rtc_s: None };
        assert_eq!(known.decide(), (BUILT, Origin::Built));
        assert_eq!(Known { saved_s: Some(BUILT + 5), ..known }.decide(), (BUILT + 5, Origin::Saved));
        assert_eq!(Known { rtc_s: Some(BUILT + 9), ..known }.decide(), (BUILT + 9, Origin::Rtc));
        // A dead battery.
        assert_eq!(Known { rtc_s: Some(946_684_800), ..known }.decide(), (BUILT, Origin::Built));
        assert_eq!(Known { clock_s: BUILT + 1, ..known }.decide(), (BUILT + 1, Origin::Clock));
        // One that is a hundred years ahead.
        assert_eq!(Known { rtc_s: Some(BUILT + 100 * 365 * 86_400), ..known }.decide(), (BUILT, Origin::Built));
        assert_eq!(Known { saved_s: Some(u64::MAX), ..known }.decide(), (BUILT, Origin::Built));
    }

    #[test]
    fn dates_are_counted_as_the_calendar_has_them() {
        let time = |year: i32, mon: i32, mday: i32, hour: i32| RtcTime {
            year: year - 1900,
            mon: mon - 1,
            mday,
            hour,
            ..RtcTime::default()
        };
        assert_eq!(unix_of(time(1970, 1, 1, 0)), Some(0));
        assert_eq!(unix_of(time(2000, 2, 29, 12)), Some(951_825_600));
        assert_eq!(unix_of(time(2038, 1, 19, 3)), Some(2_147_482_800));
        assert_eq!(unix_of(time(2100, 3, 1, 0)), Some(4_107_542_400));
        assert_eq!(unix_of(time(1969, 12, 31, 0)), None);
        assert_eq!(unix_of(time(2020, 13, 1, 0)), None);
    }

    proptest! {
        #[test]
        fn a_decision_is_between_the_image_and_the_longest(
            clock_s in any::<u64>(), built_s in 0..4_000_000_000_u64, saved_s in any::<Option<u64>>(), rtc_s in any::<Option<u64>>()
        ) {
            let (time, _) = Known { clock_s, built_s, saved_s, rtc_s }.decide();
            prop_assert!(time >= built_s && time <= built_s + LONGEST_S);
        }
    }
}
