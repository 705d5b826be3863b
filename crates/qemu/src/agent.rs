//! The guest agent: one request at a time over its socket.
//!
//! The channel keeps what an earlier client left unread, so each conversation begins with
//! `guest-sync-delimited`: everything before the byte 0xFF and the number asked for is old.

//!
//! The guest is not to be trusted: what it answers is bounded before it is read, and cleaned before it is shown.

use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// The longest answer taken: 1 MiB of a file in base64, and what stands around it.
const MAX_ANSWER: usize = 2 << 20;
/// The same of a program's output: the agent keeps 16 MiB of each kind, which it gives in base64.
const MAX_OUTPUT: usize = 44 << 20;
/// The most that is shown of why the agent refused.
const MAX_WHY: usize = 500;
/// What stands between answers and is none.
const DELIMITER: u8 = 0xff;
/// How long one that answers only when it fails is listened to.
const REFUSAL: Duration = Duration::from_secs(1);
/// Commands that answer only when they fail: the guest's system is gone when they succeed.
const SILENT: [&str; 4] =
    ["guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"];

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody is there: it is not installed, not started, or hangs. Nothing was asked of it.
    #[error("the guest agent does not answer")]
    Silent,
    /// It was asked, and has not answered yet.
    #[error("the guest agent has not answered within {0} s, and may still do it")]
    Late(u64),
    /// It refused.
    #[error("the guest agent: {0}")]
    Refused(String),
    /// Its answer is too large, or makes no sense.
    #[error("the guest agent: its answer {0}")]
    Odd(&'static str),
    /// The channel failed.
    #[error("the guest agent's channel: {0}")]
    Channel(#[from] std::io::Error),
}

/// Asks the guest's system to power off (`powerdown`) or restart (`reboot`). The agent answers to neither;
/// what counts is what the guest then does.
pub async fn shutdown(socket: &Path, mode: &str, patience: Duration) -> Result<(), AgentError> {
    call(socket, "guest-shutdown", &json!({ "mode": mode }), patience).await.map(drop)
}

/// Carries out a command and returns what it answers; null of those that answer only when they fail.
pub async fn call(
    socket: &Path,
    command: &str,
    arguments: &Value,
    patience: Duration,
) -> Result<Value, AgentError> {
    let greeted = async {
        let mut session = Session(BufReader::new(UnixStream::connect(socket).await?));
        session.sync().await.map(|()| session)
    };
    let mut session = tokio::time::timeout(patience, greeted).await.map_err(|_| AgentError::Silent)??;
    let talk = async {
        session.send(command, arguments).await?;
        session.answer(if command == "guest-exec-status" { MAX_OUTPUT } else { MAX_ANSWER }).await
    };
    let silent = SILENT.contains(&command);
    let line = match tokio::time::timeout(if silent { REFUSAL } else { patience }, talk).await {
        // With the system goes the channel.
        Err(_) | Ok(Err(AgentError::Channel(_))) if silent => return Ok(Value::Null),
        Err(_) => return Err(AgentError::Late(patience.as_secs())),
        Ok(line) => line?,
    };
    read(command, &line)
}

/// What is read of an answer. Of a program's output alone much is taken, so that nothing but its texts is kept.
fn read(command: &str, line: &[u8]) -> Result<Value, AgentError> {
    #[derive(Deserialize)]
    struct Answer<T> {
        #[serde(rename = "return")]
        result: Option<T>,
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        desc: String,
    }
    #[derive(Deserialize, serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Ended {
        exited: bool,
        exitcode: Option<i64>,
        signal: Option<i64>,
        out_data: Option<String>,
        err_data: Option<String>,
        #[serde(default)]
        out_truncated: bool,
        #[serde(default)]
        err_truncated: bool,
    }
    fn parse<'l, T: Deserialize<'l>>(line: &'l [u8]) -> Result<Answer<T>, AgentError> {
        serde_json::from_slice(line).map_err(|_| AgentError::Odd("can't be read"))
    }
    let answer = match command {
        "guest-exec-status" => {
            let ended: Answer<Ended> = parse(line)?;
            Answer { result: ended.result.map(|ended| json!(ended)), error: ended.error }
        }
        _ => parse::<Value>(line)?,
    };
    match (answer.error, answer.result) {
        (Some(refusal), _) => Err(AgentError::Refused(plain(&refusal.desc))),
        (None, Some(result)) => Ok(result),
        (None, None) => Err(AgentError::Odd("tells nothing")),
    }
}

