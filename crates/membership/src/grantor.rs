//! The leader's half: who gets a lease, and who is given up for lost.
//!
//! Every node has a grantor and feeds it the members and the profile as they are committed; it acts on the leader
//! alone. A heartbeat's way:
//!
//! ```text
//!  heartbeat ──▶ waits for a round that begins now or later ──▶ round confirmed, same term ──▶ Granted
//!                (many share one)                               └─ not confirmed ────────────▶ NotLeader
//! ```
//!
//! A lease is granted only after a majority has confirmed, in a round begun after the heartbeat arrived, that this
//! node leads. So a deposed leader grants nothing, and a lease given by an older leader was asked for before the
//! newer one was elected: a new leader that waits a whole fence time from its election has waited for all of them.
//!
//! **A change of the profile** is committed together with the profile that was in force before. Leases are granted by the
//! new one at once; for the wait the longer of both counts. When the old fence time has passed since the leader came
//! to apply the change, no lease of the old profile can be alive, and it commits that ([`GrantorCommand::SettleProfile`]).
//! So a daemon that starts, and knows no history, reads all that matters.
//!
//! **A restart lease** lets a node's guests run on while its daemon is started anew. It is granted to a heartbeat that asks for it
//! by a node whose record says so ([`Member::restart`]), which was committed before: so every later leader knows that
//! such a lease may be alive, and waits for it. The node takes the mark out of its record once its fence process holds to an
//! ordinary lease again; from that commit on the long one counts no more.
//!
//! A node is declared lost when the fence time after its last granted heartbeat has passed. From the decision on it is
//! refused, before the commit too, for the commit may come through at any later time. **Lost is not yet settled**:
//! a loss that an *older* leader decided may be committed under a newer one that has granted a lease in between.
//! Recovery therefore needs both, the commit and [`Grantor::settled`] of the present leader.
//!
//! A node with fence devices may be known to be off before the wait is over: see [`PowerOff`] and `power`.

mod power;

pub use power::PowerOff;

use crate::wire::{Heartbeat, HeartbeatAnswer, Outcome, Refusal, VERSION};
use crate::{Moment, RESTART_LEASE, restart_fence_time};
use power::Order;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_model::{BootId, FenceProfile, NodeName, NodeRecord, NodeState, NodeUuid};

/// How long after a proposal to settle the profile it is made again, if nothing has come of it.
const SETTLE_AGAIN: Duration = Duration::from_secs(5);

/// A member as committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub uuid: NodeUuid,
    /// Whether it takes part, and under which boot.
    pub state: NodeState,
    /// The last boot of it that its fence devices have confirmed to be off.
    pub off: Option<BootId>,
    /// The boot by which it is, or was, a member may hold a restart lease.
    pub restart: bool,
}

