//! Streams that an HTTP upgrade has opened: frames on them, and joining two of them.
//!
//! Frames begin with a preface of either side (4 bytes, `SFR` and the version), then each is its length (4 bytes,
//! big endian) and its bytes. A longer frame than the limit, or another version, ends the stream with an error
//! before anything is allocated for it.

use crate::{Body, BoxError};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// The name of what streams between nodes are upgraded to.
pub const UPGRADE_PROTOCOL: &str = "stead-stream";
const PREFACE: [u8; 4] = *b"SFR\x01";
/// What one read of a splice takes at most.
const SPLICE_BUFFER: usize = 256 << 10;
/// Frames are gathered up to this before they are written.
const WRITE_BUFFER: usize = 64 << 10;

/// An upgraded connection: read and write it as any other.
pub type Stream = TokioIo<Upgraded>;

pub(crate) fn ask_for_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
}

/// Whether a message asks for, or grants, an upgrade to [`UPGRADE_PROTOCOL`].
pub fn is_our_upgrade(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(UPGRADE_PROTOCOL.as_bytes()))
}

/// Grants an upgrade: the answer to give, and the stream that is there once it was given.
/// `None` if the request asks for none.
pub fn accept_upgrade(
    request: &mut Request<Incoming>,
) -> Option<(Response<Body>, impl Future<Output = Result<Stream, BoxError>> + Send + 'static)> {
    if !is_our_upgrade(request.headers()) {
        return None;
    }
    let upgrade = hyper::upgrade::on(request);
    let mut response = Response::new(crate::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    ask_for_upgrade(response.headers_mut());
    Some((response, async move { Ok(TokioIo::new(upgrade.await?)) }))
}

/// A stream of frames that can't go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection.
    #[error("the stream of frames broke: {0}")]
    Io(#[from] io::Error),
    /// The other side speaks something else.
    #[error("the other side does not speak this version of frames (it began with {0:02x?})")]
    Version([u8; 4]),
    /// A frame is longer than allowed.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Torn,
}

/// Divides a stream into frames of at most `limit` bytes each way.
pub fn frames<S: AsyncRead + AsyncWrite>(stream: S, limit: usize) -> (FrameReader<S>, FrameWriter<S>) {
    let (read, write) = tokio::io::split(stream);
    let reader = FrameReader { io: read, buffer: BytesMut::new(), limit, greeted: false };
    let writer = FrameWriter { io: write, buffer: BytesMut::from(&PREFACE[..]), limit };
    (reader, writer)
}

/// Takes frames from a stream.
#[derive(Debug)]
pub struct FrameReader<S> {
    io: ReadHalf<S>,
    buffer: BytesMut,
    limit: usize,
    greeted: bool,
}

impl<S: AsyncRead> FrameReader<S> {
    /// The next frame, or `None` where the stream ends. Cancel-safe: what was read stays.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(WRITE_BUFFER);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Torn) };
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(first) = self.buffer.first_chunk::<4>().copied() else { return Ok(None) };
        if !self.greeted {
            if first != PREFACE {
                return Err(FrameError::Version(first));
            }
            self.buffer.advance(4);
            self.greeted = true;
            return self.take_frame();
        }
        self.take_frame()
    }

    fn take_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(first) = self.buffer.first_chunk::<4>().copied() else { return Ok(None) };
        let len = u32::from_be_bytes(first) as usize;
        if len > self.limit {
            return Err(FrameError::TooLong { len, limit: self.limit });
        }
        if self.buffer.len() < 4 + len {
            self.buffer.reserve(4 + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }
}

/// Puts frames on a stream.
#[derive(Debug)]
pub struct FrameWriter<S> {
    io: WriteHalf<S>,
    buffer: BytesMut,
    limit: usize,
}

impl<S: AsyncWrite> FrameWriter<S> {
    /// Puts a frame into the buffer; writes when that is full. Not cancel-safe: end the stream instead.
    pub async fn feed(&mut self, frame: &[u8]) -> Result<(), FrameError> {
        let len = match u32::try_from(frame.len()) {
            Ok(len) if frame.len() <= self.limit => len,
            _ => return Err(FrameError::TooLong { len: frame.len(), limit: self.limit }),
        };
        self.buffer.extend_from_slice(&len.to_be_bytes());
        if frame.len() >= WRITE_BUFFER {
            self.io.write_all_buf(&mut self.buffer).await?;
            self.io.write_all(frame).await?;
        } else {
            self.buffer.extend_from_slice(frame);
            if self.buffer.len() >= WRITE_BUFFER {
                self.io.write_all_buf(&mut self.buffer).await?;
            }
        }
        Ok(())
    }

    /// Writes what is in the buffer.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        self.io.write_all_buf(&mut self.buffer).await?;
        Ok(self.io.flush().await?)
    }

    /// [`feed`](Self::feed), then [`flush`](Self::flush).
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), FrameError> {
        self.feed(frame).await?;
        self.flush().await
    }

    /// Writes what is left and ends this side of the stream.
    pub async fn finish(mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(self.io.shutdown().await?)
    }
}

