//! The programs that the first process starts and starts again. Pure: what is to be done is an answer.
//!
//! When the agent ends again and again, this is the ladder:
//!
//! | ends | what is done |
//! |---|---|
//! | any | it is started again, after a pause that doubles from 0.1 s to 30 s; containers go on and are adopted |
//! | 5 in 10 minutes | it is started in safe mode: network, control and status, but no step of a plan |
//! | 10 in 30 minutes | the board reboots in order, when it has been up for 10 minutes; the kernel's last words are kept |
//! | after 3 such reboots in a row | no more reboots: the agent is tried every 5 minutes, in safe mode |
//!
//! An agent that says nothing for five minutes is killed, which counts as an end. A board that is slow is not: nothing
//! here looks at how long anything takes but that.

use std::time::Duration;

/// First pause before a program is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of a program that has one thing to do, and wrote to the card in vain: it is as well done in a quarter of an hour.
const LONGEST_PAUSE_OF_ONE: Duration = Duration::from_secs(900);
/// A run of this length was a good one: pauses begin anew.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// Ends of the agent within [`SAFE_WITHIN`] after which it is in safe mode.
const SAFE_AFTER: usize = 5;
const SAFE_WITHIN: Duration = Duration::from_secs(600);
/// Ends of the agent within [`REBOOT_WITHIN`] after which the board reboots.
const REBOOT_AFTER: usize = 10;
const REBOOT_WITHIN: Duration = Duration::from_secs(1800);
/// A board reboots for its agent's sake at most this often in an hour of its life: six times.
pub const LEAST_UPTIME: Duration = Duration::from_secs(600);
/// Reboots in a row, after which there is none any more.
const MOST_REBOOTS: u32 = 3;
/// Ends of a program that took the place of the image's own, within [`REBOOT_WITHIN`]: before safe mode, which the
/// image's own may not need.
const GIVE_UP_AFTER: usize = 3;
/// Pause when nothing helped.
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// The agent has been well for so long that earlier reboots count no more.
pub const WELL: Duration = Duration::from_secs(600);
/// The agent says that it lives every minute at least; without a word for so long it is killed.
pub const SILENCE: Duration = Duration::from_secs(300);

/// Where a program is in its life. Times since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// To be started then.
    Waiting {
        /// When.
        at: Duration,
    },
    /// It runs.
    Running {
        /// Its process.
        pid: i32,
        /// Since when.
        since: Duration,
    },
    /// It is not to be started.
    Off,
}

/// A program that is kept running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name in logs and cgroups.
    pub name: String,
    /// Now.
    pub state: State,
    /// Ends in a row.
    failures: u32,
    longest_pause: Duration,
}

impl Unit {
    /// One that is to be started at once.
    pub fn new(name: &str) -> Self {
        let state = State::Waiting { at: Duration::ZERO };
        Self { name: name.to_owned(), state, failures: 0, longest_pause: LONGEST_PAUSE }
    }

    /// One that has one thing to do.
    pub fn of_one(self) -> Self {
        Self { longest_pause: LONGEST_PAUSE_OF_ONE, ..self }
    }

    /// One that is started when there is something for it to do.
    pub fn off(name: &str) -> Self {
        Self { state: State::Off, ..Self::new(name) }
    }

    /// There is.
    pub fn wanted(&mut self, now: Duration) {
        if self.state == State::Off {
            self.state = State::Waiting { at: now };
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Waiting { .. } | State::Off => None,
        }
    }

    /// It ended because it was told to, and is started anew at once.
    pub fn renew(&mut self, now: Duration) {
        self.failures = 0;
        self.state = State::Waiting { at: now };
    }

    /// It is to be started now.
    pub fn is_due(&self, now: Duration) -> bool {
        matches!(self.state, State::Waiting { at } if at <= now)
    }

    /// It was started.
    pub fn started(&mut self, pid: i32, now: Duration) {
        self.state = State::Running { pid, since: now };
    }

    /// It ended, or could not be started; the pause until it is started again.
    pub fn ended(&mut self, now: Duration) -> Duration {
        match self.state {
            State::Running { since, .. } if now.saturating_sub(since) >= GOOD_RUN => self.failures = 0,
            State::Off => return Duration::MAX,
            _ => {}
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(self.longest_pause);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { at: now + pause };
        pause
    }
}

/// Ends of agent and shim as a program that took the place of the image's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trial {
    /// Times since boot, the last [`GIVE_UP_AFTER`].
    ends: Vec<Duration>,
}

impl Trial {
    /// One of them ended; whether the image's own takes its place again.
    pub fn ended(&mut self, now: Duration) -> bool {
        self.ends.push(now);
        let surplus = self.ends.len().saturating_sub(GIVE_UP_AFTER);
        self.ends.drain(..surplus);
        let within = self.ends.iter().filter(|&&it| now.saturating_sub(it) <= REBOOT_WITHIN).count();
        within >= GIVE_UP_AFTER
    }
}

/// What is done about an agent that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Started again.
    Restart,
    /// Started again, in safe mode.
    Safe,
    /// The board reboots.
    Reboot,
    /// Started again in safe mode, after a long pause: a reboot did not help either.
    Stay {
        /// Until then.
        at: Duration,
    },
}

