//! From a request's body to parameters and files, under limits: whoever sends too much, or too slowly, is refused while
//! the body is read.

use super::endpoint::{Error, Handler};
use super::params::Raw;
use super::router::read_form;
use super::{Body, BoxError, Call, Services, Spooled};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyDataStream;
use multer::{Field, Multipart};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

/// How large the parameters of one request may be, in bytes, with all that is around them. Files have no limit.
pub const LIMIT: usize = 2 << 20;
/// The same for whoever has not signed in: a name and a password fit well.
pub const STRANGER: usize = 64 << 10;
/// How many parameters one request may have.
const COUNT: usize = 1024;
/// How long parameters may take to arrive.
const TIME: Duration = Duration::from_secs(30);
/// A file that arrives slower than [`LEAST`] bytes in this time is not waited for. Only waiting for the client counts.
const WINDOW: Duration = Duration::from_secs(30);
const LEAST: usize = 64 << 10;
/// How much of an upload may arrive before it makes sense as the head of a part or as a piece of one, in bytes.
const HEAD: usize = 1 << 20;
/// How long the rest of a refused upload is read and thrown away, so that the answer reaches a client that is sending.
const DRAIN: Duration = Duration::from_secs(2);

/// The part that carries a file.
const FILE_PART: &str = "filename";

/// Why a body is not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("the request's parameters are too large")]
    TooLarge,
    #[error("the request's body arrives too slowly")]
    TooSlow,
}

impl Stop {
    fn error(self) -> Error {
        Error::new(if self == Self::TooLarge { 413 } else { 408 }, self.to_string())
    }
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::new(400, format!("the request's body could not be read: {e}"))
}

fn unread(e: &BoxError) -> Error {
    e.downcast_ref::<Stop>().map_or_else(|| broken(e), |stop| stop.error())
}

fn unparted(e: multer::Error) -> Error {
    match e {
        multer::Error::StreamReadFailed(e) => unread(&e),
        other => broken(other),
    }
}

/// How many bytes may still come; set anew by whoever reads.
type Left = Arc<AtomicUsize>;

/// A body's bytes, as long as there are not more than are left and they do not come too slowly.
fn guarded(
    body: Body,
    left: Left,
    window: Duration,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let begin = (BodyDataStream::new(body), left, Duration::ZERO, 0);
    stream::unfold(begin, move |(mut data, left, mut waited, mut came)| async move {
        let from = Instant::now();
        let Ok(next) = timeout(window.saturating_sub(waited), data.next()).await else {
            return Some((Err(Stop::TooSlow.into()), (data, left, waited, came)));
        };
        let next = next?.and_then(|chunk: Bytes| {
            waited += from.elapsed();
            came += chunk.len();
            if came >= LEAST {
                (waited, came) = (Duration::ZERO, 0);
            }
            let take = |left: usize| left.checked_sub(chunk.len());
            match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                Ok(_) => Ok(chunk),
                Err(_) => Err(Stop::TooLarge.into()),
            }
        });
        Some((next, (data, left, waited, came)))
    })
}

/// Reads parameters from a body of any kind that clients send: `limit` bytes in all. No body gives none.
pub async fn read_params(headers: &HeaderMap, body: Body, raw: &mut Raw, limit: usize) -> Result<(), Error> {
    let data = guarded(body, Arc::new(AtomicUsize::new(limit)), WINDOW);
    let reading = read_within(headers, data, raw);
    timeout(TIME, reading).await.unwrap_or_else(|_| Err(Stop::TooSlow.error()))
}

async fn read_within(
    headers: &HeaderMap,
    data: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    raw: &mut Raw,
) -> Result<(), Error> {
    if let Some(boundary) = boundary(headers) {
        let mut parts = Multipart::new(data, boundary);
        let mut count = 0;
        while let Some(part) = parts.next_field().await.map_err(unparted)? {
            counted(&mut count)?;
            let name = part.name().unwrap_or_default().to_owned();
            raw.add(name, part.text().await.map_err(unparted)?);
        }
        return Ok(());
    }
    let data = read_all(data).await?;
    if data.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let text = std::str::from_utf8(&data).map_err(|_| broken("it is not UTF-8"))?;
    if content_type(headers).contains("json") {
        match serde_json::from_str(text).map_err(broken)? {
            Value::Object(map) => map.iter().for_each(|(name, value)| raw.add_json(name, value)),
            Value::Null => {}
            _ => return Err(broken("the JSON must be an object")),
        }
    } else {
        if text.bytes().filter(|b| *b == b'&').count() >= COUNT {
            return Err(too_many());
        }
        read_form(text, raw);
    }
    Ok(())
}

fn too_many() -> Error {
    Error::new(413, format!("the request has more than {COUNT} parameters"))
}

fn counted(count: &mut usize) -> Result<(), Error> {
    *count += 1;
    if *count > COUNT { Err(too_many()) } else { Ok(()) }
}