impl From<&NodeRecord> for Member {
    fn from(record: &NodeRecord) -> Self {
        let off = record.off.as_ref().map(|off| off.boot.clone());
        let restart = record.may_restart();
        Self { uuid: record.uuid.clone(), state: record.state.clone(), off, restart }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantorCommand {
    /// Begin a round that confirms this node's leadership, *after* this command; then apply what it proves committed, and
    /// call [`Grantor::confirmed`], or [`Grantor::unconfirmed`].
    Confirm {
        /// Names the round.
        round: u64,
    },
    /// Send this answer to that node's heartbeat with the answer's nonce.
    Answer {
        /// Who asked.
        node: NodeName,
        /// What it gets.
        answer: HeartbeatAnswer,
    },
    /// Commit the node lost, with its record being an unchanged `Member` of that boot as precondition; where it is confirmed off,
    /// that too, and then `Lost` of that boot will do as well; [`NodeRecord::may_restart`] as it is named. Then call [`Grantor::declared`], or [`Grantor::declare_failed`].
    DeclareLost(Declared),
    /// Have every fence device of the node take its power, then ask each whether it is off. If all say so, call
    /// [`Grantor::powered_off`], otherwise [`Grantor::power_off_failed`].
    PowerOff(PowerOff),
    /// Give the power back that a [`Self::PowerOff`] has taken, now that this is committed: the node may boot.
    PowerOn {
        /// The node.
        node: NodeName,
    },
    /// End what a [`Self::PowerOff`] of this node has under way. What comes of it is told all the same, or not.
    CallOff {
        /// The node.
        node: NodeName,
    },
    /// Take this previous profile out of the cluster's record, if it still stands there. It is asked again until it does
    /// not.
    SettleProfile(FenceProfile),
}

/// A node given up for lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The node.
    pub node: NodeName,
    /// The boot that is lost.
    pub boot: BootId,
    /// For how long it has had no lease from this leader.
    pub silent: Duration,
    /// Its fence devices have confirmed that this boot is off.
    pub off: bool,
    /// Whether a restart lease was waited for. If the record says another thing by now, this decision rests on too little.
    pub restart: bool,
}

/// What this leader knows of one member's lease.
#[derive(Debug, Clone)]
struct Track {
    /// Before this moment the node may have an ordinary lease, or guests not yet made safe.
    ordinary: Moment,
    /// The same of a restart lease, while one may be alive.
    restart: Option<Moment>,
    /// The last granted heartbeat's arrival, or when counting began.
    heard: Moment,
    /// Whether a heartbeat was granted by this leader.
    granted: bool,
    /// Given up, and until the outcome is known refused.
    declaring: Option<Declaring>,
    /// Its power is to go, or is gone.
    order: Order,
}

/// How far the commit of a loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declaring {
    /// To be proposed (again).
    Due,
    /// Proposed.
    Asked,
}

/// What became of a [`GrantorCommand::DeclareLost`] that was not committed for all this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeclareFailure {
    /// Its precondition failed: the record has changed, so no attempt with this precondition can come through.
    Refused,
    /// Nobody knows; it may still come through. It will be proposed again.
    Unknown,
}

#[derive(Debug, Clone)]
struct Round {
    id: u64,
    waiting: Vec<(Heartbeat, Moment)>,
    suspects: BTreeSet<NodeName>,
}

/// A node's view as the leader, or as one who may become it.
#[derive(Debug, Clone)]
pub struct Grantor {
    term: Option<u64>,
    profile: FenceProfile,
    /// The one before it, and when its leases are over.
    previous: Option<(FenceProfile, Moment)>,
    members: BTreeMap<NodeName, Member>,
    tracks: BTreeMap<NodeName, Track>,
    next_round: u64,
    round: Option<Round>,
    pending: BTreeMap<NodeName, (Heartbeat, Moment)>,
    /// Who has fence devices, and how long they wait.
    devices: BTreeMap<NodeName, Option<Duration>>,
    /// Who is known to be alive in another cluster epoch.
    elsewhere: BTreeSet<NodeName>,
    /// Who is to be powered off once the next round has confirmed that this node leads.
    suspects: BTreeSet<NodeName>,
    /// Commands for the next step.
    due: Vec<GrantorCommand>,
}

impl Grantor {
    /// A grantor that does not lead, with the profile as committed and the one before it, if it is not settled.
    pub fn new(now: Moment, profile: FenceProfile, previous: Option<FenceProfile>) -> Self {
        Self {
            term: None,
            profile,
            previous: previous.map(|p| (p, now + p.fence_time())),
            members: BTreeMap::new(),
            tracks: BTreeMap::new(),
            next_round: 1,
            round: None,
            pending: BTreeMap::new(),
            devices: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            suspects: BTreeSet::new(),
            due: Vec::new(),
        }
    }

    /// This node was elected for `term`. Whatever an older leader granted is over a whole fence time from now.
    pub fn lead(&mut self, now: Moment, term: u64) -> Vec<GrantorCommand> {
        if self.term == Some(term) {
            return Vec::new();
        }
        let out = self.depose();
        self.term = Some(term);
        let safe_at = now + self.longest();
        let track = |(n, m): (&NodeName, &Member)| (n.clone(), Track::unheard(now, safe_at, m));
        self.tracks = self.members.iter().map(track).collect();
        out
    }

