//! `stead events`: what happens in the cluster, as it happens.
//!
//! The server sends events as `text/event-stream`: blocks of `id:`, `event:` and `data:` lines, each ended by an
//! empty one. Comments (lines that begin with a colon) keep the connection and say nothing.

use super::Cx;
use crate::api::{PATIENCE, text};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::params::escape;
use clap::Args;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use stead_transport::{client, empty};

/// One event is small; a server that sends so much without ending one is none of ours.
const EVENT_LIMIT: usize = 4 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stead events\n  stead events --kind guest --kind node\n  \
    stead events -o json | jq -c 'select(.event == \"task-end\")'\n\n\
    With -o json each event is one line: {\"cursor\", \"event\", \"id\", \"data\"}. 'reset' says that too much was \
    missed: read all objects afresh.")]
pub struct EventArgs {
    /// Go on after this cursor of an earlier event
    #[arg(long, value_name = "CURSOR")]
    pub since: Option<String>,
    /// Only events of this kind: object, guest, node, task-start, task-end, task-log; may be repeated
    #[arg(long, value_name = "KIND")]
    pub kind: Vec<String>,
}

/// Shows events until the connection or the command ends.
pub async fn follow(cx: &Cx, args: EventArgs) -> Result<(), Failure> {
    let since = args.since.as_ref().map(|s| format!("?since={}", escape(s))).unwrap_or_default();
    let mut request = Request::builder()
        .uri(format!("/api2/json/cluster/events{since}"))
        .header("accept", "text/event-stream")
        .body(empty())
        .map_err(|e| Failure::failed(e.to_string()))?;
    cx.api.sign(&mut request);
    let http = cx.api.http();
    let answer = http.request_within(PATIENCE, request).await?;
    if !answer.status().is_success() {
        return Err(Failure::refused(&client::collect(&http.to(), answer).await?));
    }
    let mut body = answer.into_body();
    let mut blocks = Blocks::default();
    let mut cursor = args.since;
    while let Some(frame) = body.frame().await {
        let Some(bytes) = frame.ok().and_then(|f| f.into_data().ok()) else { break };
        blocks.buffer.extend_from_slice(&bytes);
        while let Some(event) = blocks.next() {
            if !event["cursor"].is_null() {
                cursor = Some(text(&event["cursor"]));
            }
            // A reset concerns whoever follows, whatever was asked for.
            let kind = text(&event["event"]);
            if args.kind.is_empty() || kind == "reset" || args.kind.contains(&kind) {
                output::print(&shown(&event, cx.format()))?;
            }
        }
        if blocks.buffer.len() > EVENT_LIMIT {
            return Err(Failure::failed(format!("{} sends an event without an end", http.to())));
        }
    }
    let how = cursor.map(|c| format!("; go on with: stead events --since {c}")).unwrap_or_default();
    Err(Failure::failed(format!("{} has ended the stream of events{how}", http.to())))
}

/// The stream, divided into events.
#[derive(Debug, Default)]
struct Blocks {
    buffer: Vec<u8>,
}

impl Blocks {
    /// The next event that is there whole.
    fn next(&mut self) -> Option<Value> {
        loop {
            let end = self.buffer.windows(2).position(|w| w == b"\n\n")?;
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            if let Some(event) = event(&String::from_utf8_lossy(&block)) {
                return Some(event);
            }
        }
    }
}

/// A block as one object; `None` if it only keeps the connection.
fn event(block: &str) -> Option<Value> {
    let field = |name: &str| {
        block.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(|v| v.trim_start().to_owned())
    };
    let kind = field("event")?;
    let body: Value = field("data").and_then(|d| serde_json::from_str(&d).ok()).unwrap_or_default();
    Some(json!({ "cursor": field("id"), "event": kind, "id": body["id"], "data": body["data"] }))
}

fn shown(event: &Value, format: Format) -> String {
    match format {
        Format::Json => event.to_string(),
        Format::Table => {
            let data = match &event["data"] {
                Value::Null => String::new(),
                data => data.to_string(),
            };
            let line = format!("{:<10} {} {data}", text(&event["event"]), text(&event["id"]));
            // What a guest or a log says must not reach the terminal as commands.
            line.trim_end().chars().filter(|c| !c.is_control()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let stream = ": following\n\nid: 9-1\nevent: guest\ndata: {\"kind\":\"guest\",\"id\":\"qemu/100\",\
                      \"data\":{\"name\":\"ä\"}}\n\n:\n\nevent: reset\ndata: {}\n\nid: 9-2\nevent: no";
        let expected = [
            json!({"cursor": "9-1", "event": "guest", "id": "qemu/100", "data": {"name": "ä"}}),
            json!({"cursor": null, "event": "reset", "id": null, "data": null}),
        ];
        for size in [1, 2, 7, 1000] {
            let mut blocks = Blocks::default();
            let mut seen = vec![];
            for part in stream.as_bytes().chunks(size) {
                blocks.buffer.extend_from_slice(part);
                while let Some(event) = blocks.next() {
                    seen.push(event);
                }
            }
            assert_eq!(seen, expected, "cut by {size}");
        }
        assert_eq!(shown(&expected[0], Format::Table), "guest      qemu/100 {\"name\":\"ä\"}");
        assert_eq!(shown(&expected[1], Format::Table), "reset");
    }
}
