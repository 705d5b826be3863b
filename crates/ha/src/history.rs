//! A service's history: what became of it, when, and why. It answers "why is it there?" and "why did it move at 03:12?".

use crate::state::ServiceState;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use stead_model::NodeName;

/// How many changes are kept of each service.
pub const KEPT: usize = 50;

/// A change of a service's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When, seconds since 1970.
    pub at: u64,
    /// Its state from then on. None: HA has let go of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ServiceState>,
    /// Where it is.
    pub node: NodeName,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<NodeName>,
    /// Why.
    pub reason: String,
}

/// The last changes of a service, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    changes: VecDeque<Change>,
}

impl History {
    /// Adds a change; the oldest of more than [`KEPT`] goes.
    pub fn push(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() > KEPT {
            self.changes.pop_front();
        }
    }

    /// All that is kept, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter()
    }

    /// What held at a time: the last change until then.
    pub fn at(&self, time: u64) -> Option<&Change> {
        self.changes.iter().rev().find(|c| c.at <= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_answers_for_a_time() {
        let mut history = History::default();
        let node: NodeName = "n1".parse().unwrap();
        for at in 0..200 {
            let state = Some(ServiceState::Started);
            history.push(Change { at, state, node: node.clone(), target: None, reason: format!("r{at}") });
        }
        assert_eq!(history.iter().count(), KEPT);
        assert_eq!(history.at(1000).map(|c| c.at), Some(199));
        assert_eq!(history.at(160).map(|c| c.reason.as_str()), Some("r160"));
        assert_eq!(history.at(100), None, "older than what is kept");
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }
}
