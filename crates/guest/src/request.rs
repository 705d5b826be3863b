//! Which request a guest accepts, decided without I/O.
//!
//! `ops` asks here before it touches a guest, under the guest's own mutex, so that API, CLI, HA, autostart
//! and declarative apply accept and refuse the same things with the same words.

use std::fmt;
use stead_model::Vmid;

/// What is known of the guest at the moment of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The guest.
    pub vmid: Vmid,
    /// Whether its process is there, and if so whether its CPUs run.
    pub process: Process,
    /// The configuration's `lock`, if set.
    pub lock: Option<String>,
    /// It is a template.
    pub template: bool,
    /// It is protected from removal.
    pub protection: bool,
    /// It is an HA resource.
    pub ha: bool,
}

/// The guest's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// None.
    Absent,
    /// It is there and its CPUs run.
    Running,
    /// It is there and its CPUs stand.
    Paused,
    /// It receives or has sent a migration.
    Migrating,
}

/// What someone wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Make it run.
    Start,
    /// Pull its plug.
    Stop,
    /// Ask its system to shut down.
    Shutdown,
    /// Ask its system to restart.
    Reboot,
    /// Press reset.
    Reset,
    /// Stop its CPUs.
    Pause,
    /// Write its memory to disk, and end its process.
    Suspend,
    /// Continue its CPUs.
    Resume,
    /// Move it while it runs.
    MigrateLive,
    /// Move it while it does not.
    MigrateOffline,
    /// Remove it with its disks.
    Destroy,
    /// Change its configuration.
    Configure,
    /// Keep its state under a name.
    Snapshot,
    /// Remove what is kept under a name.
    RemoveSnapshot,
    /// Give it back what is kept under a name. One that runs is stopped for it.
    Rollback,
    /// Make another guest of it. Many may at once.
    Clone,
    /// Make it one of which others are made, and which never runs.
    Template,
    /// Give a disk another place, or another guest.
    MoveDisk,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Shutdown => "shut down",
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::Pause | Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::MigrateLive | Self::MigrateOffline => "migrate",
            Self::Destroy => "destroy",
            Self::Configure => "configure",
            Self::Snapshot => "take a snapshot of",
            Self::RemoveSnapshot => "remove a snapshot of",
            Self::Rollback => "roll back",
            Self::Clone => "clone",
            Self::Template => "make a template of",
            Self::MoveDisk => "move a disk of",
        })
    }
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Accept,
    /// Nothing to do: it is already so.
    Already,
    /// HA shall do it: change the resource's requested state.
    ByHa,
    /// Refused, with the reason for the user.
    Refuse(String),
}

/// Decides a request by a user (`from_ha` false) or by the HA agent (`from_ha` true).
pub fn decide(facts: &Facts, request: Request, skip_lock: bool, from_ha: bool) -> Verdict {
    let vmid = facts.vmid;
    if let Some(lock) = &facts.lock
        && !skip_lock
        && !opens(request, lock)
    {
        return Verdict::Refuse(format!("VM is locked ({lock})"));
    }
    if facts.template && !of_template(request) {
        return Verdict::Refuse(format!("you can't {request} VM {vmid}: it is a template"));
    }
    if facts.process == Process::Migrating && request != Request::Configure {
        return Verdict::Refuse(format!("can't {request} VM {vmid} while it is being migrated"));
    }
    if facts.ha && !from_ha && by_ha(facts, request) {
        return Verdict::ByHa;
    }
    let absent = facts.process == Process::Absent;
    match request {
        Request::Start if !absent => Verdict::Refuse(format!("VM {vmid} already running")),
        Request::Stop | Request::Shutdown if absent => Verdict::Already,
        Request::Reboot
        | Request::Reset
        | Request::Pause
        | Request::Suspend
        | Request::Resume
        | Request::MigrateLive
            if absent =>
        {
            Verdict::Refuse(format!("VM {vmid} not running"))
        }
        Request::Pause if facts.process == Process::Paused => Verdict::Already,
        Request::Suspend if facts.process == Process::Paused => Verdict::Refuse(format!(
            "can't write the memory of VM {vmid} to disk: it is paused, and would run when it goes on: resume it first"
        )),
        // HA would start it again at once.
        Request::Suspend if facts.ha => Verdict::Refuse(format!(
            "can't suspend VM {vmid} to disk: it is under HA, which would start it again: take it from under HA first"
        )),
        Request::Resume if facts.process == Process::Running => Verdict::Already,
        // HA would start it in the middle.
        Request::Rollback if facts.ha && !absent => Verdict::Refuse(format!(
            "can't roll back VM {vmid} while it runs under HA: have HA stop it first (state stopped of its HA resource)"
        )),
        Request::Template if !absent => {
            Verdict::Refuse(format!("you can't convert a VM to template if VM is running (VM {vmid})"))
        }
        // It would be started and fail, again and again.
        Request::Template if facts.ha => {
            Verdict::Refuse(format!("can't make a template of VM {vmid} under HA: take it out of HA first"))
        }
        Request::MigrateOffline if !absent => {
            Verdict::Refuse(format!("can't migrate running VM {vmid} without --online"))
        }
        Request::Destroy if facts.protection => {
            Verdict::Refuse(format!("can't remove VM {vmid} - protection mode enabled"))
        }
        Request::Destroy if !absent => Verdict::Refuse(format!("VM {vmid} is running - destroy failed")),
        Request::Destroy if facts.ha => Verdict::Refuse(format!(
            "unable to remove VM {vmid} - used in HA resources and purge parameter not set"
        )),
        _ => Verdict::Accept,
    }
}