/// How many bytes a [`splice`] has carried, to be read while it runs.
#[derive(Debug, Default)]
pub struct Carried {
    a_to_b: AtomicU64,
    b_to_a: AtomicU64,
}

impl Carried {
    /// From the first stream to the second.
    pub fn a_to_b(&self) -> u64 {
        self.a_to_b.load(Ordering::Relaxed)
    }

    /// From the second stream to the first.
    pub fn b_to_a(&self) -> u64 {
        self.b_to_a.load(Ordering::Relaxed)
    }
}

/// Joins two streams until both directions have ended. An end on one side is passed on to the other; an error of
/// either ends both. Dropped, it drops both streams.
pub async fn splice<A, B>(a: A, b: B, carried: &Carried) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    tokio::try_join!(carry(a_read, b_write, &carried.a_to_b), carry(b_read, a_write, &carried.b_to_a))?;
    Ok(())
}

async fn carry<R, W>(mut from: ReadHalf<R>, mut to: WriteHalf<W>, count: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = BytesMut::with_capacity(SPLICE_BUFFER);
    loop {
        buffer.clear();
        buffer.reserve(SPLICE_BUFFER);
        let n = from.read_buf(&mut buffer).await?;
        if n == 0 {
            // Some streams (TLS whose other end went away) can't be shut down any more: that is an end as well.
            let _ = to.shutdown().await;
            return Ok(());
        }
        // TLS gives 16 KiB at most: what else is there goes along. An end comes again, an error need not.
        let mut broken = None;
        while buffer.len() < SPLICE_BUFFER {
            match from.read_buf(&mut buffer).now_or_never() {
                Some(Ok(1..)) => {}
                Some(Err(e)) => {
                    broken = Some(e);
                    break;
                }
                Some(Ok(0)) | None => break,
            }
        }
        let n = buffer.len();
        to.write_all(&buffer).await?;
        // What was taken must not wait in a buffer for more to come.
        to.flush().await?;
        count.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(e) = broken {
            return Err(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order_however_the_bytes_are_cut() {
        let (a, b) = duplex(7);
        let (_, mut out) = frames(a, 1 << 20);
        let (mut incoming, _keep) = frames(b, 1 << 20);
        let sent: Vec<Vec<u8>> =
            [0, 1, 6, 7, 8, 300, 70_000].iter().map(|n| vec![*n as u8; *n as usize]).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            for frame in &sent {
                out.feed(frame).await.unwrap();
            }
            out.finish().await.unwrap();
        });
        let mut seen = vec![];
        while let Some(frame) = incoming.next().await.unwrap() {
            seen.push(frame.to_vec());
        }
        writer.await.unwrap();
        assert!(seen == expected);
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_on_both_sides() {
        let (a, mut b) = duplex(1 << 10);
        let (mut incoming, mut out) = frames(a, 10);
        assert!(matches!(out.send(&[0; 11]).await, Err(FrameError::TooLong { len: 11, limit: 10 })));
        b.write_all(b"SFR\x01\xff\xff\xff\xff").await.unwrap();
        assert!(matches!(incoming.next().await, Err(FrameError::TooLong { .. })));
    }

    #[tokio::test]
    async fn another_protocol_and_a_torn_end_are_errors() {
        let (a, mut b) = duplex(1 << 10);
        b.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(matches!(frames(a, 10).0.next().await, Err(FrameError::Version(p)) if &p == b"GET "));
        let (a, mut b) = duplex(1 << 10);
        b.write_all(b"SFR\x01\x00\x00\x00\x05abc").await.unwrap();
        drop(b);
        assert!(matches!(frames(a, 10).0.next().await, Err(FrameError::Torn)));
        let (a, mut b) = duplex(1 << 10);
        b.write_all(b"SFR\x01").await.unwrap();
        drop(b);
        assert!(frames(a, 10).0.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_splice_passes_on_each_sides_end() {
        let (mut a, a_inner) = duplex(64);
        let (mut b, b_inner) = duplex(64);
        let carried = std::sync::Arc::new(Carried::default());
        let counts = carried.clone();
        let spliced = tokio::spawn(async move { splice(a_inner, b_inner, &counts).await });
        a.write_all(b"question").await.unwrap();
        a.shutdown().await.unwrap();
        let mut text = String::new();
        b.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        b.write_all(b"an answer").await.unwrap();
        drop(b);
        text.clear();
        a.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "an answer");
        spliced.await.unwrap().unwrap();
        assert_eq!((carried.a_to_b(), carried.b_to_a()), (8, 9));
    }
}
