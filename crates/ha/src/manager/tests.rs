use super::*;
use crate::agent::Report;
use crate::state::NodeView;
use proptest::prelude::*;
use std::collections::BTreeMap;
use stead_model::ha_cfg::{HaResource, HaRule, HaRuleKind};
use stead_model::{GuestKind, Vmid};

fn sid() -> ServiceId {
    ServiceId { kind: GuestKind::Qemu, vmid: Vmid::new(100).unwrap() }
}

fn name(n: &str) -> NodeName {
    n.parse().unwrap()
}

/// Three nodes, one service on n1 that runs and is armed.
fn view() -> View {
    let node = || NodeView { word: NodeWord::Online, reports: BTreeMap::new() };
    let service = ServiceView {
        resource: HaResource::new(sid()),
        owner: name("n1"),
        epoch: Epoch(3),
        running: true,
        armed: true,
        process: Process::Running,
        request: None,
    };
    View {
        me: name("n2"),
        nodes: ["n1", "n2", "n3"].map(|n| (name(n), node())).into(),
        services: [(sid(), service)].into(),
        rules: vec![],
    }
}

fn service(state: &ManagerState) -> &Service {
    &state.service_status[&sid()]
}

fn seen(view: &mut View) -> &mut ServiceView {
    view.services.get_mut(&sid()).unwrap()
}

#[test]
fn a_new_service_is_kept_where_it_is() {
    let mut state = ManagerState::default();
    assert_eq!(step(1, &view(), &mut state), []);
    assert_eq!((service(&state).state, service(&state).node.as_str()), (ServiceState::Started, "n1"));
    let before = state.clone();
    assert_eq!(step(2, &view(), &mut state), []);
    assert_eq!(state, before, "nothing new, nothing written");
}

