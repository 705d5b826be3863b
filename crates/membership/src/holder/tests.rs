use super::*;

const L: Duration = Duration::from_millis(1000);
const D: Duration = Duration::from_millis(200);
const W: Duration = Duration::from_millis(300);

fn ms(n: u64) -> Moment {
    Moment::from_millis(n)
}

fn vm(n: u32) -> Vmid {
    Vmid::new(n).unwrap()
}

/// A holder with a lease counted from `at` and one guest of epoch 3 that runs.
fn running(at: u64) -> Holder {
    let mut h = Holder::new(1);
    lease(&mut h, at);
    h.register(vm(100), Epoch(3), true).unwrap();
    h.run(ms(at), vm(100), Epoch(3)).unwrap();
    h.step(ms(at));
    h
}

fn lease(h: &mut Holder, at: u64) {
    let nonce = h.nonce(ms(at));
    h.renew(ms(at), nonce, L, D, W).unwrap();
}

fn hold(h: &Holder) -> Hold {
    h.guests().next().unwrap().1.hold
}

#[test]
fn a_lease_counts_from_its_nonce_less_one_percent() {
    let mut h = Holder::new(1);
    let nonce = h.nonce(ms(100));
    h.renew(ms(600), nonce, L, D, W).unwrap();
    assert_eq!(h.lease_left(ms(600)), Some(ms(490)));
    assert_eq!(h.lease_left(ms(1090)), None);
}

#[test]
fn only_newer_nonces_count() {
    let mut h = Holder::new(1);
    let (a, b) = (h.nonce(ms(0)), h.nonce(ms(500)));
    assert_eq!(h.renew(ms(500), 77, L, D, W), Err(RenewError::Nonce(77)));
    h.renew(ms(510), b, L, D, W).unwrap();
    assert_eq!(h.renew(ms(520), a, L, D, W), Err(RenewError::Nonce(a)));
    assert_eq!(h.renew(ms(520), b, L, D, W), Err(RenewError::Nonce(b)));
    assert_eq!(h.lease_left(ms(510)), Some(ms(980)));
    let c = h.nonce(ms(1000));
    assert_eq!(h.renew(ms(3000), c, L, D, W), Err(RenewError::TooLate(c)));
    let d = h.nonce(ms(3000));
    assert_eq!(h.renew(ms(3000), d, Duration::ZERO, D, W), Err(RenewError::Times));
}

#[test]
fn the_longer_of_two_profiles_counts() {
    let mut h = Holder::new(1);
    let (a, b) = (h.nonce(ms(0)), h.nonce(ms(100)));
    h.renew(ms(100), a, L * 10, D * 10, W * 10).unwrap();
    h.renew(ms(200), b, L, D, W).unwrap();
    assert_eq!(h.lease_left(ms(200)), Some(ms(9700)));
}

/// A machine that stood still soon after the first shorter lease was reset by the longer time-out.
#[test]
fn the_watchdog_gets_the_times_that_count_with_the_lease_that_brings_them() {
    let feeds = |by: u32| [HolderCommand::FeedWatchdog { timeout: less_drift((D + W) * by) }];
    let mut h = Holder::new(1);
    let (a, b, c) = (h.nonce(ms(0)), h.nonce(ms(100)), h.nonce(ms(9800)));
    h.renew(ms(10), a, L * 10, D * 10, W * 10).unwrap();
    assert_eq!(h.step(ms(10)), feeds(10));
    // The longer lease counts on. Whoever has admitted this one has set the watchdog to its times.
    h.renew(ms(200), b, L, D, W).unwrap();
    assert_eq!(h.step(ms(200)), feeds(10));
    assert_eq!(h.may_renew(ms(10_790), c, L, D, W), Err(RenewError::TooLate(c)));
    h.renew(ms(9850), c, L, D, W).unwrap();
    assert_eq!(h.step(ms(9850)), feeds(1), "not when it would have been fed next");
    let d = h.nonce(ms(9860));
    h.renew(ms(9870), d, L, D, W).unwrap();
    assert_eq!(h.step(ms(9870)), [], "nothing is new");
}

