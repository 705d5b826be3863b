//! The image of a volume over a stream, byte for byte: its holes are not sent, and whoever writes it says how that went.
//!
//! ```text
//!  source: (offset, length, bytes)… (size, 0) ──▶ target: writes it, syncs ──▶ `kept`, or why it is not
//! ```
//!
//! A target that can't go on says so at once, and its source stops then: it hears while it sends. What is still on its way is taken
//! for a while after that, since a connection that ends with bytes unread may take its last words along.

use crate::OpsError;
use crate::peers::Duplex;
use rustix::fs::SeekFrom;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes that are sent as one.
const PART: usize = 1 << 20;
/// How long a stream may take nothing of what is sent, and as long again for each GiB until it is said to be kept.
pub(super) const STALLED: Duration = Duration::from_secs(120);
/// Bytes at most that are heard of how it went.
const ANSWER: u64 = 64 << 10;
/// Parts that are read ahead.
const AHEAD: usize = 4;
/// Says that an image is on disk.
const KEPT: &str = "kept";
/// How long a side waits for the other once the stream is of no use any more: for why, or for its end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How fast an image is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Bytes a second at most.
    pub limit: Option<u64>,
    /// How long nothing may be taken: [`STALLED`].
    pub patience: Duration,
}

/// Sends the image at `path` over a stream, and hears that it is kept there; says how many bytes that was. `names`: what the volume is
/// called, and where it goes to, for people. `tell` hears once a second how many bytes were sent.
pub(super) async fn send_image(
    far: impl Duplex,
    path: &Path,
    names: (&str, &str),
    pace: Pace,
    mut tell: impl FnMut(u64),
) -> Result<u64, OpsError> {
    let (volume, to) = names;
    let lost = |e: Error| OpsError::failed(format!("the stream of '{volume}' to {to} broke: {e}"));
    let refused = |why: String| OpsError::failed(format!("{to} could not keep '{volume}': {why}"));
    let (hears, mut says) = tokio::io::split(far);
    let answer = async {
        let mut answer = String::new();
        // A few words, whoever it is.
        hears.take(ANSWER).read_to_string(&mut answer).await.map(|_| answer)
    };
    let mut answer = std::pin::pin!(answer);
    let (parts, mut read) = mpsc::channel(AHEAD);
    let reading = path.to_owned();
    let reader = tokio::task::spawn_blocking(move || read_parts(&reading, &parts));
    let (begun, mut sent, mut told) = (Instant::now(), 0_u64, Instant::now());
    while let Some((offset, part)) = read.recv().await {
        let write = in_time(pace.patience, write_part(&mut says, offset, &part));
        let written = tokio::select! {
            biased;
            early = &mut answer => return Err(ended_early(early).map_or_else(lost, refused)),
            written = write => written,
        };
        if let Err(e) = written {
            let why = in_time(LAST_WORDS, &mut answer).await;
            return Err(ended_early(why).map_or_else(|_| lost(e), refused));
        }
        sent += part.len() as u64;
        if let Some(limit) = pace.limit {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(sent as f64 / limit as f64)).await;
        }
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            tell(sent);
        }
    }
    let unread = |e: Error| OpsError::failed(format!("could not read '{}': {e}", path.display()));
    let size = reader.await.map_err(|e| OpsError::failed(e.to_string()))?.map_err(unread)?;
    // What was sent is written there first.
    let gib = u32::try_from(sent >> 30).unwrap_or(u32::MAX);
    let end = async {
        let written = write_part(&mut says, size, &[]).await;
        match answer.await {
            Ok(answer) if !answer.is_empty() => Ok(answer),
            heard => written.and(heard),
        }
    };
    match in_time(pace.patience.saturating_mul(gib.saturating_add(1)), end).await.map_err(lost)?.as_str() {
        KEPT => Ok(sent),
        "" => Err(lost(ErrorKind::UnexpectedEof.into())),
        why => Err(refused(why.to_owned())),
    }
}

/// One part; an empty one ends the image, and its offset is the image's size.
async fn write_part(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    offset: u64,
    part: &[u8],
) -> std::io::Result<()> {
    to.write_u64(offset).await?;
    to.write_u32(u32::try_from(part.len()).unwrap_or(u32::MAX)).await?;
    to.write_all(part).await?;
    if part.is_empty() { to.flush().await } else { Ok(()) }
}

/// Why a target takes no more, before it has all.
fn ended_early(answer: std::io::Result<String>) -> std::io::Result<String> {
    match answer?.as_str() {
        "" => Err(ErrorKind::UnexpectedEof.into()),
        KEPT => Err(Error::new(ErrorKind::InvalidData, "it was said to be kept before all of it was sent")),
        why => Ok(why.to_owned()),
    }
}

async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    let nothing =
        || Error::new(ErrorKind::TimedOut, format!("nothing was taken for {} s", patience.as_secs()));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(nothing()))
}

