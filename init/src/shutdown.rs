//! The end: everything is stopped in order, with time limits, and what was learnt is saved.
//!
//! ```text
//! Agent      it stops the services in their order, and ends            75 s
//! Services   what is left of containers: SIGTERM, then killed           5 s
//! Units      dbus, NetworkManager, the shim: SIGTERM, then SIGKILL      5 s
//! All        everybody else: SIGTERM, then SIGKILL                      2 s
//! ```
//!
//! Then clock and seed are saved, swap and file systems go, and the kernel is told. The hardware watchdog is fed until
//! [`LONGEST`]: what hangs after that is reset.

use std::time::Duration;

/// From the order to the end; somewhat more than all phases.
pub const LONGEST: Duration = Duration::from_secs(100);

/// What the board does then (reboot(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Boots again.
    Reboot,
    /// Has no power any more, where that can be.
    PowerOff,
    /// Stands still.
    Halt,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The agent stops the services.
    Agent,
    /// Containers are told to end.
    Services,
    /// Our programs are told to end.
    Units,
    /// All others are told to end.
    All,
    /// Everything is stopped.
    Done,
}

impl Phase {
    /// How long it may take; what is left of it is then killed.
    fn limit(self) -> Duration {
        // A service has 10 s for its end unless it asks for more; the agent bounds what it asks for.
        let seconds = match self {
            Self::Agent => 75,
            Self::Services | Self::Units => 5,
            Self::All => 2,
            Self::Done => 0,
        };
        Duration::from_secs(seconds)
    }

    fn next(self) -> Self {
        match self {
            Self::Agent => Self::Services,
            Self::Services => Self::Units,
            Self::Units => Self::All,
            Self::All | Self::Done => Self::Done,
        }
    }
}

/// A shutdown on its way. Times since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// What for.
    pub goal: Goal,
    /// How far.
    pub phase: Phase,
    /// When it was ordered.
    pub begun: Duration,
    deadline: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Nothing but to wait until then.
    Wait(Duration),
    /// Those of this phase are asked to end.
    Ask(Phase),
    /// Those of this phase are killed; then those of the next are asked.
    Kill(Phase),
    /// All is stopped.
    End,
}

impl Shutdown {
    /// Begins; the first deed is to ask the agent.
    pub fn begin(goal: Goal, now: Duration) -> Self {
        Self { goal, phase: Phase::Agent, begun: now, deadline: now + Phase::Agent.limit() }
    }

    /// The next deed. `empty`: nobody of the present phase is left.
    pub fn step(&mut self, empty: bool, now: Duration) -> Deed {
        if self.phase == Phase::Done {
            return Deed::End;
        }
        if !empty && now < self.deadline {
            return Deed::Wait(self.deadline);
        }
        let phase = self.phase;
        self.phase = phase.next();
        self.deadline = now + self.phase.limit();
        if empty { Deed::Ask(self.phase) } else { Deed::Kill(phase) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_phase_follows_the_other_when_nobody_is_left() {
        let mut shutdown = Shutdown::begin(Goal::Reboot, seconds(50));
        assert_eq!(shutdown.step(false, seconds(51)), Deed::Wait(seconds(125)));
        assert_eq!(shutdown.step(true, seconds(52)), Deed::Ask(Phase::Services));
        assert_eq!(shutdown.step(true, seconds(52)), Deed::Ask(Phase::Units));
        assert_eq!(shutdown.step(true, seconds(53)), Deed::Ask(Phase::All));
        assert_eq!(shutdown.step(true, seconds(53)), Deed::Ask(Phase::Done));
        assert_eq!(shutdown.step(true, seconds(53)), Deed::End);
    }

    #[test]
    fn who_does_not_end_is_killed_and_the_end_comes_in_time() {
        let mut shutdown = Shutdown::begin(Goal::PowerOff, Duration::ZERO);
        let (mut now, mut killed) = (Duration::ZERO, Vec::new());
        loop {
            match shutdown.step(false, now) {
                Deed::Wait(until) => now = until,
                Deed::Kill(phase) => killed.push(phase),
                Deed::Ask(phase) => panic!("{phase:?}"),
                Deed::End => break,
            }
        }
        assert_eq!(killed, [Phase::Agent, Phase::Services, Phase::Units, Phase::All]);
        assert!(now < LONGEST, "{now:?}");
    }
}
