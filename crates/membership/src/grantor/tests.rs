use super::*;

const P: FenceProfile = FenceProfile::Default;

fn ms(n: u64) -> Moment {
    Moment::from_millis(n)
}

fn uuid(n: u32) -> String {
    format!("{n:08x}-1111-4111-8111-111111111111")
}

fn name(n: u32) -> NodeName {
    format!("n{n}").parse().unwrap()
}

fn boot(n: u32) -> BootId {
    uuid(1000 + n).parse().unwrap()
}

fn member(n: u32) -> (NodeName, Member) {
    (name(n), Member { uuid: uuid(n).parse().unwrap(), state: NodeState::Member { boot: boot(n) } })
}

fn beat(n: u32, nonce: u64) -> Heartbeat {
    Heartbeat { v: VERSION, node: name(n), uuid: uuid(n).parse().unwrap(), boot: boot(n), nonce }
}

fn leader() -> Grantor {
    let mut g = Grantor::new(ms(0), P, None);
    g.set_members(ms(0), (1..=3).map(member).collect());
    g.lead(ms(0), 5);
    g
}

fn outcomes(commands: &[GrantorCommand]) -> Vec<(u64, Outcome)> {
    let answer = |c: &GrantorCommand| match c {
        GrantorCommand::Answer { answer, .. } => Some((answer.nonce, answer.outcome.clone())),
        _ => None,
    };
    commands.iter().filter_map(answer).collect()
}

fn refused(reason: Refusal) -> Outcome {
    Outcome::Refused { reason }
}

fn declared(commands: &[GrantorCommand]) -> Vec<NodeName> {
    let lost = |c: &GrantorCommand| match c {
        GrantorCommand::DeclareLost(d) => Some(d.node.clone()),
        _ => None,
    };
    commands.iter().filter_map(lost).collect()
}

#[test]
fn a_round_begins_after_the_heartbeat() {
    let mut g = leader();
    assert_eq!(g.heartbeat(ms(1), beat(1, 10)), [GrantorCommand::Confirm { round: 1 }]);
    assert_eq!(g.heartbeat(ms(2), beat(2, 20)), [], "waits for the next round");
    assert_eq!(outcomes(&g.heartbeat(ms(3), beat(2, 21))), [(20, refused(Refusal::Superseded))]);
    let out = g.confirmed(1, 5);
    assert_eq!(outcomes(&out), [(10, Outcome::granted(P))]);
    assert!(out.contains(&GrantorCommand::Confirm { round: 2 }));
    assert_eq!(g.confirmed(1, 5), [], "an old round confirms nothing");
    assert_eq!(outcomes(&g.confirmed(2, 5)), [(21, Outcome::granted(P))]);
}

#[test]
fn who_does_not_lead_grants_nothing() {
    let mut g = leader();
    g.heartbeat(ms(1), beat(1, 10));
    assert_eq!(outcomes(&g.confirmed(1, 6)), [(10, refused(Refusal::NotLeader))], "another term");
    g.heartbeat(ms(2), beat(1, 11));
    g.heartbeat(ms(2), beat(2, 20));
    let out = outcomes(&g.depose());
    assert_eq!(out, [(11, refused(Refusal::NotLeader)), (20, refused(Refusal::NotLeader))]);
    assert_eq!(g.confirmed(2, 5), []);
    assert_eq!(outcomes(&g.heartbeat(ms(3), beat(1, 12))), [(12, refused(Refusal::NotLeader))]);
    assert_eq!(g.step(ms(1_000_000)), []);
    let mut g = leader();
    g.heartbeat(ms(1), beat(1, 10));
    assert_eq!(outcomes(&g.unconfirmed(1)), [(10, refused(Refusal::NotLeader))]);
}

#[test]
fn strangers_get_nothing() {
    let mut g = leader();
    let mut why = |b: Heartbeat| outcomes(&g.heartbeat(ms(1), b))[0].1.clone();
    assert_eq!(why(beat(4, 1)), refused(Refusal::Unknown));
    assert_eq!(why(Heartbeat { uuid: uuid(9).parse().unwrap(), ..beat(1, 1) }), refused(Refusal::WrongUuid));
    let wrong = Refusal::WrongBoot { entered: boot(1) };
    assert_eq!(why(Heartbeat { boot: boot(9), ..beat(1, 1) }), refused(wrong));
    assert_eq!(why(Heartbeat { v: 2, ..beat(1, 1) }), refused(Refusal::Version { known: 1 }));
}

