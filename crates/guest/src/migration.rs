//! A live migration, as a pure state machine carried out by the source's daemon.
//!
//! ```text
//!  Preparing ──ready──▶ Sending ──completed──▶ Handover ──committed──▶ Handed ──running──▶ Done
//!     │                    │                      │  ▲
//!     │ failed             │ failed, cancelled    │  └─ unknown: ask again, neither copy runs
//!     ▼                    ▼                      ▼ refused (still ours)
//!  Undo ◀──────────────────┴──────────────────────┘ ──undone──▶ Failed
//! ```
//!
//! Disks that go along are mirrored to the target's before memory is sent, and while it is. The source's CPUs then stand twice as long
//! as one thing more takes: the mirrors are ended, in step, before the rest is sent.
//!
//! ```text
//!  Preparing ──ready──▶ Mirroring ──in step──▶ Sending ──held──▶ Settling ──settled──▶ Sending ──completed──▶ …
//!                                                                    └─ failed, cancelled: Stopping ──▶ Undo
//! ```
//!
//! Memory that changes faster than it is sent can be fetched by the target while the guest runs there already (post-copy). What makes
//! the guest whole again is then on two nodes until all is fetched. So the hand-over is committed before, while the source's CPUs stand
//! and all is still its own, and the source's process ends only when nothing can be fetched of it any more:
//!
//! ```text
//!  Sending ──no end──▶ Turning ──standing──▶ (Settling ─▶) Handover ──committed──▶ Opening ──fetching──▶ Handed ──▶ Fetching
//!                         └─ held: it came to its end by itself                │ refused: Stopping ─▶ Undo               │
//!                                                                                      completed, or lost for good: ──▶ Done
//! ```
//!
//! The rule that keeps a guest from running twice: the source proposes `owner = target, epoch + 1` only after
//! its own process reports *completed*, or for post-copy was stopped like one that its user pauses (in both cases its CPUs stand and stay
//! so, whatever becomes of the sending), and the target continues only on that commit. From the first proposal on, the source never runs again under the old epoch unless the record was
//! read as still its own after a *definite* refusal. An unknown outcome is asked again: the same proposal
//! either commits or finds that it already has.

use stead_model::{Epoch, NodeName, Vmid};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The target's process waits for the stream.
    TargetReady,
    /// The guest hears of no write that has not reached the target's disks, too.
    DisksInStep,
    /// The source's CPUs stand, and sending waits.
    Held,
    /// The target's disks hold what the source's hold, and nobody writes either.
    DisksSettled,
    /// Its memory changes faster than it is sent, and the target can fetch the rest of it while the guest runs there.
    NoEnd,
    /// The source's CPUs were stopped, nothing but a word has them go on, and sending waits: the target is to fetch the rest.
    Standing,
    /// The target has all but the rest of its memory, which it fetches.
    Fetching,
    /// What the target has not fetched it never will.
    Lost(String),
    /// The source's process reports the migration completed.
    Completed,
    /// Preparing or sending failed.
    Failed(String),
    /// The user, or a shutdown, asked to cancel.
    CancelRequested,
    /// The hand-over is committed.
    Committed,
    /// The hand-over was refused for good; the record still names the source and the old epoch.
    RefusedStillOurs(String),
    /// The hand-over was refused for good; the record names somebody else: we were recovered meanwhile.
    RefusedNotOurs(String),
    /// Nobody knows whether the hand-over was committed.
    Unknown(String),
    /// The target says that its copy's CPUs run.
    TargetRuns,
    /// The target could not continue, or does not answer.
    TargetSilent(String),
    /// The target's process is gone, or the target will end it itself when it sees that it owns nothing.
    TargetEnded,
    /// The source's CPUs run again.
    SourceRuns,
    /// The source could not be continued.
    SourceStuck(String),
}