/// The agent's ends, and how often the board was rebooted for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Times since boot, the last [`REBOOT_AFTER`].
    ends: Vec<Duration>,
    /// Reboots in a row, from the state partition.
    pub reboots: u32,
}

impl Ladder {
    /// After so many reboots in a row.
    pub fn new(reboots: u32) -> Self {
        Self { ends: Vec::new(), reboots }
    }

    /// The agent ended.
    pub fn ended(&mut self, now: Duration) -> Rung {
        self.ends.push(now);
        let surplus = self.ends.len().saturating_sub(REBOOT_AFTER);
        self.ends.drain(..surplus);
        let within = |time: Duration| self.ends.iter().filter(|&&it| now.saturating_sub(it) <= time).count();
        if within(REBOOT_WITHIN) >= REBOOT_AFTER {
            if self.reboots >= MOST_REBOOTS {
                return Rung::Stay { at: now + LAST_PAUSE };
            }
            if self.may_reboot(now) {
                return Rung::Reboot;
            }
        }
        if within(SAFE_WITHIN) >= SAFE_AFTER { Rung::Safe } else { Rung::Restart }
    }

    /// Whether the board may reboot to be helped.
    pub fn may_reboot(&self, now: Duration) -> bool {
        now >= LEAST_UPTIME && self.reboots < MOST_REBOOTS
    }

    /// It is well.
    pub fn is_well(&mut self) {
        self.ends.clear();
        self.reboots = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_and_begin_anew_after_a_good_run() {
        let mut unit = Unit::new("x");
        assert!(unit.is_due(Duration::ZERO));
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            unit.started(5, now);
            let pause = unit.ended(now);
            assert!(!unit.is_due(now) && unit.is_due(now + pause));
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses[..5], [100, 200, 400, 800, 1600]);
        assert_eq!(pauses[11], 30_000);
        let mut one = Unit::new("x").of_one();
        assert_eq!((0..20).map(|_| one.ended(now)).last(), Some(LONGEST_PAUSE_OF_ONE));
        unit.started(6, now);
        assert_eq!(unit.ended(now + GOOD_RUN), FIRST_PAUSE);
    }

    #[test]
    fn one_without_anything_to_do_is_not_started_and_then_it_is() {
        let mut unit = Unit::off("x");
        assert!(!unit.is_due(Duration::MAX));
        unit.wanted(seconds(5));
        assert!(unit.is_due(seconds(5)));
        unit.started(7, seconds(5));
        unit.wanted(seconds(6));
        assert_eq!(unit.pid(), Some(7), "it runs already");
    }

    #[test]
    fn the_ladder_is_climbed_and_has_an_end() {
        let mut ladder = Ladder::default();
        let rungs: Vec<Rung> = (0..10).map(|n| ladder.ended(seconds(600 + n))).collect();
        assert_eq!(rungs[..4], [Rung::Restart; 4]);
        assert_eq!(rungs[4..9], [Rung::Safe; 5]);
        assert_eq!(rungs[9], Rung::Reboot);
        assert!(!ladder.may_reboot(LEAST_UPTIME - seconds(1)) && ladder.may_reboot(LEAST_UPTIME));
        assert!(!Ladder::new(MOST_REBOOTS).may_reboot(seconds(10_000)));
        let mut after = Ladder::new(MOST_REBOOTS);
        let last = (0..10).map(|n| after.ended(seconds(n))).last();
        assert_eq!(last, Some(Rung::Stay { at: seconds(9) + LAST_PAUSE }));
        after.is_well();
        assert_eq!(after.ended(seconds(1000)), Rung::Restart);
        assert_eq!(after.reboots, 0);
    }

    #[test]
    fn a_program_in_the_place_of_the_images_own_is_given_up_before_safe_mode() {
        let mut trial = Trial::default();
        let ends: Vec<bool> = (0..3).map(|n| trial.ended(seconds(n))).collect();
        assert_eq!(ends, [false, false, true]);
        const { assert!(GIVE_UP_AFTER < SAFE_AFTER) };
        let mut now_and_then = Trial::default();
        assert!((0..50).all(|n| !now_and_then.ended(seconds(n * 901))));
    }

    #[test]
    fn an_agent_that_ends_now_and_then_is_only_started_again() {
        let mut ladder = Ladder::default();
        assert!((0..100).all(|n| ladder.ended(seconds(n * 210)) == Rung::Restart));
    }

    proptest! {
        #[test]
        fn a_board_never_reboots_faster_than_every_ten_minutes(steps in proptest::collection::vec(0..400_u64, 1..400)) {
            let (mut ladder, mut now, mut reboots) = (Ladder::default(), Duration::ZERO, 0);
            for step in steps {
                now += seconds(step);
                match ladder.ended(now) {
                    Rung::Reboot => {
                        prop_assert!(now >= LEAST_UPTIME);
                        reboots += 1;
                        (ladder, now) = (Ladder::new(reboots), Duration::ZERO);
                    }
                    Rung::Stay { at } => prop_assert!(reboots == MOST_REBOOTS && at > now),
                    Rung::Restart | Rung::Safe => {}
                }
                prop_assert!(ladder.ends.len() <= REBOOT_AFTER);
            }
            prop_assert!(reboots <= MOST_REBOOTS);
        }
    }
}
