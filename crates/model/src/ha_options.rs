//! The options of HA in `datacenter.cfg`: what a node that is shut down does with its services (`ha:`), and how
//! services are spread over nodes (`crs:`).

use crate::ha_cfg::HaCfgError;
use crate::property::PropertyString;
use crate::text::parse_bool;
use serde::{Deserialize, Serialize};
use std::fmt;

fn refuse<T>(key: &str, why: impl fmt::Display) -> Result<T, HaCfgError> {
    Err(HaCfgError::Option { key: key.to_owned(), why: why.to_string() })
}

/// What happens to the services of a node that is shut down or rebooted on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownPolicy {
    /// They are stopped, and wait for the node.
    Freeze,
    /// They are stopped, and started on other nodes if the node is not back at once.
    Failover,
    /// They are moved to other nodes before the node goes down, and come back with it.
    Migrate,
    /// As `Freeze` for a reboot, as `Failover` for a shutdown.
    #[default]
    Conditional,
}

impl ShutdownPolicy {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Failover => "failover",
            Self::Migrate => "migrate",
            Self::Conditional => "conditional",
        }
    }
}

/// By what services are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrsMode {
    /// By their number.
    #[default]
    Basic,
    /// By the CPUs and the memory that they are configured with.
    Static,
    /// By what they use now.
    Dynamic,
}

/// How the best move is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BalanceMethod {
    /// The one that leaves the least imbalance.
    #[default]
    Bruteforce,
    /// The one that lies nearest to the best in several respects at once (imbalance, load of the target in CPU and memory).
    Topsis,
}

/// Automatic rebalancing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AutoRebalance {
    /// The imbalance from which it acts: the coefficient of variation of the nodes' loads, 0.3 by default.
    pub threshold: f64,
    /// How many rounds the imbalance must last. 3 by default.
    pub hold: f64,
    /// The part of the imbalance that a move must take away, 0.1 by default.
    pub margin: f64,
    /// How the move is chosen.
    pub method: BalanceMethod,
}

impl Default for AutoRebalance {
    fn default() -> Self {
        Self { threshold: 0.3, hold: 3.0, margin: 0.1, method: BalanceMethod::default() }
    }
}

/// `crs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CrsOptions {
    /// By what services are spread.
    pub mode: CrsMode,
    /// A service that is to be started may be started elsewhere, where there is more room.
    pub rebalance_on_start: bool,
    /// Whether running services are moved to even out the load.
    pub auto: Option<AutoRebalance>,
}

/// What happens to a service whose node has lost a storage of its disks, though the node itself is well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageLossPolicy {
    /// It is stopped there and started on a node that has the storage.
    Move,
    /// It stays, and its reason says why.
    #[default]
    Report,
}

/// `ha: storage_loss=,storage_loss_hold=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageLossOptions {
    /// What happens.
    pub policy: StorageLossPolicy,
    /// For how long the storage must have been lost before a service is moved: seconds, 10 to 3600, 30 by default.
    pub hold: u64,
}

impl Default for StorageLossOptions {
    fn default() -> Self {
        Self { policy: StorageLossPolicy::default(), hold: 30 }
    }
}

/// All of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct HaOptions {
    /// `ha: shutdown_policy=`.
    pub shutdown_policy: ShutdownPolicy,
    /// `ha: storage_loss=`.
    pub storage_loss: StorageLossOptions,
    /// `crs`.
    pub crs: CrsOptions,
}

impl HaOptions {
    /// Reads the values of `ha` and `crs` in `datacenter.cfg`; without one, the defaults hold.
    ///
    /// # Errors
    /// If a property is unknown or its value wrong.
    pub fn parse(ha: Option<&str>, crs: Option<&str>) -> Result<Self, HaCfgError> {
        let (shutdown_policy, storage_loss) = ha.map_or(Ok(Default::default()), ha_options)?;
        let crs = crs.map_or(Ok(CrsOptions::default()), crs_options)?;
        Ok(Self { shutdown_policy, storage_loss, crs })
    }
}

