//! Nodes of different cluster epochs meet: who gives way.
//!
//! An operator's word on a survivor begins a new epoch of the cluster ([`stead_model::era`]). The others come back with the old
//! one. Each node asks the members which epoch they are in, before it stands for any election, and decides by itself:
//!
//! ```text
//!              nobody is in another one ──▶ stays
//!  starts ──┤
//!              a newer one ──┬─ this node knows of no majority of its own, and no guest runs here ──▶ yields: takes its state
//!                            └─ otherwise ──▶ contested: an operator decides
//!              an older one, or a rival, with a majority ──▶ contested, and this node leads nothing: the word was wrong
//! ```
//!
//! An old epoch with a majority was not off, whatever the operator has said: what it has committed since counts, its guests
//! run, and it must not vanish by itself because a node restarts. The survivor's own guests may have been recovered there: so
//! it is the survivor that lets go.
//!
//! What was seen stays true while whoever said it is silent: [`Lookout`] remembers it, for as long as the daemon runs.
//!
//! How a start waits ([`WAIT`]): two nodes of the old epoch are a majority of it, and would recover the survivor's guests.
//! They must not elect one of them before the survivor has been heard, whose machine or network may be slower than theirs.

use crate::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_model::{Era, Lineage, NodeName};

/// What another member says of its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which member.
    pub node: NodeName,
    /// Its epoch.
    pub era: Era,
    /// How that came about.
    pub lineage: Lineage,
    /// It is in contact with a majority of its epoch.
    pub quorate: bool,
    /// It leads nothing until an operator has decided, and takes nobody in.
    pub lets_go: bool,
}

/// How another epoch relates to one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// It is the same.
    Same,
    /// It has followed one's own, perhaps over others.
    Newer,
    /// One's own has followed it.
    Older,
    /// Both have followed the same one: two survivors were told to go on alone.
    Rival,
}

/// How `theirs`, which came about by `their_lineage`, relates to one's own epoch.
fn relation(own: (Era, &Lineage), theirs: (Era, &Lineage)) -> Relation {
    if own.0 == theirs.0 {
        Relation::Same
    } else if theirs.1.after(own.0).is_some() {
        Relation::Newer
    } else if own.1.after(theirs.0).is_some() {
        Relation::Older
    } else {
        Relation::Rival
    }
}

/// What a node does about the epochs that it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    /// It goes on in its own.
    Stay,
    /// It gives up its own, and takes the state of this node's.
    Yield {
        /// To whom.
        to: NodeName,
        /// Who is in a newer one, and which.
        all: Vec<(NodeName, Era)>,
    },
    /// These go on in theirs: an operator must say which of them ends.
    Contested {
        /// Who, and where.
        others: Vec<(NodeName, Era)>,
        /// This node's own epoch was begun by a word that was wrong, or another one beside it was: it leads nothing until an
        /// operator has decided.
        let_go: bool,
    },
}

/// What this node knows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its epoch.
    pub era: Era,
    /// How that came about.
    pub lineage: &'a Lineage,
    /// It is in contact with a majority of it; or, as [`Lookout`] remembers it, has been since its daemon's start.
    pub quorate: bool,
    /// A guest's process is here.
    pub runs: bool,
}

/// Decides for a node by what it knows, and what others say.
fn stand(own: Own<'_>, said: &[Said]) -> Stand {
    let related = |s: &Said| relation((own.era, own.lineage), (s.era, &s.lineage));
    let lives = own.quorate || said.iter().any(|s| related(s) == Relation::Same && s.quorate);
    let newer: Vec<&Said> = said.iter().filter(|s| related(s) == Relation::Newer && !s.lets_go).collect();
    // Of several epochs in a row the last; of rivals one that can let this node in.
    let last = newer.iter().filter(|s| !newer.iter().any(|o| o.lineage.after(s.era).is_some()));
    let best = last.max_by_key(|s| (s.quorate, s.era.number()));
    if let Some(best) = best.filter(|_| !lives && !own.runs) {
        let all = newer.iter().map(|s| (s.node.clone(), s.era)).collect();
        return Stand::Yield { to: best.node.clone(), all };
    }
    let goes_on = |s: &&Said| match related(s) {
        Relation::Newer | Relation::Rival => true,
        // Without a majority it gives way by itself.
        Relation::Older => s.quorate,
        Relation::Same => false,
    };
    let others: Vec<_> = said.iter().filter(goes_on).collect();
    let let_go = others.iter().any(|s| s.quorate && matches!(related(s), Relation::Older | Relation::Rival));
    let others: Vec<_> = others.into_iter().map(|s| (s.node.clone(), s.era)).collect();
    if others.is_empty() { Stand::Stay } else { Stand::Contested { others, let_go } }
}