/// What is to be done next. Its result comes back as an [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Ask the target to register `epoch` with its fence process and to start a process that waits.
    PrepareTarget {
        /// Under which ownership it would run.
        epoch: Epoch,
    },
    /// Begin to mirror the disks that go along, and watch it until they are in step.
    MirrorDisks,
    /// Connect both processes and send the state; watch it to a terminal phase, or until it is held.
    Send,
    /// End the mirrors, the guest standing, and have the target lend its disks no more.
    SettleDisks,
    /// Have what is held go on, and watch it to a terminal phase.
    SendRest,
    /// Stop the source's CPUs, and have sending wait for the target to fetch the rest; or wait as for [`Event::Held`], where it has come
    /// to its end by itself meanwhile.
    BeginFetching,
    /// Have what is held go on, until the target fetches.
    LetFetch,
    /// Watch the fetching to its end; join the two anew if their connection breaks.
    FollowFetching,
    /// Cancel the sending; the source goes on by itself.
    CancelSending,
    /// End what there is of mirrors. What fails of it ends with the target's copy.
    EndMirrors,
    /// Commit owner = target with `to`, if the record still says source with `from`.
    ProposeHandover {
        /// The epoch that it starts from.
        from: Epoch,
        /// The epoch that it makes.
        to: Epoch,
    },
    /// Ask the target to continue its copy now (it also does so by itself when it sees the commit).
    AskTargetToRun,
    /// Kill the source's copy, which will never run again, and forget it.
    EndSource,
    /// Tell the target to end its copy.
    EndTarget,
    /// Make sure, under the lease, that the source's CPUs run.
    ContinueSource,
    /// Over; with an error text unless it succeeded.
    Finish(Result<(), String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Preparing,
    Mirroring,
    Sending,
    Turning,
    Settling { fetches: bool },
    Stopping { why: String },
    Handover { fetches: bool },
    Opening,
    Handed { fetches: bool },
    Fetching { silent: Option<String> },
    Undo { why: String, target_ended: bool },
    Done,
}

/// How the disks that go along stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disks {
    /// There are none.
    None,
    /// They are not the same on both nodes.
    Apart,
    /// They are.
    Settled,
}

/// One migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Which guest.
    pub vmid: Vmid,
    /// Where to.
    pub target: NodeName,
    /// The ownership that the source holds.
    pub epoch: Epoch,
    disks: Disks,
    state: State,
}

impl Migration {
    /// Begins; the first command is to prepare the target. `with_disks`: some go along.
    pub fn begin(vmid: Vmid, target: NodeName, epoch: Epoch, with_disks: bool) -> (Self, Command) {
        let disks = if with_disks { Disks::Apart } else { Disks::None };
        let m = Self { vmid, target, epoch, disks, state: State::Preparing };
        (m, Command::PrepareTarget { epoch: epoch.next() })
    }

    /// Takes an event and tells the commands that follow, in order.
    pub fn on(&mut self, event: Event) -> Vec<Command> {
        let state = std::mem::replace(&mut self.state, State::Done);
        let (state, commands) = self.next(state, event);
        self.state = state;
        commands
    }

    fn propose(&self) -> Command {
        Command::ProposeHandover { from: self.epoch, to: self.epoch.next() }
    }

    /// Nobody was asked to run the guest there: it goes on here.
    fn undo(&self, why: String) -> (State, Vec<Command>) {
        let mirrors = (self.disks != Disks::None).then_some(Command::EndMirrors);
        let commands = mirrors.into_iter().chain([Command::EndTarget]).collect();
        (State::Undo { why, target_ended: false }, commands)
    }

    /// The guest is the target's by a commit, which says nothing of what the target makes of it.
    fn unconfirmed(&self, why: &str) -> Command {
        Command::Finish(Err(format!("handed over to {}, which did not confirm: {why}", self.target)))
    }

    /// The guest is the target's, and what it needs to go on there is gone. Our copy never runs again.
    fn lost(&self, why: &str) -> (State, Vec<Command>) {
        let why = format!(
            "handed over to {}, where the VM has lost memory that it had not fetched yet, and can only be started again: {why}",
            self.target
        );
        (State::Done, vec![Command::EndSource, Command::Finish(Err(why))])
    }

