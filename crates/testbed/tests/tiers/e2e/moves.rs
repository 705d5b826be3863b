//! Moves that break off.

use super::super::support::{BOOT, RECOVERY, cluster, loopback, runs_on, start};
use anyhow::{Context, Result, ensure};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use stead_testbed::api::{escape, until};
use stead_testbed::guest::tick;
use stead_testbed::poll::ask;

const VM: u32 = 100;

#[test]
fn a_source_whose_daemon_dies_while_it_sends_keeps_the_vm_and_no_lock() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(1, VM).await?;
        start(&cluster, &api, 1, VM).await?;
        let config = format!("/nodes/n2/qemu/{VM}/config");
        let migrate = format!("/nodes/n2/qemu/{VM}/migrate");
        // So slow that it does not end by itself.
        api.post(&migrate, &[("target", "n1"), ("online", "1"), ("bwlimit", "1")]).await?;
        until("the VM is locked and a copy waits", BOOT, async || {
            let locked = api.get(&config).await?["lock"] == "migrate";
            Ok((locked && cluster.node(0).runs_a_guest()).then_some(()))
        })
        .await?;
        cluster.node(1).kill_daemon()?;
        cluster.node(1).start_daemon()?;
        cluster.wait_up(cluster.node(1)).await?;
        until("the lock of the dead task is gone", RECOVERY, async || {
            Ok(api.get(&config).await?["lock"].is_null().then_some(()))
        })
        .await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await.context("it goes on at its source")?;
        until("the copy is gone", RECOVERY, async || Ok((!cluster.node(0).runs_a_guest()).then_some(())))
            .await?;
        api.post_and_wait(&migrate, &[("target", "n1"), ("online", "1")], BOOT).await.context("again")?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 0).await?;
        let disk = cluster.disk_path(VM, 0);
        let count = tick::read_cell(&disk)?.context("it has not ticked")?.count;
        let cell =
            until("it ticks on", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > count + 5)))
                .await?;
        ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
        Ok(())
    });
}

#[test]
fn all_that_speaks_against_a_move_is_named_before_it_begins() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, VM).await?;
        let folder = cluster.disk_path(VM, 0).with_file_name("cds");
        std::fs::create_dir_all(folder.join("template/iso"))?;
        std::fs::write(folder.join("template/iso/a.iso"), vec![0; 4096])?;
        let path = folder.display().to_string();
        let cds = [("storage", "cds"), ("type", "dir"), ("path", &path), ("shared", "1"), ("content", "iso")];
        api.post("/storage", &[&cds[..], &[("nodes", "n1,n3")]].concat()).await?;
        let form = [("ide2", "cds:iso/a.iso,media=cdrom"), ("serial2", "/dev/null")];
        api.put(&format!("/nodes/n1/qemu/{VM}/config"), &form).await?;
        let migrate = format!("/nodes/n1/qemu/{VM}/migrate");
        let told = async |node: &str| {
            let all = api.get(&migrate).await?;
            Ok::<_, anyhow::Error>(all["not_allowed_nodes"][node]["reasons"].to_string())
        };
        let stopped = told("n2").await?;
        ensure!(stopped.contains("storage 'cds'") && !stopped.contains("serial2"), "{stopped}");
        ensure!(told("n3").await? == "null", "a stopped VM can wait there");

        start(&cluster, &api, 0, VM).await?;
        let running = told("n2").await?;
        ensure!(
            running.contains("storage 'cds'") && running.contains("serial2 is a device of node 'n1'"),
            "{running}"
        );
        let ended = api.post_and_wait(&migrate, &[("target", "n2"), ("online", "1")], BOOT).await;
        let ended = ended.err().context("it has moved")?.to_string();
        ensure!(ended.contains("storage 'cds'") && ended.contains("serial2"), "{ended}");
        ensure!(api.get(&format!("/nodes/n1/qemu/{VM}/config")).await?["lock"].is_null(), "it is locked");
        cluster.node(2).power_off()?;
        let dead = told("n3").await?;
        ensure!(dead.contains("node 'n3' does not answer"), "{dead}");
        runs_on(&cluster, &api, VM, BOOT, |n| n == 0).await.map(drop)
    });
}

