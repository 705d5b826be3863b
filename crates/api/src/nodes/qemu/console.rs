//! A VM's screen, terminal and monitor.
//!
//! `vncproxy` and `termproxy` give a ticket and a port; `vncwebsocket` takes both. The port is no listener: it tells
//! what the ticket is for, so that nothing has to be kept between the two calls, which may reach different daemons.
//!
//! | port | what |
//! |---|---|
//! | 5900 to 5929 | the screen; its password is the ticket's beginning |
//! | 5930 to 5959 | the screen; its password was generated with the ticket |
//! | 5960 to 5999 | a terminal: ten ports for each of serial0 to serial3 |

use crate::backend::Cx;
use crate::framework::{Access, Caller, Error, Json, Null, Socket};
use serde::Serialize;
use std::ops::Range;
use stead_access::Keyring;
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, Vmid, paths};
use stead_ops::Ops;

const CONSOLE: Access = Access::All("/vms/{vmid}", &["VM.Console"]);
const PLAIN: Range<u16> = 5900..5930;
const GENERATED: Range<u16> = 5930..5960;
const TERMINAL: Range<u16> = 5960..6000;
/// Ports for each serial line.
const PER_LINE: u16 = 10;
/// VNC's passwords have no more characters.
const PASSWORD: usize = 8;

choice! {
    /// A serial line.
    pub enum Serial { Serial0 = "serial0", Serial1 = "serial1", Serial2 = "serial2", Serial3 = "serial3" }
}

#[derive(Params)]
pub struct OpenScreen {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Make a password for the screen, instead of using the ticket's beginning.
    #[param(name = "generate-password", default = "0")]
    generate: bool,
    /// Reach it by a WebSocket. There is no other way.
    websocket: Option<bool>,
}

#[derive(Params)]
pub struct OpenTerminal {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The line, unless the first.
    serial: Option<Serial>,
}

#[derive(Params)]
pub struct Connect {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// As it was given with the ticket.
    #[param(min = 5900, max = 5999)]
    port: u16,
    /// The ticket.
    #[param(max_length = 512)]
    vncticket: String,
}

#[derive(Params)]
pub struct Monitor {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// A line for the program's monitor.
    command: String,
}

#[derive(Params)]
pub struct PressKeys {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// Keys that are pressed together, by QEMU's names: `ctrl-alt-delete`.
    key: String,
    /// Over a lock (root@pam alone).
    #[param(default = "0")]
    skiplock: bool,
}

fn keyring(cx: &Cx) -> Result<Keyring, Error> {
    cx.ops().identities()?.keyring.ok_or_else(|| Error::new(503, "cluster not ready"))
}

fn path(vmid: Vmid) -> String {
    format!("/vms/{vmid}")
}

/// Any port of a range.
fn port(range: Range<u16>) -> u16 {
    range.start + rand::random::<u16>() % (range.end - range.start)
}

/// Eight characters that only the ticket's holder knows: the beginning of its signature.
fn generated(ticket: &str) -> String {
    let sig = ticket.rsplit("::").next().unwrap_or_default();
    sig.chars().take(PASSWORD).collect()
}

/// What opens a screen or a terminal. Contains a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Schema)]
pub struct ConsoleTicket {
    /// Who may use it.
    user: String,
    /// Shows it.
    ticket: String,
    /// What it is for; no listener.
    port: String,
    /// Of a screen: its password, if one was to be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// Of a screen: the cluster CA's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
}

fn begin(cx: &Cx, vmid: Vmid, port: u16) -> Result<ConsoleTicket, Error> {
    let user = cx.caller.id.to_string();
    let ticket = keyring(cx)?.console_ticket(&user, &path(vmid), port, cx.caller.now, rand::random());
    Ok(ConsoleTicket { user, ticket, port: port.to_string(), password: None, cert: None })
}

endpoint! {
    /// Gives a ticket for a VM's screen.
    VncProxy = post("/nodes/{node}/qemu/{vmid}/vncproxy"), AtGuest, CONSOLE;
    fn call(cx, p: OpenScreen) -> Json<ConsoleTicket> {
        cx.ops().member(&p.node)?;
        if p.websocket == Some(false) {
            return Err(Error::parameter("websocket", "a screen is reached by a WebSocket only"));
        }
        cx.ops().running(p.vmid).await?;
        let answer = begin(cx, p.vmid, port(if p.generate { GENERATED } else { PLAIN }))?;
        let password = p.generate.then(|| generated(&answer.ticket));
        Ok(Json(ConsoleTicket { password, cert: Some(cx.ops().file(paths::CA_CERT)?.0), ..answer }))
    }
}

