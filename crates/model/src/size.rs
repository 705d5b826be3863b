//! Sizes as Proxmox VE writes them: `32G`, `512M`, `1.5T`, or plain bytes.

use crate::IdError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// A size in bytes. Units are powers of 1024.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

impl Size {
    /// A number of bytes.
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }

    /// A number of MiB; more than fit are as many as fit.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// A number of GiB; more than fit are as many as fit.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads a number without unit, with an optional fraction, in GiB: what follows the colon in `local:32`.
    ///
    /// # Errors
    /// If it is no such number or does not fit 64 bits of bytes.
    pub fn from_gib(text: &str) -> Result<Self, IdError> {
        scaled(text, text, 30)
    }

    /// Reads a new size given as such or, with a leading `+`, as growth of `old`.
    ///
    /// # Errors
    /// If it is no size or the sum does not fit.
    pub fn resized(old: Self, text: &str) -> Result<Self, IdError> {
        match text.strip_prefix('+') {
            None => text.parse(),
            Some(more) => {
                let more: Self = more.parse()?;
                old.0.checked_add(more.0).map(Self).ok_or_else(|| wrong(text, "it is too large"))
            }
        }
    }
}

fn wrong(text: &str, why: &'static str) -> IdError {
    IdError { what: "size", text: text.to_owned(), why }
}

/// `digits[.digits]` times two to the power `shift`, rounded down to a byte.
fn scaled(text: &str, number: &str, shift: u32) -> Result<Size, IdError> {
    const SHAPE: &str = "it must be a number with an optional unit K, M, G or T";
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return Err(wrong(text, SHAPE)),
        Some(parts) => parts,
        None => (number, ""),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return Err(wrong(text, SHAPE));
    }
    let whole: u64 = whole.parse().map_err(|_| wrong(text, "it is too large"))?;
    let mut bytes = u128::from(whole) << shift;
    if !fraction.is_empty() {
        // At most 18 digits: neither the number nor its product with 2^40 overflows 128 bits.
        let part: u128 = fraction.parse().map_err(|_| wrong(text, SHAPE))?;
        let ten: u128 = fraction.bytes().fold(1, |n, _| n * 10);
        bytes += (part << shift) / ten;
    }
    u64::try_from(bytes).map(Size).map_err(|_| wrong(text, "it is too large"))
}

impl FromStr for Size {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        for (unit, shift) in UNITS {
            if let Some(number) = s.strip_suffix(unit) {
                return scaled(s, number, shift);
            }
        }
        scaled(s, s, 0)
    }
}

impl fmt::Display for Size {
    /// The largest unit that leaves a whole number; bytes carry none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS.iter().rev() {
            if self.0 != 0 && self.0.trailing_zeros() >= *shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl TryFrom<String> for Size {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}

impl From<Size> for String {
    fn from(v: Size) -> String {
        v.to_string()
    }
}

/// Memory in MiB, the unit of `memory` and `balloon`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mebibytes(pub u64);

impl Mebibytes {
    /// In bytes; more than fit are as many as fit.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_print_in_their_largest_whole_unit() {
        for (text, bytes, printed) in [
            ("32G", 32 << 30, "32G"),
            ("1024M", 1 << 30, "1G"),
            ("1.5G", 3 << 29, "1536M"),
            ("528K", 528 << 10, "528K"),
            ("1000", 1000, "1000"),
            ("0", 0, "0"),
            ("2T", 2 << 40, "2T"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, printed), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for wrong in ["", "G", "-1G", "1.G", ".5G", "1,5G", "4g", "1 G", "99999999999T", "0x10"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plus_grows() {
        assert_eq!(Size::resized(Size::gib(4), "+512M").unwrap().to_string(), "4608M");
        assert_eq!(Size::resized(Size::gib(4), "8G").unwrap(), Size::gib(8));
        assert!(Size::resized(Size::bytes(u64::MAX), "+1").is_err());
        assert_eq!(Size::from_gib("0.5").unwrap(), Size::mib(512));
    }

    proptest! {
        #[test]
        fn a_size_reads_as_it_prints(n in any::<u64>(), shift in 0..40u32) {
            let size = Size::bytes(n >> shift << shift);
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
    }
}
