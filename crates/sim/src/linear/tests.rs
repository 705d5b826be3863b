use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn put(name: u64, times: (u64, u64), path: &str) -> Operation {
    transaction(name, times, vec![], vec![Change::Put(path.into(), name)])
}

fn transaction(name: u64, (begin, end): (u64, u64), checks: Vec<Check>, changes: Vec<Change>) -> Operation {
    Operation {
        begin,
        end,
        call: Call::Transact { name, checks, changes },
        answer: Answer::Done,
        hint: name % 3,
    }
}

fn read(times: (u64, u64), path: &str, seen: Option<u64>) -> Operation {
    let seen = seen.map(|n| Cell { value: n, writer: n });
    Operation {
        begin: times.0,
        end: times.1,
        call: Call::Read(path.into()),
        answer: Answer::Read(seen),
        hint: 0,
    }
}

fn answered(mut operation: Operation, answer: Answer) -> Operation {
    operation.answer = answer;
    operation
}

fn is_good(history: &[Operation]) -> bool {
    match check(&State::new(), history, Rules::default()) {
        Ok(()) => true,
        Err(Fault::Contradiction { .. }) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn what_one_copy_can_have_answered_is_taken() {
    let unknown = |o| answered(o, Answer::Unknown);
    let good: [&[Operation]; 7] = [
        &[read((0, 1), "a", None), put(1, (2, 3), "a"), read((4, 5), "a", Some(1))],
        // Seen before its writer was answered, and not yet by one that asks beside.
        &[put(1, (0, 9), "a"), read((1, 2), "a", Some(1)), read((0, 2), "a", None)],
        // Never answered: it may take effect late, or never.
        &[
            unknown(put(1, (0, 0), "a")),
            put(2, (1, 2), "a"),
            read((3, 4), "a", Some(2)),
            read((8, 9), "a", Some(1)),
        ],
        &[unknown(put(1, (0, 0), "a")), read((8, 9), "a", None)],
        &[
            put(1, (0, 1), "a"),
            answered(
                transaction(2, (2, 3), vec![Check::Absent("a".into())], vec![Change::Put("a".into(), 2)]),
                Answer::Refused,
            ),
            transaction(3, (4, 5), vec![Check::Writer("a".into(), 1)], vec![Change::Delete("a".into())]),
            read((6, 7), "a", None),
        ],
        // Two at once: one of them comes first.
        &[put(1, (0, 9), "a"), put(2, (0, 9), "a"), read((10, 11), "a", Some(1))],
        &[put(1, (0, 1), "a"), put(2, (0, 1), "b"), read((2, 3), "b", Some(2)), read((2, 3), "a", Some(1))],
    ];
    for (n, history) in good.iter().enumerate() {
        assert_eq!(check(&State::new(), history, Rules::default()), Ok(()), "{n}");
    }
}

#[test]
fn what_no_copy_can_have_answered_is_found() {
    let unknown = |o| answered(o, Answer::Unknown);
    let moved = |name, times| transaction(name, times, vec![], vec![Change::Move("a".into(), "b".into())]);
    let only_if = |name, times, writer| {
        transaction(name, times, vec![Check::Writer("a".into(), writer)], vec![Change::Put("a".into(), name)])
    };
    let seen = |times, path: &str, value, writer| Operation {
        answer: Answer::Read(Some(Cell { value, writer })),
        ..read(times, path, None)
    };
    let bad: [(&str, &[Operation]); 10] = [
        ("a stale read", &[put(1, (0, 1), "a"), put(2, (2, 3), "a"), read((4, 5), "a", Some(1))]),
        ("a write that is lost", &[put(1, (0, 1), "a"), read((2, 3), "a", None)]),
        ("a value from nowhere", &[put(1, (0, 1), "a"), read((2, 3), "a", Some(7))]),
        (
            "reads that go back",
            &[
                put(1, (0, 1), "a"),
                put(2, (2, 20), "a"),
                read((4, 5), "a", Some(2)),
                read((6, 7), "a", Some(1)),
            ],
        ),
        ("seen before it began", &[read((0, 1), "a", Some(1)), put(1, (2, 3), "a")]),
        ("two that both came first", &[put(1, (0, 1), "a"), only_if(2, (2, 3), 1), only_if(3, (2, 3), 1)]),
        (
            "refused, and yet seen",
            &[answered(only_if(2, (0, 1), 1), Answer::Refused), read((2, 3), "a", Some(2))],
        ),
        (
            "refused without a reason",
            &[put(1, (0, 1), "a"), answered(only_if(2, (2, 3), 1), Answer::Refused)],
        ),
        (
            "half a move",
            &[put(1, (0, 1), "a"), moved(2, (2, 3)), seen((4, 5), "b", 1, 2), read((6, 7), "a", Some(1))],
        ),
        (
            "unknown, and done twice",
            &[
                unknown(put(1, (0, 0), "a")),
                read((1, 2), "a", Some(1)),
                put(2, (3, 4), "a"),
                read((5, 6), "a", Some(1)),
            ],
        ),
    ];
    for (what, history) in bad {
        assert!(!is_good(history), "{what} was taken");
    }
}

/// A rule that the copy keeps is one that refuses.
#[test]
fn what_the_copy_may_not_be_is_refused() {
    fn one_alone(state: &State) -> bool {
        state.len() < 2
    }
    let rules = Rules { allowed: one_alone, part: |_| "all" };
    let both = [
        put(1, (0, 1), "a"),
        transaction(
            2,
            (2, 3),
            vec![Check::Absent("b".into())],
            vec![Change::Put("b".into(), 2), Change::Put("a".into(), 2)],
        ),
    ];
    assert!(is_good(&both) && check(&State::new(), &both, rules).is_err());
    let [first, second] = both;
    assert_eq!(check(&State::new(), &[first, answered(second, Answer::Refused)], rules), Ok(()));
}

/// All orders, one after the other.
fn by_force(state: &State, left: &[Operation]) -> bool {
    if left.iter().all(|o| !o.is_certain()) {
        return true;
    }
    let first_end = left.iter().filter(|o| o.is_certain()).map(|o| o.end).min().unwrap();
    (0..left.len()).filter(|n| left[*n].begin <= first_end).any(|n| {
        let mut rest = left.to_vec();
        let one = rest.remove(n);
        one.after(state, |_| true).is_some_and(|after| by_force(&after, &rest))
    })
}

/// Few operations on two paths, with answers that are often wrong.
fn random(dice: &mut ChaCha8Rng) -> Vec<Operation> {
    let count = dice.random_range(2..7);
    (1..=count)
        .map(|name| {
            let begin = dice.random_range(0..10);
            let times = (begin, begin + dice.random_range(1..8));
            let (path, other) = if dice.random_bool(0.5) { ("a", "b") } else { ("b", "a") };
            let some = dice.random_range(1..=count);
            let operation = match dice.random_range(0..6) {
                0 | 1 => return read(times, path, dice.random_bool(0.6).then_some(some)),
                2 => put(name, times, path),
                3 => transaction(
                    name,
                    times,
                    vec![Check::Writer(path.into(), some)],
                    vec![Change::Put(path.into(), name)],
                ),
                4 => transaction(name, times, vec![], vec![Change::Move(path.into(), other.into())]),
                _ => transaction(
                    name,
                    times,
                    vec![Check::Absent(path.into())],
                    vec![Change::Put(path.into(), name)],
                ),
            };
            let answer =
                [Answer::Done, Answer::Done, Answer::Refused, Answer::Unknown][dice.random_range(0..4)];
            answered(operation, answer)
        })
        .collect()
}

#[test]
fn it_judges_as_trying_all_orders_does() {
    let mut dice = ChaCha8Rng::seed_from_u64(7);
    let mut found = [0, 0];
    for _ in 0..20_000 {
        let history = random(&mut dice);
        let expected = by_force(&State::new(), &history);
        assert_eq!(is_good(&history), expected, "{history:#?}");
        found[usize::from(expected)] += 1;
    }
    assert!(found.iter().all(|n| *n > 1000), "one side is hardly tried: {found:?}");
}