/// Whether what a member has said keeps a node from its first election, until that member says another thing: another epoch goes
/// on there that may run, or have recovered, the same guests.
fn blocks(own: Own<'_>, said: &Said) -> bool {
    match relation((own.era, own.lineage), (said.era, &said.lineage)) {
        Relation::Newer => !said.lets_go,
        Relation::Older | Relation::Rival => said.quorate,
        Relation::Same => false,
    }
}

/// What has come of asking a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It has answered.
    Said(Said),
    /// It says that this node is no member any more.
    Outcast(NodeName),
    /// Nothing was heard of it.
    Silent(NodeName),
}

/// Whether a node that has just started may stand for elections, when this came of asking all other members `since` the
/// start, and nobody is of another epoch: a majority of its own is there, or nobody is missing, or it has waited long enough.
fn may_stand(own: Era, since: Duration, replies: &[Reply]) -> bool {
    let of = |what: fn(&Said) -> bool| {
        replies.iter().filter(|r| matches!(r, Reply::Said(s) if s.era == own && what(s))).count()
    };
    let outcast = replies.iter().any(|r| matches!(r, Reply::Outcast(_)));
    let wait = if outcast { OUTCAST_WAIT } else { WAIT };
    of(|s| s.quorate) > 0 || of(|_| true) == replies.len() || since >= wait
}

/// How long a start waits for members that are silent: longer than daemons that are switched on together are apart.
pub const WAIT: Duration = Duration::from_secs(5);

/// The same where a member says that this node is none. It may have been removed while it was off, and must not elect anybody; or that
/// member's list is old, and nobody of the others was there then: so not for ever.
pub const OUTCAST_WAIT: Duration = Duration::from_secs(60);

/// What a look is followed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Give up this node's epoch, and take the state of that node's.
    Yield(NodeName),
    /// Stand for no election, and lead nothing; or do so from now on.
    Hold(bool),
}

/// What a daemon has seen of other epochs since its start.
///
/// ```text
///  held ── nobody blocks, and a majority or all are there, or it has waited ──▶ stands
///   ▲  │                                                                          │
///   │  ├────────── an older epoch or a rival with a majority is heard ────────────┤
///   │  │                                                                          │
///   └──┼──────── is to yield, until a majority of its own is there ◀──────────────┤
///      └───▶ lets go, until its end ◀─────────────────────────────────────────────┘
/// ```
#[derive(Debug, Default)]
pub struct Lookout {
    began: Option<Moment>,
    was_quorate: bool,
    stands: bool,
    lets_go: bool,
    /// Who goes on in another epoch that may run, or have recovered, the same guests.
    blocked_by: BTreeSet<NodeName>,
    contested: BTreeMap<NodeName, Era>,
    outcast_by: BTreeSet<NodeName>,
}

impl Lookout {
    /// This node is in contact with a majority of its epoch.
    pub fn note_quorate(&mut self) {
        self.was_quorate = true;
    }