/// Reads an upload: parts in any order, the file spooled to where its endpoint says. Permission and whatever else is
/// known when the file begins are checked before it is read.
pub async fn read_upload<S: Services>(
    handler: &dyn Handler<S>,
    cx: &Call<S>,
    headers: &HeaderMap,
    body: Body,
    raw: &mut Raw,
) -> Result<(), Error> {
    handler.meta().access.check(&cx.caller, raw)?;
    let Some(boundary) = boundary(headers) else {
        return Err(Error::new(400, "an upload must be sent as multipart/form-data"));
    };
    let left = Left::default();
    let mut parts = Multipart::new(guarded(body, left.clone(), WINDOW), boundary);
    let read = read_parts(handler, cx, &mut parts, &left, raw).await;
    if read.as_ref().is_err_and(|e| e.status != 408) {
        left.store(usize::MAX, Ordering::Relaxed);
        let rest = async { while let Ok(Some(_)) = parts.next_field().await {} };
        // Whoever sends for longer sees the connection break off.
        let _ = timeout(DRAIN, rest).await;
    }
    read
}

async fn read_parts<S: Services>(
    handler: &dyn Handler<S>,
    cx: &Call<S>,
    parts: &mut Multipart<'static>,
    left: &Left,
    raw: &mut Raw,
) -> Result<(), Error> {
    let (mut budget, mut count) = (LIMIT, 0);
    loop {
        left.store(HEAD, Ordering::Relaxed);
        let Some(part) = parts.next_field().await.map_err(unparted)? else { return Ok(()) };
        counted(&mut count)?;
        let name = part.name().unwrap_or_default().to_owned();
        let file = part.file_name().filter(|_| name == FILE_PART).map(str::to_owned);
        if let Some(file) = file {
            let mut upload = cx.upload.lock().await;
            // A second file would take the first one's place.
            if upload.is_some() {
                return Err(Error::parameter(FILE_PART, "more than one file was sent"));
            }
            let to = handler.spool(cx, raw, &file).await?;
            raw.add(name, file.clone());
            *upload = Some(spool(part, left, Spooled::new(to, file)).await?);
        } else {
            let text = text_part(part, left, budget).await?;
            budget -= text.len();
            raw.add(name, text);
        }
    }
}

async fn spool(mut part: Field<'static>, left: &Left, mut to: Spooled) -> Result<Spooled, Error> {
    let path = to.path().map(Path::to_owned).unwrap_or_default();
    let failed =
        |what: &str, e: std::io::Error| Error::failed(format!("could not {what} '{}': {e}", path.display()));
    let mut file = tokio::fs::File::create(&path).await.map_err(|e| failed("make", e))?;
    while let Some(chunk) = next_chunk(&mut part, left).await? {
        file.write_all(&chunk).await.map_err(|e| failed("write", e))?;
        to.size += chunk.len() as u64;
    }
    file.sync_all().await.map_err(|e| failed("write", e))?;
    Ok(to)
}

async fn next_chunk(part: &mut Field<'static>, left: &Left) -> Result<Option<Bytes>, Error> {
    left.store(HEAD, Ordering::Relaxed);
    part.chunk().await.map_err(unparted)
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    multer::parse_boundary(text).ok()
}

/// A parameter of at most `budget` bytes.
async fn text_part(mut part: Field<'static>, left: &Left, budget: usize) -> Result<String, Error> {
    let mut data = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut part, left).await? {
        data.extend_from_slice(&chunk);
        if data.len() > budget {
            return Err(Stop::TooLarge.error());
        }
    }
    String::from_utf8(data.to_vec()).map_err(|_| broken("a parameter is not UTF-8"))
}

async fn read_all(data: impl Stream<Item = Result<Bytes, BoxError>>) -> Result<Bytes, Error> {
    let (mut all, mut data) = (BytesMut::new(), std::pin::pin!(data));
    while let Some(chunk) = data.next().await {
        all.extend_from_slice(&chunk.map_err(|e| unread(&e))?);
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};

    /// A body of pieces, each some time after the one before.
    fn pieces(count: usize, size: usize, each: Duration) -> Body {
        let data = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(each).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![b'x'; size])))
        });
        StreamBody::new(data).boxed_unsync()
    }

    async fn whole(body: Body, left: usize, window: Duration) -> Result<usize, Error> {
        read_all(guarded(body, Arc::new(AtomicUsize::new(left)), window)).await.map(|b| b.len())
    }

    #[tokio::test]
    async fn what_arrives_slower_than_the_least_rate_is_not_waited_for() {
        let (window, pause) = (Duration::from_millis(50), Duration::from_millis(5));
        for slow in [pieces(usize::MAX, 1, pause), pieces(1, 1, Duration::MAX)] {
            assert_eq!(whole(slow, usize::MAX, window).await, Err(Stop::TooSlow.error()));
        }
        let fast = pieces(40, LEAST, pause);
        assert_eq!(whole(fast, usize::MAX, WINDOW).await, Ok(40 * LEAST), "each piece begins a new window");
    }

    #[tokio::test]
    async fn no_more_is_read_than_may_come() {
        let now = Duration::ZERO;
        assert_eq!(whole(pieces(4, 1 << 10, now), 4 << 10, WINDOW).await, Ok(4 << 10));
        let more = whole(pieces(usize::MAX, 1 << 10, now), 4 << 10, WINDOW).await;
        assert_eq!(more, Err(Stop::TooLarge.error()));
    }
}
