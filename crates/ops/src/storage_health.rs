//! Whether guests can use a node's storages, from one probe to the next.
//!
//! ```text
//!             a probe is told no                       told no
//!   usable ─────────────────────▶ inactive ◀──────────────────────── silent
//!      ▲   └──no answer for 5 s──────┼──────▶ silent ◀──────────────────┘ no answer
//!      └── two probes in a row that went well ──┘
//! ```
//!
//! A storage is taken for lost at once, so that nothing is placed there; who runs there is left alone for a hold time,
//! which counts from the first probe that failed to the last one: nobody is moved because time passes after a good one. It is taken for usable again only when two probes in a row went well, so that
//! one that comes and goes counts as lost.

use crate::status::StorageReport;
use std::collections::BTreeMap;
use std::time::Duration;
use stead_driver::storage::Space;
use stead_ha::{StorageFault, StorageLoss};
use stead_model::StorageId;

/// So many probes in a row must go well.
const GOOD: u32 = 2;

/// What a probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It can be used, and is so full.
    Usable(Space),
    /// It can't, and why.
    Inactive(String),
    /// No answer for so many seconds.
    Silent(u64),
    /// It could not be asked, for want of something that is not its own: all is as it was.
    Unasked,
}

#[derive(Debug, Clone, Default)]
struct Known {
    space: Space,
    /// What is wrong, since when, and when a probe failed last.
    loss: Option<(StorageFault, Duration, Duration)>,
    good: u32,
}

/// What is known of a node's storages.
#[derive(Debug, Clone, Default)]
pub struct Health {
    all: BTreeMap<StorageId, Known>,
}

impl Health {
    /// Takes what a round of probes has found; storages that are not among it are forgotten. `now`: since any fixed
    /// moment. Returns what the node reports, and what is new, for its log.
    pub fn note(
        &mut self,
        now: Duration,
        found: Vec<(StorageId, Found)>,
    ) -> (Vec<StorageReport>, Vec<String>) {
        let mut news = vec![];
        self.all.retain(|id, _| found.iter().any(|(f, _)| f == id));
        for (id, found) in found {
            let known = self.all.entry(id.clone()).or_default();
            let before = known.loss.as_ref().map(|(fault, ..)| fault.clone());
            known.note(now, found);
            let after = known.loss.as_ref().map(|(fault, ..)| fault);
            let kind = |f: Option<&StorageFault>| f.map(|f| *f == StorageFault::Silent);
            if kind(before.as_ref()) != kind(after) {
                news.push(match after {
                    None => format!("storage '{id}' can be used again"),
                    Some(StorageFault::Silent) => format!("storage '{id}' does not answer"),
                    Some(StorageFault::Inactive { why }) => format!("storage '{id}' can't be used: {why}"),
                });
            }
        }
        (self.all.iter().map(|(id, known)| known.report(id)).collect(), news)
    }
}

impl Known {
    fn note(&mut self, now: Duration, found: Found) {
        let (fault, since) = match found {
            Found::Usable(space) => {
                self.space = space;
                self.good += 1;
                if self.good >= GOOD {
                    self.loss = None;
                }
                return;
            }
            Found::Unasked => return,
            Found::Inactive(why) => (StorageFault::Inactive { why }, now),
            Found::Silent(seconds) => {
                (StorageFault::Silent, now.saturating_sub(Duration::from_secs(seconds)))
            }
        };
        self.good = 0;
        let same = |old: &StorageFault| (*old == StorageFault::Silent) == (fault == StorageFault::Silent);
        let kept = self.loss.as_ref().filter(|(old, ..)| same(old)).map(|(_, since, _)| *since);
        self.loss = Some((fault, kept.unwrap_or(since), now));
    }

    fn report(&self, id: &StorageId) -> StorageReport {
        let space = if self.loss.is_some() { Space::default() } else { self.space };
        let loss = self.loss.as_ref().map(|(fault, since, failed)| StorageLoss {
            fault: fault.clone(),
            seconds: failed.saturating_sub(*since).as_secs(),
        });
        StorageReport {
            storage: id.to_string(),
            active: loss.is_none(),
            total: space.total,
            used: space.used,
            avail: space.avail,
            loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(health: &mut Health, second: u64, found: Found) -> (Option<StorageLoss>, usize) {
        let id: StorageId = "nfs1".parse().unwrap();
        let (reports, news) = health.note(Duration::from_secs(second), vec![(id, found)]);
        assert_eq!(reports[0].active, reports[0].loss.is_none());
        (reports[0].loss.clone(), news.len())
    }

    fn gone() -> Found {
        Found::Inactive("gone".into())
    }

    const SPACE: Space = Space { total: 10, used: 4, avail: 6 };
    const WELL: Found = Found::Usable(SPACE);

    #[test]
    fn a_loss_counts_from_the_first_probe_that_failed_until_two_in_a_row_are_well() {
        let mut health = Health::default();
        assert_eq!(told(&mut health, 100, WELL), (None, 0), "the first word is believed");
        let loss =
            |seconds| Some(StorageLoss { fault: StorageFault::Inactive { why: "gone".into() }, seconds });
        assert_eq!(told(&mut health, 105, gone()), (loss(0), 1));
        assert_eq!(told(&mut health, 110, WELL), (loss(0), 0), "one is not enough");
        assert_eq!(told(&mut health, 112, Found::Unasked), (loss(0), 0));
        assert_eq!(told(&mut health, 115, gone()), (loss(10), 0), "it comes and goes");
        assert_eq!(told(&mut health, 120, WELL), (loss(10), 0));
        assert_eq!(told(&mut health, 125, WELL), (None, 1));
        assert_eq!(told(&mut health, 130, gone()), (loss(0), 1), "counted anew");
    }

    #[test]
    fn silence_counts_from_the_question_and_an_answer_begins_another_loss() {
        let mut health = Health::default();
        told(&mut health, 100, WELL);
        let silent = |seconds| Some(StorageLoss { fault: StorageFault::Silent, seconds });
        assert_eq!(told(&mut health, 110, Found::Silent(5)), (silent(5), 1));
        assert_eq!(told(&mut health, 115, Found::Silent(10)), (silent(10), 0));
        let (loss, news) = told(&mut health, 120, gone());
        assert_eq!((loss.unwrap().seconds, news), (0, 1), "the hold time begins when it has answered");
    }

    #[test]
    fn what_is_no_storage_of_this_node_any_more_is_forgotten() {
        let mut health = Health::default();
        told(&mut health, 100, gone());
        assert_eq!(health.note(Duration::from_secs(101), vec![]).0, []);
        assert_eq!(told(&mut health, 102, WELL), (None, 0));
    }
}