/// Its memory goes to a storage and comes back from it: on the same node, and on another one. What it had in it goes on.
#[test]
fn a_vm_goes_on_with_its_memory_from_a_storage() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        cluster.create_http_guest(0, VM, "quick").await?;
        start(&cluster, &api, 0, VM).await?;
        let places = cluster.guest_places(VM);
        let answers = async |node: usize| {
            until("it answers", BOOT, async || Ok(ask(places[node], Duration::from_secs(1)).await.ok())).await
        };
        let first = answers(0).await?;
        let path = |n: usize| format!("/nodes/n{}/qemu/{VM}", n + 1);
        api.post_and_wait(&format!("{}/status/suspend", path(0)), &[("todisk", "1")], BOOT).await?;
        let config = api.get(&format!("{}/config", path(0))).await?;
        ensure!(config["lock"] == "suspended" && config["vmstate"].is_string(), "{config}");
        ensure!(!cluster.node(0).runs_a_guest(), "its process is there");
        api.post_and_wait(&format!("{}/status/start", path(0)), &[], BOOT).await.context("going on")?;
        let second = answers(0).await?;
        ensure!(second.boot_id == first.boot_id, "it was booted anew: {first:?}, {second:?}");

        let quick = format!("{}/quick_migrate", path(0));
        api.post_and_wait(&quick, &[("target", "n2")], BOOT).await.context("moving it over the storage")?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await?;
        let third = answers(1).await?;
        ensure!(third.boot_id == first.boot_id && third.conflicts == 0, "{first:?}, {third:?}");
        let config = api.get(&format!("{}/config", path(1))).await?;
        ensure!(config["lock"].is_null() && config["vmstate"].is_null(), "{config}");
        let left = api.get("/nodes/n2/storage/shared/content").await?.to_string();
        ensure!(!left.contains("state-suspend"), "{left}");

        // Suspended, it moves as any VM that does not run, and goes on there.
        api.post_and_wait(&format!("{}/status/suspend", path(1)), &[("todisk", "1")], BOOT).await?;
        api.post_and_wait(&format!("{}/migrate", path(1)), &[("target", "n1")], BOOT).await?;
        api.post_and_wait(&format!("{}/status/start", path(0)), &[], BOOT).await.context("going on there")?;
        let fourth = answers(0).await?;
        ensure!(fourth.boot_id == first.boot_id && fourth.conflicts == 0, "{first:?}, {fourth:?}");
        Ok(())
    });
}

