//! A TPM that goes along with its guest, as the guest's own system sees it.

use super::super::support::{BOOT, cluster, loopback, runs_on, start};
use super::hotplug::{ask, moves};
use anyhow::{Context, Result, ensure};
use stead_testbed::ApiClient;
use stead_testbed::api::until;

const VM: u32 = 100;
/// `TPM2_PCR_Extend` of PCR 16 with a session of no password and a SHA-256 of zeroes but for the last byte.
const EXTEND: &str = "\\200\\002\\0\\0\\0\\101\\0\\0\\001\\202\\0\\0\\0\\020\\0\\0\\0\\011\\100\\0\\0\\011\\0\\0\\0\\0\\0\\0\\0\\0\\001\\0\\013";

async fn register(api: &ApiClient, node: usize) -> Result<String> {
    let line = "cat /sys/class/tpm/tpm0/tpm_version_major /sys/class/tpm/tpm0/pcr-sha256/16";
    Ok(ask(api, node, line).await?.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The TPMs' processes of one VM, on all nodes.
fn processes(state: &str) -> usize {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = all.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(&format!("backend-uri=file://{state}")))
        .count()
}

#[test]
fn a_tpm_goes_along_with_its_guest() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let api = cluster.api(0).await?;
        cluster.create_agent_guest(0, VM, "tpm").await?;
        let path = format!("/nodes/n1/qemu/{VM}/config");
        api.put(&path, &[("tpmstate0", "shared:1,version=v2.0"), ("machine", "q35")]).await?;
        let value = api.get(&path).await?["tpmstate0"].as_str().context("no tpmstate0")?.to_owned();
        let file = value.split([':', ',', '/']).nth(2).context("no file")?.to_owned();
        let state = cluster.disk_path(VM, 0).with_file_name(file).display().to_string();
        start(&cluster, &api, 0, VM).await?;
        until("the agent answers", BOOT, async || {
            Ok(api.post(&format!("/nodes/n1/qemu/{VM}/agent/ping"), &[]).await.ok())
        })
        .await?;
        let fresh = register(&api, 0).await?;
        ensure!(fresh.starts_with("2 0000"), "its system sees {fresh}");
        let zeroes = "\\0".repeat(31);
        let line = format!("exec 3<>/dev/tpm0; printf '{EXTEND}{zeroes}\\001' >&3; head -c 10 <&3 | wc -c");
        let said = ask(&api, 0, &line).await?;
        let extended = register(&api, 0).await?;
        ensure!(
            extended.starts_with("2 ") && extended != fresh,
            "{said}: its register has not changed: {extended}"
        );
        ensure!(processes(&state) == 1, "{} processes have {state} open", processes(&state));

        moves(&cluster, &api, 0, 1).await?;
        ensure!(register(&api, 1).await? == extended, "it has forgotten its register on the way");
        until("the source's TPM is gone", BOOT, async || Ok((processes(&state) == 1).then_some(()))).await?;
        cluster.node(1).restart_daemon()?;
        cluster.wait_up(cluster.node(1)).await?;
        runs_on(&cluster, &api, VM, BOOT, |n| n == 1).await?;
        moves(&cluster, &api, 1, 2).await.context("started by an earlier daemon")?;
        ensure!(register(&api, 2).await? == extended, "it has forgotten its register");
        api.post_and_wait(&format!("/nodes/n3/qemu/{VM}/status/stop"), &[], BOOT).await?;
        ensure!(processes(&state) == 0, "a TPM is left behind");
        Ok(())
    });
}
