//! How long an answer may take: a daemon that was frozen, or hangs, keeps its connections, for its kernel goes on
//! acknowledging what arrives.
//!
//! ```text
//!  waits for its turn ──► its body goes out ──► sent whole, waits for the answer's head ──► answered
//!       timed                 not timed                        timed anew
//! ```
//!
//! A body takes as long as it takes: whoever reads it sees to its pace, and where nobody reads, the kernel ends the
//! connection (`TCP_USER_TIMEOUT`).

use crate::body::{Body, BoxError};
use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits,
    Goes,
    Sent,
}

/// A body that tells how far it has come. Whoever sends it drops it when it has been sent whole.
struct Told {
    body: Body,
    stage: Arc<watch::Sender<Stage>>,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.stage.send_if_modified(|stage| std::mem::replace(stage, Stage::Goes) != Stage::Goes);
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.stage.send_replace(Stage::Sent);
    }
}

/// Sends a request; none if the answer's head has not come `limit` after the request was sent whole. Cancel-safe as
/// `send` is, which is dropped then.
pub(crate) async fn answered_within<T, F: Future<Output = T>>(
    limit: Duration,
    request: Request<Body>,
    send: impl FnOnce(Request<Body>) -> F,
) -> Option<T> {
    let (stage, mut now) = watch::channel(Stage::Waits);
    let stage = Arc::new(stage);
    let told = request.map(|body| Told { body, stage: stage.clone() }.boxed_unsync());
    let late = async {
        loop {
            let going = *now.borrow_and_update() == Stage::Goes;
            let wait = if going { Duration::MAX } else { limit };
            if tokio::time::timeout(wait, now.changed()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        answer = send(told) => Some(answer),
        () = late => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{empty, full, streaming};
    use http_body_util::StreamBody;
    use std::convert::Infallible;
    use std::future::pending;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_millis(30);

    /// Reads a request's body to its end.
    async fn read(request: Request<Body>) -> Bytes {
        request.into_body().collect().await.unwrap().to_bytes()
    }

    /// A request whose body takes four times as long as the answer may.
    fn slow() -> Request<Body> {
        let frames = futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(LIMIT * 2).await;
            (n < 2).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), n + 1))
        });
        Request::new(streaming(StreamBody::new(frames)))
    }

    #[tokio::test]
    async fn whoever_never_answers_is_given_up() {
        for body in [empty(), full("text")] {
            let silent = async |request| {
                read(request).await;
                pending::<()>().await;
            };
            assert_eq!(answered_within(LIMIT, Request::new(body), silent).await, None);
        }
        // It never has its turn: nothing of the body goes out.
        let kept = async |request: Request<Body>| {
            pending::<()>().await;
            drop(request);
        };
        assert_eq!(answered_within(LIMIT, slow(), kept).await, None);
    }

    #[tokio::test]
    async fn a_body_takes_as_long_as_it_takes_and_the_time_counts_from_its_end() {
        assert_eq!(answered_within(LIMIT, slow(), read).await.unwrap(), "xx");
        let began = Instant::now();
        let silent = async |request| {
            read(request).await;
            pending::<()>().await;
        };
        assert_eq!(answered_within(LIMIT, slow(), silent).await, None);
        assert!(began.elapsed() >= LIMIT * 7, "{:?}", began.elapsed());
    }
}
