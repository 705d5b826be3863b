//! A directory of the host, as the guest's own system reads and writes it.

use super::super::support::{BOOT, cluster, loopback, runs_on, start};
use super::hotplug::ask;
use anyhow::{Result, ensure};
use stead_testbed::ApiClient;
use stead_testbed::api::until;

const VM: u32 = 100;

async fn mounted(api: &ApiClient, node: usize) -> Result<()> {
    until("the agent answers", BOOT, async || {
        Ok(api.post(&format!("/nodes/n{}/qemu/{VM}/agent/ping", node + 1), &[]).await.ok())
    })
    .await?;
    let said = ask(api, node, "mkdir -p /run/share; mount -t virtiofs data /run/share && echo done").await?;
    ensure!(said == "done\n", "it can't be mounted: {said}");
    Ok(())
}

#[test]
fn a_guest_reads_and_writes_a_directory_of_its_host() {
    let places =
        ["/usr/libexec/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(Into::into);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("virtiofsd")).chain(places);
    if !stead_testbed::skip::is_root() || !places.any(|place: std::path::PathBuf| place.exists()) {
        stead_testbed::skip!("needs root, and virtiofsd");
    }
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        let dirs = [0, 1].map(|n| cluster.dir().join(format!("data{n}")));
        for (n, dir) in dirs.iter().enumerate() {
            std::fs::create_dir_all(dir)?;
            std::fs::write(dir.join("of"), format!("n{}\n", n + 1))?;
        }
        let entries = [1, 2].map(|n| format!("node=n{n},path={}", dirs[n - 1].display()));
        let form = [("id", "data"), ("map", entries[0].as_str()), ("map", entries[1].as_str())];
        api.post("/cluster/mapping/dir", &form).await?;
        cluster.create_agent_guest(0, VM, "share").await?;
        let vm = format!("/nodes/n1/qemu/{VM}");
        api.put(&format!("{vm}/config"), &[("virtiofs0", "dirid=data,cache=never")]).await?;
        start(&cluster, &api, 0, VM).await?;
        mounted(&api, 0).await?;
        let said =
            ask(&api, 0, "cat /run/share/of; echo its own >/run/share/new; ls /run/share/../share").await?;
        ensure!(said == "n1\nnew\nof\n", "it reads {said}");
        ensure!(std::fs::read_to_string(dirs[0].join("new"))? == "its own\n");
        std::fs::write(dirs[0].join("of"), "changed\n")?;
        ensure!(ask(&api, 0, "cat /run/share/of").await? == "changed\n", "it sees what was");

        // Its daemon may come and go. The VM does not move while it runs, nor is its memory kept.
        cluster.node(0).restart_daemon()?;
        cluster.wait_up(cluster.node(0)).await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 0).await?;
        ensure!(ask(&api, 0, "cat /run/share/new").await? == "its own\n", "it has lost its directory");
        let moves =
            api.post_and_wait(&format!("{vm}/migrate"), &[("target", "n2"), ("online", "1")], BOOT).await;
        let why = moves.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(why.contains("virtiofs0: a running VM can't move"), "{why}");
        let kept = api.post(&format!("{vm}/snapshot"), &[("snapname", "ram"), ("vmstate", "1")]).await;
        let why = kept.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(why.contains("'virtiofs0'"), "{why}");

        api.post_and_wait(&format!("{vm}/status/stop"), &[], BOOT).await?;
        api.post_and_wait(&format!("{vm}/migrate"), &[("target", "n2")], BOOT).await?;
        start(&cluster, &api, 1, VM).await?;
        mounted(&api, 1).await?;
        ensure!(ask(&api, 1, "cat /run/share/of").await? == "n2\n", "it has another node's directory");
        let on = format!("/nodes/n2/qemu/{VM}");
        api.post_and_wait(&format!("{on}/status/stop"), &[], BOOT).await?;
        let nowhere = api.post_and_wait(&format!("{on}/migrate"), &[("target", "n3")], BOOT).await;
        let why = nowhere.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(why.contains("dir mapping 'data' has nothing for node 'n3'"), "{why}");
        Ok(())
    });
}
