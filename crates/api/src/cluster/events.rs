//! `/cluster/events`: what happens, as server-sent events. Beyond Proxmox VE.
//!
//! Each event carries a cursor as its id; a reader that comes back with it (as `Last-Event-ID`, or `since`) misses
//! nothing. A `reset` says that too much was missed: read all objects afresh and go on from there.

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
        let frames = follow(reader, cx.caller.clone()).map(|text| Ok::<_, BoxError>(Frame::data(bytes::Bytes::from(text))));
        Ok(Bytes {
            content_type: "text/event-stream",
            body: StreamBody::new(frames).boxed_unsync(),
            filename: None,
        })
    }
}

/// A caller's place in the stream.
struct Place {
    reader: Reader,
    missed: VecDeque<Arc<Event>>,
    caller: Caller,
    /// To be sent before anything else.
    first: Option<String>,
}

fn follow(mut reader: Reader, caller: Caller) -> impl Stream<Item = String> + Send + 'static {
    let missed = reader.missed.take();
    let first = if missed.is_some() { ": following\n\n" } else { RESET };
    let place =
        Place { reader, missed: missed.unwrap_or_default().into(), caller, first: Some(first.to_owned()) };
    stream::unfold(place, |mut place| async move { place.next().await.map(|text| (text, place)) })
}

const RESET: &str = "event: reset\ndata: {}\n\n";

impl Place {
    async fn next(&mut self) -> Option<String> {
        if let Some(text) = self.first.take() {
            return Some(text);
        }
        loop {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => match tokio::time::timeout(QUIET, self.reader.live.recv()).await {
                    Err(_) => return Some(":\n\n".to_owned()),
                    Ok(Ok(event)) => event,
                    Ok(Err(RecvError::Lagged(_))) => return Some(RESET.to_owned()),
                    Ok(Err(RecvError::Closed)) => return None,
                },
            };
            if visible(&self.caller, &event) {
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
            upid.user.split('!').next() == Some(caller.id.user().as_str())
                || caller.may(&format!("/nodes/{}", upid.node), "Sys.Audit")
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
    use std::time::Instant;
    use stead_access::Directory;
    use stead_ops::events::Events;

    fn caller(id: &str) -> Caller {
        Caller { id: id.parse().unwrap(), directory: Arc::new(Directory::default()), now: 0 }
    }

    #[tokio::test]
    async fn a_reader_sees_what_it_missed_then_what_comes() {
        let (bus, now) = (Events::new(9), Instant::now());
        let follow = |cursor, who| follow(bus.read(Some(cursor), now), caller(who));
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
}
