//! The console in Chromium against a real cluster: the story in `web/e2e`; and the simulator's page.

use super::support::{cluster, loopback};
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stead_testbed::control::Control;
use tokio::io::AsyncBufReadExt;

const VM: u32 = 100;

fn browser() -> String {
    std::env::var("STEAD_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned())
}

/// Why there can be no test in a browser here.
fn missing(web: &Path) -> Option<String> {
    let browser = browser();
    if !Path::new(&browser).exists() {
        return Some(format!("no Chromium at {browser} (make deps)"));
    }
    (!web.join("node_modules").exists()).then(|| "no npm packages in web/ (scripts/web.sh)".to_owned())
}

/// A plug is pulled on the simulator's page, and time turned back.
#[test]
fn the_simulator_in_the_browser() {
    let web = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../web");
    if let Some(why) = missing(&web) {
        stead_testbed::skip!("{why}");
    }
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|e| panic!("{e}"));
    runtime.block_on(simulator(&web)).unwrap_or_else(|e| panic!("{e:#}"));
}

async fn simulator(web: &Path) -> anyhow::Result<()> {
    let mut server = tokio::process::Command::new(stead_testbed::cluster::program("stead")?)
        .args(["sim", "serve", "--listen", "127.0.0.1:0", "--nodes", "3", "--guests", "6"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let said = server.stdout.take().context("its output is not piped")?;
    let mut lines = tokio::io::BufReader::new(said).lines();
    let said =
        tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.context("no address")??;
    let said = said.context("it ended")?;
    let url = said.split_whitespace().find(|word| word.starts_with("http://"));
    let mut command = tokio::process::Command::new("node");
    command
        .arg("e2e/simulator.mjs")
        .current_dir(web)
        .env("STEAD_URL", url.with_context(|| format!("no address in '{said}'"))?)
        .env("STEAD_CHROMIUM", browser())
        .kill_on_drop(true);
    let status =
        tokio::time::timeout(Duration::from_secs(90), command.status()).await.context("too slow")??;
    ensure!(status.success(), "it ended with {status}; pictures are in web/e2e/out");
    server.kill().await?;
    Ok(())
}

#[test]
fn the_story_in_the_browser() {
    let web = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../web");
    if let Some(why) = missing(&web) {
        stead_testbed::skip!("{why}");
    }
    let browser = browser();
    loopback(async |builder| {
        let cluster = Arc::new(cluster(builder).await?);
        cluster.create_http_guest(0, VM, "web").await?;
        let control = Control::start(Arc::clone(&cluster)).await?;
        let mut command = tokio::process::Command::new("npm");
        command
            .args(["run", "--silent", "e2e"])
            .current_dir(&web)
            .env("STEAD_URL", format!("https://{}", cluster.node(0).addr()))
            .env("STEAD_USER", "root@pam")
            .env("STEAD_PASSWORD", cluster.password())
            .env("STEAD_VMID", VM.to_string())
            .env("STEAD_CHROMIUM", &browser)
            .env("STEAD_POWER_OFF_CMD", control.command("power-off"))
            .kill_on_drop(true);
        let status =
            tokio::time::timeout(Duration::from_secs(230), command.status()).await.context("too slow")??;
        ensure!(status.success(), "the story ended with {status}; pictures are in web/e2e/out");
        super::support::one_writer(&cluster, VM)
    });
}
