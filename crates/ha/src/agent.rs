//! The agent of a node: brings the services placed there into their states.
//!
//! It knows its own node's processes for sure, so it never acts on silence. It asks for one thing a service at a time, and
//! counts attempts to start.

use crate::state::{ManagerState, ServiceState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_model::{NodeName, ServiceId};

/// Between two attempts to start a service.
const RETRY: Duration = Duration::from_secs(5);

/// How the work on a state ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "is", content = "why")]
pub enum Outcome {
    /// As wanted.
    Done,
    /// Not, and it is not tried again.
    Failed(String),
}

/// The agent's word on one service, for the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The state that it is about.
    pub uid: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What the agent sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// This node.
    pub me: NodeName,
    /// The manager's state, as committed.
    pub manager: ManagerState,
    /// This node has a lease. Without one nothing can be started or moved, and that is no service's failure.
    pub ready: bool,
    /// Services that the record gives to this node.
    pub owned: BTreeSet<ServiceId>,
    /// Those of them with a process here.
    pub present: BTreeSet<ServiceId>,
    /// How many attempts beyond the first each may take.
    pub max_restart: BTreeMap<ServiceId, u32>,
}

/// What is to be tried. Its result comes back by [`Agent::ended`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCommand {
    /// Which service.
    pub sid: ServiceId,
    /// For which state.
    pub uid: u64,
    /// What.
    pub attempt: Attempt,
    /// Why.
    pub reason: String,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// Start it.
    Start,
    /// Shut it down, by force when it does not in time.
    Stop,
    /// Move it while it runs; one that is stopped, as it is.
    Migrate(NodeName),
    /// Stop it, then move it.
    Relocate(NodeName),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Work {
    uid: u64,
    busy: bool,
    tries: u32,
    not_before: Duration,
    report: Option<Outcome>,
}

/// The agent's memory. It may be lost at any time: a new one finds out by trying.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    work: BTreeMap<ServiceId, Work>,
}

impl Agent {
    /// What is to be tried now. `now`: time since boot.
    pub fn step(&mut self, now: Duration, view: &AgentView) -> Vec<AgentCommand> {
        self.work.retain(|sid, w| w.busy || view.manager.service_status.contains_key(sid));
        let mut out = vec![];
        for (sid, service) in &view.manager.service_status {
            if service.node != view.me || !view.owned.contains(sid) {
                continue;
            }
            let w = self.work.entry(*sid).or_default();
            if w.busy || !view.ready {
                continue;
            }
            if w.uid != service.uid {
                *w = Work { uid: service.uid, ..Work::default() };
            }
            let present = view.present.contains(sid);
            let attempt = match service.state {
                _ if now < w.not_before => continue,
                ServiceState::Started if !present && w.report.is_none() => Attempt::Start,
                ServiceState::RequestStop if w.report.is_none() && present => Attempt::Stop,
                ServiceState::RequestStop if w.report.is_none() => {
                    w.report = Some(Outcome::Done);
                    continue;
                }
                ServiceState::Migrate | ServiceState::Relocate if w.report.is_none() => {
                    let Some(target) = service.target.clone() else { continue };
                    if service.state == ServiceState::Migrate {
                        Attempt::Migrate(target)
                    } else {
                        Attempt::Relocate(target)
                    }
                }
                _ => continue,
            };
            w.busy = true;
            out.push(AgentCommand { sid: *sid, uid: service.uid, attempt, reason: service.reason.clone() });
        }
        out
    }

    /// An attempt has ended. One that failed while the node was not `ready`, or for want of the cluster rather than of the
    /// service (no quorum, no answer; the shell tells so by a `view` that is not `ready`), does not count.
    pub fn ended(
        &mut self,
        now: Duration,
        view: &AgentView,
        command: &AgentCommand,
        result: Result<(), String>,
    ) {
        let Some(w) = self.work.get_mut(&command.sid) else { return };
        w.busy = false;
        if w.uid != command.uid {
            return;
        }
        if result.is_err() && !view.ready {
            w.not_before = now + RETRY;
            return;
        }
        match (&command.attempt, result) {
            (Attempt::Start, Ok(())) => w.tries = 0,
            (Attempt::Start, Err(why)) => {
                w.tries += 1;
                w.not_before = now + RETRY;
                if w.tries > view.max_restart.get(&command.sid).copied().unwrap_or(1) {
                    w.report = Some(Outcome::Failed(why));
                }
            }
            (_, Ok(())) => w.report = Some(Outcome::Done),
            (_, Err(why)) => w.report = Some(Outcome::Failed(why)),
        }
    }

