//! `qemu-img`, for what only it can do to a qcow2 image.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

/// How long it may be at one image: a storage that hangs keeps no task for ever. What takes longest walks an image's whole
/// table of clusters.
const LIMIT: Duration = Duration::from_secs(1800);

/// Why `qemu-img` did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system is full.
    #[error("no space left")]
    Full,
    /// It could not be started.
    #[error("qemu-img could not be started ({0}): is the package qemu-utils installed?")]
    Start(std::io::Error),
    /// It took too long, and was ended.
    #[error("qemu-img did not end within {} s", LIMIT.as_secs())]
    Slow,
    /// It refused; its own words.
    #[error("qemu-img: {0}")]
    Refused(String),
}

/// Runs `qemu-img` with `args`. The process ends with the future that waits for it.
pub async fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<(), ImageError> {
    ask(args).await.map(drop)
}

/// As [`run`], for what it prints.
pub async fn ask<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Vec<u8>, ImageError> {
    let done = tokio::process::Command::new("qemu-img")
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, done).await.map_err(|_| ImageError::Slow)?;
    let output = output.map_err(ImageError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().trim_start_matches("qemu-img: ");
    if words.contains("No space left on device") || words.contains("Disk quota exceeded") {
        return Err(ImageError::Full);
    }
    Err(ImageError::Refused(words.chars().take(500).collect()))
}

/// The names of an image's snapshots, in the answer to `info --output=json`; none where that is no such answer.
pub fn snapshot_names(info: &[u8]) -> Option<Vec<String>> {
    let info: serde_json::Value = serde_json::from_slice(info).ok()?;
    info.get("format")?;
    let Some(all) = info.get("snapshots") else { return Some(vec![]) };
    all.as_array()?.iter().map(|s| Some(s.get("name")?.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_read_by_name() {
        let names = |text: &str| snapshot_names(text.as_bytes());
        assert_eq!(names(r#"{"format":"qcow2","virtual-size":1}"#), Some(vec![]));
        let two = r#"{"format":"qcow2","snapshots":[{"id":"1","name":"a"},{"id":"2","name":"b"}]}"#;
        assert_eq!(names(two), Some(vec!["a".to_owned(), "b".to_owned()]));
        for wrong in ["", "{}", r#"{"format":"qcow2","snapshots":[{}]}"#] {
            assert_eq!(names(wrong), None, "{wrong}");
        }
    }
}