    /// This node does not lead (any more).
    pub fn depose(&mut self) -> Vec<GrantorCommand> {
        self.term = None;
        let mut out = self.call_all_off();
        self.tracks.clear();
        let begun = self.round.take().map(|r| r.waiting).unwrap_or_default();
        let pending = std::mem::take(&mut self.pending).into_values();
        out.extend(begun.into_iter().chain(pending).map(|(beat, _)| refuse(&beat, Refusal::NotLeader)));
        out
    }

    /// The members as committed now.
    pub fn set_members(&mut self, now: Moment, members: BTreeMap<NodeName, Member>) {
        let before = std::mem::replace(&mut self.members, members);
        for (node, track) in self.tracks.extract_if(.., |node, _| !self.members.contains_key(node)) {
            if matches!(track.order, Order::Out(_)) {
                self.due.push(GrantorCommand::CallOff { node });
            }
        }
        if self.term.is_none() {
            return;
        }
        let safe_at = now + self.longest();
        for (node, member) in &self.members {
            let track =
                self.tracks.entry(node.clone()).or_insert_with(|| Track::unheard(now, safe_at, member));
            match track.restart {
                // An older leader may have granted one before this one came to know of the mark.
                None if member.restart => track.restart = Some(now + restart_fence_time()),
                Some(_) if !member.restart => track.restart = None,
                _ => {}
            }
            if before.get(node).is_none_or(|old| old.state != member.state) {
                track.declaring = None;
                if track.order.state_changed(&member.state) {
                    self.due.push(GrantorCommand::CallOff { node: node.clone() });
                }
                if !member.state.is_lost() {
                    track.entered(now, safe_at);
                }
            }
        }
    }

    /// Which nodes are alive in another cluster epoch, and may run their guests there without any lease of this one: none of them
    /// is powered off or settled for as long as that stands. They are given up as others are, so that an operator's word on the
    /// loss can end it.
    pub fn set_elsewhere(&mut self, elsewhere: BTreeSet<NodeName>) {
        self.elsewhere = elsewhere;
        self.call_off_if(|g, node| g.elsewhere.contains(node));
    }

    /// The profile as committed now, and the one before it until that is settled.
    pub fn set_profile(&mut self, now: Moment, profile: FenceProfile, previous: Option<FenceProfile>) {
        if previous != self.previous.map(|(p, _)| p) || profile != self.profile {
            self.previous = previous.map(|p| (p, now + p.fence_time()));
        }
        if profile != self.profile {
            self.profile = profile;
            // An older leader may have granted by it before this one came to apply it.
            for track in self.tracks.values_mut() {
                track.ordinary = track.ordinary.max(now + profile.fence_time());
            }
        }
    }

    /// A heartbeat arrived.
    pub fn heartbeat(&mut self, now: Moment, beat: Heartbeat) -> Vec<GrantorCommand> {
        if let Err(reason) = self.admit(&beat) {
            return vec![refuse(&beat, reason)];
        }
        let mut out = Vec::new();
        if let Some((older, _)) = self.pending.insert(beat.node.clone(), (beat, now)) {
            out.push(refuse(&older, Refusal::Superseded));
        }
        out.extend(self.begin());
        out
    }

    /// The round was confirmed by a majority for `term`, and everything that it proves committed has been applied and
    /// told by [`Self::set_members`]. Leases are granted first: who gets one is not powered off.
    pub fn confirmed(&mut self, round: u64, term: u64) -> Vec<GrantorCommand> {
        let Some(done) = self.round.take_if(|r| r.id == round) else { return Vec::new() };
        let mut out = Vec::new();
        for (beat, arrived) in done.waiting {
            let verdict = if self.term == Some(term) { self.admit(&beat) } else { Err(Refusal::NotLeader) };
            out.push(match verdict {
                Ok(()) => self.grant(&beat, arrived),
                Err(reason) => refuse(&beat, reason),
            });
        }
        if self.term == Some(term) {
            out.extend(self.strike(done.suspects));
        } else {
            self.unsuspect(done.suspects);
        }
        out.extend(self.begin());
        out
    }

    /// The round failed or took too long.
    pub fn unconfirmed(&mut self, round: u64) -> Vec<GrantorCommand> {
        let Some(done) = self.round.take_if(|r| r.id == round) else { return Vec::new() };
        let mut out: Vec<_> = done.waiting.iter().map(|(beat, _)| refuse(beat, Refusal::NotLeader)).collect();
        self.unsuspect(done.suspects);
        out.extend(self.begin());
        out
    }

