//! How much memory the balloons of a host's guests leave them.
//!
//! A host is meant to have four fifths of its memory taken. Beyond that its guests give some back; below they get more, up to all that they
//! were made with. What lies between a guest's least and its most is shared out by `shares`: under pressure those give first that have
//! more than their share, and where there is plenty those get first that have less. A round changes little, since its effect on the
//! host shows only after it.
//!
//! ```text
//!   taken:  0 ─────────────────── 79 % ── 81 % ─────────── 100 %
//!           guests get more       nothing  guests give back
//! ```

use stead_model::Vmid;

/// A guest whose balloon is managed. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Which.
    pub vmid: Vmid,
    /// Its weight: more than 0.
    pub shares: u32,
    /// What it has in any case.
    pub least: u64,
    /// What it has at the most.
    pub most: u64,
    /// What it has now.
    pub now: u64,
}

impl Guest {
    fn room(&self) -> u64 {
        self.most.saturating_sub(self.least)
    }

    /// What it has beyond its least.
    fn beyond(&self) -> u64 {
        self.now.saturating_sub(self.least).min(self.room())
    }
}

/// Of the host's memory, in percent: what is to be taken.
const WANTED: u64 = 80;
/// A round changes at the most one part in so many of the host's memory.
const STEP: u64 = 50;
/// Less than one part in so many is left as it is.
const CALM: u64 = 100;

/// What each guest's balloon is to leave it from now on, of those for which that changes. `total` and `used`: the host's memory, in bytes.
pub fn targets(total: u64, used: u64, guests: &[Guest]) -> Vec<(Vmid, u64)> {
    let wanted = total / 100 * WANTED;
    if wanted.abs_diff(used) < total / CALM {
        return vec![];
    }
    let has: u64 = guests.iter().map(Guest::beyond).sum();
    let room: u64 = guests.iter().map(Guest::room).sum();
    let gives = used > wanted;
    let possible = if gives { has } else { room - has };
    let amount = wanted.abs_diff(used).min(total / STEP).min(possible);
    let fair = fair(guests, if gives { has - amount } else { has + amount });
    // Who has more than its share gives, or who has less gets, in proportion to how much that is: together exactly the amount, or,
    // rounded, a little less.
    let off: Vec<u64> = guests
        .iter()
        .zip(&fair)
        .map(
            |(g, fair)| {
                if gives { g.beyond().saturating_sub(*fair) } else { fair.saturating_sub(g.beyond()) }
            },
        )
        .collect();
    let all: u64 = off.iter().sum();
    let changed = guests.iter().zip(off).filter_map(|(guest, off)| {
        let part = share(amount, off, all);
        let beyond = if gives { guest.beyond() - part } else { guest.beyond() + part };
        (part > 0).then_some((guest.vmid, guest.least + beyond))
    });
    changed.collect()
}

/// `amount * part / whole`.
fn share(amount: u64, part: u64, whole: u64) -> u64 {
    let exact = u128::from(amount) * u128::from(part) / u128::from(whole.max(1));
    // It is at most `amount`, as long as the part is one of the whole.
    u64::try_from(exact).unwrap_or(amount)
}

