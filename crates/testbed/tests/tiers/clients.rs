//! Unmodified Proxmox VE clients against a real cluster: scripts in `tests/clients/`, in the Python environment that
//! `scripts/clients-env.sh` makes.

use super::support::{cluster, loopback};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_testbed::Cluster;

/// The environment's folder of programs.
fn environment() -> Option<PathBuf> {
    let given = std::env::var_os("STEAD_CLIENTS_VENV").map(PathBuf::from);
    // target/debug/deps/tiers-... → target/clients-venv
    let here = std::env::current_exe().ok()?;
    let target = here.ancestors().nth(3).map(|t| t.join("clients-venv"));
    [given, target].into_iter().flatten().map(|d| d.join("bin")).find(|b| b.join("python").exists())
}

async fn play(cluster: &Cluster, program: &Path, arguments: &[&str]) -> Result<()> {
    let api = cluster.api(0).await?;
    let addr = api.addr();
    let bin = program.parent().context("no folder")?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients"))
        .env("PATH", path)
        .env("STEAD_HOST", addr.ip().to_string())
        .env("STEAD_PORT", addr.port().to_string())
        .env("STEAD_USER", "root@pam")
        .env("STEAD_PASSWORD", cluster.password())
        .env("STEAD_SHARED", cluster.shared_dir())
        // Ansible keeps its own things where nobody else's are.
        .env("ANSIBLE_HOME", cluster.dir().join("ansible"))
        .env("ANSIBLE_LOCAL_TEMP", cluster.dir().join("ansible/tmp"))
        .env("LC_ALL", "C.UTF-8")
        .kill_on_drop(true);
    let status =
        tokio::time::timeout(Duration::from_secs(180), command.status()).await.context("too slow")??;
    ensure!(status.success(), "{} {arguments:?} ended with {status}", program.display());
    Ok(())
}

#[test]
fn proxmoxer_drives_a_vm_through_its_life() {
    let Some(bin) = environment() else { stead_testbed::skip!("no clients here: scripts/clients-env.sh") };
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        cluster.create_tick_guest(0, 100).await?;
        play(&cluster, &bin.join("python"), &["proxmoxer_story.py"]).await
    });
}

#[test]
fn an_ansible_play_is_idempotent() {
    let Some(bin) = environment() else { stead_testbed::skip!("no clients here: scripts/clients-env.sh") };
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        for run in ["first", "second"] {
            let run = format!("run={run}");
            play(&cluster, &bin.join("ansible-playbook"), &["-i", "localhost,", "-e", &run, "play.yml"])
                .await?;
        }
        play(&cluster, &bin.join("ansible-playbook"), &["-i", "localhost,", "end.yml"]).await
    });
}