    /// Takes in what has come of asking some of the other members, and says what follows. To be repeated as long as the daemon
    /// runs, also when it has not worked to yield.
    pub fn look(
        &mut self,
        now: Moment,
        own: Own<'_>,
        members: &BTreeSet<NodeName>,
        replies: &[Reply],
    ) -> Vec<Command> {
        let since = now.saturating_sub(*self.began.get_or_insert(now));
        let held = self.is_held();
        self.was_quorate |= own.quorate;
        self.keep_only(members);
        let said: Vec<Said> = replies.iter().filter_map(|reply| self.note(own, reply)).collect();
        let stand = stand(Own { quorate: self.was_quorate, ..own }, &said);
        match &stand {
            // Until that has worked they are two, as those are that do not yield.
            Stand::Yield { all, .. } => {
                self.contested.extend(all.iter().cloned());
                self.stands = false;
            }
            Stand::Contested { others, let_go } => {
                self.contested.extend(others.iter().cloned());
                self.lets_go |= let_go;
            }
            Stand::Stay => {}
        }
        let yields = matches!(stand, Stand::Yield { .. });
        let free = self.blocked_by.is_empty() && may_stand(own.era, since, replies);
        self.stands |= !yields && (own.quorate || free);
        let hold = (self.is_held() != held).then(|| Command::Hold(self.is_held()));
        let goes = if let Stand::Yield { to, .. } = stand { Some(Command::Yield(to)) } else { None };
        hold.into_iter().chain(goes).collect()
    }

    /// Who was removed is nobody's concern any more.
    fn keep_only(&mut self, members: &BTreeSet<NodeName>) {
        self.blocked_by.retain(|node| members.contains(node));
        self.outcast_by.retain(|node| members.contains(node));
        self.contested.retain(|node, _| members.contains(node));
    }

    fn note(&mut self, own: Own<'_>, reply: &Reply) -> Option<Said> {
        match reply {
            Reply::Said(said) => {
                self.outcast_by.remove(&said.node);
                if blocks(own, said) {
                    self.blocked_by.insert(said.node.clone());
                } else {
                    self.blocked_by.remove(&said.node);
                }
                if said.era == own.era {
                    self.contested.remove(&said.node);
                }
                return Some(said.clone());
            }
            Reply::Outcast(node) => {
                self.outcast_by.insert(node.clone());
            }
            Reply::Silent(node) => {
                self.outcast_by.remove(node);
            }
        }
        None
    }

    /// Whether this node stands for no election, and leads nothing. A store is opened so.
    pub fn is_held(&self) -> bool {
        self.lets_go || !self.stands
    }

    /// Whether it leads nothing until an operator has decided.
    pub fn lets_go(&self) -> bool {
        self.lets_go
    }

    /// Whether this node was in contact with a majority of its epoch since its daemon's start.
    pub fn was_quorate(&self) -> bool {
        self.was_quorate
    }

    /// Who keeps this node from its first election: heard in another epoch, and not since in a way that would let it.
    pub fn blocked_by(&self) -> &BTreeSet<NodeName> {
        &self.blocked_by
    }

    /// Who goes on in another epoch, until heard in this one.
    pub fn contested(&self) -> &BTreeMap<NodeName, Era> {
        &self.contested
    }

    /// Who says that this node is no member any more.
    pub fn outcast_by(&self) -> &BTreeSet<NodeName> {
        &self.outcast_by
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Succession;

    fn line(eras: &[Era]) -> Lineage {
        let began = |era: &Era| Succession {
            era: *era,
            base: 1,
            survivor: "n1".parse().unwrap(),
            off: vec![],
            by: "root@pam".into(),
            at_ms: 0,
        };
        Lineage(eras.iter().map(began).collect())
    }

    fn said(node: &str, eras: &[Era], quorate: bool) -> Said {
        let lineage = line(eras);
        Said { node: node.parse().unwrap(), era: lineage.era(), lineage, quorate, lets_go: false }
    }

    fn first() -> Lineage {
        Lineage::default()
    }

    fn own(era: Era, lineage: &Lineage, quorate: bool) -> Own<'_> {
        Own { era, lineage, quorate, runs: false }
    }

    fn contested(node: &str, era: Era, let_go: bool) -> Stand {
        Stand::Contested { others: vec![(node.parse().unwrap(), era)], let_go }
    }

