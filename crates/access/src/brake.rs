//! A brake on guessing passwords: after some wrong ones, checks for that user and from that address wait longer and longer.
//!
//! ```text
//!  wrong passwords     0 … 5      6     7     8     9    10 …
//!  wait before next     none     1 s   2 s   4 s   8 s   … at most 30 s
//! ```
//!
//! Each attempt takes the next free moment, so that many at once are no quicker than one after the other; one that would
//! wait longer than a client does is refused unchecked. A right password ends the user's waits and the address's. Wrong ones
//! are forgotten after a quarter of an hour without any.
//!
//! Somebody who guesses from afar must not keep a user out: from an address where the user has signed in lately, only
//! what comes from that address counts. root on the node's own socket shows no password and is never braked.
//!
//! Nothing here reads a clock: times are milliseconds on one that never goes back.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

/// So many wrong passwords cost nothing: people mistype.
pub const FREE: u32 = 5;
/// The first wait.
const FIRST: u64 = 1_000;
/// The longest wait between two checks.
pub const LONGEST: u64 = 30_000;
/// An attempt that would wait longer is refused: clients give up after 5 seconds.
pub const PATIENCE: u64 = 4_000;
/// After so long without a wrong password, all are forgotten.
const MEMORY: u64 = 15 * 60_000;
/// How long an address where a user has signed in is known.
const KNOWN: u64 = 7 * 24 * 3_600_000;
/// How many users, addresses and pairs of them are remembered, each.
pub const MOST: usize = 4_096;

/// What an attempt must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Check the password after so many milliseconds; 0: at once.
    After(u64),
    /// Don't check it: try again after so many milliseconds.
    Refused(u64),
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    wrong: u32,
    /// When the last wrong one was.
    last: u64,
    /// Before then no further one is checked.
    free_at: u64,
}

impl Count {
    fn gap(self) -> u64 {
        match self.wrong.checked_sub(FREE) {
            None | Some(0) => 0,
            Some(n) => FIRST.saturating_mul(1 << (n - 1).min(16)).min(LONGEST),
        }
    }

    /// With one more, which is checked at `at`.
    fn and_one(self, at: u64) -> Self {
        let more = Self { wrong: self.wrong.saturating_add(1), last: at, ..self };
        match more.gap() {
            0 => more,
            gap => Self { free_at: at + gap, ..more },
        }
    }

    /// Whether there is nothing to remember any more.
    fn is_over(self, now: u64) -> bool {
        now.saturating_sub(self.last) > MEMORY
    }
}

/// Counts by key, bounded: when there are too many, the ones that matter least go.
#[derive(Debug)]
struct Counts<K>(HashMap<K, Count>);

impl<K: Eq + Hash + Clone> Counts<K> {
    /// What is remembered of a key at `now`.
    fn get(&self, key: &K, now: u64) -> Count {
        let kept = self.0.get(key).copied().unwrap_or_default();
        if kept.is_over(now) { Count::default() } else { kept }
    }

    fn set(&mut self, key: &K, count: Count, now: u64) {
        if self.0.len() >= MOST && !self.0.contains_key(key) {
            self.0.retain(|_, c| !c.is_over(now));
        }
        if self.0.len() >= MOST && !self.0.contains_key(key) {
            // A crowd of names must not push out the one that is guessed at: fewest and oldest go first.
            let least = self.0.iter().min_by_key(|(_, c)| (c.wrong, c.last)).map(|(k, _)| k.clone());
            if let Some(least) = least {
                self.0.remove(&least);
            }
        }
        self.0.insert(key.clone(), count);
    }
}

/// The brake of one node.
#[derive(Debug)]
pub struct Brake {
    users: Counts<String>,
    addresses: Counts<IpAddr>,
    /// A user at an address where they are known: when they signed in there, and what was wrong since.
    known: HashMap<(String, IpAddr), (u64, Count)>,
}

impl Default for Brake {
    fn default() -> Self {
        Self { users: Counts(HashMap::new()), addresses: Counts(HashMap::new()), known: HashMap::new() }
    }
}

impl Brake {
    fn known(&self, user: &str, from: IpAddr, now: u64) -> Option<Count> {
        let (since, count) = self.known.get(&(user.to_owned(), from))?;
        let count = if count.is_over(now) { Count::default() } else { *count };
        (now.saturating_sub(*since) <= KNOWN).then_some(count)
    }

    /// What somebody must do who wants a password checked now. An attempt that is not refused counts as a wrong password
    /// until [`Self::right`] says otherwise: however many are under way at once, each has its own turn.
    pub fn attempt(&mut self, user: &str, from: IpAddr, now: u64) -> Verdict {
        let at_home = self.known(user, from, now);
        let address = if at_home.is_some() { Count::default() } else { self.addresses.get(&from, now) };
        let own = at_home.unwrap_or_else(|| self.users.get(&user.to_owned(), now));
        let at = now.max(own.free_at).max(address.free_at);
        if at - now > PATIENCE {
            return Verdict::Refused(at - now);
        }
        if let Some((_, count)) = self.known.get_mut(&(user.to_owned(), from)).filter(|_| at_home.is_some()) {
            *count = own.and_one(at);
        } else {
            self.users.set(&user.to_owned(), own.and_one(at), now);
            self.addresses.set(&from, address.and_one(at), now);
        }
        Verdict::After(at - now)
    }

