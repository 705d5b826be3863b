//! How much a guest may read from and write to a disk.

use super::devices::named;
use super::keys::KeyError;
use crate::property::PropertyString;

/// The largest rate, in bytes or operations a second, and the most in one burst: QEMU's `THROTTLE_VALUE_MAX`.
const MOST: u64 = 1_000_000_000_000_000;

/// Limits of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second.
    pub bytes: Rates,
    /// Operations a second.
    pub operations: Rates,
}

/// Rates of one kind: one for all, or one for each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of reading and writing together.
    pub total: Rate,
    /// Of reading.
    pub read: Rate,
    /// Of writing.
    pub write: Rate,
}

/// One limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// The rate that is kept in the long run; 0: none.
    pub sustained: u64,
    /// The rate of bursts; 0: as QEMU chooses, a tenth of a second's worth.
    pub burst: u64,
    /// For how many seconds a burst may go on; 0: 1.
    pub burst_seconds: u64,
}

/// Names of the properties of one rate.
struct Names {
    /// In MiB, where the rate is one of bytes.
    mib: Option<[&'static str; 2]>,
    /// In bytes or operations: sustained, and burst where there is a name for it.
    plain: (&'static str, Option<&'static str>),
    seconds: [&'static str; 2],
}

const BYTES: [Names; 3] = [
    Names {
        mib: Some(["mbps", "mbps_max"]),
        plain: ("bps", None),
        seconds: ["bps_max_length", "bps_max_length"],
    },
    Names {
        mib: Some(["mbps_rd", "mbps_rd_max"]),
        plain: ("bps_rd", None),
        seconds: ["bps_rd_max_length", "bps_rd_length"],
    },
    Names {
        mib: Some(["mbps_wr", "mbps_wr_max"]),
        plain: ("bps_wr", None),
        seconds: ["bps_wr_max_length", "bps_wr_length"],
    },
];
const OPERATIONS: [Names; 3] = [
    Names { mib: None, plain: ("iops", Some("iops_max")), seconds: ["iops_max_length", "iops_max_length"] },
    Names {
        mib: None,
        plain: ("iops_rd", Some("iops_rd_max")),
        seconds: ["iops_rd_max_length", "iops_rd_length"],
    },
    Names {
        mib: None,
        plain: ("iops_wr", Some("iops_wr_max")),
        seconds: ["iops_wr_max_length", "iops_wr_length"],
    },
];

impl Limits {
    /// Whether there is no limit.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn parse(key: &str, props: &PropertyString) -> Result<Self, KeyError> {
        Ok(Self { bytes: rates(key, props, &BYTES)?, operations: rates(key, props, &OPERATIONS)? })
    }
}

fn rates(key: &str, props: &PropertyString, names: &[Names; 3]) -> Result<Rates, KeyError> {
    let [total, read, write] =
        [rate(key, props, &names[0])?, rate(key, props, &names[1])?, rate(key, props, &names[2])?];
    if total.sustained > 0 && (read.sustained > 0 || write.sustained > 0) {
        let [all, one] = [&names[0], &names[1]].map(|n| n.mib.map_or(n.plain.0, |mib| mib[0]));
        return KeyError::value(
            key,
            format_args!(
                "{all}: there is a limit for both directions together, or one for each as '{one}': not both"
            ),
        );
    }
    Ok(Rates { total, read, write })
}

fn rate(key: &str, props: &PropertyString, names: &Names) -> Result<Rate, KeyError> {
    let whole = |name: &str, min: u64| match props.get(name) {
        Some(text) => named(key, name, |key| super::check::integer(key, text, min, MOST)),
        None => Ok(0),
    };
    let mib = |at: usize| match names.mib.and_then(|mib| Some((mib[at], props.get(mib[at])?))) {
        Some((name, text)) => match text.parse::<f64>() {
            // In range, and what is lost is less than a byte.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Ok(n) if (0.0..=1e9).contains(&n) => Ok((n * 1_048_576.0) as u64),
            _ => KeyError::value(key, format_args!("{name}: '{text}' is not a number of 0 to 1000000000")),
        },
        None => Ok(0),
    };
    let plain = whole(names.plain.0, 0)?;
    let sustained = match mib(0)? {
        0 => plain,
        bytes => bytes,
    };
    let burst = match names.plain.1 {
        Some(name) => whole(name, 0)?,
        None => mib(1)?,
    };
    let seconds = match whole(names.seconds[0], 1)? {
        0 => whole(names.seconds[1], 1)?,
        seconds => seconds,
    };
    let of = |at: usize| match (names.mib, at) {
        (Some(mib), _) => mib[at],
        (None, 0) => names.plain.0,
        (None, _) => names.plain.1.unwrap_or(names.plain.0),
    };
    if sustained > MOST {
        return KeyError::value(key, format_args!("{}: value is too large", of(0)));
    }
    if burst > 0 && burst < sustained.max(1) {
        let why = "a burst is no slower than what is kept in the long run";
        return KeyError::value(
            key,
            format_args!("{}: value must not be less than '{}': {why}", of(1), of(0)),
        );
    }
    if burst > 0 && sustained == 0 {
        return KeyError::value(
            key,
            format_args!("{}: there is no limit '{}' that it exceeds", of(1), of(0)),
        );
    }
    if seconds > 0 && burst == 0 {
        return KeyError::value(key, format_args!("{}: there is no burst '{}'", names.seconds[0], of(1)));
    }
    if burst.saturating_mul(seconds.max(1)) > MOST {
        return KeyError::value(key, format_args!("{}: a burst of that length is too large", of(1)));
    }
    Ok(Rate { sustained, burst, burst_seconds: seconds })
}