fn properties(key: &str, text: &str) -> Result<PropertyString, HaCfgError> {
    text.parse().or_else(|e| refuse(key, e))
}

/// `shutdown_policy=WORD,storage_loss=WORD,storage_loss_hold=SECONDS`.
///
/// # Errors
/// If a property is unknown or its value wrong.
pub fn ha_options(text: &str) -> Result<(ShutdownPolicy, StorageLossOptions), HaCfgError> {
    let (mut shutdown, mut loss) = (ShutdownPolicy::default(), StorageLossOptions::default());
    for (key, value) in properties("ha", text)?.iter() {
        match key {
            Some("shutdown_policy") => shutdown = shutdown_policy(value)?,
            Some("storage_loss") => loss.policy = storage_loss(value)?,
            Some("storage_loss_hold") => loss.hold = hold(value)?,
            Some(other) => return refuse("ha", format_args!("there is no property '{other}'")),
            None => return refuse("ha", format_args!("'{value}' has no name")),
        }
    }
    Ok((shutdown, loss))
}

fn shutdown_policy(value: &str) -> Result<ShutdownPolicy, HaCfgError> {
    match value {
        "freeze" => Ok(ShutdownPolicy::Freeze),
        "failover" => Ok(ShutdownPolicy::Failover),
        "migrate" => Ok(ShutdownPolicy::Migrate),
        "conditional" => Ok(ShutdownPolicy::Conditional),
        _ => refuse(
            "ha",
            format_args!(
                "shutdown_policy: value '{value}' is not one of freeze, failover, conditional, migrate"
            ),
        ),
    }
}

fn storage_loss(value: &str) -> Result<StorageLossPolicy, HaCfgError> {
    match value {
        "move" => Ok(StorageLossPolicy::Move),
        "report" => Ok(StorageLossPolicy::Report),
        _ => refuse("ha", format_args!("storage_loss: value '{value}' is not one of move, report")),
    }
}

fn hold(value: &str) -> Result<u64, HaCfgError> {
    match value.parse() {
        Ok(seconds) if (10..=3600).contains(&seconds) => Ok(seconds),
        _ => {
            refuse("ha", format_args!("storage_loss_hold: value must be a number of seconds from 10 to 3600"))
        }
    }
}

/// `ha=static,ha-rebalance-on-start=1,...`.
///
/// # Errors
/// If a property is unknown or its value wrong.
pub fn crs_options(text: &str) -> Result<CrsOptions, HaCfgError> {
    let (mut options, mut auto, mut automatic) = (CrsOptions::default(), AutoRebalance::default(), false);
    for (key, value) in properties("crs", text)?.iter() {
        let percent = |max: f64| number(key.unwrap_or_default(), value, max);
        match key {
            Some("ha") => options.mode = mode(value)?,
            Some("ha-rebalance-on-start") => {
                options.rebalance_on_start = flag("ha-rebalance-on-start", value)?;
            }
            Some("ha-auto-rebalance") => automatic = flag("ha-auto-rebalance", value)?,
            Some("ha-auto-rebalance-threshold") => auto.threshold = percent(100.0)? / 100.0,
            Some("ha-auto-rebalance-margin") => auto.margin = percent(100.0)? / 100.0,
            Some("ha-auto-rebalance-hold-duration") => auto.hold = percent(f64::MAX)?,
            Some("ha-auto-rebalance-method") => auto.method = method(value)?,
            Some(other) => return refuse("crs", format_args!("there is no property '{other}'")),
            None => return refuse("crs", format_args!("'{value}' has no name")),
        }
    }
    options.auto = automatic.then_some(auto);
    Ok(options)
}

