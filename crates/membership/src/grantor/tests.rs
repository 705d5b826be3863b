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
    (
        name(n),
        Member {
            uuid: uuid(n).parse().unwrap(),
            state: NodeState::Member { boot: boot(n) },
            off: None,
            restart: false,
        },
    )
}

fn beat(n: u32, nonce: u64) -> Heartbeat {
    Heartbeat {
        v: VERSION,
        node: name(n),
        uuid: uuid(n).parse().unwrap(),
        boot: boot(n),
        nonce,
        restart: false,
    }
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

/// A leader of three nodes, of which the first two have devices; n3 leads and was heard.
fn with_devices(delay: Option<Duration>) -> Grantor {
    let mut g = leader();
    g.set_devices([(name(1), delay), (name(2), delay)].into());
    g
}

fn power_off(n: u32, silent: u64) -> GrantorCommand {
    GrantorCommand::PowerOff(PowerOff { node: name(n), boot: boot(n), silent: ms(silent) })
}

fn lost_and_off(n: u32, off: bool) -> (NodeName, Member) {
    let (name, mut member) = member(n);
    member.state = NodeState::Lost { boot: boot(n) };
    member.off = off.then(|| boot(n));
    (name, member)
}

/// When a node that was heard at 0 is suspected: its lease with drift, and a heartbeat.
const STRIKE: u64 = 4040 + 500;

#[test]
fn a_silent_node_with_devices_is_powered_off_once_leadership_is_confirmed() {
    let mut g = with_devices(None);
    assert_eq!(g.next_wake(), Some(ms(STRIKE + 1)));
    assert_eq!(g.step(ms(STRIKE)), []);
    // n2 is heard in time; n3 has no device.
    g.heartbeat(ms(4000), beat(2, 20));
    g.confirmed(1, 5);
    assert_eq!(g.step(ms(STRIKE + 1)), [GrantorCommand::Confirm { round: 2 }]);
    assert_eq!(g.confirmed(2, 5), [power_off(1, STRIKE + 1)]);
    assert_eq!(g.step(ms(STRIKE + 2)), [], "once");
    assert_eq!(outcomes(&g.heartbeat(ms(STRIKE + 2), beat(1, 10))), [(10, refused(Refusal::Lost))]);

    assert!(!g.settled(ms(STRIKE + 2), &name(1)));
    g.powered_off(&name(1), &boot(9));
    assert_eq!(g.step(ms(STRIKE + 3)), [], "another boot's");
    g.powered_off(&name(1), &boot(1));
    assert!(g.next_wake() <= Some(ms(1)));
    let out = g.step(ms(STRIKE + 3));
    let [GrantorCommand::DeclareLost(lost)] = &out[..] else { panic!("{out:?}") };
    assert!(lost.off && lost.boot == boot(1) && lost.node == name(1));
    assert!(!g.settled(ms(STRIKE + 4), &name(1)), "not committed");
    g.set_members(ms(STRIKE + 5), [lost_and_off(1, true), member(2), member(3)].into());
    assert!(g.settled(ms(STRIKE + 5), &name(1)), "no wait");
    assert_eq!(g.step(ms(STRIKE + 5)), [GrantorCommand::PowerOn { node: name(1) }]);
    assert_eq!(g.step(ms(STRIKE + 6)), [], "once");
    // A later leader need not wait either.
    g.lead(ms(STRIKE + 7), 6);
    assert!(g.settled(ms(STRIKE + 7), &name(1)));
    // It enters by another boot, is lost again, and what is known of the boot before helps nothing.
    let mut again = lost_and_off(1, true);
    again.1.state = NodeState::Lost { boot: boot(7) };
    g.set_members(ms(STRIKE + 8), [again, member(2), member(3)].into());
    assert!(!g.settled(ms(STRIKE + 8), &name(1)));
}

#[test]
fn who_does_not_lead_for_sure_powers_nobody_off() {
    let mut g = with_devices(None);
    assert_eq!(g.step(ms(STRIKE + 1)), [GrantorCommand::Confirm { round: 1 }]);
    assert_eq!(g.unconfirmed(1), []);
    assert_eq!(g.step(ms(STRIKE + 2)), [GrantorCommand::Confirm { round: 2 }], "asked again");
    assert_eq!(g.confirmed(2, 6), [], "another term");
    assert_eq!(g.step(ms(STRIKE + 3)), [GrantorCommand::Confirm { round: 3 }]);
    assert_eq!(g.depose(), []);
    assert_eq!(g.confirmed(3, 5), []);
    assert_eq!(g.next_wake(), None);
}

#[test]
fn who_is_heard_at_the_last_moment_is_not_powered_off() {
    // In the round that confirms leadership; and after it began.
    for late in [false, true] {
        let mut g = with_devices(None);
        let now = ms(STRIKE + 1);
        if !late {
            g.heartbeat(ms(STRIKE), beat(3, 30));
            g.step(now);
            g.heartbeat(now, beat(1, 10));
            let out = g.confirmed(1, 5);
            assert!(out.contains(&GrantorCommand::Confirm { round: 2 }), "{out:?}");
            let out = g.confirmed(2, 5);
            assert_eq!(outcomes(&out).len(), 1);
            assert_eq!(
                out.iter().filter(|c| matches!(c, GrantorCommand::PowerOff(_))).count(),
                1,
                "n2 alone"
            );
        } else {
            g.step(now);
            g.heartbeat(now, beat(1, 10));
            let out = g.confirmed(1, 5);
            assert_eq!(out, [power_off(2, STRIKE + 1), GrantorCommand::Confirm { round: 2 }]);
            assert_eq!(outcomes(&g.confirmed(2, 5)), [(10, Outcome::granted(P))]);
        }
        assert!(g.next_wake() > Some(now));
    }
}

#[test]
fn a_power_off_that_fails_leaves_the_wait_as_it_was() {
    let mut g = with_devices(None);
    g.step(ms(STRIKE + 1));
    assert_eq!(g.confirmed(1, 5), [power_off(1, STRIKE + 1), power_off(2, STRIKE + 1)]);
    g.power_off_failed(&name(1), &boot(1));
    // It gets leases again, and another order when it is silent again.
    assert_eq!(g.heartbeat(ms(5000), beat(1, 10)), [GrantorCommand::Confirm { round: 2 }]);
    assert_eq!(outcomes(&g.confirmed(2, 5)), [(10, Outcome::granted(P))]);
    assert_eq!(g.strikes_at(&name(1), &g.tracks[&name(1)]), Some(ms(5000 + STRIKE)));
    // n2's order stays out, and the wait ends all the same: lost without a confirmation.
    let out = g.step(P.fence_time() + ms(1));
    let [GrantorCommand::DeclareLost(first), GrantorCommand::DeclareLost(second)] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!((&first.node, first.off, &second.node), (&name(2), false, &name(3)));
    g.set_members(ms(7100), [member(1), lost_and_off(2, false), member(3)].into());
    assert!(g.settled(ms(7101), &name(2)));
    // It enters again: the order is called off, and it gets leases.
    g.set_members(ms(8000), (1..=3).map(member).collect());
    assert_eq!(g.step(ms(8000)), [GrantorCommand::CallOff { node: name(2) }]);
    assert!(outcomes(&g.heartbeat(ms(8001), beat(2, 20))).is_empty());
    g.powered_off(&name(2), &boot(2));
    assert!(
        !g.step(ms(8002)).iter().any(|c| matches!(c, GrantorCommand::DeclareLost(d) if d.off)),
        "told too late"
    );
}

#[test]
fn a_confirmation_after_the_wait_is_recorded_too() {
    let mut g = with_devices(None);
    g.step(ms(STRIKE + 1));
    g.confirmed(1, 5);
    g.step(P.fence_time() + ms(1));
    g.set_members(ms(7100), [lost_and_off(1, false), member(2), member(3)].into());
    g.powered_off(&name(1), &boot(1));
    let out = g.step(ms(7101));
    assert!(matches!(&out[..], [GrantorCommand::DeclareLost(d)] if d.off && d.node == name(1)), "{out:?}");
}

#[test]
fn what_is_out_is_called_off_with_its_leader_its_node_or_its_device() {
    let out = || {
        let mut g = with_devices(Some(ms(0)));
        g.step(ms(4041));
        assert_eq!(g.confirmed(1, 5).len(), 2);
        g
    };
    let off = |n| GrantorCommand::CallOff { node: name(n) };
    assert_eq!(out().depose(), [off(1), off(2)]);
    let mut g = out();
    g.set_members(ms(4050), (2..=3).map(member).collect());
    assert_eq!(g.step(ms(4050)), [off(1)]);
    let mut g = out();
    g.set_devices([(name(1), None)].into());
    assert_eq!(g.step(ms(4050)), [off(2)]);
    assert_eq!(g.heartbeat(ms(4051), beat(2, 1)), [GrantorCommand::Confirm { round: 2 }]);
}

#[test]
fn a_device_that_waits_as_long_as_the_fence_time_is_not_used() {
    let mut g = with_devices(Some(ms(3100)));
    assert_eq!(g.next_wake(), Some(P.fence_time() + ms(1)));
    assert_eq!(declared(&g.step(P.fence_time() + ms(1))).len(), 3);
    assert_eq!(g.round.as_ref().map(|r| r.id), None);
}

/// The members, of whom the first may hold a restart lease.
fn marked() -> BTreeMap<NodeName, Member> {
    let mut members: BTreeMap<_, _> = (1..=3).map(member).collect();
    members.get_mut(&name(1)).unwrap().restart = true;
    members
}

fn granted_ms(commands: &[GrantorCommand]) -> Vec<u64> {
    let length = |(_, outcome)| match outcome {
        Outcome::Granted { lease_ms, .. } => lease_ms,
        Outcome::Refused { reason } => panic!("{reason}"),
    };
    outcomes(commands).into_iter().map(length).collect()
}

#[test]
fn a_restart_lease_is_for_who_is_marked_and_asks() {
    let mut g = leader();
    let asks = |n| Heartbeat { restart: true, ..beat(1, n) };
    g.heartbeat(ms(1), asks(1));
    assert_eq!(granted_ms(&g.confirmed(1, 5)), [4000], "asked, and not marked");
    g.set_members(ms(2), marked());
    g.heartbeat(ms(3), beat(1, 2));
    assert_eq!(granted_ms(&g.confirmed(2, 5)), [4000], "marked, and did not ask");
    g.heartbeat(ms(1000), asks(3));
    assert_eq!(granted_ms(&g.confirmed(3, 5)), [60_000]);

    let over = ms(1000) + restart_fence_time();
    let others = declared(&g.step(over));
    assert!(!others.contains(&name(1)), "{others:?}");
    let lost = g.step(over + ms(1));
    assert_eq!(declared(&lost), [name(1)]);
    assert!(
        matches!(&lost[0], GrantorCommand::DeclareLost(d) if d.restart),
        "as it was waited for: {lost:?}"
    );
}

#[test]
fn once_the_mark_is_gone_the_ordinary_leases_count_alone() {
    let mut g = leader();
    g.set_members(ms(0), marked());
    g.heartbeat(ms(1000), Heartbeat { restart: true, ..beat(1, 1) });
    g.confirmed(1, 5);
    g.heartbeat(ms(9000), beat(1, 2));
    g.confirmed(2, 5);
    g.set_members(ms(9100), (1..=3).map(member).collect());
    let over = ms(9000) + P.fence_time();
    assert!(!declared(&g.step(over)).contains(&name(1)));
    assert_eq!(declared(&g.step(over + ms(1))), [name(1)]);
}

#[test]
fn a_new_leader_waits_for_whoever_is_marked_whenever_it_learns_of_that() {
    let mut g = leader();
    g.depose();
    g.set_members(ms(100), marked());
    g.lead(ms(1000), 6);
    let over = ms(1000) + restart_fence_time();
    assert_eq!(declared(&g.step(over)), [name(2), name(3)]);
    assert_eq!(declared(&g.step(over + ms(1))), [name(1)]);

    let mut g = leader();
    g.set_members(ms(5000), marked());
    let over = ms(5000) + restart_fence_time();
    assert_eq!(declared(&g.step(over)), [name(2), name(3)]);
    assert_eq!(declared(&g.step(over + ms(1))), [name(1)]);
}

#[test]
fn nobody_is_powered_off_under_a_restart_lease() {
    let mut g = leader();
    g.set_devices([(name(1), None)].into());
    g.set_members(ms(0), marked());
    g.heartbeat(ms(1000), Heartbeat { restart: true, ..beat(1, 1) });
    g.confirmed(1, 5);
    let confirms = |c: &[GrantorCommand]| c.iter().any(|c| matches!(c, GrantorCommand::Confirm { .. }));
    assert!(!confirms(&g.step(ms(61_000))), "its lease is alive");
    let over = ms(1000) + restart_fence_time();
    assert!(confirms(&g.step(over - ms(1))), "its lease is over, and the wait is not");
}

/// It may run its guests there without any lease of this epoch.
#[test]
fn who_is_alive_in_another_epoch_is_not_powered_off() {
    let elsewhere = || BTreeSet::from([name(1)]);
    let confirms = |out: &[GrantorCommand]| out.iter().any(|c| matches!(c, GrantorCommand::Confirm { .. }));
    // It is known before the suspicion.
    let mut g = leader();
    g.set_devices([(name(1), None)].into());
    g.set_elsewhere(elsewhere());
    assert!(!confirms(&g.step(ms(STRIKE + 1))), "it is suspected");
    g.set_elsewhere(BTreeSet::new());
    assert!(confirms(&g.step(ms(STRIKE + 1))));
    // Between suspicion and order.
    g.set_elsewhere(elsewhere());
    assert_eq!(g.confirmed(1, 5), []);
    g.set_elsewhere(BTreeSet::new());
    assert!(confirms(&g.step(ms(STRIKE + 2))));
    assert_eq!(g.confirmed(2, 5), [power_off(1, STRIKE + 2)]);
    // While its agents are at work.
    g.set_elsewhere(elsewhere());
    assert_eq!(g.step(ms(STRIKE + 3)), [GrantorCommand::CallOff { node: name(1) }]);
    g.powered_off(&name(1), &boot(1));
    assert_eq!(g.step(ms(STRIKE + 4)), [], "what comes of it all the same is not believed");
}

#[test]
fn who_is_alive_in_another_epoch_is_lost_and_not_settled() {
    let mut g = leader();
    g.set_elsewhere([name(3)].into());
    let late = ms(0) + P.fence_time() * 3;
    assert_eq!(declared(&g.step(late)), [name(1), name(2), name(3)], "a word can end it");
    // It was lost before that was known.
    let lost = |boot| NodeState::Lost { boot };
    let mut members: BTreeMap<_, _> = (1..=3).map(member).collect();
    members.entry(name(3)).and_modify(|m| m.state = lost(boot(3)));
    g.set_members(late, members);
    assert!(!g.settled(late * 2, &name(3)));
    g.set_elsewhere(BTreeSet::new());
    assert!(g.settled(late * 2, &name(3)));
}
