//! Templates, clones and moves of disks, of guests that write all the time: each reads back what it wrote last before it writes again,
//! so that a write that is lost shows.

use super::super::support::{BOOT, cluster, loopback, start};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use stead_testbed::api::until;
use stead_testbed::guest::tick::{Cell, read_cell};
use stead_testbed::{ApiClient, Cluster};

fn path(vmid: u32, below: &str) -> String {
    format!("/nodes/n1/qemu/{vmid}/{below}")
}

/// What a guest last wrote, wherever its disk is now. No lock is asked for: it is in use.
async fn cell(cluster: &Cluster, api: &ApiClient, vmid: u32) -> Result<Option<Cell>> {
    let config = api.get(&path(vmid, "config")).await?;
    let volume = config["virtio0"].as_str().context("it has no disk")?;
    let name = volume.split(',').next().and_then(|v| v.split_once(':')).context("its disk has no volume")?.1;
    let own: Vec<&str> = name.rsplit('/').take(2).collect();
    let image = cluster.shared_dir().join(format!("images/{}/{}", own[1], own[0]));
    let raw = cluster.dir().join(format!("read-{vmid}.raw"));
    let format = if name.ends_with(".qcow2") { "qcow2" } else { "raw" };
    let words = ["convert", "-U", "-f", format, "-O", "raw"];
    let done = Command::new("qemu-img").args(words).arg(&image).arg(&raw).output()?;
    ensure!(done.status.success(), "{}: {}", image.display(), String::from_utf8_lossy(&done.stderr));
    read_cell(Path::new(&raw))
}

/// Waits until a guest has written more than so often.
async fn writes(cluster: &Cluster, api: &ApiClient, vmid: u32, than: u32) -> Result<Cell> {
    let cell = until(&format!("VM {vmid} writes"), BOOT, async || {
        // The image may be in the middle of a change of its tables.
        let cell = cell(cluster, api, vmid).await.ok().flatten();
        Ok(cell.filter(|cell| cell.count > than))
    })
    .await?;
    ensure!(cell.conflicts == 0, "VM {vmid} has read something else than it wrote: {cell:?}");
    Ok(cell)
}

#[test]
fn a_template_is_cloned_and_what_runs_is_copied_and_moved() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, 100).await?;
        api.post_and_wait(&path(100, "template"), &[], BOOT).await?;
        api.post_and_wait(&path(100, "clone"), &[("newid", "101")], BOOT).await?;
        let config = api.get(&path(101, "config")).await?;
        let disk = config["virtio0"].as_str().unwrap_or_default();
        ensure!(disk.starts_with("shared:100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2"), "{config}");
        start(&cluster, &api, 0, 101).await?;
        let first = writes(&cluster, &api, 101, 2).await?;

        // A full clone of what runs goes on from there.
        let form = [("newid", "102"), ("full", "1"), ("format", "raw")];
        api.post_and_wait(&path(101, "clone"), &form, BOOT).await?;
        start(&cluster, &api, 0, 102).await?;
        let copied = writes(&cluster, &api, 102, first.count).await?;
        ensure!(copied.id != first.id, "it has booted anew");

        // To another format and back, from the base volume and from a copy of its own.
        let mut last = writes(&cluster, &api, 101, first.count).await?;
        for format in ["raw", "qcow2"] {
            let form = [("disk", "virtio0"), ("format", format), ("delete", "1")];
            api.post_and_wait(&path(101, "move_disk"), &form, BOOT).await?;
            let config = api.get(&path(101, "config")).await?;
            let disk = config["virtio0"].as_str().unwrap_or_default();
            ensure!(disk.contains(&format!(".{format},")) && config["unused0"].is_null(), "{config}");
            last = writes(&cluster, &api, 101, last.count + 2).await?;
            ensure!(last.id == first.id, "it was the same boot all the time");
        }
        api.post_and_wait(&path(101, "status/stop"), &[], BOOT).await?;
        start(&cluster, &api, 0, 101).await?;
        let again = writes(&cluster, &api, 101, last.count).await?;
        ensure!(again.id != first.id, "it has booted anew, from the new place");

        let upid = api.delete("/nodes/n1/qemu/100").await.context("removing the template")?;
        api.wait_task(&upid, BOOT).await.context("nothing is built on it any more")
    });
}
