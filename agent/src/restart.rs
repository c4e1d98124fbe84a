//! Restart policies: whether and when an ended service is started again. Pure.

use coracle_compose::Restart;
use std::time::Duration;

/// Pause after the first end.
const FIRST: Duration = Duration::from_millis(500);

/// Longest pause: a service that needs something that comes back is up again within a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// A run of this length was a good one: the next pause is the first again (Docker's rule).
pub const GOOD_RUN: Duration = Duration::from_secs(10);

/// The pause before the next start after `streak` ends in a row, at least 1.
pub fn pause(streak: u32) -> Duration {
    let doublings = streak.saturating_sub(1).min(10);
    (FIRST * 2_u32.pow(doublings)).min(LONGEST)
}

/// What a policy says about an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after the pause.
    Again {
        /// How often it may be tried, the first start not counted; `None`: for ever.
        limit: Option<u32>,
    },
    /// Never by itself.
    Stay,
}

/// Judges an end with exit code `code` after `restarts` restarts.
pub fn judge(policy: Restart, code: i32, restarts: u32) -> Verdict {
    match policy {
        Restart::Always | Restart::UnlessStopped => Verdict::Again { limit: None },
        Restart::OnFailure(limit) if code != 0 && limit.is_none_or(|limit| restarts < limit) => {
            Verdict::Again { limit }
        }
        Restart::OnFailure(_) | Restart::No => Verdict::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_capped() {
        let pauses: Vec<u128> = [1, 2, 3, 7, 8, 99].map(|streak| pause(streak).as_millis()).to_vec();
        assert_eq!(pauses, [500, 1000, 2000, 32000, 60000, 60000]);
    }

    #[test]
    fn on_failure_stops_at_its_limit_and_at_success() {
        assert_eq!(judge(Restart::OnFailure(Some(2)), 1, 1), Verdict::Again { limit: Some(2) });
        assert_eq!(judge(Restart::OnFailure(Some(2)), 1, 2), Verdict::Stay);
        assert_eq!(judge(Restart::OnFailure(None), 0, 0), Verdict::Stay);
        assert_eq!(judge(Restart::Always, 0, 1000), Verdict::Again { limit: None });
        assert_eq!(judge(Restart::No, 1, 0), Verdict::Stay);
    }
}
