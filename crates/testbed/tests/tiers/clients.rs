//! Unmodified Proxmox VE clients against a real cluster: scripts in `tests/clients/`, in the Python environment that
//! `scripts/clients-env.sh` makes. An unmodified fence agent against an emulated service processor, too.

use super::support::{BOOT, RECOVERY, cluster, loopback};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_testbed::Cluster;
use stead_testbed::api::until;
use tokio::process::{Child, Command};

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
        .current_dir(
            PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../tests/clients"),
        )
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

/// Machines as sushy-tools' emulator keeps them: it takes 1 to 11 s until an order shows, as real ones do.
const SYSTEM: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef094";

/// A Redfish service with one machine, which is on. Ends when dropped.
async fn redfish(bin: &Path, dir: &Path) -> Result<(Child, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (key, cert, conf) = (dir.join("key.pem"), dir.join("cert.pem"), dir.join("redfish.conf"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bmc"])
        .args([Path::new("-keyout"), &key, Path::new("-out"), &cert])
        .output()
        .await?;
    ensure!(made.status.success(), "no certificate: {}", String::from_utf8_lossy(&made.stderr));
    let (state, key, cert) = (dir.join("redfish"), key.display(), cert.display());
    std::fs::create_dir_all(&state)?;
    std::fs::write(
        &conf,
        format!(
            "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n\
             SUSHY_EMULATOR_STATE_DIR = '{}'\nSUSHY_EMULATOR_SSL_CERT = '{cert}'\nSUSHY_EMULATOR_SSL_KEY = '{key}'\n\
             SUSHY_EMULATOR_FAKE_SYSTEMS = [{{'uuid': '{SYSTEM}', 'name': 'n2', 'power_state': 'On', 'nics': []}}]\n",
            state.display()
        ),
    )?;
    let log = std::fs::File::create(dir.join("redfish.log"))?;
    let child = Command::new(bin.join("sushy-emulator"))
        .args([Path::new("--fake"), Path::new("--config"), &conf])
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    until("the Redfish service listens", BOOT, async || {
        Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop))
    })
    .await?;
    Ok((child, port))
}

#[test]
fn fence_redfish_takes_a_nodes_power_and_gives_it_back() {
    const DEVICE: &str = "/cluster/ha/fence/devices";
    const NODE: &str = "/cluster/ha/fence/nodes/n2";
    let Some(bin) = environment() else { stead_testbed::skip!("no clients here: scripts/clients-env.sh") };
    if !Path::new("/usr/sbin/fence_redfish").is_file() {
        stead_testbed::skip!("fence_redfish is missing (package fence-agents)");
    }
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let (_emulator, port) = redfish(&bin, cluster.dir()).await?;
        let api = cluster.api(0).await?;
        let options = format!(
            "ip=127.0.0.1 ipport={port} username=stead ssl_insecure=1 systems_uri=/redfish/v1/Systems/{SYSTEM}"
        );
        let mut form =
            vec![("device", "redfish2"), ("agent", "fence_redfish"), ("options", options.as_str())];
        form.extend([("connect", "node=n2"), ("secrets", "password=secret")]);
        api.post(DEVICE, &form).await?;
        let said = api.get(NODE).await?;
        ensure!(said[0]["power"] == "on" && said[0]["error"].is_null(), "{said}");
        // What the machine does is not the emulator's to say: it is cut off from all at once.
        cluster.node(1).power_off()?;
        let off = until("the power-off is confirmed and told", RECOVERY, async || {
            let rows = api.get("/cluster/ha/status/current").await?;
            let row = rows.as_array().into_iter().flatten().find(|r| r["id"] == "lrm:n2").cloned();
            let said = row.and_then(|r| r["fenced"].as_str().map(str::to_owned));
            Ok(said.filter(|s| s.starts_with("powered off by redfish2 in ")))
        });
        println!("n2: {}", off.await?);
        until("the power is given back", RECOVERY, async || {
            Ok((api.get(NODE).await?[0]["power"] == "on").then_some(()))
        })
        .await
    });
}
