//! A guest's serial console in the terminal.
//!
//! The websocket carries what Proxmox VE's terminals speak: after `USER:TICKET\n` and the answer `OK`, input goes
//! as `0:LENGTH:DATA`, the window's size as `1:COLUMNS:ROWS:`, a sign of life as `2`; output comes as it is.

use crate::api::{Api, text};
use crate::failure::Failure;
use crate::params::{Params, escape, put};
use futures_util::{SinkExt, StreamExt};
use http::Request;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Ctrl-O.
const END: u8 = 0x0f;
/// So often the server hears that someone is there.
const ALIVE: Duration = Duration::from_secs(30);

/// How long it may take to open.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the console of the VM at `path` and stays until Ctrl-O or its end.
pub async fn open(api: &Api, path: &str, serial: Option<&str>) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("a console needs a terminal"));
    }
    let mut socket = connect(api, path, serial).await?;
    let raw = Raw::enter()?;
    let ended = talk(&mut socket).await;
    drop(raw);
    // The server ends the console with the connection, whether it hears the farewell or not.
    let _ = socket.close(None).await;
    println!();
    ended
}

type Socket = WebSocketStream<Box<dyn stead_transport::Duplex>>;

async fn connect(api: &Api, path: &str, serial: Option<&str>) -> Result<Socket, Failure> {
    let mut p = Params::new();
    put(&mut p, "serial", serial);
    let proxy = api.post(&format!("{path}/termproxy"), &p).await?;
    let (user, ticket, port) = (text(&proxy["user"]), text(&proxy["ticket"]), text(&proxy["port"]));
    let mut request = Request::builder()
        .uri(format!("ws://stead/api2/json{path}/vncwebsocket?port={port}&vncticket={}", escape(&ticket)))
        .header("host", "stead")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .header("sec-websocket-protocol", "binary")
        .body(())
        .map_err(|e| Failure::failed(e.to_string()))?;
    api.sign(&mut request);
    let opened = tokio::time::timeout(PATIENCE, handshake(api, request, &format!("{user}:{ticket}\n"))).await;
    opened.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        Err(Failure::failed(format!("the console did not open within {seconds} s: the node's daemon hangs")))
    })
}

/// Opens the websocket and says who it is for.
async fn handshake(api: &Api, request: Request<()>, login: &str) -> Result<Socket, Failure> {
    let (mut socket, _) = client_async(request, api.http().raw().await?).await.map_err(broken)?;
    socket.send(Message::binary(login.as_bytes().to_vec())).await.map_err(broken)?;
    let first = socket.next().await.transpose().map_err(broken)?;
    match first.map(Message::into_data) {
        Some(data) if data.starts_with(b"OK") => {
            std::io::stdout().write_all(&data[2..])?;
            Ok(socket)
        }
        _ => Err(Failure::failed("the console was refused")),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "made for map_err")]
fn broken(e: tokio_tungstenite::tungstenite::Error) -> Failure {
    Failure::failed(format!("the console broke: {e}"))
}

async fn talk(socket: &mut Socket) -> Result<(), Failure> {
    let mut keys = tokio::io::stdin();
    let mut resized = signal(SignalKind::window_change())?;
    let mut alive = tokio::time::interval(ALIVE);
    let mut typed = [0; 1024];
    send(socket, window()).await?;
    loop {
        tokio::select! {
            message = socket.next() => match message.transpose().map_err(broken)? {
                None | Some(Message::Close(_)) => return Ok(()),
                Some(Message::Binary(data)) => show(&data)?,
                Some(Message::Text(text)) => show(text.as_bytes())?,
                Some(_) => {}
            },
            read = keys.read(&mut typed) => {
                let typed = &typed[..read?];
                let end = typed.iter().position(|b| *b == END);
                let input = &typed[..end.unwrap_or(typed.len())];
                if !input.is_empty() {
                    send(socket, input_message(input)).await?;
                }
                if end.is_some() || typed.is_empty() {
                    return Ok(());
                }
            },
            _ = resized.recv() => send(socket, window()).await?,
            _ = alive.tick() => send(socket, b"2".to_vec()).await?,
        }
    }
}

fn input_message(input: &[u8]) -> Vec<u8> {
    let mut message = format!("0:{}:", input.len()).into_bytes();
    message.extend_from_slice(input);
    message
}

fn window() -> Vec<u8> {
    let (columns, rows) = tcgetwinsize(std::io::stdout()).map_or((80, 24), |w| (w.ws_col, w.ws_row));
    format!("1:{columns}:{rows}:").into_bytes()
}

fn show(data: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(data)?;
    Ok(out.flush()?)
}

async fn send(socket: &mut Socket, bytes: Vec<u8>) -> Result<(), Failure> {
    socket.send(Message::binary(bytes)).await.map_err(broken)
}

/// The terminal hands on every key, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::failed(format!("the terminal: {e}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        println!("Console; Ctrl-O ends it.");
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If that fails there is no terminal any more.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_carries_its_length_in_bytes() {
        assert_eq!(input_message("ä\r".as_bytes()), "0:3:ä\r".as_bytes());
    }
}
