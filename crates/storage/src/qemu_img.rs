//! `qemu-img`, for what only it can do to a qcow2 image.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;

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
    Err(refused(&output.stderr))
}

fn refused(words: &[u8]) -> ImageError {
    let words = String::from_utf8_lossy(words);
    let words = words.trim().trim_start_matches("qemu-img: ");
    if words.contains("No space left on device") || words.contains("Disk quota exceeded") {
        return ImageError::Full;
    }
    ImageError::Refused(words.chars().take(500).collect())
}

/// Runs `qemu-img` with `args`, which have it tell how far it is, for as long as it takes. The process ends with the future that
/// waits for it.
pub async fn follow(
    args: impl IntoIterator<Item = OsString>,
    watch: &(dyn Fn(f64) + Send + Sync),
) -> Result<(), ImageError> {
    let mut child = tokio::process::Command::new("qemu-img")
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(ImageError::Start)?;
    let (mut told, mut errors) = (child.stdout.take(), child.stderr.take());
    let tell = async {
        let Some(told) = told.as_mut() else { return };
        let (mut bytes, mut line) = ([0; 256], vec![]);
        while let Ok(n @ 1..) = told.read(&mut bytes).await {
            for byte in &bytes[..n] {
                match byte {
                    b'\r' | b'\n' => {
                        if let Some(share) = share_of(&line) {
                            watch(share);
                        }
                        line.clear();
                    }
                    byte if line.len() < 64 => line.push(*byte),
                    _ => {}
                }
            }
        }
    };
    let mut words = vec![];
    let hear = async {
        if let Some(errors) = errors.as_mut() {
            // What cannot be read is not told; the exit code counts.
            let _ = errors.take(64 << 10).read_to_end(&mut words).await;
        }
    };
    let ((), (), ended) = tokio::join!(tell, hear, child.wait());
    if ended.map_err(ImageError::Start)?.success() { Ok(()) } else { Err(refused(&words)) }
}

/// Reads `    (12.50/100%)`.
fn share_of(line: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let percent: f64 = text.strip_prefix('(')?.strip_suffix("/100%)")?.parse().ok()?;
    Some(percent / 100.0)
}

/// What an image that somebody has brought refers to beside its own file, in the answer to `info --output=json`; an error where that
/// can't be told.
pub fn check_alone(info: &[u8]) -> Result<(), String> {
    let info: serde_json::Value =
        serde_json::from_slice(info).map_err(|_| "qemu-img's answer makes no sense".to_owned())?;
    let data = &info["format-specific"]["data"];
    if info.get("backing-filename").is_some() || info.get("full-backing-filename").is_some() {
        return Err("it is built on another image: flatten it first ('qemu-img convert')".to_owned());
    }
    if data.get("data-file").is_some() {
        return Err("it keeps its data in another file: convert it first ('qemu-img convert')".to_owned());
    }
    match (info["format"].as_str(), data["create-type"].as_str()) {
        (Some("vmdk"), Some("monolithicSparse" | "streamOptimized")) | (Some("raw" | "qcow2"), _) => Ok(()),
        (Some("vmdk"), kind) => Err(format!(
            "it is a VMDK of type '{}', which names other files: convert it first ('qemu-img convert')",
            kind.unwrap_or("unknown")
        )),
        (other, _) => Err(format!("it is of format '{}'", other.unwrap_or("unknown"))),
    }
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
    fn how_far_it_is() {
        assert_eq!(share_of(b"    (12.50/100%)"), Some(0.125));
        assert_eq!(share_of(b"(100.00/100%)"), Some(1.0));
        for other in ["", "12.50", "(x/100%)"] {
            assert_eq!(share_of(other.as_bytes()), None);
        }
    }

    #[test]
    fn what_names_other_files_is_not_alone() {
        let check = |text: &str| check_alone(text.as_bytes());
        assert_eq!(check(r#"{"format":"qcow2","format-specific":{"data":{"compat":"1.1"}}}"#), Ok(()));
        assert_eq!(
            check(r#"{"format":"vmdk","format-specific":{"data":{"create-type":"streamOptimized"}}}"#),
            Ok(())
        );
        for wrong in [
            r#"{"format":"qcow2","backing-filename":"/etc/shadow"}"#,
            r#"{"format":"qcow2","format-specific":{"data":{"data-file":"/etc/shadow"}}}"#,
            r#"{"format":"vmdk","format-specific":{"data":{"create-type":"monolithicFlat"}}}"#,
            r#"{"format":"vmdk"}"#,
            "{}",
            "",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

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
