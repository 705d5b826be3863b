//! `/cluster/history`: the configuration's past. Beyond Proxmox VE, which keeps none.

use super::epoch::here;
use crate::framework::{Access, Bytes, Error, Json, Null, full};
use crate::version::Nothing;
use stead_api_derive::Params;
use stead_ops::history::{FileThen, HistoryEntry, HistoryStatus, Moment, Revision};

#[derive(Params)]
pub struct Read {
    /// Only this path of the configuration, or what lies below it.
    path: Option<String>,
    /// How many changes at most.
    #[param(min = 1, max = 10000, default = "50")]
    limit: usize,
}

#[derive(Params)]
pub struct Back {
    /// The file of the configuration.
    path: String,
    /// As it was right after this transaction.
    revision: Option<u64>,
    /// As it was at this time, in seconds since 1970.
    time: Option<u64>,
    /// Only if this transaction is still the last that has changed the file (0: only if it is not there).
    over: Option<u64>,
}

#[derive(Params)]
pub struct Limits {
    /// How many MiB the history may have; the oldest changes go first.
    #[param(name = "max-size", min = 1, max = 64)]
    max_size: Option<u64>,
    /// How many days old a change may be; 0: however old. The latest 256 stay all the same.
    #[param(name = "max-age", min = 0, max = 36500)]
    max_age: Option<u64>,
}

#[derive(Params)]
pub struct Then {
    /// The file of the configuration.
    path: String,
    /// As it was right after this transaction.
    revision: Option<u64>,
    /// As it was at this time, in seconds since 1970.
    time: Option<u64>,
}

/// A moment by what was given, if anything was.
fn moment(revision: Option<u64>, time: Option<u64>) -> Result<Option<Moment>, Error> {
    match (revision, time) {
        (Some(_), Some(_)) => Err(Error::parameter("time", "a revision or a time, and not both")),
        (Some(revision), None) => Ok(Some(Moment::Revision(Revision(revision)))),
        // To the end of that second.
        (None, Some(time)) => Ok(Some(Moment::Time(time.saturating_mul(1000).saturating_add(999)))),
        (None, None) => Ok(None),
    }
}

endpoint! {
    /// Every change of the configuration's files, the latest first: when, by whom, which file, and why.
    History = get("/cluster/history"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, p: Read) -> Json<Vec<HistoryEntry>> {
        Ok(Json(cx.ops().history(p.path.as_deref(), p.limit)))
    }
}

endpoint! {
    /// What a file of the configuration held at a moment, or holds.
    Show = get("/cluster/history/file"), Anywhere, Access::All("/", &["Sys.Audit", "VM.Audit", "Datastore.Audit"]);
    fn call(cx, p: Then) -> Json<FileThen> {
        Ok(Json(cx.ops().file_then(&p.path, moment(p.revision, p.time)?)?))
    }
}

endpoint! {
    /// Writes a file of the configuration as it was at a moment, or removes it if it was not there: a new change, checked as one that is
    /// written by hand. Guests' files, `user.cfg`, `ha/fence.cfg` and what Stead does not read by root@pam alone; for other files that the API changes, what it asks
    /// for there is needed, too.
    Rollback = post("/cluster/history/rollback"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: Back) -> Null {
        let to = moment(p.revision, p.time)?;
        let to = to.ok_or_else(|| Error::parameter("revision", "to which moment: a revision or a time"))?;
        cx.ops().roll_back_file(&cx.actor(), &p.path, to, p.over).await?;
        Ok(Null)
    }
}

endpoint! {
    /// How large the configuration is, and how much of its past is kept.
    Status = get("/cluster/history/status"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<HistoryStatus> {
        Ok(Json(cx.ops().history_status()))
    }
}

endpoint! {
    /// Says how much of the configuration's past is kept. What is over it goes with the next change, and with it who did what: so it is
    /// root's to say.
    Limit = put("/cluster/history/status"), Anywhere, Access::Root;
    fn call(cx, p: Limits) -> Null {
        cx.ops().limit_history(&cx.actor(), p.max_size, p.max_age).await?;
        Ok(Null)
    }
}

endpoint! {
    /// The whole configuration as one file, from which 'stead conf restore' makes a node's store. It holds all secrets, and the cluster's
    /// key. By the local socket alone. Without a majority it is what this node has, and the file's name says *unconfirmed*.
    Backup = get("/cluster/history/backup"), Anywhere, Access::Root;
    fn call(cx, _p: Nothing) -> Bytes {
        here(cx)?;
        let (data, newest) = cx.ops().backup(&cx.actor()).await?;
        let name = if newest { "stead-configuration.backup" } else { "stead-configuration-unconfirmed.backup" };
        let filename = Some(name.to_owned());
        Ok(Bytes { content_type: "application/octet-stream", body: full(data), filename })
    }
}
