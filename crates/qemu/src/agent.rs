//! The guest agent: one request at a time over its socket.
//!
//! The channel keeps what an earlier client left unread, so each conversation begins with
//! `guest-sync-delimited`: everything before the byte 0xFF and the number asked for is old.

use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest answer taken.
const MAX_ANSWER: usize = 1 << 20;

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No answer: it is not installed, not started, or hangs.
    #[error("the guest agent does not answer")]
    Silent,
    /// It refused.
    #[error("the guest agent: {0}")]
    Refused(String),
    /// The channel failed.
    #[error("the guest agent's channel: {0}")]
    Channel(#[from] std::io::Error),
}

/// Asks the guest's system to power off (`powerdown`) or restart (`reboot`). The agent answers to neither;
/// what counts is what the guest then does.
pub async fn shutdown(socket: &Path, mode: &str, patience: Duration) -> Result<(), AgentError> {
    let talk = async {
        let mut stream = UnixStream::connect(socket).await?;
        sync(&mut stream).await?;
        let line = json!({ "execute": "guest-shutdown", "arguments": { "mode": mode } }).to_string();
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        // An answer comes only when it failed.
        let refused = tokio::time::timeout(Duration::from_secs(1), line_of(&mut stream));
        match refused.await {
            Ok(Ok(answer)) if !answer["error"].is_null() => {
                Err(AgentError::Refused(answer["error"]["desc"].as_str().unwrap_or("no").to_owned()))
            }
            _ => Ok(()),
        }
    };
    tokio::time::timeout(patience, talk).await.map_err(|_| AgentError::Silent)?
}

async fn sync(stream: &mut UnixStream) -> Result<(), AgentError> {
    // Any number that an earlier conversation is not likely to have used.
    let id = uuid::Uuid::new_v4().as_fields().0;
    let line = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } }).to_string();
    // A leading 0xFF makes the agent forget half a request of an earlier client.
    stream.write_all(b"\xff").await?;
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut seen = 0;
    loop {
        while stream.read_u8().await? != 0xff {
            seen += 1;
            if seen > MAX_ANSWER {
                return Err(AgentError::Silent);
            }
        }
        if line_of(stream).await?["return"].as_u64() == Some(u64::from(id)) {
            return Ok(());
        }
    }
}

async fn line_of(stream: &mut UnixStream) -> Result<Value, AgentError> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(serde_json::from_slice(&line).unwrap_or(Value::Null)),
            0xff => line.clear(),
            byte if line.len() < MAX_ANSWER => line.push(byte),
            _ => return Err(AgentError::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn old_answers_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"return\": \"old\"}\nhalf a li\xff{\"return\":1}\n").await.unwrap();
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await.unwrap();
            assert_eq!(line.remove(0), 0xff);
            let asked: Value = serde_json::from_slice(&line).unwrap();
            let id = &asked["arguments"]["id"];
            // Without the delimiter it is not taken.
            stream.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
            stream.write_all(b"\xff").await.unwrap();
            stream.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
            line.clear();
            stream.read_until(b'\n', &mut line).await.unwrap();
            assert!(String::from_utf8(line).unwrap().contains("powerdown"));
            stream.write_all(b"{\"error\": {\"desc\": \"not now\"}}\n").await.unwrap();
        };
        let (answer, ()) = tokio::join!(shutdown(&path, "powerdown", Duration::from_secs(10)), serve);
        assert_eq!(answer.unwrap_err().to_string(), "the guest agent: not now");
    }

    #[tokio::test]
    async fn a_silent_agent_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga");
        let _listener = UnixListener::bind(&path).unwrap();
        let answer = shutdown(&path, "powerdown", Duration::from_millis(20)).await;
        assert!(matches!(answer, Err(AgentError::Silent)));
    }
}