    /// A [`GrantorCommand::DeclareLost`] was committed, and has been applied and told by [`Self::set_members`]. The node may
    /// have entered again since, so soon that no member state between was ever told.
    pub fn declared(&mut self, now: Moment, node: &NodeName) {
        let safe_at = now + self.longest();
        let Some(track) = self.tracks.get_mut(node).filter(|t| t.declaring.is_some()) else { return };
        track.declaring = None;
        if let Some(member) = self.members.get(node).filter(|m| !m.state.is_lost()) {
            track.entered(now, safe_at);
            if track.order.state_changed(&member.state) {
                self.due.push(GrantorCommand::CallOff { node: node.clone() });
            }
        }
    }

    /// A [`GrantorCommand::DeclareLost`] was not committed, or not to this node's knowledge.
    pub fn declare_failed(&mut self, node: &NodeName, failure: DeclareFailure) {
        if let Some(track) = self.tracks.get_mut(node).filter(|t| t.declaring.is_some()) {
            track.declaring = match failure {
                DeclareFailure::Refused => None,
                DeclareFailure::Unknown => Some(Declaring::Due),
            };
        }
    }

    /// Who is to be given up now or powered off, and whether a change of the profile is over. To be called when
    /// [`Self::next_wake`] has come.
    pub fn step(&mut self, now: Moment) -> Vec<GrantorCommand> {
        let mut out = std::mem::take(&mut self.due);
        if let Some((previous, over)) = self.previous.as_mut().filter(|(_, over)| now > *over)
            && self.term.is_some()
        {
            *over = now + SETTLE_AGAIN;
            out.push(GrantorCommand::SettleProfile(*previous));
        }
        for (node, track) in &mut self.tracks {
            let Some(member) = self.members.get(node) else { continue };
            let off = track.order.is_unsaid(&member.state, member.off.as_ref());
            let over = now > track.safe_at() && !member.state.is_lost();
            if (over || off) && track.declaring != Some(Declaring::Asked) {
                track.declaring = Some(Declaring::Asked);
                let (boot, silent) = (member.state.boot().clone(), now.saturating_sub(track.heard));
                let (node, restart) = (node.clone(), member.restart);
                out.push(GrantorCommand::DeclareLost(Declared { node, boot, silent, off, restart }));
            }
            if track.order.is_done(&member.state, member.off.as_ref()) {
                track.order = Order::None;
                out.push(GrantorCommand::PowerOn { node: node.clone() });
            }
        }
        out.extend(self.suspect(now));
        out
    }

    /// When [`Self::step`] must be called next; none while this node does not lead.
    pub fn next_wake(&self) -> Option<Moment> {
        let declares_at = |(node, t): (&NodeName, &Track)| {
            let member = self.members.get(node).filter(|_| t.declaring != Some(Declaring::Asked))?;
            let off = t.order.is_unsaid(&member.state, member.off.as_ref());
            let done = t.order.is_done(&member.state, member.off.as_ref());
            if off || done {
                Some(Moment::ZERO)
            } else {
                Some(t.safe_at()).filter(|_| !member.state.is_lost())
            }
        };
        let lost = self.tracks.iter().filter_map(declares_at);
        let strikes = self.tracks.iter().filter_map(|(n, t)| self.strikes_at(n, t));
        let settled = self.previous.filter(|_| self.term.is_some()).map(|(_, over)| over);
        let due = (!self.due.is_empty()).then_some(Moment::ZERO);
        lost.chain(strikes).chain(settled).chain(due).min().map(|at| at + Duration::from_millis(1))
    }

    /// Whether nothing that `node` had can still run: its loss is committed, and either the boot that was lost is committed to be
    /// off, or the fence time has passed since the last lease that any leader can have granted it; and it is not alive in another
    /// cluster epoch. A recovery needs this.
    pub fn settled(&self, now: Moment, node: &NodeName) -> bool {
        let Some(member) = self.members.get(node).filter(|m| m.state.is_lost()) else { return false };
        if self.elsewhere.contains(node) {
            return false;
        }
        let off = member.off.as_ref() == Some(member.state.boot());
        self.tracks.get(node).is_some_and(|t| off || now > t.safe_at())
    }