    fn next(&mut self, state: State, event: Event) -> (State, Vec<Command>) {
        match state {
            State::Turning | State::Opening | State::Fetching { .. } => self.next_fetching(state, event),
            State::Settling { .. } | State::Stopping { .. } => self.next_held(state, event),
            state => self.next_sent(state, event),
        }
    }

    /// Of a guest whose memory the target is to fetch, or fetches.
    fn next_fetching(&self, state: State, event: Event) -> (State, Vec<Command>) {
        use Command as C;
        use Event as E;
        match (state, event) {
            (State::Turning, E::Held) => self.held(),
            (State::Turning, E::Standing) if self.disks == Disks::Apart => {
                (State::Settling { fetches: true }, vec![C::SettleDisks])
            }
            (State::Turning, E::Standing) => (State::Handover { fetches: true }, vec![self.propose()]),
            (State::Turning, E::Completed) => self.next_sent(State::Sending, E::Completed),
            // Its sending may go on, or wait.
            (State::Turning, E::Failed(why)) => (State::Stopping { why }, vec![C::CancelSending]),
            (State::Turning, E::CancelRequested) => {
                (State::Stopping { why: "cancelled".into() }, vec![C::CancelSending])
            }
            (State::Opening, E::Fetching) => (State::Handed { fetches: true }, vec![C::AskTargetToRun]),
            (State::Opening, E::Failed(why) | E::Lost(why)) => self.lost(&why),
            (State::Fetching { silent }, E::Completed) => {
                let end = silent.map_or(C::Finish(Ok(())), |why| self.unconfirmed(&why));
                (State::Done, vec![C::EndSource, end])
            }
            (State::Fetching { .. }, E::Lost(why)) => self.lost(&why),
            (state, _) => (state, vec![]),
        }
    }

    /// It stands, and its sending waits.
    fn held(&self) -> (State, Vec<Command>) {
        match self.disks {
            Disks::Apart => (State::Settling { fetches: false }, vec![Command::SettleDisks]),
            Disks::None | Disks::Settled => (State::Sending, vec![Command::SendRest]),
        }
    }

    /// Of a guest whose CPUs stand until the sending that is held goes on, or has ended.
    fn next_held(&mut self, state: State, event: Event) -> (State, Vec<Command>) {
        use Command as C;
        use Event as E;
        match (state, event) {
            (State::Settling { fetches }, E::DisksSettled) => {
                self.disks = Disks::Settled;
                match fetches {
                    false => (State::Sending, vec![C::SendRest]),
                    true => (State::Handover { fetches }, vec![self.propose()]),
                }
            }
            (State::Settling { .. }, E::Failed(why)) => (State::Stopping { why }, vec![C::CancelSending]),
            (State::Settling { .. }, E::CancelRequested) => {
                (State::Stopping { why: "cancelled".into() }, vec![C::CancelSending])
            }
            (State::Stopping { why }, E::Failed(_) | E::Completed) => self.undo(why),
            (state, _) => (state, vec![]),
        }
    }

