//! Long answers go out compressed, to clients that take it.
//!
//! Only what is read (GET) and held in full: an event stream or a download is passed on as it comes, and an answer to a
//! change may carry a ticket or a token, whose length beside a caller's own text would tell of it.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use std::io::Write;

/// Shorter answers gain nothing, in bytes.
const WORTH: usize = 1024;

/// Whether a client takes an encoding, by its `Accept-Encoding`.
pub fn accepts(headers: &HeaderMap, coding: &str) -> bool {
    let all = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).any(|offer| {
        let (name, weight) = offer.split_once(';').unwrap_or((offer, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case(coding) && !refused
    })
}

/// The text compressed by gzip; none where that gains nothing.
pub fn gzip(text: &[u8]) -> Option<Bytes> {
    if text.len() <= WORTH {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), Compression::fast());
    // Into memory: it cannot fail. If it did, the plain text would go out.
    encoder.write_all(text).ok()?;
    encoder.finish().ok().filter(|small| small.len() < text.len()).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_taken_where_it_is_named_and_not_refused() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().unwrap());
            accepts(&headers, "gzip")
        };
        assert!(with("gzip") && with("br, GZIP;q=0.5") && with("deflate,gzip"));
        assert!(!with("br") && !with("gzip;q=0, br") && !with("gzip; q=0.0") && !with("identity"));
        assert!(!accepts(&HeaderMap::new(), "gzip"));
    }
}
