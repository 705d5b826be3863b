//! The console in Chromium against a real cluster: the story in `web/e2e`.

use super::support::{cluster, loopback};
use anyhow::{Context, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stead_testbed::control::Control;

const VM: u32 = 100;

#[test]
fn the_story_in_the_browser() {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    let browser = std::env::var("STEAD_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    if !Path::new(&browser).exists() {
        stead_testbed::skip!("no Chromium at {browser} (make deps)");
    }
    if !web.join("node_modules").exists() {
        stead_testbed::skip!("no npm packages in web/ (scripts/web.sh)");
    }
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
