//! Answers as clients read them.

use super::compress::gzip;
use super::endpoint::{Answered, Error};
use super::{Body, full};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderValue, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use serde_json::{Map, Value, json};

/// How answers are wrapped, by the path's second part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `/api2/json`: HTTP's status tells.
    Json,
    /// `/api2/extjs`: always 200, the status is inside.
    Extjs,
}

/// A reason phrase longer than this helps nobody and breaks some clients.
const MAX_REASON: usize = 1000;

fn reason(message: &str) -> Option<ReasonPhrase> {
    let clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut clean = clean.trim().to_owned();
    while clean.len() > MAX_REASON {
        clean.pop();
    }
    ReasonPhrase::try_from(clean).ok()
}

fn json_response(status: StatusCode, body: &Value, zipped: bool) -> Response<Body> {
    let text = Bytes::from(body.to_string());
    let small = if zipped { gzip(&text) } else { None };
    let mut r = text_response(text, small);
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=0"));
    r
}

/// A text, in its compressed form where there is one.
pub fn text_response(text: Bytes, small: Option<Bytes>) -> Response<Body> {
    let Some(small) = small else { return Response::new(full(text)) };
    let mut r = Response::new(full(small));
    r.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    r.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    r
}

/// A failed request's answer.
pub fn error(format: Format, e: &Error) -> Response<Body> {
    let mut body = Map::new();
    body.insert("data".into(), Value::Null);
    body.insert("message".into(), json!(format!("{}\n", e.message.trim_end())));
    if !e.errors.is_empty() {
        body.insert("errors".into(), json!(e.errors));
    }
    if format == Format::Extjs {
        body.insert("success".into(), json!(0));
        body.insert("status".into(), json!(e.status));
        return json_response(StatusCode::OK, &Value::Object(body), false);
    }
    let status = StatusCode::from_u16(e.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut r = json_response(status, &Value::Object(body), false);
    if let Some(phrase) = reason(&e.message) {
        r.extensions_mut().insert(phrase);
    }
    r
}

/// A success; a socket is not answered here. `zipped`: the client takes it compressed, and it may be.
pub fn success(format: Format, answered: Answered, zipped: bool) -> Response<Body> {
    match answered {
        Answered::Data(data, extra) => {
            let mut body = Map::new();
            body.insert("data".into(), data);
            body.extend(extra);
            if format == Format::Extjs {
                body.insert("success".into(), json!(1));
                body.insert("status".into(), json!(200));
                body.insert("message".into(), json!(""));
            }
            json_response(StatusCode::OK, &Value::Object(body), zipped)
        }
        Answered::Bytes { content_type, body, filename } => {
            let mut r = Response::new(body);
            r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            let value = filename.map(|n| format!("attachment; filename=\"{}\"", n.replace(['"', '\\'], "_")));
            if let Some(v) = value.and_then(|v| HeaderValue::from_str(&v).ok()) {
                r.headers_mut().insert(CONTENT_DISPOSITION, v);
            }
            r
        }
        Answered::Socket(_) => error(format, &Error::failed("a WebSocket was answered without a handshake")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_phrase_is_one_line_and_bounded() {
        let phrase = |m: &str| String::from_utf8(reason(m).unwrap().as_bytes().to_vec()).unwrap();
        assert_eq!(phrase("no\r\nInjected: header\n"), "no  Injected: header");
        assert_eq!(phrase(&"ä".repeat(2000)).len(), MAX_REASON);
    }
}
