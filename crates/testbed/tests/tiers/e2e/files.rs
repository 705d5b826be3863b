//! The configuration as files on real nodes: written on one, seen on the others; with a majority alone; after whatever ends a daemon.

use super::super::support::{BOOT, cluster, namespaces, start};
use anyhow::{Result, bail, ensure};
use std::time::Duration;
use stead_testbed::api::until;
use stead_testbed::node::Node;

const SOON: Duration = Duration::from_secs(20);

/// What a shell among the node's mounts, at the top of its files, says of a script; an error is what it says to that.
fn sh(node: &Node, script: &str) -> Result<String> {
    let mut command = node.in_its_mounts("cd \"$1\" && eval \"$2\"")?;
    let out = command.arg(node.files()).arg(script).env("LC_ALL", "C").output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(said) } else { bail!("{script}: {said}") }
}

async fn soon(node: &Node, script: &str) -> Result<()> {
    until(&format!("{}: {script}", node.name()), SOON, async || Ok(sh(node, script).ok())).await.map(drop)
}

fn refused(node: &Node, script: &str, why: &str) -> Result<()> {
    match sh(node, script) {
        Ok(said) => bail!("{script} went well: {said}"),
        Err(e) => ensure!(e.to_string().contains(why), "{script}: not '{why}' but {e}"),
    }
    Ok(())
}

#[test]
fn what_is_written_on_one_node_is_read_on_all() {
    namespaces(async |builder| {
        let cluster = cluster(builder.files()).await?;
        let api = cluster.api(0).await?;
        let (n1, n2) = (cluster.node(0), cluster.node(1));
        soon(n1, "test -e storage.cfg").await?;
        soon(n2, "test -e storage.cfg").await?;
        sh(n1, "mkdir scripts && echo one > scripts/a && cat scripts/a")?;
        soon(n2, "grep -q one scripts/a").await?;
        sh(n2, "sed -i s/one/two/ scripts/a")?;
        soon(n1, "grep -q two scripts/a").await?;
        refused(n2, "echo nonsense | tee -a storage.cfg", "Invalid argument")?;
        ensure!(sh(n2, "cat .stead-last-error")?.contains("storage.cfg: line "), "no reason is told");
        sh(
            n1,
            "grep -q '\"quorate\":1' .members && grep -q n3 .members && ls -d local/qemu-server nodes/n3/lxc",
        )?;

        // A VM of n1, from n2, by its rules.
        cluster.create_http_guest(0, 100, "web").await?;
        soon(n2, "grep -q 100 .vmlist && test -e nodes/n1/qemu-server/100.conf").await?;
        sh(n2, "sed -i 's/^cores:.*/cores: 2/; s/^name:.*/name: renamed/' nodes/n1/qemu-server/100.conf")?;
        let config = api.get("/nodes/n1/qemu/100/config").await?;
        ensure!(config["name"] == "renamed", "{config}");
        start(&cluster, &api, 0, 100).await?;
        refused(n2, "mv nodes/n1/qemu-server/100.conf nodes/n2/qemu-server/", "busy")?;
        refused(n2, "rm nodes/n1/qemu-server/100.conf", "not permitted")?;
        api.post_and_wait("/nodes/n1/qemu/100/status/stop", &[], BOOT).await?;
        sh(n2, "mv nodes/n1/qemu-server/100.conf nodes/n2/qemu-server/")?;
        soon(n1, "test -e nodes/n2/qemu-server/100.conf && test ! -e local/qemu-server/100.conf").await?;
        start(&cluster, &api, 1, 100).await
    });
}

#[test]
fn without_a_majority_files_are_read_and_not_written() {
    namespaces(async |builder| {
        let cluster = cluster(builder.files()).await?;
        let (n1, n3) = (cluster.node(0), cluster.node(2));
        soon(n3, "test -e storage.cfg").await?;
        sh(n1, "echo one > notes")?;
        soon(n3, "grep -q one notes").await?;
        cluster.network()?.link(3, false)?;
        soon(n3, "grep -q '\"quorate\":0' .members").await?;
        sh(n3, "grep -q one notes && ls -lR > /dev/null")?;
        refused(n3, "echo two > notes", "Permission denied")?;
        refused(n3, "mkdir lock", "Permission denied")?;
        soon(n1, "echo three > notes").await?;
        cluster.network()?.link(3, true)?;
        soon(n3, "grep -q three notes && echo four > notes").await?;
        soon(n1, "grep -q four notes").await
    });
}

#[test]
fn a_daemon_that_ends_leaves_a_free_path_and_comes_back_to_it() {
    namespaces(async |builder| {
        let cluster = cluster(builder.nodes(1).files()).await?;
        let node = cluster.node(0);
        soon(node, "test -e storage.cfg").await?;
        node.kill_daemon()?;
        // Nobody writes where nothing is mounted. It is so among the testbed's own mounts all the time.
        let stray = std::fs::write(node.files().join("storage.cfg"), "dir: stray\n");
        ensure!(stray.is_err(), "the folder under the mount takes files");
        node.start_daemon()?;
        soon(node, "test -e storage.cfg && echo x > notes").await?;
        node.stop_daemon()?;
        node.start_daemon()?;
        soon(node, "grep -q x notes").await
    });
}