/// Takes an image from a stream and says how it went; `keep` writes it.
pub(super) async fn answered<D: Duplex, E: std::fmt::Display>(
    mut stream: D,
    keep: impl AsyncFnOnce(&mut D) -> Result<(), E>,
) -> Result<(), E> {
    let kept = keep(&mut stream).await;
    let answer = match &kept {
        Ok(()) => KEPT.to_owned(),
        Err(e) => e.to_string(),
    };
    // A source that does not hear it takes it for a failure.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    if kept.is_err() {
        let _ = tokio::time::timeout(LAST_WORDS, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    }
    kept
}

/// Reads a file without its holes. Its size.
fn read_parts(path: &Path, to: &mpsc::Sender<(u64, Vec<u8>)>) -> std::io::Result<u64> {
    let file = std::fs::File::open(path)?;
    let size = rustix::fs::seek(&file, SeekFrom::End(0))?;
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(at))?;
        while at < end {
            let mut part = vec![0; usize::try_from(end - at).unwrap_or(PART).min(PART)];
            let n = file.read_at(&mut part, at)?;
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            part.truncate(n);
            if to.blocking_send((at, part)).is_err() {
                // Nobody takes it any more, and says why.
                return Ok(size);
            }
            at += n as u64;
        }
    }
    Ok(size)
}

/// Writes what was sent over a file, to disk.
pub(super) async fn write_parts(path: &Path, from: &mut impl Duplex) -> std::io::Result<()> {
    let file = tokio::fs::File::options().write(true).truncate(true).open(path).await?;
    let file = std::sync::Arc::new(file.into_std().await);
    let mut part = Vec::with_capacity(PART);
    loop {
        let offset = from.read_u64().await?;
        let size = from.read_u32().await? as usize;
        if size > PART {
            return Err(Error::new(ErrorKind::InvalidData, "a part is too large"));
        }
        let file = file.clone();
        if size == 0 {
            let end = move || file.set_len(offset).and_then(|()| file.sync_all());
            return tokio::task::spawn_blocking(end).await.map_err(Error::other)?;
        }
        part.resize(size, 0);
        from.read_exact(&mut part).await?;
        let write = move || file.write_all_at(&part, offset).map(|()| part);
        part = tokio::task::spawn_blocking(write).await.map_err(Error::other)??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    const PACE: Pace = Pace { limit: None, patience: STALLED };
    const NAMES: (&str, &str) = ("local:100/a.raw", "node 'n2'");

    #[tokio::test]
    async fn a_file_goes_over_with_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|n| folder.path().join(n));
        let size: u64 = 64 << 20;
        let file = std::fs::File::create(&from).unwrap();
        for (at, byte) in [(0, 1_u8), (7 << 20, 2), (40 << 20, 3)] {
            file.write_all_at(&vec![byte; (2 << 20) + 5], at).unwrap();
        }
        file.set_len(size).unwrap();
        // What was there before is not there then.
        std::fs::write(&to, vec![9; 1 << 20]).unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let target = to.clone();
        let kept = tokio::spawn(answered(far, async move |far: &mut _| write_parts(&target, far).await));
        let sent = send_image(near, &from, NAMES, PACE, |_| ()).await.unwrap();
        kept.await.unwrap().unwrap();
        assert!((6 << 20..10 << 20).contains(&sent), "{sent}");
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 10 << 20, "its holes were filled");
        // Cut short, it is no volume.
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        near.write_u64(0).await.unwrap();
        near.write_u32(9).await.unwrap();
        drop(near);
        assert!(write_parts(&to, &mut far).await.is_err());
    }
    /// An image of 64 MiB, all data.
    fn large(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("large");
        std::fs::write(&path, vec![7; 64 << 20]).unwrap();
        path
    }

    #[tokio::test]
    async fn a_target_that_is_full_says_so_before_all_was_sent() {
        let folder = tempfile::tempdir().unwrap();
        let path = large(folder.path());
        let (near, far) = tokio::io::duplex(1 << 16);
        let taken = std::sync::Arc::new(AtomicU64::new(0));
        let counts = taken.clone();
        let keep = async move |far: &mut tokio::io::DuplexStream| {
            let mut some = vec![0; 3 << 20];
            far.read_exact(&mut some).await?;
            counts.store(some.len() as u64, Ordering::Relaxed);
            Err::<(), _>(Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()))
        };
        let kept = tokio::spawn(answered(far, keep));
        let e = send_image(near, &path, NAMES, PACE, |_| ()).await.unwrap_err().to_string();
        assert!(e.contains("node 'n2' could not keep 'local:100/a.raw': No space left"), "{e}");
        // It does not wait out its time: the source has gone.
        let ended = tokio::time::timeout(LAST_WORDS / 2, kept).await.unwrap().unwrap();
        assert!(ended.is_err() && taken.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test]
    async fn a_target_that_says_nothing_is_a_stream_that_broke() {
        let folder = tempfile::tempdir().unwrap();
        let path = large(folder.path());
        for word in ["", KEPT] {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let target = tokio::spawn(async move {
                far.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
                far.write_all(word.as_bytes()).await.unwrap();
            });
            let e = send_image(near, &path, NAMES, PACE, |_| ()).await.unwrap_err().to_string();
            assert!(e.starts_with("the stream of 'local:100/a.raw' to node 'n2' broke: "), "{e}");
            target.await.unwrap();
        }
    }
}
