//! The demo to look at: a cluster with a running VM, until Ctrl-C.

use super::steps::Steps;
use super::{VMID, set_up, start_under_ha};
use crate::Cluster;
use crate::poll;
use anyhow::{Result, bail};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

pub(super) async fn play(steps: &Steps) -> Result<()> {
    steps.say("Stead's demo: three nodes and a virtual machine on this machine. Ctrl-C ends everything.");
    let cluster = set_up(steps, Cluster::builder()).await?;
    let api = cluster.api(0).await?;
    steps.step(&format!("VM {VMID} starts under HA"), start_under_ha(&cluster, &api)).await?;
    steps.step(&format!("VM {VMID} answers HTTP"), answers(&cluster)).await?;
    introduce(steps, &cluster);
    obey(steps, &cluster).await
}

async fn answers(cluster: &Cluster) -> Result<()> {
    let places = cluster.guest_places(VMID);
    crate::api::until("an HTTP answer of the VM", Duration::from_secs(60), async || {
        for place in &places {
            if poll::ask(*place, poll::LOST_AFTER).await.is_ok() {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
    .await
}

/// What one can do now.
fn introduce(steps: &Steps, cluster: &Cluster) {
    let addr = cluster.node(0).addr();
    let port = addr.port();
    let guest = cluster.guest_places(VMID)[0];
    let dir = cluster.node(0).dir().display();
    let stead = crate::cluster::program("stead").map_or("stead".to_owned(), |p| p.display().to_string());
    steps.say(&format!(
        "
  Console    https://{addr}/   (the certificate is the demo cluster's own)
  User       root@pam
  Password   {password}
  From elsewhere:  ssh -L {port}:{addr} THIS-MACHINE   and then https://localhost:{port}/

  Five things to try, in another terminal:

    export STEAD_DIR={dir}
    alias stead={stead}

    curl http://{guest}/    the VM counts; the same port on the node that it is on
    stead status                         nodes, leader, quorum
    stead vm list                        what runs where
    stead vm migrate {VMID} n2             move it while it runs
    stead ha status                      who takes over what, and why

  And here: `off n2` takes a node's power away, `on n2` gives it back. Ctrl-C ends everything.
",
        password = cluster.password(),
    ));
}

/// Carries out what is typed; waits for Ctrl-C when nothing can be typed any more.
async fn obey(steps: &Steps, cluster: &Cluster) -> Result<()> {
    let mut lines: Lines<BufReader<Stdin>> = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match command(cluster, &line) {
            Ok(Some(done)) => steps.say(&done),
            Ok(None) => {}
            Err(e) => steps.say(&format!("{e:#}")),
        }
    }
    std::future::pending().await
}

fn command(cluster: &Cluster, line: &str) -> Result<Option<String>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [] => Ok(None),
        ["off", name] => {
            let node = cluster.node(cluster.number(name)?);
            let processes = node.processes().len();
            node.power_off()?;
            Ok(Some(format!("{name} has no power any more: {processes} processes are gone")))
        }
        ["on", name] => {
            cluster.node(cluster.number(name)?).power_on()?;
            Ok(Some(format!("{name} starts")))
        }
        _ => bail!("type `off NODE` or `on NODE`; everything else is for the other terminal"),
    }
}