#[test]
fn silence_moves_nothing_and_a_committed_loss_does() {
    let (mut v, mut state) = (view(), ManagerState::default());
    step(1, &v, &mut state);
    v.nodes.get_mut(&name("n1")).unwrap().word = NodeWord::Unknown;
    seen(&mut v).process = Process::Unknown;
    assert_eq!(step(2, &v, &mut state), []);
    assert_eq!(service(&state).state, ServiceState::Started);
    v.nodes.get_mut(&name("n1")).unwrap().word = NodeWord::Lost;
    let commands = step(3, &v, &mut state);
    let [Command::Recover { from, to, epoch, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((from.as_str(), to.as_str(), *epoch), ("n1", "n2", Epoch(3)));
    assert_eq!(service(&state).state, ServiceState::Recovery);
    // Committed: the record names n2 now.
    seen(&mut v).owner = name("n2");
    seen(&mut v).epoch = Epoch(4);
    assert_eq!(step(4, &v, &mut state), []);
    assert_eq!((service(&state).state, service(&state).node.as_str()), (ServiceState::Started, "n2"));
    assert!(service(&state).reason.contains("node 'n1' is lost"), "{}", service(&state).reason);
}

#[test]
fn an_unguarded_guest_is_not_recovered() {
    let (mut v, mut state) = (view(), ManagerState::default());
    step(1, &v, &mut state);
    v.nodes.get_mut(&name("n1")).unwrap().word = NodeWord::Lost;
    seen(&mut v).armed = false;
    assert_eq!(step(2, &v, &mut state), []);
    assert!(service(&state).reason.contains("without a guard"));
    seen(&mut v).running = false;
    assert_eq!(step(3, &v, &mut state).len(), 1);
}

#[test]
fn a_failed_start_goes_to_another_node_and_then_to_error() {
    let (mut v, mut state) = (view(), ManagerState::default());
    seen(&mut v).process = Process::Absent;
    step(1, &v, &mut state);
    let fail = |v: &mut View, state: &ManagerState, node: &str| {
        let report = Report { uid: service(state).uid, outcome: Outcome::Failed("no disk".into()) };
        v.nodes.get_mut(&name(node)).unwrap().reports.insert(sid(), report);
    };
    fail(&mut v, &state, "n1");
    step(2, &v, &mut state);
    assert_eq!(service(&state).state, ServiceState::Relocate);
    let target = service(&state).target.clone().unwrap();
    assert_ne!(target.as_str(), "n1");
    seen(&mut v).owner = target.clone();
    step(3, &v, &mut state);
    assert_eq!(service(&state).state, ServiceState::Started);
    fail(&mut v, &state, target.as_str());
    step(4, &v, &mut state);
    assert_eq!(service(&state).state, ServiceState::Error);
    // Left only by disabling.
    v.nodes.get_mut(&target).unwrap().reports.clear();
    step(5, &v, &mut state);
    assert_eq!(service(&state).state, ServiceState::Error);
    seen(&mut v).resource.state = RequestedState::Disabled;
    step(6, &v, &mut state);
    assert_eq!(service(&state).state, ServiceState::RequestStop);
}

#[test]
fn a_failed_service_is_tried_again_where_it_is_if_no_other_node_can_take_it() {
    let (mut v, mut state) = (view(), ManagerState::default());
    seen(&mut v).process = Process::Absent;
    for n in ["n2", "n3"] {
        v.nodes.get_mut(&name(n)).unwrap().word = NodeWord::Unknown;
    }
    step(1, &v, &mut state);
    let fail = |v: &mut View, state: &mut ManagerState| {
        let report = Report { uid: service(state).uid, outcome: Outcome::Failed("no disk".into()) };
        v.nodes.get_mut(&name("n1")).unwrap().reports.insert(sid(), report);
        step(2, v, state);
    };
    fail(&mut v, &mut state);
    assert_eq!((service(&state).state, service(&state).node.as_str()), (ServiceState::Started, "n1"));
    fail(&mut v, &mut state);
    assert_eq!(service(&state).state, ServiceState::Error, "max_relocate is 1");
}

#[test]
fn a_request_is_taken_once_and_a_move_follows_the_record() {
    let (mut v, mut state) = (view(), ManagerState::default());
    step(1, &v, &mut state);
    seen(&mut v).request = Some((name("n3"), false));
    assert_eq!(step(2, &v, &mut state), [Command::DropRequest { sid: sid(), reason: "taken".into() }]);
    seen(&mut v).request = None;
    assert_eq!(service(&state).state, ServiceState::Migrate);
    seen(&mut v).owner = name("n3");
    step(3, &v, &mut state);
    assert_eq!((service(&state).state, service(&state).node.as_str()), (ServiceState::Started, "n3"));
}

#[test]
fn rules_choose_the_node_and_a_strict_one_waits() {
    let (mut v, mut state) = (view(), ManagerState::default());
    let nodes = [(name("n3"), 2)].into();
    let kind = HaRuleKind::NodeAffinity { nodes, strict: true, positive: true };
    v.rules = vec![HaRule { id: "r".into(), resources: [sid()].into(), disable: false, comment: None, kind }];
    step(1, &v, &mut state);
    assert_eq!(service(&state).target.as_ref().map(NodeName::as_str), Some("n3"));
    let mut state = ManagerState::default();
    v.rules.clear();
    step(1, &v, &mut state);
    let nodes = [(name("n1"), 0)].into();
    let kind = HaRuleKind::NodeAffinity { nodes, strict: true, positive: true };
    v.rules = vec![HaRule { id: "r".into(), resources: [sid()].into(), disable: false, comment: None, kind }];
    v.nodes.get_mut(&name("n1")).unwrap().word = NodeWord::Lost;
    assert_eq!(step(2, &v, &mut state), []);
    assert!(service(&state).reason.contains("waits"), "{}", service(&state).reason);
}

#[test]
fn the_state_is_written_as_administrators_know_it() {
    let mut state = ManagerState::default();
    step(7, &view(), &mut state);
    let json = serde_json::to_value(&state).unwrap();
    assert_eq!(json["service_status"]["vm:100"]["state"], "started");
    assert_eq!(json["master_node"], "n2");
    assert_eq!(json["node_status"]["n1"], "online");
    assert_eq!(serde_json::from_value::<ManagerState>(json).unwrap(), state);
}

fn any_word() -> impl Strategy<Value = NodeWord> {
    prop_oneof![3 => Just(NodeWord::Online), 1 => Just(NodeWord::Unknown), 1 => Just(NodeWord::Lost)]
}

proptest! {
    /// Whatever is seen in whatever order: a recovery names the lost owner and its epoch, only for a guest that is
    /// guarded or not running, and only to a node that is online; and the state always settles.
    #[test]
    fn recoveries_are_safe(
        steps in proptest::collection::vec(
            (proptest::collection::vec(any_word(), 3), 0..3usize, any::<bool>(), any::<bool>(), 0..4u8), 1..30)
    ) {
        let mut state = ManagerState::default();
        for (i, (words, owner, running, armed, wish)) in steps.into_iter().enumerate() {
            let mut v = view();
            for (node, word) in v.nodes.values_mut().zip(words) {
                node.word = word;
            }
            let names: Vec<NodeName> = v.nodes.keys().cloned().collect();
            let s = v.services.get_mut(&sid()).unwrap();
            s.owner = names[owner].clone();
            s.epoch = Epoch(i as u64);
            (s.running, s.armed) = (running, armed);
            s.resource.state = [RequestedState::Started, RequestedState::Stopped, RequestedState::Disabled, RequestedState::Started][usize::from(wish)];
            for command in step(i as u64, &v, &mut state) {
                if let Command::Recover { from, to, epoch, .. } = command {
                    let s = &v.services[&sid()];
                    prop_assert_eq!(&from, &s.owner);
                    prop_assert_eq!(epoch, s.epoch);
                    prop_assert_eq!(v.nodes[&from].word, NodeWord::Lost);
                    prop_assert_eq!(v.nodes[&to].word, NodeWord::Online);
                    prop_assert!(s.armed || !s.running);
                }
            }
            let once = state.clone();
            step(i as u64, &v, &mut state);
            prop_assert_eq!(&once, &state);
        }
    }
}