fn mode(value: &str) -> Result<CrsMode, HaCfgError> {
    match value {
        "basic" => Ok(CrsMode::Basic),
        "static" => Ok(CrsMode::Static),
        "dynamic" => Ok(CrsMode::Dynamic),
        _ => refuse("crs", format_args!("ha: value '{value}' is not one of basic, static, dynamic")),
    }
}

fn method(value: &str) -> Result<BalanceMethod, HaCfgError> {
    match value {
        "bruteforce" => Ok(BalanceMethod::Bruteforce),
        "topsis" => Ok(BalanceMethod::Topsis),
        _ => refuse(
            "crs",
            format_args!("ha-auto-rebalance-method: value '{value}' is not one of bruteforce, topsis"),
        ),
    }
}

fn flag(key: &str, value: &str) -> Result<bool, HaCfgError> {
    match parse_bool(value) {
        Some(on) => Ok(on),
        None => refuse("crs", format_args!("{key}: value must be a boolean (1 or 0)")),
    }
}

fn number(key: &str, value: &str, max: f64) -> Result<f64, HaCfgError> {
    match value.parse::<f64>() {
        Ok(n) if n.is_finite() && (0.0..=max).contains(&n) => Ok(n),
        _ if max < f64::MAX => refuse("crs", format_args!("{key}: value must be a number from 0 to {max}")),
        _ => refuse("crs", format_args!("{key}: value must be a number of at least 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_their_defaults() {
        assert_eq!(HaOptions::parse(None, None).unwrap(), HaOptions::default());
        let options = HaOptions::parse(Some("shutdown_policy=migrate"), Some("ha=static")).unwrap();
        assert_eq!(options.shutdown_policy, ShutdownPolicy::Migrate);
        assert_eq!((options.crs.mode, options.crs.auto), (CrsMode::Static, None));
    }

    #[test]
    fn percentages_and_rounds() {
        let text = "ha=dynamic,ha-auto-rebalance=1,ha-auto-rebalance-threshold=20,ha-auto-rebalance-margin=5,\
                    ha-auto-rebalance-hold-duration=6,ha-auto-rebalance-method=topsis,ha-rebalance-on-start=1";
        let options = crs_options(text).unwrap();
        let auto = options.auto.unwrap();
        assert!((auto.threshold - 0.2).abs() < 1e-9 && (auto.margin - 0.05).abs() < 1e-9);
        assert!((auto.hold - 6.0).abs() < 1e-9 && options.rebalance_on_start);
        assert_eq!(auto.method, BalanceMethod::Topsis);
        assert_eq!(crs_options("ha=static,ha-auto-rebalance-margin=5").unwrap().auto, None);
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, why) in [
            ("ha=best", "crs: ha: value 'best' is not one of basic, static, dynamic"),
            (
                "ha-auto-rebalance-margin=101",
                "crs: ha-auto-rebalance-margin: value must be a number from 0 to 100",
            ),
            ("ha-rebalance=1", "crs: there is no property 'ha-rebalance'"),
            ("static", "crs: 'static' has no name"),
        ] {
            assert_eq!(crs_options(text).unwrap_err().to_string(), why);
        }
        assert!(ha_options("shutdown_policy=never").is_err());
        for (text, why) in [
            ("storage_loss=stop", "ha: storage_loss: value 'stop' is not one of move, report"),
            (
                "storage_loss_hold=9",
                "ha: storage_loss_hold: value must be a number of seconds from 10 to 3600",
            ),
        ] {
            assert_eq!(ha_options(text).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn what_a_lost_storage_means_is_settable() {
        let of = |text| ha_options(text).unwrap();
        let (policy, loss) = of("shutdown_policy=migrate");
        assert_eq!((policy, loss), (ShutdownPolicy::Migrate, StorageLossOptions::default()));
        let (policy, loss) = of("storage_loss=report,storage_loss_hold=60");
        assert_eq!(policy, ShutdownPolicy::Conditional);
        assert_eq!(loss, StorageLossOptions { policy: StorageLossPolicy::Report, hold: 60 });
    }
}
