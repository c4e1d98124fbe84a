//! Firewall rules that somebody else removes are put back: at once, or more and more slowly where it happens again and
//! again.

use super::{Engine, Message};
use crate::clock::boot_now;
use coracle_runtime::network::firewall;
use coracle_runtime::network::watch::Removals;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause after a removal before ours are looked at: a reload removes and adds in many steps.
const RULES_PAUSE: Duration = Duration::from_millis(300);

/// Losses that are repaired without a pause: a reload by hand, a script that flushes twice.
const FREE: u32 = 3;

/// Pause after them, doubled with each further loss.
const FIRST: Duration = Duration::from_secs(1);

/// Longest pause: somebody who flushes for ever costs a transaction in this time, and no more.
const LONGEST: Duration = Duration::from_secs(30);

/// Time without a loss after which the next one is a first one.
const QUIET: Duration = Duration::from_secs(120);

/// How often a project's rules were lost lately.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Losses {
    streak: u32,
    /// The last repair, by the boot clock.
    last: Duration,
}

impl Losses {
    /// Time that is left before the rules are put back.
    fn left(self, now: Duration) -> Duration {
        let pause = match self.streak {
            0..FREE => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - FREE).min(8)).min(LONGEST),
        };
        (self.last + pause).saturating_sub(now)
    }

    /// After a repair.
    fn after(self, now: Duration) -> Self {
        let quiet = now.saturating_sub(self.last) > QUIET;
        Self { streak: if quiet { 1 } else { self.streak.saturating_add(1) }, last: now }
    }
}

impl Engine {
    /// Looks, in a thread, whether every rule set is still there.
    pub(super) fn check_rules(&self) {
        let projects: Vec<String> = self.rules.keys().cloned().collect();
        let sender = self.ears.sender.clone();
        tokio::task::spawn_local(async move {
            let look = move || projects.into_iter().filter(|it| !firewall::is_in_force(it)).collect::<Vec<_>>();
            if let Ok(lost) = tokio::task::spawn_blocking(look).await
                && !lost.is_empty()
            {
                // The loop may be at its end.
                let _ = sender.send(Message::RulesLost(lost)).await;
            }
        });
    }

    /// Rule sets that are gone are put back by the next plan.
    pub(super) fn rules_lost(&mut self, projects: &[String]) {
        let now = boot_now();
        let mut later = None;
        for project in projects {
            let busy = self.running.contains_key(&format!("rules of {project}"));
            if busy || !self.rules.contains_key(project) {
                continue;
            }
            let losses = self.losses.entry(project.clone()).or_default();
            let left = losses.left(now);
            if left.is_zero() {
                *losses = losses.after(now);
                self.rules.remove(project);
                self.rules_repaired += 1;
                let times = losses.streak;
                tracing::warn!(%project, times, "its firewall rules were removed by somebody else; putting them back");
            } else {
                later = later.max(Some(left));
            }
        }
        self.losses.retain(|project, _| self.target.projects.contains_key(project));
        if let Some(left) = later.filter(|_| !self.rules_wait) {
            self.rules_wait = true;
            let sender = self.ears.sender.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(left).await;
                let _ = sender.send(Message::RulesDue).await;
            });
        }
    }
}

/// Tells the loop when firewall rules were removed.
pub(super) fn watch_rules(sender: mpsc::Sender<Message>) {
    let removals = match Removals::listen() {
        Ok(removals) => removals,
        Err(error) => return tracing::warn!(%error, "lost firewall rules will not be noticed"),
    };
    tokio::task::spawn_local(async move {
        while removals.wait().await.is_ok() {
            tokio::time::sleep(RULES_PAUSE).await;
            if sender.send(Message::RulesTouched).await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_losses_are_repaired_at_once_and_endless_ones_ever_more_slowly() {
        let (mut losses, mut now, mut waited) = (Losses::default(), Duration::from_secs(1000), Vec::new());
        for _ in 0..10 {
            // Somebody flushes every second.
            now += Duration::from_secs(1);
            let left = losses.left(now);
            waited.push(left.as_secs());
            now += left;
            losses = losses.after(now);
        }
        assert_eq!(waited, [0, 0, 0, 0, 1, 3, 7, 15, 29, 29]);
        now += QUIET + Duration::from_secs(1);
        assert_eq!(losses.left(now), Duration::ZERO);
        assert_eq!(losses.after(now).streak, 1);
    }
}
