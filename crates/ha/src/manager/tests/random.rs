//! Whatever is seen, in whatever order.

use super::*;
use crate::agent::{AgentReport, Outcome, Report};
use crate::state::NodeView;
use proptest::prelude::*;
use stead_model::{Epoch, HaResource};

fn any_word() -> impl Strategy<Value = NodeWord> {
    prop_oneof![4 => Just(NodeWord::Online), 1 => Just(NodeWord::Unknown), 1 => Just(NodeWord::Lost)]
}

fn any_mode() -> impl Strategy<Value = AgentMode> {
    prop_oneof![
        6 => Just(AgentMode::Active),
        1 => Just(AgentMode::Restart),
        1 => Just(AgentMode::Freeze),
        1 => Just(AgentMode::Shutdown),
        1 => Just(AgentMode::Maintenance),
    ]
}

fn any_request() -> impl Strategy<Value = Option<Request>> {
    let node = || (1..4u32).prop_map(name);
    prop_oneof![
        6 => Just(None),
        2 => (100..104u32, node(), any::<bool>())
            .prop_map(|(n, target, relocate)| Some(Request::Move { sid: sid(n), target, relocate })),
        1 => (100..104u32, 0..100u32).prop_map(|(n, timeout)| Some(Request::Stop { sid: sid(n), timeout })),
        1 => (node(), any::<bool>()).prop_map(|(node, on)| Some(Request::Maintenance { node, on })),
        1 => any::<bool>().prop_map(|f| {
            Some(Request::Disarm { mode: if f { DisarmMode::Freeze } else { DisarmMode::Ignore } })
        }),
        2 => Just(Some(Request::Arm)),
    ]
}

/// What is seen of a service: owner, running, armed, wish, process, whether its agent reports a failure or an end.
type Seen = (u32, bool, bool, usize, usize, usize);

fn any_seen() -> impl Strategy<Value = Seen> {
    (1..4u32, any::<bool>(), any::<bool>(), 0..6usize, 0..3usize, 0..6usize)
}

type Moment = (Vec<(NodeWord, AgentMode)>, Vec<Seen>, Option<Request>);

fn any_moment() -> impl Strategy<Value = Moment> {
    let nodes = proptest::collection::vec((any_word(), any_mode()), 3);
    (nodes, proptest::collection::vec(any_seen(), 4), any_request())
}

const RULES: &str = "node-affinity: disks\n    resources vm:100\n    nodes n1,n2\n    strict 1\n\n\
                     resource-affinity: apart\n    resources vm:101,vm:102\n    affinity negative\n\n\
                     resource-affinity: with\n    resources vm:102,vm:103\n    affinity positive\n";

fn build(moment: &Moment, state: &ManagerState, epoch: u64) -> View {
    let (nodes, seen, request) = moment;
    let mut lab =
        Lab::new(3).ruled(RULES).options("", "ha=static,ha-auto-rebalance=1,ha-rebalance-on-start=1");
    for (i, (n, (owner, running, armed, wish, process, outcome))) in (100..104u32).zip(seen).enumerate() {
        let s = lab.add(sid(n), *owner);
        (s.running, s.armed, s.epoch) = (*running, *armed, Epoch(epoch));
        s.resource = HaResource {
            state: [Started, Started, Started, Stopped, Disabled, Ignored][*wish],
            ..s.resource.clone()
        };
        s.process = [Process::Running, Process::Absent, Process::Unknown][*process];
        let Some(known) = state.service_status.get(&sid(n)) else { continue };
        let outcome = [Some(Outcome::Done), Some(Outcome::Failed("no".into())), None, None, None, None]
            [*outcome]
            .clone();
        if let (Some(outcome), Some(NodeView { agent: Some(agent), .. })) =
            (outcome, lab.view.nodes.get_mut(&known.node))
        {
            agent.services.insert(sid(n), Report { uid: known.uid - i as u64 % 2, outcome });
        }
    }
    for (node, (word, mode)) in lab.view.nodes.values_mut().zip(nodes) {
        node.word = *word;
        let services = node.agent.take().unwrap_or_default().services;
        let report = AgentReport { mode: *mode, disarmed: false, services };
        node.agent = (*word == NodeWord::Online).then_some(report);
    }
    lab.view.requests = request.iter().map(|r| ("1".to_owned(), r.clone())).collect();
    lab.view
}

proptest! {
    /// A recovery names the lost owner and its epoch, only for a guest that is guarded or not running, only to a node that is
    /// online and that strict rules allow; counters keep to their limits; every change has a reason; and what is
    /// seen again leads to rest.
    #[test]
    fn decisions_are_safe_bounded_explained_and_final(moments in proptest::collection::vec(any_moment(), 1..25)) {
        let mut state = ManagerState::default();
        for (i, moment) in moments.iter().enumerate() {
            let mut view = build(moment, &state, i as u64);
            let now = 1000 + i as u64 * 7;
            for command in crate::step(now, &view, &mut state) {
                match command {
                    Command::Recover { sid: s, from, to, epoch, reason, .. } => {
                        let seen = &view.services[&s];
                        prop_assert_eq!((&from, epoch), (&seen.owner, seen.epoch));
                        prop_assert_eq!(view.nodes[&from].word, NodeWord::Lost);
                        prop_assert_eq!(view.nodes[&to].word, NodeWord::Online);
                        prop_assert!(seen.armed || !seen.running);
                        prop_assert!(seen.resource.state != Ignored && !reason.is_empty());
                        prop_assert!(s != sid(100) || to != name(3), "a strict rule");
                        prop_assert!(state.disarm.is_none_or(|d| !d.ready));
                    }
                    Command::DropRequest { id, reason, .. } => {
                        prop_assert!(view.requests.remove(&id).is_some() && !reason.is_empty());
                    }
                    Command::Record { change, .. } => prop_assert!(!change.reason.is_empty()),
                }
            }
            for s in state.service_status.values() {
                prop_assert!(s.relocate_tries <= 2, "max_relocate is 1");
                prop_assert!(s.state.is_move() == s.target.is_some() || s.state == ServiceState::Recovery);
                prop_assert!(s.reason.len() < 1000, "reasons do not grow: {}", s.reason);
            }
            // One service may follow another a round later, but it comes to rest.
            let mut last = ManagerState::default();
            for _ in 0..4 {
                last = state.clone();
                crate::step(now, &view, &mut state);
            }
            prop_assert_eq!(&last, &state);
        }
    }
}
