//! Skips that have a name.

/// Whether every skip is a failure (`STEAD_STRICT=1`), as in CI.
pub fn strict() -> bool {
    std::env::var_os("STEAD_STRICT").is_some_and(|v| v == "1")
}

/// Whether this process is root's; namespaces, mounts and taps need it.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Leaves a test that cannot be done here, saying why; under `STEAD_STRICT=1` the test fails instead.
///
/// ```no_run
/// fn a_test_that_cuts_networks() {
///     if !stead_testbed::skip::is_root() {
///         stead_testbed::skip!("needs root for network namespaces");
///     }
/// }
/// ```
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        let why = format!($($why)+);
        assert!(!$crate::skip::strict(), "skipped although STEAD_STRICT=1: {why}");
        eprintln!("SKIP {}: {why}", std::thread::current().name().unwrap_or("test"));
        return;
    }};
}
