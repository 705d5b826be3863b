//! `/cluster/events`: what happens, as server-sent events. Beyond Proxmox VE.
//!
//! Each event carries a cursor as its id; a reader that comes back with it (as `Last-Event-ID`, or `since`) misses
//! nothing. A `reset` says that too much was missed: read all objects afresh and go on from there.
//!
//! Who reads is found out again before each event: a stream ends with its reader's ticket, token or user, and shows what
//! its reader may see now.

use crate::framework::{Access, BoxError, Bytes, Caller};
use futures_util::stream::{self, Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use stead_api_derive::Params;
use stead_model::{Upid, paths};
use stead_ops::events::{Event, Reader};
use stead_ops::task_view::is_own;
use tokio::sync::broadcast::error::RecvError;

/// A comment is sent when nothing happens for so long, so that proxies keep the connection.
const QUIET: Duration = Duration::from_secs(15);

#[derive(Params)]
pub struct Follow {
    /// Go on after this cursor. The header `Last-Event-ID` says the same.
    since: Option<String>,
}

endpoint! {
    /// What happens in the cluster, as server-sent events: `object`, `guest`, `node`, `task-start`, `task-end`,
    /// `task-log`, and `reset` when too much was missed.
    Read = get("/cluster/events"), Anywhere, Access::Authenticated;
    returns: serde_json::json!({"type": "string", "description": "text/event-stream"});
    fn call(cx, p: Follow) -> Bytes {
        let cursor = p.since.or_else(|| cx.last_event.clone());
        let reader = cx.ops().read_events(cursor.as_deref()).await;
        let standing = cx.standing.clone();
        let frames = follow(reader, move || standing.caller()).map(|text| Ok::<_, BoxError>(Frame::data(bytes::Bytes::from(text))));
        Ok(Bytes {
            content_type: "text/event-stream",
            body: StreamBody::new(frames).boxed_unsync(),
            filename: None,
        })
    }
}

/// A caller's place in the stream.
struct Place<C> {
    reader: Reader,
    missed: VecDeque<Arc<Event>>,
    /// Who it is now; none once it would not be let in any more.
    caller: C,
    /// To be sent before anything else.
    first: Option<String>,
}

fn follow<C>(mut reader: Reader, caller: C) -> impl Stream<Item = String> + Send + 'static
where
    C: Fn() -> Option<Caller> + Send + 'static,
{
    let missed = reader.missed.take();
    let first = if missed.is_some() { ": following\n\n" } else { RESET };
    let place =
        Place { reader, missed: missed.unwrap_or_default().into(), caller, first: Some(first.to_owned()) };
    stream::unfold(place, |mut place| async move { place.next().await.map(|text| (text, place)) })
}

const RESET: &str = "event: reset\ndata: {}\n\n";

impl<C: Fn() -> Option<Caller>> Place<C> {
    async fn next(&mut self) -> Option<String> {
        if let Some(text) = self.first.take() {
            return Some(text);
        }
        loop {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => match tokio::time::timeout(QUIET, self.reader.live.recv()).await {
                    Err(_) => return (self.caller)().map(|_| ":\n\n".to_owned()),
                    Ok(Ok(event)) => event,
                    Ok(Err(RecvError::Lagged(_))) => return (self.caller)().map(|_| RESET.to_owned()),
                    Ok(Err(RecvError::Closed)) => return None,
                },
            };
            let caller = (self.caller)()?;
            if visible(&caller, &event) {
                return Some(text(&event));
            }
        }
    }
}

fn text(event: &Event) -> String {
    let data = serde_json::json!({"kind": event.kind, "id": event.id, "data": event.data});
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.cursor, event.kind)
}

/// Whether a caller may know of an event: as of the object that it concerns.
fn visible(caller: &Caller, event: &Event) -> bool {
    let guest = |vmid: &str| caller.may(&format!("/vms/{vmid}"), "VM.Audit");
    match event.kind {
        "guest" => event.id.split('/').nth(1).is_some_and(guest),
        "task-start" | "task-end" | "task-log" => event.id.parse::<Upid>().is_ok_and(|upid| {
            is_own(&caller.id.to_string(), &upid) || caller.may(&format!("/nodes/{}", upid.node), "Sys.Audit")
        }),
        "object" => match paths::as_guest(&event.id) {
            Some((_, _, vmid)) => guest(&vmid.to_string()),
            None => caller.may("/", "Sys.Audit"),
        },
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;
    use stead_access::Directory;
    use stead_ops::events::Events;

    fn caller(id: &str) -> Caller {
        Caller { id: id.parse().unwrap(), directory: Arc::new(Directory::default()), now: 0 }
    }

    #[tokio::test]
    async fn a_reader_sees_what_it_missed_then_what_comes() {
        let (bus, now) = (Events::new(9), Instant::now());
        let follow = |cursor, who| {
            let who = caller(who);
            follow(bus.read(Some(cursor), now), move || Some(who.clone()))
        };
        let _here = bus.read(None, now);
        bus.emit("guest", "qemu/100", json!({"state": "running"}));
        bus.emit("node", "node/n1", json!({}));
        let mut all = std::pin::pin!(follow("9-2", "root@pam"));
        assert_eq!(all.next().await.unwrap(), ": following\n\n");
        let second = all.next().await.unwrap();
        assert_eq!(
            second,
            "id: 9-3\nevent: node\ndata: {\"kind\":\"node\",\"id\":\"node/n1\",\"data\":{}}\n\n"
        );
        bus.emit("guest", "qemu/100", json!({}));
        bus.emit("node", "node/n2", json!({}));
        assert!(all.next().await.unwrap().contains("qemu/100"));
        let mut other = std::pin::pin!(follow("9-3", "u@pve"));
        other.next().await.unwrap();
        assert!(other.next().await.unwrap().contains("node/n2"), "guests that it may not see are left out");
        let mut old = std::pin::pin!(follow("8-1", "root@pam"));
        assert_eq!(old.next().await.unwrap(), RESET);
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_reader_would_not_be_let_in_any_more() {
        let (bus, now) = (Events::new(9), Instant::now());
        let in_still = Arc::new(AtomicBool::new(true));
        let asked = in_still.clone();
        let who = move || asked.load(Ordering::Relaxed).then(|| caller("root@pam"));
        let mut all = std::pin::pin!(follow(bus.read(None, now), who));
        all.next().await.unwrap();
        bus.emit("node", "node/n1", json!({}));
        assert!(all.next().await.unwrap().contains("node/n1"));
        in_still.store(false, Ordering::Relaxed);
        bus.emit("node", "node/n2", json!({}));
        assert_eq!(all.next().await, None);
    }

    #[test]
    fn a_tasks_events_are_its_starters_and_a_token_sees_its_own_alone() {
        let event = |user: &str| Event {
            cursor: String::new(),
            kind: "task-log",
            id: format!("UPID:n1:00000001:00000001:6553F100:qmstart:100:{user}:"),
            data: json!({}),
        };
        let sees = |who: &str, user: &str| visible(&caller(who), &event(user));
        assert!(sees("u@pve", "u@pve") && sees("u@pve", "u@pve!aa"));
        assert!(!sees("u@pve!aa", "u@pve") && !sees("u@pve!aa", "u@pve!bb") && !sees("v@pve", "u@pve"));
        assert!(sees("u@pve!aa", "u@pve!aa"));
    }
}
