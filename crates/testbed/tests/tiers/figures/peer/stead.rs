//! Stead, in machines, from its package.

use super::super::super::bench::failover::{VM, place};
use super::super::super::bench::now;
use super::super::super::bench::trace::Traces;
use super::super::super::support::{BOOT, RECOVERY, cluster, ha_settled, node_is};
use super::super::power_loss::prepare;
use super::guest::Guest;
use super::{Contender, Took};
use anyhow::{Result, ensure};
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::node::Node;
use stead_testbed::{Cluster, Shape};

/// A cluster with one guest under HA.
pub struct Stead {
    traces: Traces,
    cluster: Cluster,
}

impl Stead {
    /// With a fence profile, and no fence devices.
    pub async fn new(profile: &str) -> Result<Self> {
        let cluster = cluster(Cluster::builder().shape(Shape::Machine)).await?;
        let traces = Traces::new(cluster.shared_dir())?;
        prepare(&cluster, &traces, profile).await?;
        Ok(Self { traces, cluster })
    }

    /// Its guest's command line.
    pub fn guest(&self) -> Result<Guest> {
        Guest::of(&self.cluster)
    }
}

impl Contender for Stead {
    async fn run(&mut self, on_coordinator: bool) -> Result<Took> {
        let (at, watch) = place(&self.cluster, on_coordinator).await?;
        let disk = self.cluster.disk_path(VM, 0);
        let counted = tick::read_cell(&disk)?;
        until("the guest writes", BOOT, async || Ok((tick::read_cell(&disk)? != counted).then_some(())))
            .await?;
        let node = self.cluster.node(at);
        let begin = now();
        node.power_off()?;
        let running = self.traces.running_after(begin, RECOVERY).await?;
        runs_once(self.cluster.nodes(), at)?;
        node.power_on()?;
        self.cluster.wait_up(node).await?;
        node_is(&self.cluster, &watch, at, true).await?;
        ha_settled(&watch, VM).await?;
        let cell = until("the guest writes", BOOT, async || tick::read_cell(&disk)).await?;
        ensure!(cell.conflicts == 0, "the guest ran twice: {cell:?}");
        Ok(Took { running: running - begin, steps: vec![] })
    }

    fn keep_logs(&mut self) {
        self.cluster.keep_logs();
    }
}

/// One node runs the guest, and it is not the one that has lost its power.
pub fn runs_once(nodes: &[Node], lost: usize) -> Result<()> {
    let on: Vec<usize> = (0..nodes.len()).filter(|n| nodes[*n].runs_a_guest()).collect();
    ensure!(on.len() == 1 && on[0] != lost, "node {lost} was lost, and the guest runs on {on:?}");
    Ok(())
}
