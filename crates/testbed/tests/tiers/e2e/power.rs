//! Power over a machine: what the fence process does with sysrq and the kernel's watchdog, on an emulated machine.

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use stead_testbed::cluster::program;
use stead_testbed::guest::machine::{Machine, Story};

/// Boot and scenario, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(120);
/// D, and D + W, of the times that the machine plays with (the profile `fast`).
const DRAIN: Duration = Duration::from_millis(500);
const WATCHDOG: Duration = Duration::from_millis(1500);
/// An emulated machine's time may lag behind ours by so much.
const LAG: Duration = Duration::from_millis(1500);

/// Plays scenarios beside each other: they wait for most of their time.
fn play<const N: usize>(scenarios: [&str; N]) -> Result<[Story; N]> {
    let dir = tempfile::tempdir()?;
    let machine = Machine::new(dir.path(), &program("stead-fenced")?)?;
    std::thread::scope(|scope| {
        let all = scenarios.map(|name| scope.spawn(|| machine.play(name, LIMIT)));
        let stories = all.map(|thread| thread.join().unwrap());
        let stories: Vec<Story> = stories.into_iter().collect::<Result<_>>()?;
        stories.try_into().ok().context("as many stories as scenarios")
    })
}

#[test]
fn a_machine_is_reset_where_the_fence_process_cannot_vouch_for_its_guests() {
    let [hung, killed, unverified] = play(["hung", "killed", "unverified"]).unwrap();
    for (story, since, least, most) in [
        (&hung, "hung", Duration::ZERO, WATCHDOG),
        (&killed, "killed", Duration::ZERO, WATCHDOG),
        // By sysrq: this machine has no watchdog. Not before the guest has had its time.
        (&unverified, "lease ends", DRAIN * 8 / 10, DRAIN),
    ] {
        let took = story.ended - story.when(since).unwrap();
        println!("reset {took:.2?} after '{since}'");
        assert!(!story.alive(), "it was not reset:\n{}", story.serial);
        assert!((least..most + LAG).contains(&took), "reset {took:.2?} after '{since}':\n{}", story.serial);
    }
}

/// The times of the watchdog are changed under a guest; afterwards they are what was promised.
#[test]
fn a_machine_whose_fence_profile_changes_is_reset_only_when_it_hangs() {
    let [shorter, longer, hung] = play(["shorter", "longer", "shorter-hung"]).unwrap();
    for (name, story) in [("shorter", shorter), ("longer", longer)] {
        assert!(story.alive(), "{name}: it was reset:\n{}", story.serial);
    }
    assert!(!hung.alive(), "it was not reset:\n{}", hung.serial);
    let took = hung.ended - hung.when("hung").unwrap();
    println!("reset {took:.2?} after 'hung'");
    // D + W of the profile `default`.
    assert!(took < Duration::from_secs(3) + LAG, "reset {took:.2?} after 'hung':\n{}", hung.serial);
}

#[test]
fn a_machine_with_nothing_to_guard_is_left_alone() {
    let check = || -> Result<()> {
        let names = ["waiting", "quiet", "stood-down", "replaced", "too-fast"];
        for (name, story) in names.iter().zip(play(names)?) {
            ensure!(story.alive(), "{name}: it was reset:\n{}", story.serial);
        }
        Ok(())
    };
    check().unwrap();
}
