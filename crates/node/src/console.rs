//! The console's files, embedded at build time; every path that is none of them is a page of the console.

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use rust_embed::RustEmbed;
use stead_transport::{Body, full};

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Files;

const MISSING: &str = "<!doctype html><title>Stead</title><p>This daemon was built without its console: \
                       run <code>make build</code>, which builds the console first. The API is at <code>/api2/json</code>.";

/// What a page may load: its own files alone. Styles in elements are how its components place themselves.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; \
                      frame-ancestors 'self'; base-uri 'none'; form-action 'self'";

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

/// Answers with a file of the console.
pub fn answer<B>(request: &Request<B>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = Response::new(full("only GET and HEAD are possible here"));
        *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return answer;
    }
    let path = request.uri().path().trim_start_matches('/');
    let (name, file) = match Files::get(path) {
        Some(file) if !path.is_empty() => (path, Some(file)),
        _ => ("index.html", Files::get("index.html")),
    };
    let data = file.map_or_else(|| MISSING.as_bytes().to_vec(), |f| f.data.into_owned());
    let mut answer = Response::new(full(data));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime(name)));
    // Names of assets carry their content's hash; the page itself must be asked for each time.
    let cache = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
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

    #[test]
    fn pages_of_the_console_are_its_index_and_nothing_else_can_be_read() {
        for path in ["/", "/vm/100", "/../../etc/passwd"] {
            let answer = answer(&Request::get(path).body(()).unwrap());
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8", "{path}");
        }
        assert_eq!(answer(&Request::post("/").body(()).unwrap()).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
