//! The agent of a node: brings the services placed there into their states, and sees to it that the node is left in order.
//!
//! It knows its own node's processes for sure, so it never acts on silence. It asks for one thing a service at a time, and
//! counts attempts to start.
//!
//! A node that is to go down says so first ([`AgentMode`]), by the policy in force then, and goes when [`Agent::may_leave`]
//! says so:
//!
//! | mode | services | goes when |
//! |---|---|---|
//! | restart | run on; the manager freezes them | the manager has noted it |
//! | freeze | frozen by the manager, then stopped | all are stopped |
//! | shutdown | stopped; recovered elsewhere when the node is gone | all are stopped |
//! | maintenance | moved away by the manager | none is left that runs |

use crate::state::{ManagerState, Service, ServiceState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stead_model::ha_cfg::RequestedState;
use stead_model::{NodeName, ServiceId, ShutdownPolicy};

/// Between two attempts.
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

/// What a node is up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    /// It runs services.
    #[default]
    Active,
    /// Its daemon restarts, the services run on.
    Restart,
    /// It goes down, and its services wait for it.
    Freeze,
    /// It goes down, and its services go on elsewhere.
    Shutdown,
    /// It goes down when its services have been moved away; they come back with it.
    Maintenance,
}

/// All that the agent tells the manager.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// What the node is up to.
    #[serde(default)]
    pub mode: AgentMode,
    /// HA is to be disarmed, and here it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disarmed: bool,
    /// How the work on services ended.
    #[serde(default)]
    pub services: BTreeMap<ServiceId, Report>,
}

/// Why the node, or its daemon, is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leave {
    /// The machine is switched off.
    Shutdown,
    /// The machine is started again at once.
    Reboot,
    /// The daemon alone is started again.
    Restart,
}

/// A resource whose record names this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentService {
    /// There is a process of it here.
    pub present: bool,
    /// How many attempts to start it beyond the first.
    pub max_restart: u32,
    /// What its user wants.
    pub requested: RequestedState,
}

/// What the agent sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// This node.
    pub me: NodeName,
    /// The manager's state, as committed.
    pub manager: Arc<ManagerState>,
    /// This node has a lease. Without one nothing can be started or moved, and that is no service's failure.
    pub ready: bool,
    /// Resources that the record gives to this node.
    pub services: BTreeMap<ServiceId, AgentService>,
    /// What happens to services when this node goes down.
    pub policy: ShutdownPolicy,
    /// The node is to go.
    pub leave: Option<Leave>,
    /// The fence process guards the resources that run here.
    pub guarding: bool,
}

impl AgentView {
    /// Whether the fence process is to guard the resources here; not while HA is disarmed.
    pub fn wants_guard(&self) -> bool {
        !self.manager.disarm.is_some_and(|d| d.ready)
    }

