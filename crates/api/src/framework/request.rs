//! From a request's body to parameters and files.

use super::endpoint::{Error, Handler};
use super::params::Raw;
use super::router::read_form;
use super::{Body, BoxError, Call, Services, Spooled};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyDataStream, BodyExt};
use multer::{Field, Multipart};
use serde_json::Value;
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;

/// How large the parameters of one request may be, in bytes. Files have no limit.
const LIMIT: usize = 2 << 20;

/// The part that carries a file.
const FILE_PART: &str = "filename";

fn too_large() -> Error {
    Error::new(413, format!("the request's parameters are larger than {LIMIT} bytes"))
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::new(400, format!("the request's body could not be read: {e}"))
}

/// Reads parameters from a body of any kind that clients send. No body gives none.
pub async fn read_params(headers: &HeaderMap, body: Body, raw: &mut Raw) -> Result<(), Error> {
    if let Some(boundary) = boundary(headers) {
        let mut parts = multipart(body, boundary);
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            let name = part.name().unwrap_or_default().to_owned();
            raw.add(name, text_part(part).await?);
        }
        return Ok(());
    }
    let data = read_all(body).await?;
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
        read_form(text, raw);
    }
    Ok(())
}

/// Reads an upload: parts in any order, the file spooled to where its endpoint says.
pub async fn read_upload<S: Services>(
    handler: &dyn Handler<S>,
    cx: &Call<S>,
    headers: &HeaderMap,
    body: Body,
    raw: &mut Raw,
) -> Result<(), Error> {
    let to = handler.spool(cx, raw).await?;
    let Some(boundary) = boundary(headers) else {
        return Err(Error::new(400, "an upload must be sent as multipart/form-data"));
    };
    let mut parts = multipart(body, boundary);
    let mut budget = LIMIT;
    while let Some(part) = parts.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        if name == FILE_PART && part.file_name().is_some() {
            let file = spool(part, to.clone()).await?;
            raw.add(name, file.name.clone());
            // A second file would take the first one's place.
            if cx.upload.lock().await.replace(file).is_some() {
                return Err(Error::parameter(FILE_PART, "more than one file was sent"));
            }
        } else {
            let text = text_part(part).await?;
            budget = budget.checked_sub(text.len()).ok_or_else(too_large)?;
            raw.add(name, text);
        }
    }
    Ok(())
}

async fn spool(mut part: Field<'static>, to: PathBuf) -> Result<Spooled, Error> {
    let name = part.file_name().unwrap_or_default().to_owned();
    let failed =
        |what: &str, e: std::io::Error| Error::failed(format!("could not {what} '{}': {e}", to.display()));
    let mut file = tokio::fs::File::create(&to).await.map_err(|e| failed("make", e))?;
    let mut spooled = Spooled::new(to.clone(), name);
    while let Some(chunk) = part.chunk().await.map_err(broken)? {
        file.write_all(&chunk).await.map_err(|e| failed("write", e))?;
        spooled.size += chunk.len() as u64;
    }
    file.sync_all().await.map_err(|e| failed("write", e))?;
    Ok(spooled)
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    multer::parse_boundary(text).ok()
}

fn multipart(body: Body, boundary: String) -> Multipart<'static> {
    let stream = BodyDataStream::new(body).map(|r: Result<Bytes, BoxError>| r.map_err(std::io::Error::other));
    Multipart::new(stream, boundary)
}

async fn text_part(mut part: Field<'static>) -> Result<String, Error> {
    let mut data = BytesMut::new();
    while let Some(chunk) = part.chunk().await.map_err(broken)? {
        data.extend_from_slice(&chunk);
        if data.len() > LIMIT {
            return Err(too_large());
        }
    }
    String::from_utf8(data.to_vec()).map_err(|_| broken("a parameter is not UTF-8"))
}

async fn read_all(mut body: Body) -> Result<Bytes, Error> {
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame.map_err(broken)?.into_data() {
            data.extend_from_slice(&chunk);
            if data.len() > LIMIT {
                return Err(too_large());
            }
        }
    }
    Ok(data.freeze())
}
