//! The fence process with real QEMU processes: first `cont`, the lease's end, and what follows.

use super::bench::{Bench, D, L, Qemu, W, allowance, cgroups};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use stead_fenced::client::CallError;
use stead_fenced::protocol::{Answer, Op, Refusal};
use stead_membership::Hold;
use stead_model::Epoch;

#[test]
fn nothing_runs_before_a_lease_nor_under_another_epoch() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    let refused = bench.run(100, 3).unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refusal::NoLease)), "{refused}");
    bench.lease(L * 20);
    let refused = bench.run(100, 4).unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refusal::Unknown)), "{refused}");
    assert_eq!(qemu.status(), "prelaunch");
    bench.run(100, 3).unwrap();
    assert_eq!(qemu.status(), "running");
    assert_eq!(bench.hold(100), Hold::Released);
    bench.run(100, 3).unwrap();
    let alive = bench.fenced.call(Op::Forget { vmid: qemu.vmid }).unwrap_err();
    assert!(alive.to_string().contains("its process lives"), "{alive}");
    qemu.kill();
    bench.fenced.call(Op::Forget { vmid: qemu.vmid }).unwrap();
}

/// A lease ends, the guest is held; a lease alone thaws nothing, an explicit run does.
fn hold_and_thaw(cgroup: Option<&Path>) {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, cgroup);
    bench.lease(L);
    bench.run(100, 3).unwrap();
    let begun = Instant::now();
    bench.wait_for(100, Hold::Held, L + D);
    assert!(begun.elapsed() < L + D, "{:?}", begun.elapsed());
    assert!(qemu.is_frozen(cgroup));

    bench.lease(L * 20);
    assert_eq!(bench.hold(100), Hold::Held);
    assert!(qemu.is_frozen(cgroup));
    qemu.thaw(cgroup);
    assert_eq!(qemu.status(), "paused", "it was paused before it was frozen");
    qemu.freeze(cgroup);

    bench.run(100, 3).unwrap();
    assert!(!qemu.is_frozen(cgroup));
    assert_eq!(qemu.status(), "running");
    assert_eq!(bench.hold(100), Hold::Released);
}

#[test]
fn held_by_signals() {
    hold_and_thaw(None);
}

#[test]
fn held_by_a_cgroup() {
    let found = cgroups();
    if !allowance(!found.is_empty(), "a writable cgroup with a freezer") {
        return;
    }
    for cgroup in &found {
        hold_and_thaw(Some(cgroup.path()));
    }
}

#[test]
fn a_hung_guest_resets_the_machine_in_time() {
    let Some(mut bench) = Bench::start("socket") else { return };
    let healthy = bench.guest(101, None);
    let hung = bench.guest(100, None);
    bench.lease(L);
    let begun = Instant::now();
    bench.run(100, 3).unwrap();
    bench.run(101, 3).unwrap();
    hung.signal("STOP");
    let asked = bench.switch_asked(begun + L + D + W);
    let after = asked.duration_since(begun);
    assert!(after > L * 98 / 100, "reset {after:?} after the lease began, within it");
    assert!(after < L + D + W, "reset only {after:?} after the lease began");
    assert_eq!(bench.hold(100), Hold::Unsafe);
    assert_eq!(bench.hold(101), Hold::Held, "the others were made safe meanwhile");
    assert!(healthy.is_frozen(None));
}

#[test]
fn without_a_switch_a_hung_guest_is_killed() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut hung = bench.guest(100, None);
    bench.lease(L);
    bench.run(100, 3).unwrap();
    hung.signal("STOP");
    hung.wait_for_end(L + D + W);
    // Its process is gone, so it counts as never continued and can be forgotten.
    bench.wait_for(100, Hold::Registered, W);
    bench.fenced.call(Op::Forget { vmid: hung.vmid }).unwrap();
}

#[test]
fn a_guest_that_its_user_paused_stays_paused() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    bench.lease(L);
    bench.run(100, 3).unwrap();
    qemu.qmp("stop", &json!({}));
    bench.wait_for(100, Hold::Held, L + D);
    bench.lease(L * 20);
    bench.run(100, 3).unwrap();
    assert_eq!(qemu.status(), "paused");
    assert_eq!(bench.hold(100), Hold::Released);
}

#[test]
fn migration_jobs_and_exports_end_with_the_lease() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    bench.lease(L * 2);
    bench.run(100, 3).unwrap();
    qemu.busy(&bench.dir.path().join("d"));
    bench.wait_for(100, Hold::Held, L * 2 + D);
    qemu.thaw(None);
    assert_eq!(qemu.status(), "paused");
    let migration = qemu.qmp("query-migrate", &json!({}))["status"].clone();
    assert!(migration == "failed" || migration == "cancelled", "{migration}");
    assert_eq!(qemu.qmp("query-jobs", &json!({})), json!([]));
    assert_eq!(qemu.qmp("query-block-exports", &json!({})), json!([]));
}

