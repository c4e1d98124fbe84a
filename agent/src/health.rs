//! Health checks: what is run, how often, and what its results mean. Pure; `probe.rs` runs them.
//!
//! ```text
//!            success                     success
//! starting ───────────> healthy <─────────────────── unhealthy
//!    │                     │  `retries` failures in a row   ▲
//!    └─────────────────────┴────────────────────────────────┘
//!      (failures within the start period do not count)
//! ```

use crate::current::Health;
use coracle_compose::{HealthCheck, HealthTest};
use coracle_runtime::image::ImageHealth;
use std::time::Duration;

/// Between two checks when nobody says (Dockerfile reference, HEALTHCHECK).
const INTERVAL: Duration = Duration::from_secs(30);
/// Of one check when nobody says.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two checks in the start period when nobody says.
const START_INTERVAL: Duration = Duration::from_secs(5);
/// Failures in a row when nobody says.
const RETRIES: u32 = 3;
/// Shortest pause between two checks: each is a process, and a board has one slow core.
const SHORTEST: Duration = Duration::from_millis(100);

/// A complete check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Between the end of one and the start of the next.
    pub interval: Duration,
    /// Then it is killed and has failed.
    pub timeout: Duration,
    /// Failures this long after the start do not count, until the first success.
    pub start_period: Duration,
    /// As `interval`, in the start period.
    pub start_interval: Duration,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

/// The check of a service: the file's fields over the image's; `None` when there is none.
pub fn check(file: Option<&HealthCheck>, image: Option<&ImageHealth>) -> Option<Check> {
    let empty = (HealthCheck::default(), ImageHealth::default());
    let (file, image) = (file.unwrap_or(&empty.0), image.unwrap_or(&empty.1));
    if file.disable {
        return None;
    }
    let args = match &file.test {
        Some(HealthTest::Exec(args)) => args.clone(),
        Some(HealthTest::Shell(line)) => shell(line),
        None => match image.test.split_first() {
            Some((kind, args)) if kind == "CMD" => args.to_vec(),
            Some((kind, args)) if kind == "CMD-SHELL" => shell(&args.join(" ")),
            _ => return None,
        },
    };
    if args.is_empty() {
        return None;
    }
    let time = |file: Option<Duration>, image: Option<Duration>, default: Duration| {
        file.filter(|it| !it.is_zero()).or(image).unwrap_or(default)
    };
    Some(Check {
        args,
        interval: time(file.interval, image.interval, INTERVAL).max(SHORTEST),
        timeout: time(file.timeout, image.timeout, TIMEOUT).max(SHORTEST),
        start_period: file.start_period.or(image.start_period).unwrap_or_default(),
        start_interval: time(file.start_interval, image.start_interval, START_INTERVAL).max(SHORTEST),
        retries: file.retries.filter(|&it| it > 0).or(image.retries).unwrap_or(RETRIES),
    })
}

fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

/// The verdict so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What is told.
    pub health: Health,
    /// Failures in a row that counted.
    pub failures: u32,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { health: Health::Starting, failures: 0 }
    }
}

impl Verdict {
    /// The verdict after one more result, `age` after the container's start.
    #[must_use]
    pub fn after(self, check: &Check, success: bool, age: Duration) -> Self {
        if success {
            return Self { health: Health::Healthy, failures: 0 };
        }
        if self.health == Health::Starting && age < check.start_period {
            return self;
        }
        let failures = self.failures.saturating_add(1);
        let health = if failures >= check.retries { Health::Unhealthy } else { self.health };
        Self { health, failures }
    }

    /// The pause before the next check.
    pub fn pause(self, check: &Check, age: Duration) -> Duration {
        if self.health == Health::Starting && age < check.start_period {
            check.start_interval
        } else {
            check.interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(start_period: u64, retries: u32) -> Check {
        let file = HealthCheck {
            test: Some(HealthTest::Shell("true".to_owned())),
            start_period: Some(Duration::from_secs(start_period)),
            retries: Some(retries),
            ..HealthCheck::default()
        };
        check(Some(&file), None).expect("a check")
    }

    // F3
    #[test]
    fn failures_in_the_start_period_do_not_count_and_a_success_ends_it() {
        let check = with(10, 2);
        let verdict = Verdict::default();
        let early = verdict.after(&check, false, Duration::from_secs(9));
        assert_eq!(early, verdict);
        let healthy = early.after(&check, true, Duration::from_secs(2));
        assert_eq!(healthy.health, Health::Healthy);
        let once = healthy.after(&check, false, Duration::from_secs(3));
        assert_eq!((once.health, once.failures), (Health::Healthy, 1));
        assert_eq!(once.after(&check, false, Duration::from_secs(4)).health, Health::Unhealthy);
    }

    #[test]
    fn the_file_is_laid_over_the_image_field_by_field() {
        let image = ImageHealth {
            test: vec!["CMD".to_owned(), "/probe".to_owned()],
            interval: Some(Duration::from_secs(7)),
            ..ImageHealth::default()
        };
        let file = HealthCheck { retries: Some(9), ..HealthCheck::default() };
        let check = check(Some(&file), Some(&image)).expect("a check");
        assert_eq!(
            (check.args, check.interval, check.retries),
            (vec!["/probe".to_owned()], Duration::from_secs(7), 9)
        );
        let off = HealthCheck { disable: true, ..HealthCheck::default() };
        assert_eq!(super::check(Some(&off), Some(&image)), None);
        let none = ImageHealth { test: vec!["NONE".to_owned()], ..ImageHealth::default() };
        assert_eq!(super::check(None, Some(&none)), None);
    }
}