/// A guest's words as they can be shown: one line, not too long.
fn plain(words: &str) -> String {
    let mut shown: String =
        words.chars().take(MAX_WHY).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if words.chars().nth(MAX_WHY).is_some() {
        shown.push_str("...");
    }
    if shown.is_empty() { "it does not say why".to_owned() } else { shown }
}

struct Session(BufReader<UnixStream>);

impl Session {
    async fn send(&mut self, command: &str, arguments: &Value) -> Result<(), AgentError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        Ok(self.0.get_mut().write_all(format!("{line}\n").as_bytes()).await?)
    }

    async fn sync(&mut self) -> Result<(), AgentError> {
        // Any number that an earlier conversation is not likely to have used.
        let id = uuid::Uuid::new_v4().as_fields().0;
        // A leading delimiter makes the agent forget half a request of an earlier client.
        self.0.get_mut().write_all(&[DELIMITER]).await?;
        self.send("guest-sync-delimited", &json!({ "id": id })).await?;
        loop {
            // What an earlier client has left unread, however much it is.
            while self.part(DELIMITER).await?.1.is_none() {}
            let line = self.answer(MAX_ANSWER).await?;
            let answer: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
            if answer["return"].as_u64() == Some(u64::from(id)) {
                return Ok(());
            }
        }
    }

    async fn answer(&mut self, most: usize) -> Result<Vec<u8>, AgentError> {
        let mut line = Vec::new();
        loop {
            let (part, end) = self.part(b'\n').await?;
            line.extend_from_slice(&part);
            if let Some(at) = line.iter().rposition(|b| *b == DELIMITER) {
                line.drain(..=at);
            }
            if line.len() > most {
                return Err(AgentError::Odd("is too large"));
            }
            if end.is_some() {
                return Ok(line);
            }
        }
    }

    /// What has come up to a byte, which is left out; and whether that has come.
    async fn part(&mut self, end: u8) -> Result<(Vec<u8>, Option<()>), AgentError> {
        let part = self.0.fill_buf().await?;
        if part.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let at = part.iter().position(|b| *b == end);
        let found = part[..at.unwrap_or(part.len())].to_vec();
        let used = at.map_or(part.len(), |at| at + 1);
        self.0.consume(used);
        Ok((found, at.map(drop)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn answers_are_read_with_care() {
        let said = |command: &str, line: &str| read(command, line.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(said("guest-ping", r#"{"return": {}}"#), Ok(json!({})));
        assert_eq!(
            said("guest-get-host-name", r#"{"return": null}"#),
            Err("the guest agent: its answer tells nothing".into())
        );
        assert_eq!(said("guest-ping", "{"), Err("the guest agent: its answer can't be read".into()));
        assert_eq!(
            said("guest-ping", r#"{"error": {}}"#),
            Err("the guest agent: it does not say why".into())
        );
        let long = format!(r#"{{"error": {{"desc": "a\u001b[2J\n{}"}}}}"#, "x".repeat(600));
        let why = said("guest-ping", &long).unwrap_err();
        assert!(!why.contains(char::is_control) && why.ends_with("xxx...") && why.len() < 550, "{why}");
        let ended = r#"{"return": {"exited": true, "exitcode": 1, "out-data": "aGk=", "more": [0, 0]}}"#;
        let ended = said("guest-exec-status", ended).unwrap();
        assert_eq!(
            (&ended["exitcode"], &ended["out-data"], &ended["more"]),
            (&json!(1), &json!("aGk="), &Value::Null)
        );
    }

    #[tokio::test]
    async fn one_that_was_asked_and_does_not_answer_may_still_do_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await.unwrap();
            let asked: Value = serde_json::from_slice(&line[1..]).unwrap();
            let id = &asked["arguments"]["id"];
            stream.write_all(b"left over").await.unwrap();
            stream.write_all(b"\xff").await.unwrap();
            stream.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
            stream
        };
        let asked = json!({});
        let (answer, _open) = tokio::join!(call(&path, "guest-exec", &asked, Duration::from_secs(1)), serve);
        assert!(matches!(answer, Err(AgentError::Late(1))), "{answer:?}");
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
