//! Planted mistakes: each is one that could be made in wiring the pure cores, or in the order of a procedure's steps. A search
//! that finds nothing proves nothing before it has found every one of them.

use super::Plan;
use std::time::Duration;

/// A mistake in the modelled wiring. None of them is in the cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plant {
    /// None.
    #[default]
    None,
    /// A node that reports nothing counts as lost, and its record is not checked.
    SilenceIsLoss,
    /// The lease counts from the answer's arrival.
    LeaseFromAnswer,
    /// Leadership is believed, not confirmed.
    UnconfirmedGrant,
    /// A recovery relies on the committed loss alone, whoever decided it.
    LossIsSettled,
    /// A new leader counts as if it had led for long.
    NewLeaderNoWait,
    /// A node that is committed lost is granted leases all the same.
    LostNotSticky,
    /// A recovery's commit does not name the ownership that it starts from.
    EpochUnchecked,
    /// The record says *armed* before the fence process knows the guest.
    ArmedBeforeRegistered,
    /// A node that enters again keeps its guests, and continues them as soon as it has a lease.
    ThawUnasked,
    /// Held guests are continued as soon as a leader answers anything.
    ThawBeforeDecision,
    /// Held guests are continued if their record names this node, under whatever epoch.
    ThawAcrossEpoch,
    /// `stop` was acknowledged: that is taken for a pause, while a migration is under way.
    StopUnverified,
    /// A held guest is continued although its hand-over to another node is still open.
    ThawInHandover,
    /// A change of the profile forgets at once that leases of the one before may be alive.
    ProfileShrunk,
    /// The watchdog's time-out is longer than D + W.
    SlowWatchdog,
    /// A machine is not reset when it should be: neither by the switch nor by the watchdog.
    NoReset,
    /// A node that was lost is never let in again.
    NobodyEnters,
    /// The manager does not see the rules.
    RulesUnseen,
    /// A service that fails to start is told as one that could not be tried.
    FailureUncounted,
    /// A guest is recovered on another node than the manager has named.
    WrongTarget,
    /// A node counts as off when its fence devices have taken the order.
    OffOnOrder,
    /// A node counts as off when the first of its two outlets is off.
    OffByOneOutlet,
    /// A process that does not end, since its storage hangs, is taken for ended.
    HangIsEnd,
    /// Leases are granted, and not counted, while an order to power off is out.
    LeaseAfterOrder,
    /// A restart lease is granted to a node whose record does not say so.
    RestartUnmarked,
    /// The mark of a restart lease goes while the fence process still holds to it.
    UnmarkUnshortened,
    /// A node enters again without naming the records of the guests whose copies it keeps.
    KeptUnnamed,
    /// A copy whose hand-over was committed is continued whenever that is said again, though it may have been sent on.
    ContinueLate,
}

impl Plant {
    /// All mistakes.
    pub const ALL: [Self; 28] = [
        Self::SilenceIsLoss,
        Self::LeaseFromAnswer,
        Self::UnconfirmedGrant,
        Self::LossIsSettled,
        Self::NewLeaderNoWait,
        Self::LostNotSticky,
        Self::EpochUnchecked,
        Self::ArmedBeforeRegistered,
        Self::ThawUnasked,
        Self::ThawBeforeDecision,
        Self::ThawAcrossEpoch,
        Self::StopUnverified,
        Self::ThawInHandover,
        Self::ProfileShrunk,
        Self::SlowWatchdog,
        Self::NoReset,
        Self::NobodyEnters,
        Self::RulesUnseen,
        Self::FailureUncounted,
        Self::WrongTarget,
        Self::OffOnOrder,
        Self::OffByOneOutlet,
        Self::LeaseAfterOrder,
        Self::RestartUnmarked,
        Self::UnmarkUnshortened,
        Self::HangIsEnd,
        Self::KeptUnnamed,
        Self::ContinueLate,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What is wrong, in one line.
    pub fn what(self) -> &'static str {
        self.words().1
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// How it is searched for: where only safety is at stake, nothing else is looked at.
    pub fn plan(self, plan: Plan) -> Plan {
        let heals = matches!(self, Self::None | Self::NobodyEnters | Self::ContinueLate);
        Plan { plant: self, healing: if heals { plan.healing } else { Duration::ZERO }, ..plan }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::None => ("none", "no mistake"),
            Self::SilenceIsLoss => ("silence-is-loss", "a silent node counts as lost: no wait for its lease"),
            Self::LeaseFromAnswer => ("lease-from-answer", "a lease counts from the answer's arrival"),
            Self::UnconfirmedGrant => ("unconfirmed-grant", "a deposed leader still grants leases"),
            Self::LossIsSettled => ("loss-is-settled", "a committed loss is enough, whoever decided it"),
            Self::NewLeaderNoWait => {
                ("new-leader-no-wait", "a new leader does not wait for its predecessor's leases")
            }
            Self::LostNotSticky => ("lost-not-sticky", "a node that is committed lost is granted leases"),
            Self::EpochUnchecked => {
                ("epoch-unchecked", "a recovery does not name the epoch that it starts from")
            }
            Self::ArmedBeforeRegistered => {
                ("armed-before-registered", "the record says armed before the fence process knows the guest")
            }
            Self::ThawUnasked => {
                ("thaw-unasked", "a node that enters again keeps its guests and continues them")
            }
            Self::ThawBeforeDecision => {
                ("thaw-before-decision", "held guests are continued as soon as a leader answers anything")
            }
            Self::ThawAcrossEpoch => (
                "thaw-across-epoch",
                "held guests are continued across a recovery's epoch, if the node owns them",
            ),
            Self::StopUnverified => {
                ("stop-unverified", "stop is acknowledged, and the migration's end resumes the guest")
            }
            Self::ThawInHandover => {
                ("thaw-in-handover", "a held guest is continued while its hand-over may still be committed")
            }
            Self::ProfileShrunk => {
                ("profile-shrunk", "a shorter profile counts at once, while longer leases are alive")
            }
            Self::SlowWatchdog => ("slow-watchdog", "the watchdog's time-out is longer than D + W"),
            Self::NoReset => ("no-reset", "neither switch nor watchdog resets a machine"),
            Self::NobodyEnters => ("nobody-enters", "a node that was lost is never let in again"),
            Self::RulesUnseen => ("rules-unseen", "the manager does not see the rules"),
            Self::FailureUncounted => ("failure-uncounted", "failed starts are not counted"),
            Self::WrongTarget => {
                ("wrong-target", "a recovery goes to another node than the manager has named")
            }
            Self::OffOnOrder => ("off-on-order", "a fence device that takes the order is believed"),
            Self::OffByOneOutlet => ("off-by-one-outlet", "one outlet of two that is off is enough"),
            Self::HangIsEnd => {
                ("hang-is-end", "a guest that does not end, since its storage hangs, is taken for ended")
            }
            Self::LeaseAfterOrder => {
                ("lease-after-order", "leases are granted, uncounted, while a power-off is under way")
            }
            Self::RestartUnmarked => {
                ("restart-unmarked", "a restart lease is granted, and no record says so to later leaders")
            }
            Self::KeptUnnamed => {
                ("kept-unnamed", "a node enters although a guest that it keeps was recovered meanwhile")
            }
            Self::ContinueLate => {
                ("continue-late", "a copy that was handed over is continued again, though it was sent on")
            }
            Self::UnmarkUnshortened => {
                ("unmark-unshortened", "the mark of a restart lease goes while the lease is still alive")
            }
        }
    }
}
