//! For how long guests that were to run did not.

use crate::cluster::world::World;
use crate::scenario::{Happening, Kind};
use std::collections::BTreeMap;
use std::time::Duration;
use stead_model::{RequestedState, ServiceId};

/// A guest's outages: it was to run, had run, and did not execute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outage {
    /// Since when the present one lasts.
    pub since: Option<Duration>,
    /// How many are over.
    pub count: u32,
    /// How long they lasted in all.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
    /// The last.
    pub last: Duration,
}

impl Outage {
    fn end(&mut self, at: Duration) {
        if let Some(since) = self.since.take() {
            self.last = at.saturating_sub(since);
            self.count += 1;
            self.total += self.last;
            self.longest = self.longest.max(self.last);
        }
    }
}

/// Those of all guests that ever had one.
#[derive(Debug, Clone, Default)]
pub(super) struct Outages(BTreeMap<ServiceId, Outage>);

impl Outages {
    /// Takes up what was told.
    pub fn hear(&mut self, world: &World, told: &[Happening]) {
        let wanted = |sid: &ServiceId| {
            let resources = &world.store.newest().config.resources;
            resources.get(sid).is_some_and(|r| r.state == RequestedState::Started)
        };
        for h in told {
            let Some(sid) = h.service.as_ref().and_then(|s| s.parse::<ServiceId>().ok()) else { continue };
            match h.kind {
                Kind::Lost | Kind::Pause | Kind::Died | Kind::Stop if wanted(&sid) => {
                    let outage = self.0.entry(sid).or_default();
                    outage.since = outage.since.or(Some(h.at));
                }
                Kind::Start | Kind::Thaw => {
                    if let Some(outage) = self.0.get_mut(&sid) {
                        outage.end(h.at);
                    }
                }
                _ => {}
            }
        }
        // Who is not wanted any more has no outage.
        let idle = |(sid, o): &(&ServiceId, &mut Outage)| o.since.is_some() && !wanted(sid);
        self.0.iter_mut().filter(idle).for_each(|(_, o)| o.since = None);
    }

    /// A guest's.
    pub fn of(&self, sid: ServiceId) -> Outage {
        self.0.get(&sid).copied().unwrap_or_default()
    }

    /// How many last, how many are over, the longest and the last of those.
    pub fn sum(&self) -> (usize, u32, Duration) {
        let last = self.0.values().filter(|o| o.since.is_some()).count();
        let count = self.0.values().map(|o| o.count).sum();
        (last, count, self.0.values().map(|o| o.longest).max().unwrap_or_default())
    }
}