#[test]
fn an_incoming_guest_waits_for_its_migration() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest_with(100, None, &["-incoming", "defer"]);
    bench.lease(L * 20);
    let refused = bench.run(100, 3).unwrap_err();
    assert!(refused.to_string().contains("inmigrate"), "{refused}");
    assert_eq!(qemu.status(), "inmigrate");
}

#[test]
fn the_next_fence_process_makes_safe_what_it_finds() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    bench.lease(L * 20);
    bench.run(100, 3).unwrap();
    bench.restart();
    bench.wait_for(100, Hold::Held, D + W);
    assert!(qemu.is_frozen(None));
    assert!(matches!(bench.run(100, 3), Err(CallError::Refused(Refusal::NoLease))));
    // What is held stays held through another restart, and is not taken for hung.
    bench.restart();
    assert_eq!(bench.hold(100), Hold::Held);
    bench.lease(L * 20);
    bench.run(100, 3).unwrap();
    assert_eq!(qemu.status(), "running");
}

#[test]
fn what_cannot_be_recorded_is_not_registered() {
    let Some(mut bench) = Bench::start("none") else { return };
    let in_the_way = bench.dir.path().join("s.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let registration = bench.registration(100, None);
    let refused = bench.fenced.call(Op::Register(registration.clone())).unwrap_err();
    assert!(refused.to_string().contains("could not write"), "{refused}");
    bench.lease(L * 20);
    assert!(matches!(bench.run(100, 3), Err(CallError::Refused(Refusal::Unknown))));
    std::fs::remove_dir(&in_the_way).unwrap();
    bench.fenced.call(Op::Register(registration)).unwrap();
    bench.restart();
    assert_eq!(bench.hold(100), Hold::Registered);
}

#[test]
fn a_socket_has_one_fence_process() {
    let Some(bench) = Bench::start("none") else { return };
    let second = bench.spawn_another().wait_with_output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another fence process serves"), "{text}");
}

#[test]
fn what_is_no_request_is_refused_and_harms_nobody() {
    let Some(mut bench) = Bench::start("none") else { return };
    let text = bench.raw("{\"id\":5,\"op\":\"selfdestruct\"}\n");
    assert!(text.contains("\"id\":5") && text.contains("\"kind\":\"request\""), "{text}");
    let refused =
        bench.fenced.call(Op::Renew { nonce: 1, lease_ms: 1000, drain_ms: 1000, watchdog_ms: 1000 });
    assert!(matches!(refused, Err(CallError::Refused(Refusal::Grant { .. }))));
    let version = bench.fenced.call(Op::Version).unwrap();
    assert!(
        matches!(version, Answer::Version { protocol: 1, ref power, .. } if power == "none"),
        "{version:?}"
    );
}

#[test]
fn a_guest_is_registered_again_only_when_its_process_is_gone() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    let mut registration = bench.registration(100, None);
    bench.fenced.call(Op::Register(registration.clone())).unwrap();
    registration.epoch = Epoch(4);
    bench.lease(L * 20);
    bench.run(100, 3).unwrap();
    let refused = bench.fenced.call(Op::Register(registration.clone())).unwrap_err();
    assert!(refused.to_string().contains("destroy it first"), "{refused}");
    qemu.kill();
    bench.fenced.call(Op::Register(registration)).unwrap();
}

/// On a machine where the package has written the file this test would take power over it, so it does not run there.
#[test]
fn power_over_the_host_is_refused_where_it_was_not_given() {
    if !allowance(
        !Path::new(stead_fenced::power::HOST_ARMED).exists(),
        "a machine that is no node of Stead's",
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_stead-fenced"))
        .args(["--power", "host", "--socket"])
        .arg(dir.path().join("s"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("refused to take power over this machine"), "{text}");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn it_is_small() {
    let Some(mut bench) = Bench::start("none") else { return };
    let guests: Vec<Qemu> = (100..104).map(|vmid| bench.guest(vmid, None)).collect();
    bench.lease(L * 20);
    for qemu in &guests {
        bench.run(qemu.vmid.get(), 3).unwrap();
    }
    let resident = bench.resident_kib();
    // Without optimisation the program itself is larger; 8 MiB is what may be locked.
    assert!(resident < 8192, "{resident} KiB resident");
}

#[test]
fn a_restart_lease_ends_by_word_with_the_guest_running_on() {
    let Some(mut bench) = Bench::start("none") else { return };
    let mut qemu = bench.guest(100, None);
    bench.lease(L * 100);
    bench.run(100, 3).unwrap();
    // The daemon is there again, and has an ordinary lease.
    bench.lease(L * 4);
    let left = |bench: &mut Bench| match bench.fenced.call(Op::Status).unwrap() {
        Answer::Status { lease_left_ms, .. } => Duration::from_millis(lease_left_ms.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    assert!(left(&mut bench) > L * 50);
    bench.fenced.call(Op::Shorten { lease_ms: 1 }).unwrap_err();
    let lease_ms = u64::try_from((L * 4).as_millis()).unwrap();
    bench.fenced.call(Op::Shorten { lease_ms }).unwrap();
    assert!(left(&mut bench) <= L * 4);
    assert_eq!(qemu.status(), "running");
    bench.wait_for(100, Hold::Held, L * 4 + D);
}