#[test]
fn a_silent_node_is_lost_after_the_fence_time_and_refused_from_the_decision_on() {
    let mut g = leader();
    g.heartbeat(ms(1000), beat(1, 10));
    g.confirmed(1, 5);
    let fence = P.fence_time();
    assert_eq!(g.step(fence), []);
    assert_eq!(g.next_wake(), Some(fence + ms(1)));
    assert_eq!(declared(&g.step(fence + ms(1))), [name(2), name(3)], "not heard since the election");
    assert_eq!(declared(&g.step(fence + ms(1001))), [name(1)]);
    assert_eq!(g.next_wake(), None);
    assert_eq!(outcomes(&g.heartbeat(fence + ms(1001), beat(1, 11))), [(11, refused(Refusal::Lost))]);

    g.declare_failed(&name(1), DeclareFailure::Unknown);
    assert_eq!(outcomes(&g.heartbeat(fence + ms(1002), beat(1, 12))), [(12, refused(Refusal::Lost))]);
    assert_eq!(declared(&g.step(fence + ms(1002))), [name(1)], "proposed again");
    assert!(!g.settled(fence + ms(1002), &name(1)), "not committed");

    let mut lost: BTreeMap<_, _> = (1..=3).map(member).collect();
    lost.get_mut(&name(1)).unwrap().state = NodeState::Lost { boot: boot(1) };
    g.set_members(fence + ms(1003), lost);
    assert!(g.settled(fence + ms(1003), &name(1)));
    assert_eq!(outcomes(&g.heartbeat(fence + ms(1004), beat(1, 13))), [(13, refused(Refusal::Lost))]);

    // It enters again, and is not declared lost on the spot.
    g.set_members(ms(20_000), (1..=3).map(member).collect());
    assert!(!g.settled(ms(20_000), &name(1)));
    assert!(!declared(&g.step(ms(20_001))).contains(&name(1)));
    assert_eq!(g.heartbeat(ms(20_001), beat(1, 14)), [GrantorCommand::Confirm { round: 2 }]);
    assert!(declared(&g.step(ms(20_001) + fence)).contains(&name(1)));
}

#[test]
fn a_node_that_enters_again_before_its_loss_was_told_gets_leases() {
    let mut g = leader();
    let fence = P.fence_time();
    assert_eq!(declared(&g.step(fence + ms(1))).len(), 3);
    // Lost and entered between two tellings.
    g.set_members(fence + ms(2), (1..=3).map(member).collect());
    assert_eq!(outcomes(&g.heartbeat(fence + ms(2), beat(1, 10))), [(10, refused(Refusal::Lost))]);
    g.declared(fence + ms(3), &name(1));
    assert_eq!(g.heartbeat(fence + ms(3), beat(1, 11)), [GrantorCommand::Confirm { round: 1 }]);
    assert_eq!(declared(&g.step(fence + ms(4))), [], "it has just entered");
    assert_eq!(declared(&g.step(fence * 2 + ms(4))), [name(1)]);
}

#[test]
fn a_grant_in_flight_when_the_loss_is_decided_is_not_given() {
    let mut g = leader();
    g.heartbeat(ms(1), beat(1, 10));
    g.step(P.fence_time() + ms(1));
    assert_eq!(outcomes(&g.confirmed(1, 5)), [(10, refused(Refusal::Lost))]);
    g.declare_failed(&name(1), DeclareFailure::Refused);
    assert_eq!(g.heartbeat(ms(9000), beat(1, 11)), [GrantorCommand::Confirm { round: 2 }]);
}

#[test]
fn a_new_leader_waits_for_every_lease_of_an_older_one() {
    let mut g = leader();
    g.lead(ms(60_000), 6);
    assert_eq!(g.step(ms(60_000) + P.fence_time()), []);
    assert_eq!(declared(&g.step(ms(60_001) + P.fence_time())).len(), 3);
    // A loss that an older leader committed is settled for this one after the same wait.
    g.lead(ms(90_000), 7);
    let mut lost: BTreeMap<_, _> = (1..=3).map(member).collect();
    lost.get_mut(&name(1)).unwrap().state = NodeState::Lost { boot: boot(1) };
    g.set_members(ms(90_000), lost);
    assert!(!g.settled(ms(90_000) + P.fence_time(), &name(1)));
    assert!(g.settled(ms(90_001) + P.fence_time(), &name(1)));
}

#[test]
fn while_a_profile_changes_the_longer_counts() {
    let (wan, fast) = (FenceProfile::Wan, FenceProfile::Fast);
    let settled = |commands: &[GrantorCommand]| commands.contains(&GrantorCommand::SettleProfile(wan));
    let mut g = Grantor::new(ms(0), wan, None);
    g.set_members(ms(0), (1..=3).map(member).collect());
    g.set_profile(ms(10), fast, Some(wan));
    assert_eq!(g.step(ms(9) + wan.fence_time()), [], "who does not lead proposes nothing");
    g.lead(ms(20), 2);
    let out = g.step(ms(20) + wan.fence_time());
    assert!(settled(&out) && declared(&out).is_empty(), "{out:?}");
    let out = g.step(ms(21) + wan.fence_time());
    assert!(!settled(&out) && declared(&out).len() == 3, "{out:?}");
    assert!(settled(&g.step(ms(21) + wan.fence_time() + SETTLE_AGAIN)), "nothing came of it");
    // As long as it stands there it counts, for whoever leads.
    g.lead(ms(100_000), 3);
    assert_eq!(declared(&g.step(ms(100_001) + fast.fence_time())), []);
    g.set_profile(ms(110_000), fast, None);
    g.lead(ms(110_001), 4);
    assert_eq!(declared(&g.step(ms(110_002) + fast.fence_time())).len(), 3);
    // A change that is applied after the election was made before it.
    g.lead(ms(200_000), 5);
    g.set_profile(ms(200_001), wan, Some(fast));
    assert_eq!(declared(&g.step(ms(200_001) + wan.fence_time())), []);
    // Restarted just after a change: the configuration tells.
    let mut g = Grantor::new(ms(0), fast, Some(wan));
    g.set_members(ms(0), (1..=3).map(member).collect());
    g.lead(ms(1), 2);
    assert_eq!(declared(&g.step(ms(1) + wan.fence_time())), []);
}