    fn mine(&self) -> impl Iterator<Item = (ServiceId, &AgentService, &Service)> {
        let status = |sid: &ServiceId| self.manager.service_status.get(sid).filter(|s| s.node == self.me);
        self.services.iter().filter_map(move |(sid, known)| Some((*sid, known, status(sid)?)))
    }
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
    Stop {
        /// Seconds, if its user has named them; 0: by force at once.
        timeout: Option<u32>,
    },
    /// Move it while it runs; one that is stopped, as it is.
    Migrate(NodeName),
    /// Stop it, then move it.
    Relocate {
        /// Where to.
        to: NodeName,
        /// Seconds for its shutdown, if they are named.
        timeout: Option<u32>,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// As wanted.
    Done,
    /// The service failed.
    Failed(String),
    /// It could not be tried for want of the cluster: no quorum, no lease, no answer. That counts against no service.
    NotNow(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Work {
    uid: u64,
    busy: bool,
    tries: u32,
    max_restart: u32,
    not_before: Duration,
    report: Option<Outcome>,
}

/// The agent's memory. It may be lost at any time: a new one finds out by trying.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    work: BTreeMap<ServiceId, Work>,
    /// How the node leaves: by the policy when it was told to.
    leaving: Option<AgentMode>,
}

fn way_to_leave(leave: Leave, policy: ShutdownPolicy) -> AgentMode {
    match (leave, policy) {
        (Leave::Restart, _) => AgentMode::Restart,
        (_, ShutdownPolicy::Freeze) | (Leave::Reboot, ShutdownPolicy::Conditional) => AgentMode::Freeze,
        (_, ShutdownPolicy::Failover) | (Leave::Shutdown, ShutdownPolicy::Conditional) => AgentMode::Shutdown,
        (_, ShutdownPolicy::Migrate) => AgentMode::Maintenance,
    }
}

impl Agent {
    /// What is to be tried now. `now`: time since boot.
    pub fn step(&mut self, now: Duration, view: &AgentView) -> Vec<AgentCommand> {
        self.leaving = view.leave.map(|leave| self.leaving.unwrap_or(way_to_leave(leave, view.policy)));
        self.work.retain(|sid, w| w.busy || view.manager.service_status.contains_key(sid));
        let mut out = vec![];
        for (sid, known, service) in view.mine() {
            let w = self.work.entry(sid).or_default();
            if w.busy || !view.ready {
                continue;
            }
            if w.uid != service.uid {
                *w = Work { uid: service.uid, ..Work::default() };
            }
            w.max_restart = known.max_restart;
            if now < w.not_before {
                continue;
            }
            let wanted = match self.leaving {
                Some(AgentMode::Freeze | AgentMode::Shutdown) if view.wants_guard() => {
                    Self::to_leave(self.leaving, known, service)
                }
                leaving => Self::to_do(w, leaving.is_none(), known, service),
            };
            if let Some((attempt, reason)) = wanted {
                w.busy = true;
                out.push(AgentCommand { sid, uid: service.uid, attempt, reason });
            }
        }
        out
    }

    /// The node goes down: what runs is stopped, but a frozen node's services only once the manager has frozen them.
    fn to_leave(
        leaving: Option<AgentMode>,
        known: &AgentService,
        service: &Service,
    ) -> Option<(Attempt, String)> {
        let noted = leaving == Some(AgentMode::Shutdown) || service.state == ServiceState::Freeze;
        (known.present && noted && !service.state.is_move())
            .then(|| (Attempt::Stop { timeout: service.timeout }, "the node goes down".to_owned()))
    }

    fn to_do(
        w: &mut Work,
        staying: bool,
        known: &AgentService,
        service: &Service,
    ) -> Option<(Attempt, String)> {
        let stop = Attempt::Stop { timeout: service.timeout };
        let attempt = match service.state {
            // A stop that was done, since the node was to go down and then did not, is no reason to leave it stopped.
            ServiceState::Started
                if !known.present && staying && !matches!(w.report, Some(Outcome::Failed(_))) =>
            {
                Attempt::Start
            }
            ServiceState::RequestStop if w.report.is_none() && known.present => stop,
            ServiceState::RequestStop if w.report.is_none() => {
                w.report = Some(Outcome::Done);
                return None;
            }
            // It could not be stopped; its user wants it disabled: that is tried until it works.
            ServiceState::Error if known.present && known.requested == RequestedState::Disabled => stop,
            state if state.is_move() && w.report.is_none() => {
                let target = service.target.clone()?;
                if state == ServiceState::Migrate {
                    Attempt::Migrate(target)
                } else {
                    Attempt::Relocate { to: target, timeout: service.timeout }
                }
            }
            _ => return None,
        };
        Some((attempt, service.reason.clone()))
    }

    /// An attempt has ended.
    pub fn ended(&mut self, now: Duration, command: &AgentCommand, ending: Ending) {
        let Some(w) = self.work.get_mut(&command.sid) else { return };
        w.busy = false;
        if w.uid != command.uid {
            return;
        }
        match (&command.attempt, ending) {
            (_, Ending::NotNow(_)) => w.not_before = now + RETRY,
            (Attempt::Start, Ending::Done) => w.tries = 0,
            (Attempt::Start, Ending::Failed(why)) => {
                w.tries += 1;
                w.not_before = now + RETRY;
                if w.tries > w.max_restart {
                    w.report = Some(Outcome::Failed(why));
                }
            }
            // Tried again: while the node leaves, and in the state *error*.
            (_, Ending::Done) => w.report = Some(Outcome::Done),
            (_, Ending::Failed(why)) => {
                w.not_before = now + RETRY;
                w.report = Some(Outcome::Failed(why));
            }
        }
    }

    /// What the node is up to.
    pub fn mode(&self) -> AgentMode {
        self.leaving.unwrap_or_default()
    }

    /// What the manager is to know.
    pub fn report(&self, view: &AgentView) -> AgentReport {
        let known =
            |(sid, w): (&ServiceId, &Work)| Some((*sid, Report { uid: w.uid, outcome: w.report.clone()? }));
        AgentReport {
            mode: self.mode(),
            disarmed: !view.wants_guard() && !view.guarding && !self.busy(),
            services: self.work.iter().filter_map(known).collect(),
        }
    }

    fn busy(&self) -> bool {
        self.work.values().any(|w| w.busy)
    }

    /// Whether the node, or its daemon, may go now, as far as HA is concerned.
    pub fn may_leave(&self, view: &AgentView) -> bool {
        let noted = view.manager.memory(&view.me).mode == self.mode();
        if self.busy() {
            return false;
        }
        if !view.wants_guard() || view.mine().next().is_none() {
            return view.leave.is_some();
        }
        match self.mode() {
            AgentMode::Active => false,
            AgentMode::Restart => noted,
            AgentMode::Freeze => noted && !view.mine().any(|(_, known, _)| known.present),
            AgentMode::Shutdown => !view.mine().any(|(_, known, _)| known.present),
            // What is given up is nothing that could be moved.
            AgentMode::Maintenance => {
                let stays = |known: &AgentService, s: &Service| {
                    s.state.is_move() || (known.present && s.state != ServiceState::Error)
                };
                noted && !view.mine().any(|(_, known, s)| stays(known, s))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::NodeMemory;
    use std::collections::BTreeSet;
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
            maintenance_node: None,
            timeout: None,
            retry_at: None,
        };
        let manager = ManagerState { service_status: [(sid(), service)].into(), ..ManagerState::default() };
        let known = AgentService { present, max_restart: 1, requested: RequestedState::Started };
        AgentView {
            me: node,
            manager: Arc::new(manager),
            ready: true,
            services: [(sid(), known)].into(),
            policy: ShutdownPolicy::Conditional,
            leave: None,
            guarding: true,
        }
    }

    fn with_manager(mut view: AgentView, change: impl FnOnce(&mut ManagerState)) -> AgentView {
        change(Arc::make_mut(&mut view.manager));
        view
    }

    fn failed() -> Ending {
        Ending::Failed("no disk".into())
    }

    const STOP: Attempt = Attempt::Stop { timeout: None };

    #[test]
    fn a_dead_service_is_started_again_until_it_fails_too_often() {
        let mut agent = Agent::default();
        let v = view(ServiceState::Started, 7, false);
        let first = agent.step(Duration::ZERO, &v);
        assert_eq!(first[0].attempt, Attempt::Start);
        assert_eq!(agent.step(Duration::ZERO, &v), [], "one attempt at a time");
        agent.ended(Duration::ZERO, &first[0], failed());
        assert_eq!(agent.step(Duration::from_secs(1), &v), [], "not at once again");
        let second = agent.step(Duration::from_secs(6), &v);
        assert_eq!(agent.report(&v), AgentReport::default());
        agent.ended(Duration::from_secs(6), &second[0], failed());
        assert_eq!(agent.report(&v).services[&sid()].outcome, Outcome::Failed("no disk".into()));
        assert_eq!(
            agent.step(Duration::from_secs(60), &v),
            [],
            "given up until the manager says something new"
        );
        assert_eq!(agent.step(Duration::from_secs(60), &view(ServiceState::Started, 8, false)).len(), 1);
    }

    #[test]
    fn what_fails_for_want_of_the_cluster_is_no_failure_of_the_service() {
        let mut agent = Agent::default();
        let good = view(ServiceState::Started, 7, false);
        assert_eq!(agent.step(Duration::ZERO, &AgentView { ready: false, ..good.clone() }), []);
        for second in (0..100).step_by(10) {
            let attempt = agent.step(Duration::from_secs(second), &good);
            assert_eq!(attempt.len(), 1);
            agent.ended(Duration::from_secs(second), &attempt[0], Ending::NotNow("no quorum".into()));
        }
        assert_eq!(agent.report(&good), AgentReport::default());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let mut agent = Agent::default();
        let mut v = view(ServiceState::Started, 7, false);
        v.services.clear();
        assert_eq!(agent.step(Duration::ZERO, &v), []);
    }

    #[test]
    fn a_stop_of_what_is_absent_is_done_and_a_move_names_its_target() {
        let mut agent = Agent::default();
        let v = view(ServiceState::RequestStop, 7, false);
        assert_eq!(agent.step(Duration::ZERO, &v), []);
        assert_eq!(agent.report(&v).services[&sid()].outcome, Outcome::Done);
        let m = agent.step(Duration::ZERO, &view(ServiceState::Migrate, 8, true));
        assert_eq!(m[0].attempt, Attempt::Migrate("n2".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_stopped_is_tried_again_once_its_user_gives_it_up() {
        let mut agent = Agent::default();
        let mut v = view(ServiceState::Error, 7, true);
        assert_eq!(agent.step(Duration::ZERO, &v), []);
        v.services.get_mut(&sid()).unwrap().requested = RequestedState::Disabled;
        for second in [0, 10, 20] {
            let stop = agent.step(Duration::from_secs(second), &v);
            assert_eq!(stop[0].attempt, STOP);
            agent.ended(Duration::from_secs(second), &stop[0], failed());
        }
    }

    #[test]
    fn a_rebooting_node_stops_its_services_only_when_they_are_frozen() {
        let mut agent = Agent::default();
        let mut v = AgentView { leave: Some(Leave::Reboot), ..view(ServiceState::Started, 7, true) };
        assert_eq!(agent.step(Duration::ZERO, &v), []);
        assert_eq!(agent.mode(), AgentMode::Freeze);
        v.policy = ShutdownPolicy::Migrate;
        v = with_manager(v, |m| {
            let memory = NodeMemory { mode: AgentMode::Freeze, ..NodeMemory::default() };
            m.node_memory.insert("n1".parse().unwrap(), memory);
            m.service_status.get_mut(&sid()).unwrap().state = ServiceState::Freeze;
        });
        let stop = agent.step(Duration::ZERO, &v);
        assert_eq!((stop[0].attempt.clone(), agent.mode()), (STOP, AgentMode::Freeze), "the policy of then");
        assert!(!agent.may_leave(&v));
        agent.ended(Duration::ZERO, &stop[0], Ending::Done);
        assert!(!agent.may_leave(&v), "there is still a process");
        v.services.get_mut(&sid()).unwrap().present = false;
        assert_eq!(agent.step(Duration::ZERO, &v), [], "and it is not started again");
        assert!(agent.may_leave(&v));
    }

    #[test]
    fn a_node_that_is_emptied_goes_when_nothing_runs_any_more() {
        let mut agent = Agent::default();
        let mut v = view(ServiceState::Started, 7, true);
        (v.leave, v.policy) = (Some(Leave::Shutdown), ShutdownPolicy::Migrate);
        assert_eq!(agent.step(Duration::ZERO, &v), []);
        assert_eq!(agent.report(&v).mode, AgentMode::Maintenance);
        assert!(!agent.may_leave(&v));
        v.services.clear();
        assert!(agent.may_leave(&v));
        v.leave = None;
        agent.step(Duration::ZERO, &v);
        assert_eq!(agent.mode(), AgentMode::Active, "it was called off");
    }

    #[test]
    fn what_was_stopped_for_a_shutdown_that_is_called_off_is_started_again() {
        let mut agent = Agent::default();
        let mut v = AgentView { leave: Some(Leave::Shutdown), ..view(ServiceState::Started, 7, true) };
        let stop = agent.step(Duration::ZERO, &v);
        assert_eq!(stop[0].attempt, STOP);
        v.leave = None;
        agent.ended(Duration::ZERO, &stop[0], Ending::Done);
        v.services.get_mut(&sid()).unwrap().present = false;
        assert_eq!(agent.step(Duration::ZERO, &v)[0].attempt, Attempt::Start);
    }

    #[test]
    fn disarmed_is_said_when_nothing_is_guarded_any_more() {
        use crate::state::{Disarm, DisarmMode};
        let agent = Agent::default();
        let mut v = view(ServiceState::Freeze, 7, true);
        assert!(v.wants_guard() && !agent.report(&v).disarmed);
        v = with_manager(v, |m| {
            m.disarm = Some(Disarm { mode: DisarmMode::Freeze, ready: true, done: false });
        });
        assert!(!v.wants_guard() && !agent.report(&v).disarmed);
        v.guarding = false;
        assert!(agent.report(&v).disarmed);
    }
}
