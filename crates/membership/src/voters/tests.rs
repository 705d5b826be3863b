//! Votes over time: as one sees them, and as a brute-force search over small clusters does.

use super::*;
use proptest::prelude::*;
use stead_model::NodeState;

const NOW: Moment = Duration::from_secs(1000);

fn nodes(n: u64) -> Vec<NodeRecord> {
    let boot: stead_model::BootId = "22222222-2222-4222-8222-222222222222".parse().unwrap();
    let node = |n| NodeRecord {
        name: format!("n{n}").parse().unwrap(),
        uuid: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
        raft_id: RaftId(n),
        addr: "127.0.0.1:8006".parse().unwrap(),
        links: stead_model::link::Links::new(),
        state: NodeState::Member { boot: boot.clone() },
        version: String::new(),
        witness: false,
        off: None,
        restart: None,
    };
    (1..=n).map(node).collect()
}

/// As node 1 sees it, which leads; who has caught up is active.
fn raft(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Members {
    let ids = |v: &[u64]| v.iter().copied().map(RaftId).collect::<Vec<_>>();
    let caught_up: BTreeSet<RaftId> = ids(caught_up).into_iter().collect();
    let active = caught_up.clone().into_iter().chain([RaftId(1)]).collect();
    Members { me: RaftId(1), voters: ids(voters), learners: ids(learners), active, caught_up }
}

fn next_of(voters: &mut Voters, now: Moment, nodes: &[NodeRecord], raft: &Members) -> Option<Change> {
    voters.next(now, nodes, &BTreeMap::new(), raft)
}

fn next(nodes: &[NodeRecord], raft: &Members) -> Option<Change> {
    next_of(&mut Voters::default(), NOW, nodes, raft)
}

#[test]
fn voters_are_odd_from_three_nodes_on() {
    let wanted: Vec<usize> = (1..=9).map(wanted_voters).collect();
    assert_eq!(wanted, [1, 2, 3, 3, 5, 5, 7, 7, 7]);
}

#[test]
fn a_node_learns_before_it_votes_and_a_removed_one_goes() {
    let three = nodes(3);
    assert_eq!(next(&three, &raft(&[1], &[], &[])), Some(Change::AddLearner(RaftId(2))));
    assert_eq!(next(&three[..2], &raft(&[1], &[2], &[])), None);
    assert_eq!(next(&three[..2], &raft(&[1], &[2], &[2])), Some(Change::Promote(RaftId(2))));
    assert_eq!(next(&three, &raft(&[1, 2, 3], &[], &[2, 3])), None);
    assert_eq!(next(&three[..2], &raft(&[1, 2], &[3], &[2])), Some(Change::Remove(RaftId(3))));
}

#[test]
fn a_node_that_left_raft_is_not_asked_back_and_holds_up_nobody() {
    let four = nodes(4);
    let mut voters = Voters::default();
    voters.has_left(RaftId(2));
    // The leader died before the record was removed, and another node has just been let in.
    assert_eq!(
        next_of(&mut voters, NOW, &four, &raft(&[1, 3], &[], &[3])),
        Some(Change::AddLearner(RaftId(4)))
    );
    assert_eq!(
        next_of(&mut voters, NOW, &four, &raft(&[1, 3], &[4], &[3, 4])),
        Some(Change::Promote(RaftId(4)))
    );
    assert_eq!(next_of(&mut voters, NOW, &four[..3], &raft(&[1, 3], &[], &[3])), None);
}

#[test]
fn a_silent_voter_gives_its_vote_to_one_that_answers() {
    let four = nodes(4);
    let silent = raft(&[1, 2, 3], &[4], &[3, 4]);
    let mut voters = Voters::default();
    assert_eq!(next_of(&mut voters, NOW, &four, &silent), None, "it may be booting");
    let almost = NOW + REPLACE_AFTER - Duration::from_secs(1);
    assert_eq!(next_of(&mut voters, almost, &four, &silent), None);
    let replaced = Some(Change::Replace { old: RaftId(2), new: RaftId(4) });
    assert_eq!(next_of(&mut voters, NOW + REPLACE_AFTER, &four, &silent), replaced);
    // Heard in between: it waits anew.
    assert_eq!(next_of(&mut voters, almost, &four, &raft(&[1, 2, 3], &[4], &[2, 3, 4])), None);
    assert_eq!(next_of(&mut voters, NOW + REPLACE_AFTER, &four, &silent), None);
    // Another led in between, who may have heard it.
    voters.not_leading();
    assert_eq!(next_of(&mut voters, NOW + 2 * REPLACE_AFTER, &four, &silent), None);
    // Nobody can take it: it keeps it, and is a voter again when it is back.
    let later = NOW + 3 * REPLACE_AFTER;
    assert_eq!(next_of(&mut voters, later, &four, &raft(&[1, 2, 3], &[4], &[3])), None);
}

#[test]
fn the_leader_keeps_its_vote_and_a_vote_too_many_goes() {
    let mut voters = Voters::default();
    let (four, too_many) = (nodes(4), raft(&[1, 2, 3, 4], &[], &[2, 3, 4]));
    assert_eq!(next_of(&mut voters, NOW, &four, &too_many), Some(Change::Demote(RaftId(4))));
    let silent = raft(&[1, 2, 3, 4], &[], &[3, 4]);
    next_of(&mut voters, NOW, &four, &silent);
    assert_eq!(next_of(&mut voters, NOW + REPLACE_AFTER, &four, &silent), Some(Change::Demote(RaftId(2))));
    assert_eq!(next_of(&mut voters, NOW, &nodes(1), &raft(&[1], &[], &[])), None);
}

/// `a1` is rack 1 of site a, `.1` rack 1 of no site, `a` site a.
fn place(text: &str) -> Place {
    let (site, rack) = text.split_at(text.len().min(1));
    let name = |text: &str| (!text.is_empty() && text != ".").then(|| text.parse().unwrap());
    Place { site: name(site), rack: name(rack) }
}

fn places(texts: &[&str]) -> BTreeMap<NodeName, Place> {
    let named = |(n, text): (usize, &&str)| (format!("n{}", n + 1).parse().unwrap(), place(text));
    texts.iter().enumerate().map(named).collect()
}

#[test]
fn votes_move_to_where_they_are_spread_when_that_has_been_called_for() {
    let (six, at) = (nodes(6), places(&["a", "a", "a", "b", "b", "c"]));
    let mut voters = Voters::default();
    let all = raft(&[1, 2, 3, 4, 5], &[6], &[2, 3, 4, 5, 6]);
    assert_eq!(voters.next(NOW, &six, &at, &all), None, "somebody may be saying more of it");
    assert_eq!(voters.next(NOW + UNEVEN - Duration::from_millis(1), &six, &at, &all), None);
    let moves = Some(Change::Replace { old: RaftId(2), new: RaftId(6) });
    assert_eq!(voters.next(NOW + UNEVEN, &six, &at, &all), moves);
    assert_eq!(voters.next(NOW + UNEVEN, &six, &at, &all), None, "the next one waits anew");
    // A voter is silent, or the other is not ready.
    let later = NOW + 10 * UNEVEN;
    let silent = raft(&[1, 2, 3, 4, 5], &[6], &[2, 3, 4, 6]);
    assert_eq!(voters.next(later, &six, &at, &silent), None);
    assert_eq!(voters.next(later + UNEVEN, &six, &at, &silent), None);
    let behind = raft(&[1, 2, 3, 4, 5], &[6], &[2, 3, 4, 5]);
    assert_eq!(voters.next(later + 2 * UNEVEN, &six, &at, &behind), None);
    // As good as it gets.
    let spread = raft(&[1, 3, 4, 5, 6], &[2], &[2, 3, 4, 5, 6]);
    for n in 0..3 {
        assert_eq!(voters.next(later + n * UNEVEN, &six, &at, &spread), None);
    }
}

#[test]
fn who_gets_and_who_loses_a_vote_is_chosen_by_where_they_stand() {
    let mut voters = Voters::default();
    let (five, at) = (nodes(5), places(&["a", "a", "a", "b", "c"]));
    let some = raft(&[1, 2], &[3, 4, 5], &[2, 3, 4, 5]);
    assert_eq!(voters.next(NOW, &five, &at, &some), Some(Change::Promote(RaftId(4))));
    let many = raft(&[1, 2, 4, 5], &[], &[2, 4, 5]);
    let four: Vec<NodeRecord> = five.iter().filter(|n| n.raft_id != RaftId(3)).cloned().collect();
    assert_eq!(voters.next(NOW, &four, &at, &many), Some(Change::Demote(RaftId(2))));
    // Better crowded than silent.
    let (four, silent) = (nodes(4), raft(&[1, 2, 4], &[3], &[2, 3]));
    assert_eq!(voters.next(NOW, &four, &at, &silent), None);
    let replaced = Some(Change::Replace { old: RaftId(4), new: RaftId(3) });
    assert_eq!(voters.next(NOW + REPLACE_AFTER, &four, &at, &silent), replaced);
}

/// A cluster that does at once what it is told.
#[derive(Debug, Clone)]
struct World {
    nodes: Vec<NodeRecord>,
    places: BTreeMap<NodeName, Place>,
    raft: Members,
    voters: Voters,
    now: Moment,
}

impl World {
    fn switch(&mut self, up: &BTreeSet<RaftId>) {
        self.raft.active = up.iter().copied().chain([self.raft.me]).collect();
        self.raft.caught_up = self.raft.active.iter().copied().filter(|id| *id != self.raft.me).collect();
    }

    fn healthy(&self) -> usize {
        self.raft.voters.iter().filter(|id| self.raft.active.contains(id)).count()
    }

    /// One look at it, later than any patience. Whether anything changed.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        self.now += REPLACE_AFTER;
        let Some(change) = self.voters.next(self.now, &self.nodes, &self.places, &self.raft) else {
            return Ok(false);
        };
        let (before, too_many) = (self.healthy(), self.raft.voters.len() > wanted_voters(self.nodes.len()));
        let raft = &mut self.raft;
        let mut give = |id: RaftId| {
            prop_assert!(raft.caught_up.contains(&id), "{change:?}: it is not ready");
            raft.learners.retain(|l| *l != id);
            raft.voters.push(id);
            Ok(())
        };
        match change {
            Change::AddLearner(id) => raft.learners.push(id),
            Change::Promote(id) => give(id)?,
            Change::Replace { new, .. } => give(new)?,
            Change::Demote(_) | Change::Remove(_) => {}
        }
        if let Change::Demote(old) | Change::Replace { old, .. } = change {
            prop_assert!(old != raft.me && raft.voters.contains(&old), "{change:?}");
            raft.voters.retain(|v| *v != old);
            raft.learners.push(old);
        }
        if let Change::Remove(id) = change {
            raft.voters.retain(|v| *v != id);
            raft.learners.retain(|l| *l != id);
        }
        let removed = matches!(change, Change::Remove(_));
        prop_assert!(removed || too_many || self.healthy() >= before, "{change:?} in {self:?}");
        Ok(true)
    }

    /// Until nothing changes any more. Two looks without a change: the first may have begun to wait.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut calm = 0;
        for _ in 0..100 {
            calm = if self.step()? { 0 } else { calm + 1 };
            if calm == 3 {
                return Ok(());
            }
        }
        Err(TestCaseError::fail(format!("it never rests: {self:?}")))
    }

    /// The best that any set of as many of those who vote or could vote would be.
    fn best(&self) -> Unevenness {
        let domains = Domains::new(&self.nodes, &self.places);
        let could = self.raft.learners.iter().filter(|id| self.raft.caught_up.contains(id));
        let all: Vec<RaftId> = self.raft.voters.iter().chain(could).copied().collect();
        let sets = (0..1_u32 << all.len()).filter(|set| set.count_ones() as usize == self.raft.voters.len());
        let of = |set: u32| all.iter().enumerate().filter(move |(n, _)| set >> n & 1 == 1).map(|(_, id)| *id);
        sets.map(|set| domains.unevenness(of(set))).min().unwrap()
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let node =
        (prop::sample::select(vec!["", "a1", "a2", "b1", "b2", "c", "c1", ".1"]), 0..3_u8, any::<bool>());
    prop::collection::vec(node, 1..=9).prop_map(|all| {
        let ids = || (1..).map(RaftId).zip(&all);
        // The first leads. Others vote, learn, or are to be taken in; a fourth part of all is silent.
        let of = |role: u8| ids().filter(move |(id, n)| id.0 > 1 && n.1 == role).map(|(id, _)| id);
        let voters = [RaftId(1)].into_iter().chain(of(0)).take(MAX_VOTERS).collect();
        let learners = of(0).skip(MAX_VOTERS - 1).chain(of(1)).collect();
        let mut world = World {
            nodes: nodes(all.len() as u64),
            places: places(&all.iter().map(|n| n.0).collect::<Vec<_>>()),
            raft: Members {
                me: RaftId(1),
                voters,
                learners,
                active: BTreeSet::new(),
                caught_up: BTreeSet::new(),
            },
            voters: Voters::default(),
            now: NOW,
        };
        world.switch(&ids().filter(|(_, n)| n.2).map(|(id, _)| id).collect());
        world
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn votes_come_to_rest_spread_as_well_as_any_set_could(mut world in worlds()) {
        world.settle()?;
        let raft = &world.raft;
        let (has, wanted) = (raft.voters.len(), wanted_voters(world.nodes.len()));
        let ready = raft.learners.iter().filter(|id| raft.caught_up.contains(id)).count();
        prop_assert!(has == wanted || has < wanted && ready == 0, "{has} of {wanted} vote");
        // Silent ones vote only where nobody else can.
        prop_assert!(world.healthy() == has || ready == 0);
        let domains = Domains::new(&world.nodes, &world.places);
        prop_assert_eq!(domains.unevenness(raft.voters.iter().copied()), world.best());
    }

    #[test]
    fn whatever_happens_meanwhile_no_step_takes_a_vote_that_is_needed(
        mut world in worlds(),
        happens in prop::collection::vec((prop::collection::btree_set((2..=9_u64).prop_map(RaftId), 0..9), 1..9_usize, any::<bool>()), 0..12),
    ) {
        for (up, who, leads) in happens {
            world.switch(&up);
            world.step()?;
            // Another stands elsewhere now, or leads.
            let (name, elsewhere) = (format!("n{who}").parse().unwrap(), place(["a1", "b", "c2"][who % 3]));
            world.places.insert(name, elsewhere);
            let next = world.raft.voters.iter().copied().find(|id| leads && world.raft.caught_up.contains(id));
            if let Some(next) = next {
                world.raft.me = next;
                world.voters = Voters::default();
                world.switch(&up);
            }
        }
        world.settle()?;
        let domains = Domains::new(&world.nodes, &world.places);
        prop_assert_eq!(domains.unevenness(world.raft.voters.iter().copied()), world.best());
    }
}

/// Three sites have a third of the votes each, as nearly as that goes.
#[test]
fn no_site_of_three_has_a_majority_while_a_cluster_grows_and_shrinks() {
    let all = ["a", "a", "a", "b", "b", "b", "c", "c", "c"];
    let ids = |to: u64| (2..=to).map(RaftId).collect::<BTreeSet<_>>();
    let mut world = World {
        nodes: vec![],
        places: places(&all),
        raft: raft(&[1], &[], &[]),
        voters: Voters::default(),
        now: NOW,
    };
    let order = [1, 4, 7, 2, 5, 8, 3, 6, 9];
    let grown = (1..=9).chain((1..9).rev());
    for n in grown {
        let here: BTreeSet<u64> = order.into_iter().take(n).collect();
        world.nodes = nodes(9).into_iter().filter(|r| here.contains(&r.raft_id.0)).collect();
        world.switch(&ids(9));
        world.settle().unwrap();
        assert_eq!(world.raft.voters.len(), wanted_voters(n));
        let most = world.raft.voters.iter().fold([0_usize; 3], |mut sites, id| {
            sites[(id.0 as usize - 1) / 3] += 1;
            sites
        });
        let most = most.into_iter().max().unwrap();
        assert!(most <= wanted_voters(n).div_ceil(3), "{n} nodes: {:?}", world.raft.voters);
    }
}