#[test]
fn nothing_runs_without_a_good_lease_or_under_another_epoch() {
    let mut h = Holder::new(1);
    h.register(vm(100), Epoch(3), true).unwrap();
    assert_eq!(h.run(ms(0), vm(100), Epoch(3)), Err(RunError::NoLease));
    lease(&mut h, 0);
    assert_eq!(h.run(ms(0), vm(100), Epoch(2)), Err(RunError::Unknown(vm(100), Epoch(2))));
    assert_eq!(h.run(ms(0), vm(101), Epoch(3)), Err(RunError::Unknown(vm(101), Epoch(3))));
    assert_eq!(h.run(ms(900), vm(100), Epoch(3)), Err(RunError::NoLease), "too near the end");
    let cont = HolderCommand::Cont { vmid: vm(100), epoch: Epoch(3), thaw: false };
    assert_eq!(h.run(ms(800), vm(100), Epoch(3)), Ok(cont));
}

#[test]
fn at_the_deadline_guests_are_made_safe_and_stay_held_until_asked_for() {
    let mut h = running(0);
    assert_eq!(h.next_wake(ms(900)), Some(ms(125)), "feeding");
    h.step(ms(989));
    assert_eq!(hold(&h), Hold::Released);
    let by = ms(990) + less_drift(D);
    assert!(h.step(ms(990)).contains(&HolderCommand::MakeSafe { vmid: vm(100), by }));
    assert_eq!(h.run(ms(990), vm(100), Epoch(3)), Err(RunError::NoLease));
    h.report(ms(1000), vm(100), Report::Safe);
    assert_eq!(h.step(ms(5000)), [HolderCommand::FeedWatchdog { timeout: less_drift(D + W) }]);
    assert_eq!(hold(&h), Hold::Held);

    lease(&mut h, 6000);
    h.step(ms(6000));
    assert_eq!(hold(&h), Hold::Held, "a lease alone thaws nothing");
    let cont = HolderCommand::Cont { vmid: vm(100), epoch: Epoch(3), thaw: true };
    assert_eq!(h.run(ms(6000), vm(100), Epoch(3)), Ok(cont));
}

#[test]
fn a_guest_that_cannot_be_verified_resets_the_machine() {
    let mut h = running(0);
    h.step(ms(990));
    h.report(ms(1000), vm(100), Report::Failed);
    assert_eq!(h.step(ms(1010)), []);
    assert_eq!(h.step(ms(1050)).len(), 1, "tried again");
    assert!(!h.may_feed(ms(1050)));
    assert_eq!(h.step(ms(1187)), []);
    assert_eq!(h.step(ms(1188)), [HolderCommand::Reset { unverified: vec![vm(100)] }]);
    assert_eq!(h.step(ms(2187)), []);
    assert_eq!(h.step(ms(2188)).len(), 1, "asked again");
    let nonce = h.nonce(ms(2200));
    assert_eq!(h.renew(ms(2200), nonce, L, D, W), Err(RenewError::Resetting));
    h.report(ms(2300), vm(100), Report::Gone);
    h.renew(ms(2300), nonce, L, D, W).unwrap();
}

#[test]
fn a_lease_that_comes_back_midway_calls_off_the_reset_but_not_the_stop() {
    let mut h = running(0);
    h.step(ms(990));
    lease(&mut h, 1000);
    assert!(!h.step(ms(1500)).iter().any(|c| matches!(c, HolderCommand::Reset { .. })));
    assert_eq!(h.run(ms(1500), vm(100), Epoch(3)), Err(RunError::Stopping(vm(100))));
    h.report(ms(1600), vm(100), Report::Safe);
    assert_eq!(hold(&h), Hold::Held);
    // The next loss has its own deadline.
    let mut h2 = running(0);
    h2.step(ms(990));
    lease(&mut h2, 1000);
    assert!(h2.step(ms(1990)).is_empty());
    assert!(matches!(h2.step(ms(1990 + 198))[..], [HolderCommand::Reset { .. }]));
}

