//! The cluster's event stream, each event with the time at which it was heard.

use super::now;
use anyhow::Result;
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use stead_testbed::ApiClient;
use tokio::task::JoinHandle;

/// Follows the events of one node until it is dropped.
#[derive(Debug)]
pub struct Follower {
    heard: Arc<Mutex<Vec<(f64, Value)>>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to follow.
    pub async fn start(api: &ApiClient) -> Result<Self> {
        let mut body = api.stream("/cluster/events").await?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let mut text = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                text.extend_from_slice(&data);
                while let Some(end) = text.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let event = line.strip_prefix(b"data: ").and_then(|d| serde_json::from_slice(d).ok());
                    if let Some(event) = event {
                        to.lock().unwrap_or_else(PoisonError::into_inner).push((now(), event));
                    }
                }
            }
        });
        Ok(Self { heard, task })
    }

    /// When the first commit of `path` was heard whose note contains `note`.
    pub fn commit(&self, path: &str, note: &str) -> Option<f64> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |e: &Value| {
            e["kind"] == "object"
                && e["id"] == path
                && e["data"]["note"].as_str().is_some_and(|n| n.contains(note))
        };
        heard.iter().find(|(_, e)| is(e)).map(|(at, _)| *at)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
