//! When a certificate is to be made anew: pure, with the time as an argument.
//!
//! ```text
//!  begins                                       a third is left                     ends
//!    │────────────────── good ────────────────────────│──────── good, but due ────────│─── due
//!  ──┘ due: made by a clock that was ahead
//! ```
//!
//! A certificate that is made now begins a day ago and ends later than it is due, so what was just made is never due by the
//! same clock: nothing is made in a loop but by clocks that jump, which the caller slows down.

use std::time::Duration;

/// What a certificate says of its time, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// It is good from this second on.
    pub not_before: i64,
    /// It is good until this second.
    pub not_after: i64,
}

/// Why a certificate is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It begins later than now: it was made by a clock that was ahead, or this one is behind.
    NotBegun,
    /// Less than a third of its life is left.
    EndsSoon,
    /// It has ended.
    Ended,
}

impl std::fmt::Display for Due {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotBegun => "it has not begun yet",
            Self::EndsSoon => "less than a third of its time is left",
            Self::Ended => "it has ended",
        })
    }
}

/// Whether a certificate is to be made anew, by the time `now`, in seconds since 1970. `full` is how long one of its kind is
/// made for: a third of it is enough to be warned and to act, however long this one was made.
pub fn renewal_due(now: i64, is: Validity, full: Duration) -> Option<Due> {
    let Validity { not_before, not_after } = is;
    let full = i64::try_from(full.as_secs()).unwrap_or(i64::MAX);
    // One that ends before it begins was never good.
    let life = not_after.saturating_sub(not_before).clamp(0, full);
    if now >= not_after {
        Some(Due::Ended)
    } else if now < not_before {
        Some(Due::NotBegun)
    } else if not_after.saturating_sub(now) < life / 3 {
        Some(Due::EndsSoon)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const FULL: Duration = Duration::from_secs(900 * 86_400);

    fn due(now: i64) -> Option<Due> {
        renewal_due(now * DAY, Validity { not_before: 100 * DAY, not_after: 1000 * DAY }, FULL)
    }

    #[test]
    fn it_is_due_when_less_than_a_third_is_left() {
        assert_eq!((due(100), due(500), due(700)), (None, None, None));
        let is = Validity { not_before: 100 * DAY, not_after: 1000 * DAY };
        assert_eq!(renewal_due(700 * DAY + 1, is, FULL), Some(Due::EndsSoon));
        assert_eq!(renewal_due(1000 * DAY - 1, is, FULL), Some(Due::EndsSoon));
        assert_eq!((due(1000), due(100_000)), (Some(Due::Ended), Some(Due::Ended)));
        assert_eq!(renewal_due(100 * DAY - 1, is, FULL), Some(Due::NotBegun));
        assert_eq!(due(-1), Some(Due::NotBegun), "a clock before 1970");
    }

    #[test]
    fn one_that_is_longer_or_shorter_than_its_kind_is_due_by_its_kind_or_its_own_life() {
        let long = Validity { not_before: 0, not_after: 9000 * DAY };
        assert_eq!(renewal_due(8700 * DAY, long, FULL), None);
        assert_eq!(renewal_due(8700 * DAY + 1, long, FULL), Some(Due::EndsSoon));
        let short = Validity { not_before: 0, not_after: 30 * DAY };
        assert_eq!(renewal_due(20 * DAY, short, FULL), None);
        assert_eq!(renewal_due(20 * DAY + 1, short, FULL), Some(Due::EndsSoon));
        let never = Validity { not_before: 10, not_after: 5 };
        assert_eq!([0, 4, 5, 10].map(|now| renewal_due(now, never, FULL).is_some()), [true; 4]);
        for now in [i64::MIN, i64::MAX] {
            let all = Validity { not_before: i64::MIN, not_after: i64::MAX };
            assert_eq!(renewal_due(now, all, FULL).is_some(), now == i64::MAX);
        }
    }

    /// What is made at any moment is good and not due at that moment, nor a hundred days later: whatever the clock says, one
    /// that stands still or goes on makes nothing in a loop.
    #[test]
    fn what_was_just_made_is_not_due() {
        let full = i64::try_from(FULL.as_secs()).unwrap();
        for now in [-50_000, 0, 20_000, 40_000, 70_000].map(|d: i64| d * DAY) {
            let made = Validity { not_before: now - DAY, not_after: now + full };
            for later in [0, 1, DAY, 100 * DAY] {
                assert_eq!(renewal_due(now + later, made, FULL), None, "{now} {later}");
            }
        }
    }
}