/// What each would have beyond its least if `pool` were shared out by weight: nobody more than it has room for.
fn fair(guests: &[Guest], pool: u64) -> Vec<u64> {
    let mut given = vec![None; guests.len()];
    let mut left = pool;
    loop {
        let open = || guests.iter().zip(&given).enumerate().filter(|(_, (_, given))| given.is_none());
        let weight: u64 = open().map(|(_, (g, _))| u64::from(g.shares)).sum();
        let full = open().find(|(_, (g, _))| share(left, g.shares.into(), weight) >= g.room());
        let Some((at, (guest, _))) = full else {
            let of = |(guest, given): (&Guest, &Option<u64>)| {
                given.unwrap_or_else(|| share(left, guest.shares.into(), weight))
            };
            return guests.iter().zip(&given).map(of).collect();
        };
        let room = guest.room();
        given[at] = Some(room);
        left = left.saturating_sub(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    const HOST: u64 = 100 * GIB;

    fn guest(n: u32, shares: u32, least: u64, now: u64, most: u64) -> Guest {
        let vmid = Vmid::new(100 + n).unwrap();
        Guest { vmid, shares, least: least * GIB, now: now * GIB, most: most * GIB }
    }

    fn gib(found: &[(Vmid, u64)]) -> Vec<(u32, f64)> {
        found.iter().map(|(vmid, bytes)| (vmid.get() - 100, *bytes as f64 / GIB as f64)).collect()
    }

    #[test]
    fn a_host_under_pressure_gets_memory_back_and_gives_it_later() {
        let both = [guest(1, 1000, 2, 8, 8), guest(2, 1000, 2, 8, 8)];
        assert_eq!(gib(&targets(HOST, 80 * GIB, &both)), [], "as it is meant to be");
        assert_eq!(gib(&targets(HOST, 81 * GIB - 1, &both)), [], "that is little");
        assert_eq!(gib(&targets(HOST, 90 * GIB, &both)), [(1, 7.0), (2, 7.0)], "not all at once");
        assert_eq!(gib(&targets(HOST, 50 * GIB, &both)), [], "they have all");
        let squeezed = [guest(1, 1000, 2, 2, 8), guest(2, 1000, 2, 2, 8)];
        assert_eq!(gib(&targets(HOST, 99 * GIB, &squeezed)), [], "they have nothing to give");
        assert_eq!(gib(&targets(HOST, 50 * GIB, &squeezed)), [(1, 3.0), (2, 3.0)]);
        assert_eq!(gib(&targets(HOST, 50 * GIB, &[])), []);
    }

    #[test]
    fn who_has_fewer_shares_gives_first_and_gets_last() {
        let weighed = [guest(1, 3000, 2, 6, 8), guest(2, 1000, 2, 6, 8)];
        assert_eq!(gib(&targets(HOST, 99 * GIB, &weighed)), [(2, 4.0)]);
        let low = [guest(1, 3000, 2, 2, 8), guest(2, 1000, 2, 2, 8)];
        assert_eq!(gib(&targets(HOST, 9 * GIB, &low)), [(1, 3.5), (2, 2.5)]);
        // What one has no room for is the others'.
        let full = [guest(1, 3000, 2, 3, 3), guest(2, 1000, 2, 2, 8)];
        assert_eq!(gib(&targets(HOST, 9 * GIB, &full)), [(2, 4.0)]);
    }

    fn any_guest() -> impl Strategy<Value = (u32, u64, u64, u64)> {
        (1_u32..50_000, 0..20 * GIB, 0..20 * GIB, 0..50 * GIB)
    }

    proptest! {
        /// Nobody is left with less than its least or gets more than its most, all change in the one direction that the host needs,
        /// and by no more than that, and than a step.
        #[test]
        fn limits_hold(used in 0..HOST, all in proptest::collection::vec(any_guest(), 0..8)) {
            let guests: Vec<Guest> = (1..)
                .zip(all)
                .map(|(n, (shares, least, more, now))| Guest {
                    vmid: Vmid::new(100 + n).unwrap(), shares, least, most: least + more, now,
                })
                .collect();
            let (wanted, mut moved) = (80 * GIB, 0);
            for (vmid, target) in targets(HOST, used, &guests) {
                let guest = guests.iter().find(|g| g.vmid == vmid).unwrap();
                prop_assert!((guest.least..=guest.most).contains(&target));
                let now = guest.now.clamp(guest.least, guest.most);
                let right = if used > wanted { target < now } else { target > now };
                prop_assert!(right);
                moved += now.abs_diff(target);
            }
            prop_assert!(moved <= wanted.abs_diff(used).min(HOST / STEP));
        }

        /// Round by round the host comes to what is meant, or its guests to their limits.
        #[test]
        fn it_settles(others in 0..HOST, all in proptest::collection::vec(any_guest(), 1..5)) {
            let mut guests: Vec<Guest> = (1..)
                .zip(all)
                .map(|(n, (shares, least, more, _))| Guest {
                    vmid: Vmid::new(100 + n).unwrap(), shares, least, most: least + more, now: least + more,
                })
                .collect();
            let used = |guests: &[Guest]| others + guests.iter().map(|g| g.now).sum::<u64>();
            for _ in 0..400 {
                for (vmid, target) in targets(HOST, used(&guests), &guests) {
                    guests.iter_mut().find(|g| g.vmid == vmid).unwrap().now = target;
                }
            }
            let off = used(&guests).abs_diff(80 * GIB);
            let spent = guests.iter().all(|g| g.now <= g.least + 8);
            let full = guests.iter().all(|g| g.now + 8 >= g.most);
            prop_assert!(off <= HOST / CALM || spent || full, "{off} {guests:?}");
        }
    }
}