    fn next_sent(&self, state: State, event: Event) -> (State, Vec<Command>) {
        use Command as C;
        use Event as E;
        match (state, event) {
            (State::Preparing, E::TargetReady) if self.disks == Disks::Apart => {
                (State::Mirroring, vec![C::MirrorDisks])
            }
            (State::Preparing, E::TargetReady) | (State::Mirroring, E::DisksInStep) => {
                (State::Sending, vec![C::Send])
            }
            (State::Preparing | State::Mirroring, E::CancelRequested) => self.undo("cancelled".into()),
            (State::Preparing | State::Mirroring | State::Sending, E::Failed(why)) => self.undo(why),
            (State::Sending, E::Held) => self.held(),
            (State::Sending, E::NoEnd) => (State::Turning, vec![C::BeginFetching]),
            (State::Sending, E::CancelRequested) => (State::Sending, vec![C::CancelSending]),
            // It was to wait, and has not: what the target has of the disks is not what the source has.
            (State::Sending, E::Completed) if self.disks == Disks::Apart => {
                self.undo("its memory was sent before its disks were the same".into())
            }
            // A cancellation that came too late does not undo what is complete: the guest's state is there.
            (State::Sending, E::Completed) => (State::Handover { fetches: false }, vec![self.propose()]),
            (State::Handover { fetches }, E::Unknown(_)) => {
                (State::Handover { fetches }, vec![self.propose()])
            }
            (State::Handover { fetches: false }, E::Committed) => {
                (State::Handed { fetches: false }, vec![C::AskTargetToRun])
            }
            (State::Handover { fetches: true }, E::Committed) => (State::Opening, vec![C::LetFetch]),
            (State::Handover { fetches: false }, E::RefusedStillOurs(why)) => self.undo(why),
            (State::Handover { fetches: true }, E::RefusedStillOurs(why)) => {
                (State::Stopping { why }, vec![C::CancelSending])
            }
            // Somebody recovered the guest: ours is the old copy.
            (State::Handover { .. }, E::RefusedNotOurs(why)) => {
                (State::Done, vec![C::EndSource, C::EndTarget, C::Finish(Err(why))])
            }
            (State::Handed { fetches: true }, E::TargetRuns) => {
                (State::Fetching { silent: None }, vec![C::FollowFetching])
            }
            (State::Handed { fetches: true }, E::TargetSilent(why)) => {
                (State::Fetching { silent: Some(why) }, vec![C::FollowFetching])
            }
            (State::Handed { fetches: false }, E::TargetRuns) => {
                (State::Done, vec![C::EndSource, C::Finish(Ok(()))])
            }
            // The guest is the target's now whatever becomes of it; ours never runs again.
            (State::Handed { fetches: false }, E::TargetSilent(why)) => {
                (State::Done, vec![C::EndSource, self.unconfirmed(&why)])
            }
            (State::Undo { why, .. }, E::TargetEnded) => {
                (State::Undo { why, target_ended: true }, vec![C::ContinueSource])
            }
            (State::Undo { why, target_ended: true }, E::SourceRuns) => {
                (State::Done, vec![C::Finish(Err(why))])
            }
            (State::Undo { why, target_ended: true }, E::SourceStuck(more)) => (
                State::Done,
                vec![C::Finish(Err(format!("{why}; and the source could not be continued: {more}")))],
            ),
            (state, _) => (state, vec![]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn new() -> (Migration, Command) {
        Migration::begin(Vmid::new(100).unwrap(), "n2".parse().unwrap(), Epoch(7), false)
    }

    fn with_disks() -> Migration {
        Migration::begin(Vmid::new(100).unwrap(), "n2".parse().unwrap(), Epoch(7), true).0
    }

    #[test]
    fn the_straight_way() {
        let (mut m, first) = new();
        assert_eq!(first, Command::PrepareTarget { epoch: Epoch(8) });
        assert_eq!(m.on(Event::TargetReady), [Command::Send]);
        assert_eq!(m.on(Event::Completed), [Command::ProposeHandover { from: Epoch(7), to: Epoch(8) }]);
        assert_eq!(m.on(Event::Committed), [Command::AskTargetToRun]);
        assert_eq!(m.on(Event::TargetRuns), [Command::EndSource, Command::Finish(Ok(()))]);
    }

    #[test]
    fn disks_are_in_step_before_memory_is_sent_and_settled_before_its_rest() {
        let mut m = with_disks();
        assert_eq!(m.on(Event::TargetReady), [Command::MirrorDisks]);
        assert_eq!(m.on(Event::DisksInStep), [Command::Send]);
        assert_eq!(m.on(Event::Held), [Command::SettleDisks]);
        assert_eq!(m.on(Event::DisksSettled), [Command::SendRest]);
        assert_eq!(m.on(Event::Completed), [Command::ProposeHandover { from: Epoch(7), to: Epoch(8) }]);
    }

    #[test]
    fn disks_that_can_t_be_settled_are_not_handed_over() {
        let mut m = with_disks();
        m.on(Event::TargetReady);
        m.on(Event::DisksInStep);
        assert_eq!(
            m.clone().on(Event::Completed),
            [Command::EndMirrors, Command::EndTarget],
            "it did not wait"
        );
        m.on(Event::Held);
        assert_eq!(m.on(Event::Failed("no space".into())), [Command::CancelSending]);
        assert_eq!(m.on(Event::Failed("cancelled".into())), [Command::EndMirrors, Command::EndTarget]);
        assert_eq!(m.on(Event::TargetEnded), [Command::ContinueSource]);
        assert_eq!(m.on(Event::SourceRuns), [Command::Finish(Err("no space".into()))]);
    }

    #[test]
    fn what_has_no_end_is_fetched_after_the_commit_and_the_source_stays_until_all_is() {
        for disks in [false, true] {
            let mut m = if disks { with_disks() } else { new().0 };
            m.on(Event::TargetReady);
            m.on(Event::DisksInStep);
            assert_eq!(m.on(Event::NoEnd), [Command::BeginFetching]);
            let mut next = m.on(Event::Standing);
            if disks {
                assert_eq!(next, [Command::SettleDisks]);
                next = m.on(Event::DisksSettled);
            }
            assert_eq!(next, [Command::ProposeHandover { from: Epoch(7), to: Epoch(8) }]);
            assert_eq!(m.on(Event::Committed), [Command::LetFetch]);
            assert_eq!(m.on(Event::CancelRequested), [], "too late");
            assert_eq!(m.on(Event::Fetching), [Command::AskTargetToRun]);
            let mut silent = m.clone();
            assert_eq!(m.on(Event::TargetRuns), [Command::FollowFetching]);
            let mut lost = m.clone();
            assert_eq!(m.on(Event::Completed), [Command::EndSource, Command::Finish(Ok(()))]);
            assert!(
                matches!(&lost.on(Event::Lost("off".into()))[..], [Command::EndSource, Command::Finish(Err(e))] if e.contains("lost"))
            );
            // It fetches whether it answers or not.
            assert_eq!(silent.on(Event::TargetSilent("?".into())), [Command::FollowFetching]);
            assert!(
                matches!(&silent.on(Event::Completed)[..], [Command::EndSource, Command::Finish(Err(e))] if e.contains("confirm"))
            );
        }
    }

    #[test]
    fn what_came_to_its_end_by_itself_is_not_fetched() {
        let (mut m, _) = new();
        m.on(Event::TargetReady);
        m.on(Event::NoEnd);
        assert_eq!(m.on(Event::Held), [Command::SendRest]);
        assert_eq!(m.on(Event::Completed), [Command::ProposeHandover { from: Epoch(7), to: Epoch(8) }]);
        assert_eq!(m.on(Event::Committed), [Command::AskTargetToRun]);
    }

    #[test]
    fn what_was_to_be_fetched_and_is_refused_goes_on_where_it_was() {
        let (mut m, _) = new();
        m.on(Event::TargetReady);
        m.on(Event::NoEnd);
        m.on(Event::Standing);
        assert_eq!(m.on(Event::RefusedStillOurs("no".into())), [Command::CancelSending]);
        assert_eq!(m.on(Event::Failed("cancelled".into())), [Command::EndTarget]);
        assert_eq!(m.on(Event::TargetEnded), [Command::ContinueSource]);
        assert_eq!(m.on(Event::SourceRuns), [Command::Finish(Err("no".into()))]);
    }

    #[test]
    fn a_failure_before_the_end_leaves_the_guest_where_it_was() {
        let (mut m, _) = new();
        m.on(Event::TargetReady);
        assert_eq!(m.on(Event::Failed("connection lost".into())), [Command::EndTarget]);
        assert_eq!(m.on(Event::TargetEnded), [Command::ContinueSource]);
        assert_eq!(m.on(Event::SourceRuns), [Command::Finish(Err("connection lost".into()))]);
    }

    #[test]
    fn a_cancellation_is_heard_before_anything_was_sent() {
        let (mut m, _) = new();
        assert_eq!(m.on(Event::CancelRequested), [Command::EndTarget]);
        assert_eq!(m.on(Event::TargetReady), [], "too late");
        assert_eq!(m.on(Event::TargetEnded), [Command::ContinueSource]);
    }

    #[test]
    fn an_unknown_outcome_is_asked_again_and_nobody_runs_meanwhile() {
        let (mut m, _) = new();
        m.on(Event::TargetReady);
        m.on(Event::Completed);
        for _ in 0..3 {
            let next = m.on(Event::Unknown("no leader".into()));
            assert_eq!(next, [Command::ProposeHandover { from: Epoch(7), to: Epoch(8) }]);
        }
        // Failures and cancellations of the stream come too late now.
        assert_eq!(m.on(Event::CancelRequested), []);
        assert_eq!(m.on(Event::Failed("stream closed".into())), []);
        assert_eq!(m.on(Event::RefusedNotOurs("recovered".into()))[0], Command::EndSource);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::TargetReady),
            Just(Event::DisksInStep),
            Just(Event::Held),
            Just(Event::DisksSettled),
            Just(Event::NoEnd),
            Just(Event::Standing),
            Just(Event::Fetching),
            Just(Event::Lost("l".into())),
            Just(Event::Completed),
            Just(Event::Failed("f".into())),
            Just(Event::CancelRequested),
            Just(Event::Committed),
            Just(Event::RefusedStillOurs("r".into())),
            Just(Event::RefusedNotOurs("n".into())),
            Just(Event::Unknown("u".into())),
            Just(Event::TargetRuns),
            Just(Event::TargetSilent("s".into())),
            Just(Event::TargetEnded),
            Just(Event::SourceRuns),
            Just(Event::SourceStuck("k".into())),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: the target is asked to run only after a commit, after which the
        /// source is never continued; a source that proposed is continued only after a definite refusal. Disks that go along are the
        /// same before anything is proposed, and mirrors have ended before the source goes on. Nothing is fetched before the commit, and the
        /// source that is fetched from ends when that has.
        #[test]
        fn never_both(events in proptest::collection::vec(any_event(), 0..40), disks: bool) {
            let mut m = if disks { with_disks() } else { new().0 };
            let (mut settled, mut mirrors) = (false, disks);
            let (mut proposed, mut committed, mut refused) = (false, false, false);
            let (mut stands, mut ended) = (false, false);
            for event in events {
                let handover = matches!(m.state, State::Handover { .. });
                stands |= m.state == State::Turning && event == Event::Standing;
                ended |= stands && matches!(event, Event::Completed | Event::Lost(_) | Event::Failed(_));
                committed |= handover && event == Event::Committed;
                refused |= handover && matches!(event, Event::RefusedStillOurs(_));
                settled |= matches!(m.state, State::Settling { .. }) && event == Event::DisksSettled;
                for command in m.on(event.clone()) {
                    match command {
                        Command::ProposeHandover { .. } => {
                            prop_assert!(settled || !disks);
                            proposed = true;
                        }
                        Command::EndMirrors => mirrors = false,
                        Command::AskTargetToRun => prop_assert!(committed),
                        Command::ContinueSource => {
                            prop_assert!(!committed && !mirrors && (!proposed || refused));
                        }
                        Command::LetFetch | Command::FollowFetching => prop_assert!(committed && stands),
                        Command::EndSource => {
                            let not_ours = matches!(event, Event::RefusedNotOurs(_));
                            prop_assert!(not_ours || (committed && (!stands || ended)));
                        }
                        Command::EndTarget => prop_assert!(!committed),
                        _ => {}
                    }
                }
            }
        }
    }
}