    #[test]
    fn who_comes_back_without_a_majority_yields() {
        let (line, second) = (first(), Era::FIRST.next(5));
        let me = own(Era::FIRST, &line, false);
        let newer = said("n1", &[second], true);
        let old = said("n3", &[], false);
        let to = |n: &str, all: &[(&str, Era)]| Stand::Yield {
            to: n.parse().unwrap(),
            all: all.iter().map(|(n, era)| (n.parse().unwrap(), *era)).collect(),
        };
        let yields = to("n1", &[("n1", second)]);
        assert_eq!(stand(me, &[newer.clone(), old.clone()]), yields);
        assert_eq!(stand(me, &[old]), Stand::Stay);
        // It was not off: what runs here is not ended by itself.
        assert_eq!(
            stand(Own { runs: true, ..me }, std::slice::from_ref(&newer)),
            contested("n1", second, false)
        );
        // Over two epochs at once, to the later one.
        let third = said("n2", &[second, second.next(6)], false);
        let yields = to("n2", &[("n1", second), ("n2", third.era)]);
        assert_eq!(stand(me, &[newer.clone(), third]), yields);
        // Of rivals to the one that can let it in, whichever was numbered higher.
        let rival = said("n2", &[Era::FIRST.next(8), Era::FIRST.next(8).next(9)], false);
        let yields = to("n1", &[("n1", second), ("n2", rival.era)]);
        assert_eq!(stand(me, &[newer, rival]), yields);
    }

    #[test]
    fn a_majority_of_the_old_epoch_never_yields_by_itself() {
        let (line, second) = (first(), Era::FIRST.next(5));
        let newer = said("n1", &[second], true);
        let goes_on = contested("n1", second, false);
        assert_eq!(stand(own(Era::FIRST, &line, true), std::slice::from_ref(&newer)), goes_on);
        // This node has only just started, but the majority is there.
        let old = said("n3", &[], true);
        assert_eq!(stand(own(Era::FIRST, &line, false), &[newer, old]), goes_on);
    }

    #[test]
    fn a_survivor_stays_and_lets_go_where_the_word_was_wrong() {
        let (second, rival) = (Era::FIRST.next(5), Era::FIRST.next(6));
        let line = line(&[second]);
        assert_eq!(
            stand(own(second, &line, true), &[said("n2", &[], false)]),
            Stand::Stay,
            "older ones come"
        );
        for was_quorate in [false, true] {
            let me = own(second, &line, was_quorate);
            // The others were on.
            assert_eq!(stand(me, &[said("n2", &[], true)]), contested("n2", Era::FIRST, true));
            // Two survivors.
            assert_eq!(stand(me, &[said("n2", &[rival], true)]), contested("n2", rival, true));
            assert_eq!(stand(me, &[said("n2", &[rival], false)]), contested("n2", rival, false));
        }
    }

    #[test]
    fn a_survivor_that_lets_go_is_not_gone_over_to_and_keeps_nobody_from_an_election() {
        let (line, second) = (first(), Era::FIRST.next(5));
        let me = own(Era::FIRST, &line, false);
        let newer = said("n1", &[second], false);
        let gone = Said { lets_go: true, ..newer.clone() };
        assert_eq!(stand(me, std::slice::from_ref(&gone)), contested("n1", second, false));
        assert!(blocks(me, &newer) && !blocks(me, &gone));
        let survivor = super::tests::line(&[second]);
        let me = own(second, &survivor, false);
        assert!(blocks(me, &said("n2", &[], true)), "its guests may be recovered there");
        assert!(!blocks(me, &said("n2", &[], false)) && !blocks(me, &said("n2", &[second], true)));
    }

    #[test]
    fn who_starts_waits_for_whoever_is_missing_unless_a_majority_is_there() {
        let (short, long) = (Duration::from_millis(10), WAIT);
        let said = |quorate| Reply::Said(said("n2", &[], quorate));
        let outcast = Reply::Outcast("n3".parse().unwrap());
        let silent = || Reply::Silent("n3".parse().unwrap());
        for (replies, at_once, later) in [
            (vec![said(false), said(false)], true, true),
            (vec![said(true), silent()], true, true),
            (vec![said(false), silent()], false, true),
            (vec![silent(), silent()], false, true),
            (vec![said(false), outcast.clone()], false, false),
            (vec![said(true), outcast], true, true),
            (vec![], true, true),
        ] {
            assert_eq!(may_stand(Era::FIRST, short, &replies), at_once, "{replies:?}");
            assert_eq!(may_stand(Era::FIRST, long, &replies), later, "{replies:?}");
            assert!(may_stand(Era::FIRST, OUTCAST_WAIT, &replies), "{replies:?}");
        }
    }

