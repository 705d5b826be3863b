//! Plain HTTP on the TLS port: a browser is sent to the right address, anything else is told what is wrong.

use http::Uri;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The first byte of every TLS connection.
pub(crate) const TLS_RECORD: u8 = 0x16;
const HEAD_LIMIT: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one plain request and ends the connection. Errors end it as well: there is nobody to tell.
pub(crate) async fn answer_plain(mut stream: TcpStream) {
    let served = tokio::time::timeout(PATIENCE, async {
        let head = read_head(&mut stream).await?;
        stream.write_all(answer_to(&head).as_bytes()).await?;
        stream.shutdown().await
    });
    if let Ok(Err(e)) = served.await {
        tracing::debug!("plain HTTP on the TLS port: {e}");
    }
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = vec![];
    while head.len() < HEAD_LIMIT && !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn answer_to(head: &str) -> String {
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let host = lines
        .filter_map(|l| l.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("host"))
        .map(|(_, value)| value.trim());
    let place = host.and_then(|host| format!("https://{host}{path}").parse::<Uri>().ok());
    match (method, place) {
        ("GET" | "HEAD", Some(place)) if path.starts_with('/') => format!(
            "HTTP/1.1 301 Moved Permanently\r\nLocation: {place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        _ => {
            let text = "This port speaks HTTPS: use https:// instead of http://.\n";
            format!(
                "HTTP/1.1 400 This port speaks HTTPS\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_to_https_and_others_are_told() {
        let answer = answer_to("GET /ui?a=b HTTP/1.1\r\nAccept: */*\r\nHost: pve1:8006\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
        assert!(answer.contains("\r\nLocation: https://pve1:8006/ui?a=b\r\n"), "{answer}");
        for other in [
            "POST /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x HTTP/1.1\r\n\r\n",
            "GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "\0\0",
        ] {
            assert!(answer_to(other).starts_with("HTTP/1.1 400 This port speaks HTTPS\r\n"), "{other}");
        }
    }
}
