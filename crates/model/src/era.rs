//! Cluster epochs: the times in which one group of voters decides.
//!
//! A cluster begins its first epoch when it is founded. An operator's word that the majority is off begins the next, on the
//! one node that is left (`stead cluster expected 1`). What belongs to one epoch means nothing in another: frames, leases,
//! calls. Two survivors could each begin an epoch of the same number, so a random mark tells them apart.

use crate::NodeName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A cluster epoch; as text `2-00c0ffee00c0ffee`, the first one `1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Era {
    number: u64,
    mark: u64,
}

/// A text names no cluster epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no cluster epoch: it is a number, from 2 on with a mark of 16 hexadecimal digits: 2-00c0ffee00c0ffee"
)]
pub struct NoEra(pub String);

impl Era {
    /// The first epoch of every cluster.
    pub const FIRST: Self = Self { number: 1, mark: 0 };

    /// The epoch that follows; `random` makes it differ from any other that follows this one.
    #[must_use]
    pub fn next(self, random: u64) -> Self {
        Self { number: self.number + 1, mark: random.max(1) }
    }

    /// Its number, from 1 on.
    pub fn number(self) -> u64 {
        self.number
    }

    /// What tells it from others; 0 of the first.
    pub fn mark(self) -> u64 {
        self.mark
    }
}

impl Default for Era {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mark {
            0 => write!(f, "{}", self.number),
            mark => write!(f, "{}-{mark:016x}", self.number),
        }
    }
}

impl FromStr for Era {
    type Err = NoEra;

    fn from_str(text: &str) -> Result<Self, NoEra> {
        let wrong = || NoEra(text.to_owned());
        if text == "1" {
            return Ok(Self::FIRST);
        }
        let (number, mark) = text.split_once('-').ok_or_else(wrong)?;
        let era = Self {
            number: number.parse().map_err(|_| wrong())?,
            mark: u64::from_str_radix(mark, 16).map_err(|_| wrong())?,
        };
        // One epoch has one text.
        if era.number > 1 && era.mark > 0 && era.to_string() == text { Ok(era) } else { Err(wrong()) }
    }
}

impl Serialize for Era {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'a> Deserialize<'a> for Era {
    fn deserialize<D: serde::Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How an epoch began: by an operator's word on a survivor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The epoch that began.
    pub era: Era,
    /// The last revision of the epoch before that the survivor knew to be committed. What others have committed after it
    /// may be missing here.
    pub base: u64,
    /// The survivor.
    pub survivor: NodeName,
    /// Which nodes were said to be off.
    pub off: Vec<NodeName>,
    /// Who said so.
    pub by: String,
    /// When: milliseconds since 1970.
    pub at_ms: u64,
}

/// The epochs of a cluster after its first, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(pub Vec<Succession>);

impl Lineage {
    /// The present epoch.
    pub fn era(&self) -> Era {
        self.0.last().map_or(Era::FIRST, |s| s.era)
    }

    /// Whether there was none but the first.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the epoch that followed `era` began; none unless `era` is an epoch before the present one.
    pub fn after(&self, era: Era) -> Option<&Succession> {
        let place = match era {
            Era::FIRST => 0,
            era => self.0.iter().position(|s| s.era == era)? + 1,
        };
        self.0.get(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn began(era: Era, base: u64) -> Succession {
        let survivor: NodeName = "n1".parse().unwrap();
        Succession { era, base, survivor, off: vec![], by: "root@pam".into(), at_ms: 0 }
    }

    #[test]
    fn an_epoch_has_one_text() {
        for text in ["1", "2-00000000000000ff", "17-ffffffffffffffff"] {
            assert_eq!(text.parse::<Era>().unwrap().to_string(), text);
        }
        for text in
            ["", "0", "2", "1-00000000000000ff", "2-ff", "2-0000000000000000", "2-00000000000000FF", "x-1"]
        {
            assert!(text.parse::<Era>().is_err(), "{text}");
        }
        assert_ne!(Era::FIRST.next(0), Era::FIRST.next(7), "none is without a mark");
        assert_eq!(Era::FIRST.next(7).to_string(), "2-0000000000000007");
    }

    #[test]
    fn a_lineage_tells_ancestors_from_strangers() {
        let (second, other) = (Era::FIRST.next(5), Era::FIRST.next(6));
        let third = second.next(7);
        let line = Lineage(vec![began(second, 100), began(third, 200)]);
        assert_eq!(line.era(), third);
        assert_eq!(line.after(Era::FIRST).map(|s| s.base), Some(100));
        assert_eq!(line.after(second).map(|s| s.base), Some(200));
        assert_eq!(line.after(third), None, "the present one");
        assert_eq!(line.after(other), None, "begun by another survivor");
        assert_eq!(Lineage::default().after(Era::FIRST), None);
        assert_eq!(Lineage::default().era(), Era::FIRST);
    }
}