    fn silent(node: &str) -> Reply {
        Reply::Silent(node.parse().unwrap())
    }

    fn heard(node: &str, eras: &[Era], quorate: bool) -> Reply {
        Reply::Said(said(node, eras, quorate))
    }

    /// The epoch of a survivor, and how it came about.
    fn survivor() -> (Era, Lineage) {
        let second = Era::FIRST.next(5);
        (second, line(&[second]))
    }

    const LATER: Moment = Duration::from_secs(3_600);

    /// A look of n4's that has asked n1, n2 and n3.
    fn look(lookout: &mut Lookout, now: Moment, own: Own<'_>, replies: &[Reply]) -> Vec<Command> {
        let members = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).into();
        lookout.look(now, own, &members, replies)
    }

    #[test]
    fn a_survivor_that_let_go_is_not_released_by_a_quiet_moment() {
        let (second, line) = survivor();
        let me = own(second, &line, false);
        let mut lookout = Lookout::default();
        let majority = [heard("n2", &[], true), heard("n3", &[], true)];
        assert_eq!(look(&mut lookout, Moment::ZERO, me, &majority), [], "it is held as yet");
        assert!(lookout.is_held() && lookout.lets_go());
        // An election there, a network that is down: neither says that its guests were not recovered.
        for quiet in [[heard("n2", &[], false), heard("n3", &[], false)], [silent("n2"), silent("n3")]] {
            assert_eq!(look(&mut lookout, LATER, me, &quiet), [], "{quiet:?}");
        }
        assert!(lookout.is_held() && lookout.lets_go());
        assert_eq!(lookout.contested().keys().count(), 2, "an operator can still go over to them");
    }

    #[test]
    fn a_survivor_that_leads_lays_its_office_down() {
        let (second, line) = survivor();
        let me = own(second, &line, true);
        let mut lookout = Lookout::default();
        assert_eq!(look(&mut lookout, Moment::ZERO, me, &[silent("n2")]), [Command::Hold(false)]);
        assert_eq!(look(&mut lookout, LATER, me, &[silent("n2")]), [], "once is enough");
        assert_eq!(look(&mut lookout, LATER, me, &[heard("n2", &[], true)]), [Command::Hold(true)]);
        assert_eq!(look(&mut lookout, LATER, me, &[heard("n2", &[], true)]), [], "once is enough");
    }

    #[test]
    fn who_has_heard_a_newer_epoch_stays_held_when_that_falls_silent() {
        let (first, second) = (first(), Era::FIRST.next(5));
        let me = own(Era::FIRST, &first, false);
        let mut lookout = Lookout::default();
        let with = |newer| [newer, heard("n3", &[], false)];
        let yields = [Command::Yield("n1".parse().unwrap())];
        assert_eq!(look(&mut lookout, Moment::ZERO, me, &with(heard("n1", &[second], false))), yields);
        assert_eq!(look(&mut lookout, LATER, me, &with(silent("n1"))), [], "the old majority is not to be");
        // It has let go, or has come over to this one.
        let gone = Said { lets_go: true, ..said("n1", &[second], false) };
        assert_eq!(look(&mut lookout, LATER, me, &with(Reply::Said(gone))), [Command::Hold(false)]);
    }

    #[test]
    fn who_could_not_yield_stands_for_nothing_and_knows_that_the_other_is_there() {
        let (first, second) = (first(), Era::FIRST.next(5));
        let me = own(Era::FIRST, &first, false);
        let mut lookout = Lookout::default();
        let nobody = [silent("n1"), silent("n2"), silent("n3")];
        assert_eq!(look(&mut lookout, Moment::ZERO, me, &nobody), []);
        assert_eq!(look(&mut lookout, WAIT, me, &nobody), [Command::Hold(false)], "it has waited");
        let newer = [heard("n1", &[second], true), silent("n2"), silent("n3")];
        let n1: NodeName = "n1".parse().unwrap();
        let yields = [Command::Hold(true), Command::Yield(n1.clone())];
        assert_eq!(look(&mut lookout, LATER, me, &newer), yields);
        // Whoever comes to lead the old epoch must not recover its guests.
        assert_eq!(lookout.contested(), &[(n1.clone(), second)].into());
        assert_eq!(look(&mut lookout, LATER, me, &newer), [Command::Yield(n1.clone())], "tried again");
        assert_eq!(look(&mut lookout, LATER, me, &nobody), [], "it is held on");
        // A majority of its own has come together without it.
        let me = own(Era::FIRST, &first, true);
        assert_eq!(look(&mut lookout, LATER, me, &nobody), [Command::Hold(false)]);
        assert!(lookout.contested().contains_key(&n1));
    }

    #[test]
    fn a_survivor_that_let_go_gives_way_to_a_newer_epoch() {
        let (second, line) = survivor();
        let third = second.next(6);
        let me = own(second, &line, false);
        let mut lookout = Lookout::default();
        look(&mut lookout, Moment::ZERO, me, &[heard("n2", &[], true)]);
        assert!(lookout.lets_go());
        let newer = [heard("n1", &[second, third], true), silent("n2")];
        assert_eq!(look(&mut lookout, LATER, me, &newer), [Command::Yield("n1".parse().unwrap())]);
    }

    #[test]
    fn a_start_waits_exactly_as_long_as_is_said() {
        let first = first();
        let me = own(Era::FIRST, &first, false);
        let outcast = Reply::Outcast("n2".parse().unwrap());
        for (reply, wait) in [(silent("n2"), WAIT), (outcast, OUTCAST_WAIT)] {
            let mut lookout = Lookout::default();
            let begin = Duration::from_secs(77);
            let replies = [reply, silent("n3")];
            for (at, expected) in [
                (Duration::ZERO, vec![]),
                (wait.saturating_sub(Duration::from_millis(1)), vec![]),
                (wait, vec![Command::Hold(false)]),
            ] {
                assert_eq!(look(&mut lookout, begin + at, me, &replies), expected, "{replies:?} {at:?}");
            }
        }
    }

    #[test]
    fn who_was_removed_blocks_nobody() {
        let (first, second) = (first(), Era::FIRST.next(5));
        let me = Own { runs: true, ..own(Era::FIRST, &first, false) };
        let mut lookout = Lookout::default();
        let outcast = Reply::Outcast("n2".parse().unwrap());
        look(&mut lookout, Moment::ZERO, me, &[heard("n1", &[second], true), outcast, silent("n3")]);
        assert_eq!((lookout.contested().len(), lookout.outcast_by().len()), (1, 1));
        let left = ["n3".parse().unwrap()].into();
        assert_eq!(lookout.look(LATER, me, &left, &[silent("n3")]), [Command::Hold(false)]);
        assert_eq!((lookout.contested().len(), lookout.outcast_by().len()), (0, 0));
    }

    #[test]
    fn a_majority_that_was_there_for_a_moment_counts() {
        let (first, second) = (first(), Era::FIRST.next(5));
        let mut lookout = Lookout::default();
        lookout.note_quorate();
        let me = own(Era::FIRST, &first, false);
        let commands = look(&mut lookout, Moment::ZERO, me, &[heard("n1", &[second], true)]);
        assert_eq!(commands, [], "it does not yield, nor stand");
        assert_eq!(lookout.contested().get(&"n1".parse().unwrap()), Some(&second));
    }

    #[test]
    fn who_is_an_outcast_somewhere_is_so_until_that_is_silent_or_says_another_thing() {
        let first = first();
        let me = own(Era::FIRST, &first, false);
        for ends in [silent("n2"), heard("n2", &[], false)] {
            let mut lookout = Lookout::default();
            look(&mut lookout, Moment::ZERO, me, &[Reply::Outcast("n2".parse().unwrap()), silent("n3")]);
            assert_eq!(lookout.outcast_by().len(), 1);
            look(&mut lookout, Moment::ZERO, me, &[ends, silent("n3")]);
            assert!(lookout.outcast_by().is_empty());
        }
    }
}
