//! A node that loses a storage: while it is well, and together with the network.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, namespaces, node_is, one_writer, runs_on, start,
};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;
use stead_testbed::api::until;
use stead_testbed::node::Node;
use stead_testbed::poll::Poller;
use stead_testbed::{ApiClient, procs};

const VM: u32 = 100;

/// A file system that nobody serves, mounted over a folder on one node alone: whoever looks at the folder hangs; once its
/// process is gone they are told that it is not connected.
struct Hang(Child);

impl Hang {
    fn over(node: &Node, folder: &Path) -> Result<Self> {
        let script = "exec 3<>/dev/fuse && \
                      mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$1\" && \
                      echo mounted && exec cat";
        let mut command = node.in_its_mounts(script)?;
        let mut child = command.arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        let out = child.stdout.take().context("it has no output")?;
        BufReader::new(out).read_line(&mut said)?;
        ensure!(said == "mounted\n", "the file system was not mounted: {said}");
        Ok(Self(child))
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // Its own child, not reaped yet.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server between one node and a VM's disk, as the client of a network storage is: a file system of one file, mounted over
/// the disk. It is one of the node's processes, and ends with them.
struct Server(Child);

impl Server {
    fn over(node: &Node, disk: &Path) -> Result<Self> {
        let script = "exec qemu-storage-daemon \
                      --blockdev driver=file,node-name=disk,locking=off,filename=\"$1\" \
                      --export type=fuse,id=disk,node-name=disk,writable=on,mountpoint=\"$1\" \
                      --chardev stdio,id=monitor --monitor chardev=monitor";
        let mut command = node.in_its_mounts(script)?;
        command.arg(disk).env(procs::NODE_DIR, node.dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Self(command.spawn()?);
        // It greets when all that it was told to begin with is done.
        let mut said = String::new();
        let out = server.0.stdout.take().context("it has no output")?;
        BufReader::new(out).read_line(&mut said)?;
        ensure!(said.contains("QMP"), "the disk's server does not start: {said}");
        Ok(server)
    }

    /// It answers nothing any more; what was asked of it stays asked.
    fn hang(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP)
            .context("stopping the disk's server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own child, not reaped yet.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// HA's status says this of `id`.
async fn said(api: &ApiClient, id: &str, what: &str) -> Result<()> {
    until(&format!("{id}: {what}"), RECOVERY, async || {
        let rows = api.get("/cluster/ha/status/current").await?;
        let row = rows.as_array().and_then(|rows| rows.iter().find(|r| r["id"] == id));
        Ok(row.is_some_and(|r| r.to_string().contains(what)).then_some(()))
    })
    .await
}

#[test]
fn a_vm_leaves_a_node_that_has_lost_its_storage_but_not_one_where_it_hangs() {
    namespaces(async |builder| {
        let cluster = cluster(builder.own_mounts()).await?;
        let api = cluster.api(1).await?;
        api.put("/cluster/options", &[("ha", "storage_loss=move,storage_loss_hold=10")]).await?;
        cluster.create_http_guest(0, VM, "web").await?;
        start(&cluster, &api, 0, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;

        let began = Instant::now();
        let hang = Hang::over(cluster.node(0), cluster.shared_dir())?;
        said(&api, &format!("service:vm:{VM}"), "which does not answer on 'n1'").await?;
        said(&api, "lrm:n1", "storage 'shared' has not answered for").await?;
        println!("reported after {:.1} s", began.elapsed().as_secs_f64());
        runs_on(&cluster, &api, VM, BOOT, |n| n == 0).await.context("it stays where it is")?;

        let began = Instant::now();
        drop(hang);
        let to = runs_on(&cluster, &api, VM, RECOVERY, |n| n != 0).await.context("it leaves")?;
        println!("runs on {} after {:.1} s", cluster.node(to).name(), began.elapsed().as_secs_f64());
        ensure!(!cluster.node(0).runs_a_guest(), "n1 still runs it");
        until("it writes on its new node", BOOT, async || {
            Ok((cluster.disk_log(VM)?.boots.len() > 1).then_some(()))
        })
        .await?;
        one_writer(&cluster, VM)?;
        let history = api.get(&format!("/cluster/ha/resources/vm:{VM}/history")).await?;
        let why = "'n1' has lost storage 'shared'";
        ensure!(history.to_string().contains(why), "its history does not say why: {history}");
        Ok(())
    });
}

/// One switch carries the network and a storage that can't be told to refuse a node's writes: the guest can't be paused with
/// certainty, since writes of its may still be on their way. Its node is reset, the others are not.
#[test]
fn a_node_whose_storage_is_cut_off_along_with_the_network_is_reset() {
    namespaces(async |builder| {
        let cluster = cluster(builder.own_mounts()).await?;
        let (api, node, network) = (cluster.api(2).await?, cluster.node(1), cluster.network()?);
        cluster.create_http_guest(1, VM, "web").await?;
        let server = Server::over(node, &cluster.disk_path(VM, 1))?;
        start(&cluster, &api, 1, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;
        let poller = Poller::start(cluster.guest_places(VM));
        poller.wait(BOOT, |_| true).await.context("the first answer")?;

        let began = Instant::now();
        for n in 1..=3 {
            network.link(n, false)?;
        }
        server.hang()?;
        until("its node is reset", RECOVERY, async || Ok((node.resets() == 1).then_some(()))).await?;
        println!("reset after {:.2} s", began.elapsed().as_secs_f64());
        ensure!(!node.runs_a_guest(), "its VM has outlived the reset");
        let written = cluster.disk_log(VM)?;
        network.heal()?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await.context("the recovery")?;
        println!("runs elsewhere after {:.2} s", began.elapsed().as_secs_f64());
        let last = written.boots.last().context("it never wrote")?;
        until("it goes on where the writing ended", BOOT, async || {
            let now = cluster.disk_log(VM)?;
            Ok(now.boots.last().filter(|b| b.boot != last.boot).map(|b| b.found))
        })
        .await
        .and_then(|found| {
            ensure!(found == written.cell, "{found} was found where {} was written last", written.cell);
            Ok(())
        })?;
        node.power_on()?;
        cluster.wait_up(node).await?;
        node_is(&cluster, &api, 1, true).await?;
        let resets: Vec<u32> = cluster.nodes().iter().map(Node::resets).collect();
        ensure!(resets == [0, 1, 0], "nodes were reset that ran no VM: {resets:?}");
        one_writer(&cluster, VM)
    });
}