    /// How long ago the last granted heartbeat of a node arrived; none if this leader granted none. For display, and for
    /// a choice among nodes that are alive, never for a recovery.
    pub fn heard(&self, now: Moment, node: &NodeName) -> Option<Duration> {
        self.tracks.get(node).filter(|t| t.granted).map(|t| now.saturating_sub(t.heard))
    }

    /// The term in which this node leads.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    fn admit(&self, beat: &Heartbeat) -> Result<(), Refusal> {
        if beat.v != VERSION {
            return Err(Refusal::Version { known: VERSION });
        }
        if self.term.is_none() {
            return Err(Refusal::NotLeader);
        }
        let member = self.members.get(&beat.node).ok_or(Refusal::Unknown)?;
        if member.uuid != beat.uuid {
            return Err(Refusal::WrongUuid);
        }
        match &member.state {
            NodeState::Lost { .. } => Err(Refusal::Lost),
            NodeState::Member { boot } if *boot != beat.boot => {
                Err(Refusal::WrongBoot { entered: boot.clone() })
            }
            NodeState::Member { .. }
                if self
                    .tracks
                    .get(&beat.node)
                    .is_some_and(|t| t.declaring.is_some() || t.order.refuses()) =>
            {
                Err(Refusal::Lost)
            }
            NodeState::Member { .. } => Ok(()),
        }
    }

    fn grant(&mut self, beat: &Heartbeat, arrived: Moment) -> GrantorCommand {
        let restart = beat.restart && self.members.get(&beat.node).is_some_and(|m| m.restart);
        if let Some(track) = self.tracks.get_mut(&beat.node) {
            if restart {
                track.restart = track.restart.max(Some(arrived + restart_fence_time()));
            } else {
                track.ordinary = track.ordinary.max(arrived + self.profile.fence_time());
            }
            track.heard = track.heard.max(arrived);
            track.granted = true;
            track.order = Order::None;
        }
        let lease = if restart { RESTART_LEASE.max(self.profile.lease()) } else { self.profile.lease() };
        answer(beat, Outcome::granted_for(lease, self.profile))
    }

    /// Begins a round for all that wait, unless one is under way: that one began too early for them.
    fn begin(&mut self) -> Option<GrantorCommand> {
        if self.round.is_some() || (self.pending.is_empty() && self.suspects.is_empty()) {
            return None;
        }
        let id = self.next_round;
        self.next_round += 1;
        let waiting = std::mem::take(&mut self.pending).into_values().collect();
        self.round = Some(Round { id, waiting, suspects: std::mem::take(&mut self.suspects) });
        Some(GrantorCommand::Confirm { round: id })
    }

    /// The longest fence time of a lease that may be alive.
    fn longest(&self) -> Duration {
        let previous = self.previous.map(|(p, _)| p.fence_time()).unwrap_or_default();
        previous.max(self.profile.fence_time())
    }
}

impl Track {
    fn unheard(now: Moment, ordinary: Moment, member: &Member) -> Self {
        let restart = member.restart.then(|| now + restart_fence_time());
        Self { ordinary, restart, heard: now, granted: false, declaring: None, order: Order::None }
    }

    /// Before this moment the node may have a lease, or guests not yet made safe.
    fn safe_at(&self) -> Moment {
        self.restart.map_or(self.ordinary, |restart| restart.max(self.ordinary))
    }

    /// The node has just entered, and counts as heard.
    fn entered(&mut self, now: Moment, safe_at: Moment) {
        self.ordinary = self.ordinary.max(safe_at);
        self.heard = now;
    }
}

fn answer(beat: &Heartbeat, outcome: Outcome) -> GrantorCommand {
    let answer = HeartbeatAnswer { v: VERSION, nonce: beat.nonce, outcome };
    GrantorCommand::Answer { node: beat.node.clone(), answer }
}

fn refuse(beat: &Heartbeat, reason: Refusal) -> GrantorCommand {
    answer(beat, Outcome::Refused { reason })
}

#[cfg(test)]
mod tests;