    /// What the manager is to know.
    pub fn reports(&self) -> BTreeMap<ServiceId, Report> {
        let known =
            |(sid, w): (&ServiceId, &Work)| Some((*sid, Report { uid: w.uid, outcome: w.report.clone()? }));
        self.work.iter().filter_map(known).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Service;
    use stead_model::{GuestKind, Vmid};

    fn sid() -> ServiceId {
        ServiceId { kind: GuestKind::Qemu, vmid: Vmid::new(100).unwrap() }
    }

    fn view(state: ServiceState, uid: u64, present: bool) -> AgentView {
        let node: NodeName = "n1".parse().unwrap();
        let target = Some("n2".parse().unwrap());
        let service = Service {
            state,
            node: node.clone(),
            target,
            uid,
            reason: "test".into(),
            failed_nodes: BTreeSet::new(),
            relocate_tries: 0,
        };
        let manager = ManagerState { service_status: [(sid(), service)].into(), ..ManagerState::default() };
        let owned = BTreeSet::from([sid()]);
        let present = if present { owned.clone() } else { BTreeSet::new() };
        AgentView { me: node, manager, ready: true, owned, present, max_restart: [(sid(), 1)].into() }
    }

    #[test]
    fn a_dead_service_is_started_again_until_it_fails_too_often() {
        let mut agent = Agent::default();
        let v = view(ServiceState::Started, 7, false);
        let first = agent.step(Duration::ZERO, &v);
        assert_eq!(first[0].attempt, Attempt::Start);
        assert_eq!(agent.step(Duration::ZERO, &v), [], "one attempt at a time");
        agent.ended(Duration::ZERO, &v, &first[0], Err("no disk".into()));
        assert_eq!(agent.step(Duration::from_secs(1), &v), [], "not at once again");
        let second = agent.step(Duration::from_secs(6), &v);
        assert_eq!(agent.reports(), BTreeMap::new());
        agent.ended(Duration::from_secs(6), &v, &second[0], Err("no disk".into()));
        assert_eq!(agent.reports()[&sid()].outcome, Outcome::Failed("no disk".into()));
        assert_eq!(
            agent.step(Duration::from_secs(60), &v),
            [],
            "given up until the manager says something new"
        );
        assert_eq!(agent.step(Duration::from_secs(60), &view(ServiceState::Started, 8, false)).len(), 1);
    }

    #[test]
    fn what_fails_for_want_of_a_lease_is_no_failure_of_the_service() {
        let mut agent = Agent::default();
        let good = view(ServiceState::Started, 7, false);
        let none = AgentView { ready: false, ..good.clone() };
        assert_eq!(agent.step(Duration::ZERO, &none), []);
        for second in (0..100).step_by(10) {
            let attempt = agent.step(Duration::from_secs(second), &good);
            assert_eq!(attempt.len(), 1);
            agent.ended(Duration::from_secs(second), &none, &attempt[0], Err("no quorum".into()));
        }
        assert_eq!(agent.reports(), BTreeMap::new());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let mut agent = Agent::default();
        let mut v = view(ServiceState::Started, 7, false);
        v.owned.clear();
        assert_eq!(agent.step(Duration::ZERO, &v), []);
    }

    #[test]
    fn a_stop_of_what_is_absent_is_done_and_a_move_names_its_target() {
        let mut agent = Agent::default();
        assert_eq!(agent.step(Duration::ZERO, &view(ServiceState::RequestStop, 7, false)), []);
        assert_eq!(agent.reports()[&sid()].outcome, Outcome::Done);
        let m = agent.step(Duration::ZERO, &view(ServiceState::Migrate, 8, true));
        assert_eq!(m[0].attempt, Attempt::Migrate("n2".parse().unwrap()));
    }
}
