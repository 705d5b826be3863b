//! `qemu-img`, for what only it can do to a qcow2 image.

use std::ffi::OsStr;
use std::process::Stdio;

/// Why `qemu-img` did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system is full.
    #[error("no space left")]
    Full,
    /// It could not be started.
    #[error("qemu-img could not be started ({0}): is the package qemu-utils installed?")]
    Start(std::io::Error),
    /// It refused; its own words.
    #[error("qemu-img: {0}")]
    Refused(String),
}

/// Runs `qemu-img` with `args`. The process ends with the future that waits for it.
pub async fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<(), ImageError> {
    let output = tokio::process::Command::new("qemu-img")
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(ImageError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().trim_start_matches("qemu-img: ");
    if words.contains("No space left on device") || words.contains("Disk quota exceeded") {
        return Err(ImageError::Full);
    }
    Err(ImageError::Refused(words.chars().take(500).collect()))
}
