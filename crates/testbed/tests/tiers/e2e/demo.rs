//! `stead demo-failover`, as a user runs it.

use anyhow::ensure;
use std::process::{Command, Stdio};
use stead_testbed::cluster::program;

#[test]
fn the_failover_story_plays_to_its_end_and_leaves_nothing() {
    super::super::support::loopback(async |_| {
        let out = Command::new(program("stead")?)
            .arg("demo-failover")
            .env("STEAD_KEEP", "0")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        println!("{text}{}", String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "it ended with {}", out.status);
        for said in ["recovered", "is a member again", "Every step has succeeded"] {
            ensure!(text.contains(said), "`{said}` is missing");
        }
        Ok(())
    });
}