    /// How many wrong passwords are remembered of a user, seen from an address.
    pub fn wrong(&self, user: &str, from: IpAddr, now: u64) -> u32 {
        let count = self.known(user, from, now);
        count.unwrap_or_else(|| self.users.get(&user.to_owned(), now)).wrong
    }

    /// The password was right: what was wrong before is forgotten.
    pub fn right(&mut self, user: &str, from: IpAddr, now: u64) {
        self.users.0.remove(user);
        self.addresses.0.remove(&from);
        let pair = (user.to_owned(), from);
        if self.known.len() >= MOST && !self.known.contains_key(&pair) {
            let oldest = self.known.iter().min_by_key(|(_, (since, _))| *since).map(|(k, _)| k.clone());
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(pair, (now, Count::default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn there(n: u16) -> IpAddr {
        format!("2001:db8::{n:x}").parse().unwrap()
    }

    /// One wrong password after the other as soon as it may be; the waits.
    fn guess(brake: &mut Brake, user: &str, from: IpAddr, now: &mut u64, times: usize) -> Vec<u64> {
        let mut waits = vec![];
        for _ in 0..times {
            let begun = *now;
            loop {
                match brake.attempt(user, from, *now) {
                    Verdict::After(ms) => break *now += ms,
                    Verdict::Refused(ms) => *now += ms,
                }
            }
            waits.push(*now - begun);
        }
        waits
    }

    #[test]
    fn each_wrong_password_makes_the_next_check_later_up_to_a_limit() {
        let (mut brake, mut now) = (Brake::default(), 0);
        let waits = guess(&mut brake, "a@pve", HERE, &mut now, 13);
        let seconds: Vec<u64> = waits.iter().map(|ms| ms / 1000).collect();
        assert_eq!(seconds, [0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_right_password_ends_the_waits_and_so_does_time() {
        let (mut brake, mut now) = (Brake::default(), 0);
        guess(&mut brake, "a@pve", HERE, &mut now, 8);
        assert_ne!(brake.attempt("a@pve", HERE, now), Verdict::After(0));
        let mut later = now + LONGEST;
        assert!(later - now < MEMORY);
        assert_eq!(brake.attempt("a@pve", HERE, later), Verdict::After(0), "each in its turn");
        brake.right("a@pve", HERE, later);
        assert_eq!(guess(&mut brake, "a@pve", HERE, &mut later, 6), [0; 6]);
        guess(&mut brake, "b@pve", there(1), &mut later, 9);
        later += MEMORY + LONGEST + 1;
        assert_eq!(guess(&mut brake, "b@pve", there(1), &mut later, 6), [0; 6]);
    }

    #[test]
    fn many_at_once_are_no_quicker_and_most_are_refused() {
        let (mut brake, mut now) = (Brake::default(), 0);
        assert_eq!(brake.wrong("a@pve", HERE, now), 0);
        guess(&mut brake, "a@pve", HERE, &mut now, 4);
        assert_eq!(brake.wrong("a@pve", HERE, now), 4);
        let verdicts: Vec<Verdict> = (0..100).map(|_| brake.attempt("a@pve", HERE, now)).collect();
        let checked = verdicts.iter().filter(|v| matches!(v, Verdict::After(_))).count();
        assert_eq!(checked, 4, "two more at once, then after 1 and 3 s: {verdicts:?}");
    }

    #[test]
    fn one_address_cannot_try_all_users_and_one_user_not_be_tried_from_all_addresses() {
        let (mut brake, now) = (Brake::default(), 0);
        for i in 0..8 {
            let _ = brake.attempt(&format!("u{i}@pve"), HERE, now);
            let _ = brake.attempt("root@pam", there(i), now);
        }
        assert_ne!(brake.attempt("u9@pve", HERE, now), Verdict::After(0));
        assert_ne!(brake.attempt("root@pam", there(99), now), Verdict::After(0));
        assert_eq!(brake.attempt("u9@pve", there(99), now), Verdict::After(0));
    }

    #[test]
    fn who_guesses_from_afar_does_not_keep_the_user_out() {
        let (mut brake, mut now) = (Brake::default(), 0);
        brake.right("a@pve", HERE, now);
        guess(&mut brake, "a@pve", there(1), &mut now, 12);
        assert!(matches!(brake.attempt("a@pve", there(2), now), Verdict::Refused(_)));
        assert_eq!(brake.attempt("a@pve", HERE, now), Verdict::After(0));
        let waits = guess(&mut brake, "a@pve", HERE, &mut now, 8);
        assert_eq!(waits[7], 4_000, "from there, too, no more than from elsewhere");
    }

    #[test]
    fn memory_is_bounded_and_a_crowd_does_not_push_out_the_one_that_is_guessed_at() {
        let (mut brake, mut now) = (Brake::default(), 0);
        guess(&mut brake, "root@pam", there(0), &mut now, 12);
        for i in 1..=5_000 {
            let _ = brake.attempt(&format!("u{i}@pve"), there(i), now);
        }
        assert!(brake.users.0.len() <= MOST && brake.addresses.0.len() <= MOST);
        assert!(matches!(brake.attempt("root@pam", HERE, now), Verdict::Refused(_)));
        for i in 0..=5_000 {
            brake.right("a@pve", there(i), now);
        }
        assert!(brake.known.len() <= MOST);
    }
}
