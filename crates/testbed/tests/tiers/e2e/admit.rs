//! A member prepares for a node by its name; that node alone joins by what the member gave.

use super::super::support::{BOOT, loopback, node_is};
use anyhow::{Context, Result, ensure};
use stead_testbed::{ApiClient, Cluster};

/// Asks the second node to join by a member's answer for a node of that name.
async fn join(cluster: &Cluster, newcomer: &ApiClient, named: &str) -> Result<()> {
    let made = cluster.api(0).await?.post(&format!("/cluster/config/nodes/{named}"), &[]).await?;
    let text = |key: &str| made[key].as_str().with_context(|| format!("no {key} in {made}"));
    // The information carries the fingerprint; the parameter is what clients must give.
    let none = "00:".repeat(31) + "00";
    let form =
        [("hostname", text("information")?), ("fingerprint", none.as_str()), ("password", text("token")?)];
    let task = newcomer.post("/cluster/config/join", &form).await?;
    newcomer.wait_task(&task, BOOT).await
}

#[test]
fn a_node_that_was_prepared_for_joins_and_another_does_not() {
    loopback(async |builder| {
        let cluster = builder.nodes(2).start().await?;
        let newcomer = cluster.api(1).await?;
        let refused = join(&cluster, &newcomer, "n3").await.err().context("n2 came in by n3's token")?;
        ensure!(format!("{refused:#}").contains("was made for another node than 'n2'"), "{refused:#}");
        // The daemon starts anew while the task goes on: its end is seen by whoever asks again.
        let joined = join(&cluster, &newcomer, "n2").await;
        node_is(&cluster, &cluster.api(0).await?, 1, true).await.with_context(|| format!("{joined:?}"))
    });
}
