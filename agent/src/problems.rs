//! Which problems the log hears of: each once, when it has lasted for a moment, and again when it is
//! over. What a start brings with it in its first moments is no news; `cairn status` shows it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The problems that there are, and which of them the log has.
#[derive(Debug, Default)]
pub struct ProblemLog {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    told: bool,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A problem that lasts.
    Began(String),
    /// One that was told has gone.
    Ended(String),
}

impl ProblemLog {
    /// Takes in the problems that there are `now` and logs what is new; returns when to call again at the
    /// latest if nothing changes.
    pub fn log(&mut self, now: Instant, problems: &[String]) -> Option<Instant> {
        let (lines, due) = self.observe(now, problems);
        for line in lines {
            match line {
                Line::Began(problem) => tracing::warn!("{problem}"),
                Line::Ended(problem) => tracing::info!("no longer: {problem}"),
            }
        }
        due
    }

    /// Takes in the problems that there are `now`: what to log, and when to call again at the latest
    /// if nothing changes.
    pub fn observe(&mut self, now: Instant, problems: &[String]) -> (Vec<Line>, Option<Instant>) {
        let mut lines = Vec::new();
        self.known.retain(|problem, known| {
            let stays = problems.contains(problem);
            if !stays && known.told {
                lines.push(Line::Ended(problem.clone()));
            }
            stays
        });
        let mut next: Option<Instant> = None;
        for problem in problems {
            let known =
                self.known.entry(problem.clone()).or_insert(Known { since: now, told: false });
            let due = known.since + LASTS;
            if known.told {
                continue;
            }
            if due <= now {
                known.told = true;
                lines.push(Line::Began(problem.clone()));
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        (lines, next)
    }
}

/// Longer than an agent's start takes, shorter than a person waits for the reason of a failure.
const LASTS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_problem_that_lasts_is_told_once_and_its_end_once() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        assert_eq!(log.observe(start, &problems(&["a"])), (Vec::new(), Some(start + LASTS)));
        let later = start + LASTS;
        assert_eq!(log.observe(later, &problems(&["a"])).0, [Line::Began("a".into())]);
        assert_eq!(log.observe(later + LASTS, &problems(&["a"])), (Vec::new(), None));
        assert_eq!(log.observe(later + LASTS, &[]).0, [Line::Ended("a".into())]);
        assert_eq!(log.observe(later + LASTS * 2, &[]), (Vec::new(), None));
    }

    #[test]
    fn a_moment_is_no_news() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        log.observe(start, &problems(&["a"]));
        assert_eq!(log.observe(start + LASTS / 2, &[]), (Vec::new(), None));
        let again = start + LASTS;
        assert_eq!(log.observe(again, &problems(&["a"])), (Vec::new(), Some(again + LASTS)));
    }
}