endpoint! {
    /// Gives a ticket for a VM's terminal.
    TermProxy = post("/nodes/{node}/qemu/{vmid}/termproxy"), AtGuest, CONSOLE;
    fn call(cx, p: OpenTerminal) -> Json<ConsoleTicket> {
        cx.ops().member(&p.node)?;
        cx.ops().running(p.vmid).await?;
        let line = cx.ops().serial(p.vmid, p.serial.map(Serial::word))?;
        let n: u16 = line.trim_start_matches("serial").parse().map_err(|_| Error::failed(format!("no line '{line}'")))?;
        let first = TERMINAL.start + n * PER_LINE;
        Ok(Json(begin(cx, p.vmid, port(first..first + PER_LINE))?))
    }
}

endpoint! {
    /// Connects to a screen or terminal: a WebSocket of subprotocol `binary`.
    VncWebsocket = get("/nodes/{node}/qemu/{vmid}/vncwebsocket"), AtGuest, CONSOLE;
    fn call(cx, p: Connect) -> Socket {
        cx.ops().member(&p.node)?;
        let (user, keyring) = (cx.caller.id.to_string(), keyring(cx)?);
        let good = keyring.check_console(&p.vncticket, &user, &path(p.vmid), p.port, cx.caller.now);
        good.map_err(|e| Error::unauthorized(format!("permission denied - invalid PVEVNC ticket: {e}")))?;
        if !cx.services.first_use(&p.vncticket) {
            return Err(Error::unauthorized("permission denied - this PVEVNC ticket was used before: ask for a new one"));
        }
        if TERMINAL.contains(&p.port) {
            let line = format!("serial{}", (p.port - TERMINAL.start) / PER_LINE);
            let stream = cx.ops().terminal(p.vmid, Some(&line)).await?;
            // The connection's ticket was checked; the line must show the same one once more.
            let login = move |who: &str, ticket: &str| who == user && ticket == p.vncticket;
            return Ok(Socket::terminal(stream, Box::new(login)));
        }
        let password = if GENERATED.contains(&p.port) {
            generated(&p.vncticket)
        } else {
            p.vncticket.chars().take(PASSWORD).collect()
        };
        Ok(Socket::screen(cx.ops().screen(p.vmid, &password).await?))
    }
}

/// Looking needs less than doing.
fn may_monitor(caller: &Caller, p: &Monitor) -> Result<(), Error> {
    let first = p.command.split_whitespace().next().unwrap_or_default();
    if matches!(first, "info" | "help" | "?") {
        caller.require_any(&path(p.vmid), &["Sys.Audit", "Sys.Modify"])
    } else {
        caller.require(&path(p.vmid), &["Sys.Modify"])
    }
}

endpoint! {
    /// Passes a line to the program's own monitor.
    PostMonitor = post("/nodes/{node}/qemu/{vmid}/monitor"), AtGuest,
        Access::Any("/vms/{vmid}", &["Sys.Audit", "Sys.Modify"]);
    authorize: may_monitor;
    fn call(cx, p: Monitor) -> Json<String> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().monitor(p.vmid, &p.command).await?))
    }
}

endpoint! {
    /// Presses keys of a VM's keyboard, all together, and lets them go.
    SendKey = put("/nodes/{node}/qemu/{vmid}/sendkey"), AtGuest, CONSOLE;
    fn call(cx, p: PressKeys) -> Null {
        cx.ops().member(&p.node)?;
        Ops::check_skiplock(&cx.actor(), p.skiplock)?;
        cx.ops().send_key(p.vmid, &p.key).await?;
        Ok(Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_own_ports_and_none_is_a_screens() {
        for (range, n) in [(PLAIN, 30), (GENERATED, 30), (TERMINAL, 40)] {
            assert_eq!(range.len(), n);
            assert!((0..200).all(|_| range.contains(&port(range.clone()))));
        }
        assert_eq!((5960 - TERMINAL.start) / PER_LINE, 0);
        assert_eq!((5999 - TERMINAL.start) / PER_LINE, 3);
    }
}