/// A disk that its node alone has goes along, with the snapshot in it, and is at one place afterwards; also when the first try is given
/// up, and when the target's daemon dies in the middle of the second.
#[test]
fn a_vm_that_does_not_run_takes_its_disks_along() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        let folders =
            [cluster.add_local_storage(0, "here").await?, cluster.add_local_storage(1, "there").await?];
        let files = |n: usize| -> Result<Vec<String>> {
            let all = std::fs::read_dir(folders[n].join(format!("images/{VM}")));
            let names =
                all.into_iter().flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned());
            Ok(names.collect())
        };
        cluster.create_tick_guest(0, VM).await?;
        let path = |n: usize| format!("/nodes/n{}/qemu/{VM}", n + 1);
        // Incompressible, so that a slow move takes its time.
        let form = [("scsi0", "here:1,format=qcow2"), ("scsi1", "here:1,format=raw")];
        api.post_and_wait(&format!("{}/config", path(0)), &form, BOOT).await?;
        let config = api.get(&format!("{}/config", path(0))).await?;
        let raw = config["scsi1"].as_str().and_then(|v| v.split([':', ',']).nth(1)).context("no raw disk")?;
        let raw = folders[0].join("images").join(raw);
        let mut noise = vec![0_u8; 8 << 20];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        std::fs::File::options().write(true).open(&raw)?.write_all_at(&noise, 5 << 20)?;
        api.put(&format!("{}/config", path(0)), &[("delete", "virtio0")]).await?;
        let migrate = format!("{}/migrate", path(0));

        let form = [("target", "n2"), ("targetstorage", "here:there"), ("bwlimit", "64")];
        let upid = api.post(&migrate, &form).await.context("a slow move")?;
        let being_sent = async |upid: &serde_json::Value| {
            let task = format!("/nodes/n1/tasks/{}", escape(upid.as_str().unwrap_or_default()));
            until("it is being sent", BOOT, async || {
                let status = api.get(&format!("{task}/status")).await?;
                let log = api.get(&format!("{task}/log")).await?;
                ensure!(status["status"] == "running", "{status} {log}");
                Ok(log.to_string().contains("sending").then_some(()))
            })
            .await
        };
        being_sent(&upid).await?;
        ensure!(api.get(&format!("{}/config", path(0))).await?["lock"] == "migrate");
        let task = format!("/nodes/n1/tasks/{}", escape(upid.as_str().context("no task")?));
        api.delete(&task).await?;
        ensure!(api.wait_task(&upid, BOOT).await.is_err(), "it was given up");
        until("nothing of it is left", BOOT, async || Ok(files(1)?.is_empty().then_some(()))).await?;
        until("it is unlocked", BOOT, async || {
            Ok(api.get(&format!("{}/config", path(0))).await?["lock"].is_null().then_some(()))
        })
        .await?;

        let upid = api.post(&migrate, &form).await.context("a slow move again")?;
        being_sent(&upid).await?;
        cluster.node(1).kill_daemon()?;
        ensure!(api.wait_task(&upid, BOOT).await.is_err(), "its target has died");
        ensure!(files(0)?.len() == 2, "{:?}", files(0)?);
        cluster.node(1).start_daemon()?;
        cluster.wait_up(cluster.node(1)).await?;
        until("what was left is gone", RECOVERY, async || Ok(files(1)?.is_empty().then_some(()))).await?;

        let form = [("target", "n2"), ("targetstorage", "here:there")];
        api.post_and_wait(&migrate, &form, BOOT).await.context("the move")?;
        ensure!(files(0)?.is_empty() && files(1)?.len() == 2, "{:?} {:?}", files(0)?, files(1)?);
        let config = api.get(&format!("{}/config", path(1))).await?;
        let (a, b) =
            (config["scsi0"].as_str().unwrap_or_default(), config["scsi1"].as_str().unwrap_or_default());
        ensure!(a.starts_with("there:") && b.starts_with("there:") && config["lock"].is_null(), "{config}");
        let raw = folders[1].join("images").join(b.split([':', ',']).nth(1).unwrap_or_default());
        let mut came = vec![0_u8; noise.len()];
        std::fs::File::open(&raw)?.read_exact_at(&mut came, 5 << 20)?;
        ensure!(came == noise && raw.metadata()?.len() == 1 << 30, "it is not what was sent");
        start(&cluster, &api, 1, VM).await
    });
}

#[test]
fn a_cpu_that_all_nodes_can_run_moves_as_it_is() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, VM).await?;
        let common = until("both nodes have said what their CPUs can do", BOOT, async || {
            let found = api.get("/cluster/qemu/common").await;
            Ok(found.ok().filter(|common| common["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2)))
        })
        .await?;
        let level = common["model"].as_str().context("it has no model")?;
        ensure!(level.starts_with("x86-64-v"), "{common}");
        let config = format!("/nodes/n1/qemu/{VM}/config");
        // The nodes of a test are one machine.
        api.put(&config, &[("cpu", "cluster,flags=-rdrand"), ("vcpus", "1"), ("cores", "2")]).await?;
        start(&cluster, &api, 0, VM).await?;
        // What is said of it by now counts at its next start.
        api.put(&config, &[("cpu", "qemu64")]).await?;
        for (from, to) in [("n1", "n2"), ("n2", "n1")] {
            let form = [("target", to), ("online", "1")];
            api.post_and_wait(&format!("/nodes/{from}/qemu/{VM}/migrate"), &form, BOOT).await.context(to)?;
        }
        runs_on(&cluster, &api, VM, BOOT, |n| n == 0).await?;
        let disk = cluster.disk_path(VM, 0);
        let cell = until("it has ticked", BOOT, async || tick::read_cell(&disk)).await?;
        ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
        Ok(())
    });
}
