//! The fence profile: the times of leases and fencing for the whole cluster.
//!
//! A change is committed together with the profile before it, whose leases may be alive. When they can't be any more, the
//! leader takes it out of the record; until then the profile is not changed again.

use crate::{Actor, Ops, OpsError, store};
use stead_model::{ClusterRecord, FenceProfile, paths};

impl Ops {
    /// Changes the profile on the live cluster. No lease is lost by it, and none is taken for over too early.
    pub async fn set_profile(&self, actor: &Actor, profile: FenceProfile) -> Result<(), OpsError> {
        self.conf.barrier().await?;
        let cluster = self.cluster_record()?;
        let old = cluster.value.profile;
        if profile == old {
            return Ok(());
        }
        if let Some(previous) = cluster.value.previous_profile {
            return Err(OpsError::failed(format!(
                "the change from profile '{previous}' to '{old}' is not over: leases of '{previous}' may be alive. Try \
                 again in {} s",
                previous.fence_time().as_secs() + 1
            )));
        }
        let new = ClusterRecord { profile, previous_profile: Some(old), ..cluster.value };
        let mut txn = store::txn(&actor.who, format!("fence profile '{old}' becomes '{profile}'"));
        store::put_over(&mut txn, paths::CLUSTER, Some(cluster.revision), store::bytes(&new)?);
        self.conf.transact(txn).await?;
        tracing::info!("fence profile: '{old}' becomes '{profile}', by {}", actor.who);
        Ok(())
    }

    /// No lease of the previous profile is alive any more: it is forgotten, if it still stands there.
    pub async fn settle_profile(&self, previous: FenceProfile) -> Result<(), OpsError> {
        let cluster = self.cluster_record()?;
        if cluster.value.previous_profile != Some(previous) {
            return Ok(());
        }
        let new = ClusterRecord { previous_profile: None, ..cluster.value };
        let mut txn =
            store::txn("root@pam", format!("fence profile: no lease of '{previous}' is alive any more"));
        store::put_over(&mut txn, paths::CLUSTER, Some(cluster.revision), store::bytes(&new)?);
        self.conf.transact(txn).await?;
        Ok(())
    }
}
