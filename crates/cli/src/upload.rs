//! Uploading a file: one multipart body, streamed from the disk, with progress.

use crate::api::Api;
use crate::failure::Failure;
use crate::output::Format;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::path::Path;
use tokio_util::io::ReaderStream;

/// One read of the file.
const PART: usize = 256 << 10;

/// Uploads `file` to an upload endpoint; gives the answer's `data`.
pub async fn upload(
    api: &Api,
    path: &str,
    content: &str,
    file: &Path,
    format: Format,
) -> Result<Value, Failure> {
    let named = |e: std::io::Error| Failure::failed(format!("{}: {e}", file.display()));
    let name = file.file_name().and_then(|n| n.to_str()).filter(|n| !n.contains(['"', '\r', '\n', '\\']));
    let name = name.ok_or_else(|| Failure::usage(format!("{}: no name for an upload", file.display())))?;
    let opened = tokio::fs::File::open(file).await.map_err(named)?;
    let size = opened.metadata().await.map_err(named)?.len();
    let boundary = format!("stead-{}", uuid::Uuid::new_v4().simple());
    let before = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\n{content}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let after = format!("\r\n--{boundary}--\r\n");
    let length = before.len() as u64 + size + after.len() as u64;
    let bar = progress(size, format);
    let counted = bar.clone();
    let parts = ReaderStream::with_capacity(opened, PART).map(move |part| {
        part.inspect(|bytes| {
            if let Some(bar) = &counted {
                bar.inc(bytes.len() as u64);
            }
        })
    });
    let whole = |text: String| stream::once(std::future::ready(Ok(Bytes::from(text))));
    let body =
        StreamBody::new(whole(before).chain(parts).chain(whole(after)).map(|part| part.map(Frame::data)));
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/api2/json{path}"))
        .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
        .header(CONTENT_LENGTH, length)
        .body(stead_transport::streaming(body))
        .map_err(|e| Failure::failed(e.to_string()))?;
    let sent = api.send_file(request).await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let mut answer: Value = sent?.json()?;
    Ok(answer["data"].take())
}

fn progress(size: u64, format: Format) -> Option<ProgressBar> {
    if format == Format::Json || !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    Some(bar)
}
