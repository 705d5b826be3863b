//! A backup of the configuration becomes the store of one node, and the others come back to it.

use super::super::support::{BOOT, RECOVERY, cluster, loopback, start};
use super::epochs::{all_vote, done, is_second, refused, stands, stead};
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::PermissionsExt;
use stead_testbed::ApiClient;
use stead_testbed::api::until;

const VM: u32 = 100;

async fn described(api: &ApiClient, as_what: &str) -> Result<()> {
    until(&format!("the cluster is described as '{as_what}'"), RECOVERY, async || {
        Ok((api.get("/cluster/options").await?["description"] == as_what).then_some(()))
    })
    .await
}

#[test]
fn a_backup_is_restored_on_one_node_and_the_others_come_back_to_it() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let node = cluster.node(0);
        api.put("/cluster/options", &[("description", "before")]).await?;
        cluster.create_tick_guest(0, VM).await?;
        api.put(&format!("/nodes/n1/qemu/{VM}/config"), &[("onboot", "1")]).await?;
        let file = cluster.dir().join("all.backup");
        let file = file.to_str().context("a path")?;
        done(node, &["conf", "backup", file]).await?;
        ensure!(std::fs::metadata(file)?.permissions().mode() & 0o777 == 0o600, "others can read it");
        done(node, &["conf", "check", file]).await?;
        refused(node, &["conf", "backup", file], "File exists").await?;
        api.put("/cluster/options", &[("description", "after")]).await?;
        start(&cluster, &api, 0, VM).await?;
        let restore = ["conf", "restore", file, "--off", "n2", "--off", "n3", "--force"];
        refused(node, &restore, "another daemon").await?;
        refused(node, &["conf", "check"], "another daemon").await?;

        // The daemon alone is off, then the node.
        cluster.node(1).power_off()?;
        node.stop_daemon()?;
        until("a restore beside guests is refused", BOOT, async || match stead(node, &restore).await? {
            Ok(said) => bail!("it was done: {said}"),
            Err(e) => Ok(e.contains("guests run on this node").then_some(())),
        })
        .await?;
        node.power_off()?;
        done(node, &["conf", "check"]).await?;
        refused(node, &restore, "node 'n3' is not off").await?;
        cluster.node(2).power_off()?;
        refused(node, &["conf", "restore", file, "--off", "n2", "--force"], "nobody has said so of n3")
            .await?;
        refused(node, &restore[..7], "--force").await?;
        let offline = cluster.dir().join("offline.backup");
        let offline = offline.to_str().context("a path")?;
        done(node, &["conf", "backup", offline]).await?;
        done(node, &["conf", "check", offline]).await?;
        done(node, &restore).await?;
        done(node, &["conf", "check"]).await?;
        ensure!(node.dir().join("conf.replaced-2/conf.redb").is_file(), "the old store is gone");

        node.power_on()?;
        let api = stands(&cluster, 0, "alone in epoch 2", is_second).await?;
        described(&api, "before").await?;
        let row = cluster.guest_row(&api, VM).await?;
        ensure!(row["node"] == "n1", "{row}");
        let warned = api.get("/cluster/status").await?.to_string();
        ensure!(warned.contains("no guest starts by itself"), "{warned}");
        cluster.node(1).power_on()?;
        cluster.node(2).power_on()?;
        all_vote(&cluster, &api).await?;
        let row = cluster.guest_row(&api, VM).await?;
        ensure!(row["status"] == "stopped", "it was started by itself: {row}");
        done(node, &["ha", "arm"]).await?;
        start(&cluster, &api, 0, VM).await?;
        for n in 1..3 {
            let api = stands(&cluster, n, "in epoch 2", is_second).await?;
            described(&api, "before").await?;
            ensure!(cluster.node(n).dir().join("conf.epoch-1/conf.redb").is_file(), "its old store is gone");
        }
        Ok(())
    });
}