/// What may be asked of a guest in spite of its lock.
fn opens(request: Request, lock: &str) -> bool {
    match request {
        // Only going back again makes a guest whole that has gone back half-way.
        Request::Rollback => lock == crate::snapshots::ROLLBACK,
        // Whoever clones a guest changes nothing of it. That the lock is a clone's, its holder knows.
        Request::Clone => lock == crate::clones::CLONING,
        // It goes on with its memory, here or where it is moved.
        Request::Start | Request::MigrateOffline => lock == crate::saved::SAVED,
        _ => false,
    }
}

/// What may be asked of a template.
fn of_template(request: Request) -> bool {
    matches!(
        request,
        Request::Destroy
            | Request::Configure
            | Request::MigrateOffline
            | Request::RemoveSnapshot
            | Request::Clone
            | Request::Template
            | Request::MoveDisk
    )
}

/// Requests that change what HA maintains go through it: otherwise it would undo them.
fn by_ha(facts: &Facts, request: Request) -> bool {
    let absent = facts.process == Process::Absent;
    match request {
        Request::Start => absent,
        Request::Stop | Request::Shutdown => true,
        Request::MigrateLive | Request::MigrateOffline => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(process: Process) -> Facts {
        let vmid = Vmid::new(100).unwrap();
        Facts { vmid, process, lock: None, template: false, protection: false, ha: false }
    }

    fn refused(v: Verdict) -> String {
        match v {
            Verdict::Refuse(why) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_lock_refuses_all_but_who_may_skip_it() {
        let f = Facts { lock: Some("migrate".into()), ..facts(Process::Running) };
        assert_eq!(refused(decide(&f, Request::Stop, false, false)), "VM is locked (migrate)");
        assert_eq!(decide(&f, Request::Stop, true, false), Verdict::Accept);
    }

    #[test]
    fn a_guest_starts_once_and_stopping_a_stopped_one_is_no_error() {
        assert_eq!(decide(&facts(Process::Absent), Request::Start, false, false), Verdict::Accept);
        assert_eq!(
            refused(decide(&facts(Process::Running), Request::Start, false, false)),
            "VM 100 already running"
        );
        assert_eq!(decide(&facts(Process::Absent), Request::Stop, false, false), Verdict::Already);
    }

    #[test]
    fn what_ha_maintains_goes_through_ha_unless_ha_asks() {
        let f = Facts { ha: true, ..facts(Process::Absent) };
        assert_eq!(decide(&f, Request::Start, false, false), Verdict::ByHa);
        assert_eq!(decide(&f, Request::Start, false, true), Verdict::Accept);
        assert!(refused(decide(&f, Request::Destroy, false, false)).contains("HA"));
    }

    #[test]
    fn what_is_suspended_to_disk_goes_on_or_elsewhere_and_nothing_else() {
        let f = Facts { lock: Some("suspended".into()), ..facts(Process::Absent) };
        for goes in [Request::Start, Request::MigrateOffline] {
            assert_eq!(decide(&f, goes, false, false), Verdict::Accept);
        }
        for not in [Request::Destroy, Request::Configure, Request::Snapshot, Request::Rollback] {
            assert_eq!(refused(decide(&f, not, false, false)), "VM is locked (suspended)");
        }
        assert_eq!(decide(&facts(Process::Running), Request::Suspend, false, false), Verdict::Accept);
        let ha = Facts { ha: true, ..facts(Process::Running) };
        assert!(refused(decide(&ha, Request::Suspend, false, false)).contains("under HA"));
        assert!(refused(decide(&facts(Process::Paused), Request::Suspend, false, false)).contains("paused"));
        assert!(
            refused(decide(&facts(Process::Absent), Request::Suspend, false, false)).contains("not running")
        );
    }

    #[test]
    fn what_has_gone_back_half_way_goes_back_again_and_nothing_else() {
        let f = Facts { lock: Some("rollback".into()), ..facts(Process::Absent) };
        assert_eq!(decide(&f, Request::Rollback, false, false), Verdict::Accept);
        for r in [Request::Start, Request::Snapshot, Request::RemoveSnapshot, Request::Destroy] {
            assert_eq!(refused(decide(&f, r, false, false)), "VM is locked (rollback)", "{r}");
        }
        let f = Facts { lock: Some("backup".into()), ..facts(Process::Absent) };
        assert_eq!(refused(decide(&f, Request::Rollback, false, false)), "VM is locked (backup)");
    }

    #[test]
    fn snapshots_are_taken_of_what_runs_and_gone_back_to_where_ha_does_not_start_it() {
        for process in [Process::Absent, Process::Running, Process::Paused] {
            for r in [Request::Snapshot, Request::RemoveSnapshot, Request::Rollback] {
                assert_eq!(decide(&facts(process), r, false, false), Verdict::Accept, "{r}");
            }
            let f = Facts { ha: true, ..facts(process) };
            assert_eq!(decide(&f, Request::Snapshot, false, false), Verdict::Accept);
            let back = decide(&f, Request::Rollback, false, false);
            assert_eq!(back == Verdict::Accept, process == Process::Absent, "{back:?}");
        }
        let f = Facts { template: true, ..facts(Process::Absent) };
        assert!(refused(decide(&f, Request::Snapshot, false, false)).contains("template"));
        assert_eq!(decide(&f, Request::RemoveSnapshot, false, false), Verdict::Accept);
    }

    #[test]
    fn many_clone_at_once_and_only_what_stands_becomes_a_template() {
        let f = Facts { lock: Some("clone".into()), template: true, ..facts(Process::Absent) };
        assert_eq!(decide(&f, Request::Clone, false, false), Verdict::Accept);
        for r in [Request::Destroy, Request::Configure, Request::MoveDisk, Request::Template] {
            assert_eq!(refused(decide(&f, r, false, false)), "VM is locked (clone)", "{r}");
        }
        assert_eq!(decide(&facts(Process::Running), Request::Clone, false, false), Verdict::Accept);
        assert!(
            refused(decide(&facts(Process::Paused), Request::Template, false, false)).contains("running")
        );
        let f = Facts { ha: true, ..facts(Process::Absent) };
        assert!(refused(decide(&f, Request::Template, false, false)).contains("HA"));
        assert_eq!(decide(&facts(Process::Absent), Request::Template, false, false), Verdict::Accept);
    }

    #[test]
    fn nothing_interrupts_a_migration() {
        for r in [
            Request::Stop,
            Request::Shutdown,
            Request::Pause,
            Request::MigrateLive,
            Request::Destroy,
            Request::Snapshot,
            Request::RemoveSnapshot,
            Request::Rollback,
        ] {
            assert!(matches!(decide(&facts(Process::Migrating), r, false, true), Verdict::Refuse(_)), "{r}");
        }
    }

    #[test]
    fn templates_do_not_run_and_the_protected_stay() {
        let f = Facts { template: true, ..facts(Process::Absent) };
        assert!(matches!(decide(&f, Request::Start, false, false), Verdict::Refuse(_)));
        let f = Facts { protection: true, ..facts(Process::Absent) };
        assert!(refused(decide(&f, Request::Destroy, false, false)).contains("protection"));
    }
}
