//! The console's files, embedded at build time; every path that is none of them is a page of the console.
//!
//! Beside a file `NAME` there may be `NAME.br`, made by the console's build: the same, compressed by brotli. It goes to
//! whoever takes it, which browsers do; anybody else gets the plain file.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use rust_embed::{EmbeddedFile, RustEmbed};
use std::borrow::Cow;
use stead_api::framework::compress::accepts;
use stead_transport::{Body, empty, full};

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Files;

const MISSING: &str = "<!doctype html><title>Stead</title><p>This daemon was built without its console: \
                       run <code>make build</code>, which builds the console first. The API is at <code>/api2/json</code>.";

/// What a page may load: its own files alone. Styles in elements are how its components place themselves.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; \
                      frame-ancestors 'self'; base-uri 'none'; form-action 'self'";

/// How compressed files are called.
const COMPRESSED: &str = ".br";
/// What lies below has its content's hash in its name.
const HASHED: &str = "assets/";
const INDEX: &str = "index.html";

fn mime(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript",
        Some("css") => "text/css",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("woff2") => "font/woff2",
        Some("json" | "map") => "application/json",
        _ => "application/octet-stream",
    }
}

/// Names a file's content, and the form that it goes out in.
fn tag(file: &EmbeddedFile, suffix: &str) -> String {
    let hash = file.metadata.sha256_hash();
    let hex: String = hash.iter().take(12).map(|b| format!("{b:02x}")).collect();
    format!("\"{hex}{suffix}\"")
}

/// Whether the client has that very content.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let all = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).map(|t| t.trim().trim_start_matches("W/")).any(|t| t == tag || t == "*")
}

fn body(data: Cow<'static, [u8]>) -> Body {
    match data {
        Cow::Borrowed(data) => full(data),
        Cow::Owned(data) => full(data),
    }
}

/// A plain answer without a file.
fn bare(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer
}

/// Answers with a file of the console.
pub fn answer<B>(request: &Request<B>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return bare(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are possible here");
    }
    let path = request.uri().path().trim_start_matches('/');
    if ["peer", "api2"].contains(&path.split('/').next().unwrap_or_default()) {
        // For nodes and programs: a page would be no answer for them.
        return bare(StatusCode::NOT_FOUND, "there is nothing here for you");
    }
    let named = Files::get(path).filter(|_| !path.is_empty() && !path.ends_with(COMPRESSED));
    if named.is_none() && path.starts_with(HASHED) {
        // Of another version of the console: its page would be no answer for a script.
        return bare(StatusCode::NOT_FOUND, "there is no such file");
    }
    let (name, plain) = match named {
        Some(file) => (path, Some(file)),
        None => (INDEX, Files::get(INDEX)),
    };
    let Some(plain) = plain else { return dressed(Response::new(full(MISSING)), INDEX) };
    let small =
        if accepts(request.headers(), "br") { Files::get(&format!("{name}{COMPRESSED}")) } else { None };
    let tag = tag(&plain, if small.is_some() { "-br" } else { "" });
    let mut answer = if has(request.headers(), &tag) {
        let mut same = Response::new(empty());
        *same.status_mut() = StatusCode::NOT_MODIFIED;
        same
    } else if let Some(small) = small {
        let mut answer = Response::new(body(small.data));
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
        answer
    } else {
        Response::new(body(plain.data))
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    dressed(answer, name)
}

/// With the headers that every file has.
fn dressed(mut answer: Response<Body>, name: &str) -> Response<Body> {
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime(name)));
    // The page itself must be asked for each time.
    let cache = if name.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    /// The daemon was built after its console; if not, says so.
    fn is_built() -> bool {
        let built = Files::get(INDEX).is_some();
        if !built {
            println!("SKIPPED: the console is not built (make build)");
            assert!(std::env::var_os("STEAD_STRICT").is_none(), "STEAD_STRICT allows no skips");
        }
        built
    }

    fn get(path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(&request.body(()).unwrap())
    }

    async fn bytes(answer: Response<Body>) -> usize {
        answer.into_body().collect().await.unwrap().to_bytes().len()
    }

    #[test]
    fn pages_of_the_console_are_its_index_and_nothing_else_can_be_read() {
        for path in ["/", "/vm/100", "/../../etc/passwd", "/index.html.br"] {
            let answer = get(path, &[]);
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8", "{path}");
        }
        for path in ["/assets/of-yesterday.js", "/peer/v1/raft", "/peer", "/api2"] {
            assert_eq!(get(path, &[]).status(), StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(get("/peers", &[]).headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(answer(&Request::post("/").body(()).unwrap()).status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    /// The page, and the scripts and styles that it names.
    fn first_load() -> Vec<String> {
        let index = Files::get(INDEX).unwrap();
        let text = String::from_utf8(index.data.into_owned()).unwrap();
        let named = text.split('"').filter(|t| t.starts_with("/assets/")).map(str::to_owned);
        [vec!["/".to_owned()], named.collect()].concat()
    }

    #[tokio::test]
    async fn a_browser_loads_the_console_compressed_and_others_get_it_plain() {
        if !is_built() {
            return;
        }
        let (mut plain, mut wire) = (0, 0);
        for path in first_load() {
            let to_curl = get(&path, &[]);
            assert!(!to_curl.headers().contains_key(header::CONTENT_ENCODING), "{path}");
            let to_browser = get(&path, &[("accept-encoding", "gzip, deflate, br, zstd")]);
            assert_eq!(to_browser.headers()[header::VARY], "accept-encoding");
            assert_eq!(to_browser.headers()[header::CONTENT_TYPE], to_curl.headers()[header::CONTENT_TYPE]);
            let (a, b) = (bytes(to_curl).await, bytes(to_browser).await);
            println!("{path}: {a} bytes, {b} on the wire");
            plain += a;
            wire += b;
        }
        println!("first load: {plain} bytes, {wire} on the wire");
        assert!(wire * 3 < plain, "the console's build has not compressed it");
        assert!(wire < 400 << 10, "the console has grown: {wire} bytes on the wire");
    }

    #[tokio::test]
    async fn what_a_browser_has_is_not_sent_again() {
        if !is_built() {
            return;
        }
        let asset = first_load().into_iter().find(|p| p.ends_with(".js")).unwrap();
        let br = ("accept-encoding", "br");
        let first = get(&asset, &[br]);
        assert_eq!(first.headers()[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
        assert_eq!(first.headers()[header::CONTENT_ENCODING], "br");
        assert_eq!(get("/", &[br]).headers()[header::CACHE_CONTROL], "no-cache");
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        let again = get(&asset, &[br, ("if-none-match", &format!("\"x\", W/{tag}"))]);
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(bytes(again).await, 0);
        let plain = get(&asset, &[("if-none-match", &tag)]);
        assert_eq!(plain.status(), StatusCode::OK, "the plain file is another thing than the compressed one");
    }
}
