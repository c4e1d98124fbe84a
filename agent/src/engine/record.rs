//! What became of a container since boot: kept in memory (tmpfs), so that it outlives the agent.

use crate::current::{Health, Moment};
use crate::restart::GOOD_RUN;
use coracle_runtime::shim::ContainerStatus;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Exits that are remembered of each container: enough to see a pattern, small enough for a thousand containers.
pub const MAX_EXITS: usize = 10;

/// Bytes of a reason or a probe's output that are remembered.
const MAX_TEXT: usize = 512;

/// Seconds that may pass between a kill for want of memory and the news that its process ended: memory is torn down
/// first, on a slow board under pressure.
const OOM_BEFORE_END: u64 = 5;

/// A container's record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Addresses by network.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// The order that the last start answered.
    pub round: u64,
    /// Restarts by policy since the last start by order.
    pub restarts: u32,
    /// Ends in a row without a good run between them.
    pub streak: u32,
    /// Start of the run whose end was recorded last, nanoseconds of the boot clock.
    pub ended_run: u64,
    /// The next end is by our order.
    pub stop_ordered: bool,
    /// Last ends, oldest first.
    pub exits: VecDeque<Exit>,
    /// What its checks say.
    pub health: Health,
    /// Failed checks in a row.
    pub health_failures: u32,
    /// What the last failed check said.
    pub health_output: String,
    /// Processes killed for want of memory in this run.
    pub oom_kills: u64,
    /// When the last of them was seen, seconds since 1970.
    pub last_oom_kill: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// Why.
    pub reason: Reason,
    /// One line more: why a program could not be run, which memory was not enough.
    pub detail: String,
    /// When, nanoseconds of the boot clock.
    pub at_ns: u64,
    /// When, seconds since 1970.
    pub unix: u64,
    /// Processes killed for want of memory in that run.
    pub oom_kills: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// By itself.
    Exited,
    /// The kernel killed its main process for want of memory.
    Oom,
    /// By a signal that was not ours.
    Killed,
    /// By our order.
    Stopped,
    /// The program could not be run.
    NotRunnable,
}

impl Record {
    /// The last end.
    pub fn last(&self) -> Option<&Exit> {
        self.exits.back()
    }

    /// Notes the end of a run; `oom_kills` of the run's cgroup.
    pub fn note_end(&mut self, status: &ContainerStatus, oom_kills: u64, shortage: impl FnOnce() -> String) {
        let Some(exit) = &status.exit else { return };
        self.ended_run = status.started_boottime_ns;
        let ran = Duration::from_nanos(exit.ended_boottime_ns.saturating_sub(status.started_boottime_ns));
        let unix = exit.ended_unix_ns / 1_000_000_000;
        // A child that was killed hours ago says nothing about a kill from outside.
        let just_now = oom_kills > self.oom_kills
            || self.last_oom_kill.is_some_and(|seen| seen.saturating_add(OOM_BEFORE_END) >= unix);
        let reason = match exit.signal {
            _ if self.stop_ordered => Reason::Stopped,
            Some(9) if oom_kills > 0 && just_now => Reason::Oom,
            Some(_) => Reason::Killed,
            None => Reason::Exited,
        };
        self.streak = if ran >= GOOD_RUN { 1 } else { self.streak.saturating_add(1) };
        self.push(Exit {
            code: exit.code,
            reason,
            detail: if reason == Reason::Oom { cut(&shortage()) } else { String::new() },
            at_ns: exit.ended_boottime_ns,
            unix,
            oom_kills,
        });
    }

    /// Notes a program that could not be run.
    pub fn note_not_runnable(&mut self, code: i32, detail: &str, now: Moment, unix: u64) {
        self.streak = self.streak.saturating_add(1);
        self.push(Exit {
            code,
            reason: Reason::NotRunnable,
            detail: cut(detail),
            at_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            unix,
            oom_kills: 0,
        });
    }

    /// Notes the order to start.
    pub fn note_start(&mut self, addresses: BTreeMap<String, Ipv4Addr>, round: u64, again: bool, checked: bool) {
        self.addresses = addresses;
        self.round = round;
        self.restarts = if again { self.restarts.saturating_add(1) } else { 0 };
        if !again {
            self.streak = 0;
        }
        self.stop_ordered = false;
        (self.oom_kills, self.last_oom_kill) = (0, None);
        self.health = if checked { Health::Starting } else { Health::None };
        self.health_failures = 0;
        self.health_output.clear();
    }

    /// Notes what a failed check said.
    pub fn note_output(&mut self, output: &str) {
        self.health_output = cut(output);
    }

    fn push(&mut self, exit: Exit) {
        self.health = Health::None;
        if self.exits.len() == MAX_EXITS {
            self.exits.pop_front();
        }
        self.exits.push_back(exit);
    }
}

fn cut(text: &str) -> String {
    text.trim().chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_runtime::shim::ExitStatus;

    fn ended(code: i32, signal: Option<i32>, ran: u64) -> ContainerStatus {
        ContainerStatus {
            id: "a".to_owned(),
            pid: None,
            started_boottime_ns: 5,
            started_unix_ns: 0,
            exit: Some(ExitStatus { code, signal, ended_boottime_ns: 5 + ran * 1_000_000_000, ended_unix_ns: 0 }),
            log_next: 0,
            log_dropped: 0,
        }
    }

    fn reason(ordered: bool, status: &ContainerStatus, oom_kills: u64) -> Reason {
        let mut record = Record { stop_ordered: ordered, ..Record::default() };
        record.note_end(status, oom_kills, || "limit 1.0 MiB".to_owned());
        record.last().expect("an exit").reason
    }

    // F2
    #[test]
    fn memory_is_blamed_only_when_the_kernel_killed_the_main_process_for_it() {
        assert_eq!(reason(false, &ended(137, Some(9), 1), 1), Reason::Oom);
        assert_eq!(reason(false, &ended(137, Some(9), 1), 0), Reason::Killed);
        assert_eq!(reason(false, &ended(137, None, 1), 1), Reason::Exited);
        assert_eq!(reason(false, &ended(1, None, 1), 1), Reason::Exited);
        assert_eq!(reason(true, &ended(137, Some(9), 1), 0), Reason::Stopped);
    }

    #[test]
    fn a_child_that_was_killed_long_ago_is_not_the_reason_of_a_kill_from_outside() {
        let reason = |last_oom_kill| {
            let mut record = Record { oom_kills: 1, last_oom_kill: Some(last_oom_kill), ..Record::default() };
            let mut status = ended(137, Some(9), 4000);
            status.exit.as_mut().expect("an exit").ended_unix_ns = 4000 * 1_000_000_000;
            record.note_end(&status, 1, || "limit 1.0 MiB".to_owned());
            let last = record.last().expect("an exit");
            (last.reason, last.detail.clone())
        };
        assert_eq!(reason(100), (Reason::Killed, String::new()));
        assert_eq!(reason(3999), (Reason::Oom, "limit 1.0 MiB".to_owned()));
    }

    #[test]
    fn a_good_run_ends_the_streak_and_exits_are_bounded() {
        let mut record = Record::default();
        for _ in 0..20 {
            record.note_end(&ended(1, None, 1), 0, String::new);
        }
        assert_eq!((record.streak, record.exits.len()), (20, MAX_EXITS));
        record.note_end(&ended(1, None, 11), 0, String::new);
        assert_eq!(record.streak, 1);
    }
}
