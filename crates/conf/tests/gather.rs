//! What is proposed while the leader's disk writes gathers; and what the log keeps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;
use stead_conf::driver::{Command, Driver, Input, Outcome, Persist, Recovered, RequestId, Settings};
use stead_conf::{Hard, Machine, Txn};
use stead_model::RaftId;

const TICK: Duration = Duration::from_millis(50);

/// A cluster of one node, whose disk is slow: what is to be written waits until it is told so.
struct Node {
    driver: Driver,
    machine: Machine,
    now: Duration,
    to_write: Vec<Persist>,
    done: usize,
    /// How many entries the first compaction has left.
    kept: Option<u64>,
}

impl Node {
    fn new(settings: impl FnOnce(Settings) -> Settings) -> Self {
        let machine = Machine::found(1, &Txn::new("root@pam").put("a", "1"), 0).unwrap();
        let recovered = Recovered {
            hard: Hard { term: 1, vote: 0, commit: 1 },
            truncated: (1, 1),
            entries: vec![],
            machine,
        };
        let all = Settings::new(RaftId(1), 1, 0, TICK, Duration::from_secs(5));
        let (driver, machine) = Driver::new(settings(all), recovered, Duration::ZERO).unwrap();
        let mut node = Self { driver, machine, now: Duration::ZERO, to_write: vec![], done: 0, kept: None };
        node.carry_out();
        node.write_all();
        assert!(node.driver.status().is_leader);
        node
    }

    fn carry_out(&mut self) {
        loop {
            let commands = self.driver.poll();
            if commands.is_empty() {
                return;
            }
            for command in commands {
                match command {
                    Command::Persist(persist) => {
                        let state = persist.state.as_ref().zip(persist.truncate);
                        self.kept = self.kept.or(state.map(|(state, cut)| state.index - cut.0));
                        self.to_write.push(persist);
                    }
                    Command::Apply(entries) => {
                        let applied = entries.into_iter();
                        let applied =
                            applied.map(|(at, entry)| self.machine.apply(at, entry).unwrap()).collect();
                        let (revision, hash) = (self.machine.tree().revision(), self.machine.hash());
                        self.driver.handle(self.now, Input::Applied { applied, revision, hash });
                    }
                    Command::Encode => {
                        let (index, members) = (self.machine.applied(), self.machine.members().clone());
                        let image = self.machine.encode().unwrap().into();
                        self.driver.handle(self.now, Input::Encoded { index, members, image });
                    }
                    Command::Done(_, Outcome::Txn(done)) => {
                        done.unwrap();
                        self.done += 1;
                    }
                    _ => {}
                }
            }
        }
    }

    fn handle(&mut self, later: Duration, input: Input) {
        self.now += later;
        self.driver.handle(self.now, input);
        self.carry_out();
    }

    fn put(&mut self, later: Duration, n: u64, bytes: usize) {
        let txn = Txn::new("root@pam").put(format!("f{n}"), vec![b'x'; bytes]);
        self.handle(later, Input::Transact { request: RequestId(n), txn, at_ms: 0 });
    }

    /// Says that all is on the disk, until nothing more is to be written.
    fn write_all(&mut self) {
        while let Some(last) = self.to_write.pop() {
            self.to_write.clear();
            self.handle(Duration::from_micros(100), Input::Persisted(last.number));
        }
    }

    fn entries(&self) -> Vec<usize> {
        self.to_write.iter().map(|persist| persist.entries.len()).filter(|n| *n > 0).collect()
    }
}

#[test]
fn what_comes_while_the_disk_writes_goes_in_one_piece() {
    let mut node = Node::new(|all| all);
    let soon = Duration::from_micros(10);
    node.put(soon, 1, 10);
    assert_eq!(node.entries(), [1], "the first need not wait for others");
    (2..12).for_each(|n| node.put(soon, n, 10));
    assert_eq!(node.entries(), [1]);
    let first = node.to_write.remove(0).number;
    node.handle(soon, Input::Persisted(first));
    assert_eq!((node.entries(), node.done), (vec![10], 1));
    node.write_all();
    assert_eq!(node.done, 11);
}

#[test]
fn a_disk_that_takes_long_holds_nobody_up() {
    let mut node = Node::new(|all| all);
    node.put(Duration::ZERO, 1, 10);
    node.put(TICK / 2, 2, 10);
    assert_eq!(node.entries(), [1]);
    node.handle(TICK, Input::Tick);
    assert_eq!(node.entries(), [1, 1], "the others may commit it");
    node.put(TICK, 3, 10);
    assert_eq!(node.entries(), [1, 1, 1]);
    node.write_all();
    assert_eq!(node.done, 3);
}

#[test]
fn large_ones_go_in_pieces_that_all_links_take() {
    let mut node = Node::new(|all| all);
    node.put(Duration::ZERO, 1, 10);
    (2..32).for_each(|n| node.put(Duration::from_micros(1), n, 8192));
    node.write_all();
    assert_eq!(node.done, 31);
    let mut node = Node::new(|all| all);
    node.put(Duration::ZERO, 1, 10);
    (2..32).for_each(|n| node.put(Duration::from_micros(1), n, 8192));
    let first = node.to_write.remove(0).number;
    node.handle(Duration::from_micros(1), Input::Persisted(first));
    let pieces = node.entries();
    assert!(pieces.iter().all(|n| *n <= 7) && pieces.iter().sum::<usize>() == 30, "{pieces:?}");
}

/// The entries that a compaction leaves: so many, and with so many bytes at most.
#[test]
fn the_log_keeps_few_large_entries() {
    for (bytes, least, most) in [(10, 100, 100), (1000, 10, 20)] {
        let mut node = Node::new(|all| Settings {
            compact_entries: 200,
            compact_bytes: 20_000,
            keep_entries: 100,
            ..all
        });
        for n in 0..400 {
            // The same file, so that the state stays small.
            let txn = Txn::new("root@pam").put("f", vec![b'x'; bytes]);
            node.handle(TICK, Input::Transact { request: RequestId(n), txn, at_ms: 0 });
            node.write_all();
        }
        let kept = node.kept;
        assert!(
            kept.is_some_and(|kept| (least..=most).contains(&kept)),
            "{bytes} bytes each: {kept:?} are kept"
        );
    }
}