#[test]
fn a_thaw_that_fails_leaves_the_guest_held() {
    let mut h = running(0);
    h.step(ms(990));
    h.report(ms(1000), vm(100), Report::Safe);
    lease(&mut h, 2000);
    h.run(ms(2000), vm(100), Epoch(3)).unwrap();
    h.thaw_failed(ms(2100), vm(100));
    assert!(h.step(ms(2100)).iter().any(|c| matches!(c, HolderCommand::MakeSafe { .. })));
    h.report(ms(2200), vm(100), Report::Safe);
    assert_eq!(hold(&h), Hold::Held);
    h.run(ms(2200), vm(100), Epoch(3)).unwrap();
}

#[test]
fn a_living_guest_stays_guarded() {
    let mut h = running(0);
    let alive = RegisterError::Alive { vmid: vm(100), registered: Epoch(3) };
    assert_eq!(h.forget(vm(100), false), Err(alive));
    assert_eq!(h.register(vm(100), Epoch(4), false), Err(alive));
    assert_eq!(h.register(vm(100), Epoch(2), true).unwrap_err().to_string(), {
        "guest 100 was registered under the later epoch 3"
    });
    h.register(vm(100), Epoch(3), false).unwrap();
    assert_eq!(hold(&h), Hold::Released, "repeating changes nothing");
    h.register(vm(100), Epoch(4), true).unwrap();
    assert_eq!(hold(&h), Hold::Registered);
    h.forget(vm(100), true).unwrap();
    assert_eq!(h.guests().count(), 0);
}

#[test]
fn a_guest_registered_without_a_lease_waits_and_does_not_reset() {
    let mut h = running(0);
    h.step(ms(990));
    h.report(ms(1000), vm(100), Report::Safe);
    h.register(vm(101), Epoch(1), true).unwrap();
    for at in (1000..9000).step_by(100) {
        assert!(!h.step(ms(at)).iter().any(|c| !matches!(c, HolderCommand::FeedWatchdog { .. })));
    }
}

#[test]
fn adopted_guests_are_made_safe_first() {
    let mut h = Holder::adopt(9, ms(50), (D, W), [(vm(100), Epoch(3), Hold::Released)]);
    let by = ms(50) + less_drift(D);
    assert_eq!(h.step(ms(50)), [HolderCommand::MakeSafe { vmid: vm(100), by }]);
    assert_eq!(h.next_wake(ms(50)), Some(by));
    let mut hung = h.clone();
    assert_eq!(hung.step(by), [HolderCommand::Reset { unverified: vec![vm(100)] }]);
    h.report(ms(60), vm(100), Report::Safe);
    assert_eq!(h.step(by), [HolderCommand::FeedWatchdog { timeout: less_drift(D + W) }]);
}

#[test]
fn a_longer_lease_is_given_up_for_the_one_granted_last() {
    let mut h = Holder::new(1);
    assert_eq!(h.shorten(ms(0), L), Err(RenewError::NothingLeft));
    let (a, b, c) = (h.nonce(ms(0)), h.nonce(ms(100)), h.nonce(ms(200)));
    h.renew(ms(100), b, L * 60, D * 10, W * 10).unwrap();
    assert_eq!(h.shorten(ms(100), L), Err(RenewError::Longer), "it is the one granted last");
    h.renew(ms(300), c, L, D, W).unwrap();
    h.step(ms(300));
    assert_eq!(h.lease_left(ms(300)), Some(ms(59_200)));
    h.shorten(ms(300), L).unwrap();
    assert_eq!(h.lease_left(ms(300)), Some(ms(890)));
    assert_eq!(h.times(), Some((D, W)));
    let feeds = HolderCommand::FeedWatchdog { timeout: less_drift(D + W) };
    assert_eq!(h.step(ms(300)), [feeds], "with the shorter time-out, at once");
    // What was granted before never comes back.
    assert_eq!(h.renew(ms(310), a, L * 60, D, W), Err(RenewError::Nonce(a)));
    assert_eq!(h.renew(ms(310), b, L * 60, D, W), Err(RenewError::Nonce(b)));
    // One that is over already is no lease to hold to: guests would be held, and the machine reset at once.
    let d = h.nonce(ms(1100));
    h.renew(ms(1150), d, L * 60, D, W).unwrap();
    let e = h.nonce(ms(1150));
    h.renew(ms(1160), e, L, D, W).unwrap();
    assert_eq!(h.shorten(ms(3000), L), Err(RenewError::NothingLeft));
    assert!(h.lease_left(ms(3000)).is_some());
}
