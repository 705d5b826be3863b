//! A VM's screen, terminal and monitor.

use crate::{Ops, OpsError};
use stead_model::Vmid;
use tokio::net::UnixStream;

impl Ops {
    /// Connects to the screen; the RFB password is set to `password` (its first eight bytes count).
    pub async fn screen(&self, vmid: Vmid, password: &str) -> Result<UnixStream, OpsError> {
        let eight: String = password.chars().take(8).collect();
        Ok(self.guests.screen(vmid, &eight).await?)
    }

    /// Connects to a serial terminal: the one named, or the first that the configuration has.
    pub async fn terminal(&self, vmid: Vmid, port: Option<&str>) -> Result<UnixStream, OpsError> {
        let port = self.serial(vmid, port)?;
        Ok(self.guests.terminal(vmid, &port).await?)
    }

    /// The serial port that is named, or the first in the configuration.
    pub fn serial(&self, vmid: Vmid, named: Option<&str>) -> Result<String, OpsError> {
        let config = super::config::parse(&self.vm_at(vmid)?.config.value)?;
        let serials = config.current.serials()?;
        if let Some(named) = named
            && !serials.iter().any(|(key, _)| key == named)
        {
            return Err(OpsError::invalid("serial", format!("VM {vmid} has no {named}")));
        }
        let (key, _) = serials.iter().find(|(key, _)| named.is_none_or(|n| n == key)).ok_or_else(|| {
            OpsError::failed(format!(
                "VM {vmid} has no serial port: set one with 'serial0: socket' and start it again"
            ))
        })?;
        Ok(key.clone())
    }

    /// Passes a line to the program's own monitor: one that looks, or that presses a key. All else would go around the
    /// guest's owner, its guard, its configuration or its disks, or would reach into the host.
    pub async fn monitor(&self, vmid: Vmid, line: &str) -> Result<String, OpsError> {
        check_line(line)?;
        Ok(self.guests.monitor(vmid, line).await?)
    }

    /// Presses keys together and lets them go: names joined by `-`, as `ctrl-alt-delete`.
    pub async fn send_key(&self, vmid: Vmid, keys: &str) -> Result<(), OpsError> {
        let plain =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if keys.len() > 200 || !keys.split('-').all(plain) {
            return Err(OpsError::invalid(
                "key",
                "it must be names of keys joined by '-', as ctrl-alt-delete",
            ));
        }
        // It says something only if it has not done so.
        match self.guests.monitor(vmid, &format!("sendkey {keys}")).await?.trim() {
            "" => Ok(()),
            why => Err(OpsError::invalid("key", why)),
        }
    }
}

/// What may be asked of the monitor. A list of what is harmless, since nobody knows the next version's commands.
const HARMLESS: [&str; 7] = ["info", "help", "?", "sendkey", "mouse_move", "mouse_button", "mouse_set"];

/// The verb that does in order what a command does behind everybody's back.
fn verb_for(word: &str) -> Option<&'static str> {
    Some(match word {
        "stop" => "'suspend'",
        "cont" | "c" => "'resume'",
        "system_reset" => "'reset'",
        "system_powerdown" => "'shutdown'",
        "quit" | "q" => "'stop'",
        "block_resize" => "'resize'",
        "balloon" | "change" | "eject" | "set_link" | "device_add" | "device_del" | "drive_add"
        | "drive_del" | "netdev_add" | "netdev_del" | "hostfwd_add" | "hostfwd_remove" | "boot_set" => {
            "the VM's configuration ('set')"
        }
        _ if word.starts_with("migrate") => "'migrate'",
        _ => return None,
    })
}

/// Refuses a line for the monitor unless it is harmless.
fn check_line(line: &str) -> Result<(), OpsError> {
    let word = line.split_whitespace().next().unwrap_or_default();
    if line.chars().any(char::is_control) {
        return Err(OpsError::invalid("command", "it must be one line"));
    }
    if HARMLESS.contains(&word) {
        return Ok(());
    }
    let instead = verb_for(word)
        .map_or_else(|| format!("allowed are {}", HARMLESS.join(", ")), |verb| format!("use {verb} instead"));
    Err(OpsError::invalid("command", format!("the monitor's '{word}' is refused: {instead}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitor_shows_and_presses_keys_and_does_nothing_else() {
        for good in
            ["info status", " info block", "help", "? info", "sendkey ctrl-alt-delete", "mouse_move 1 2"]
        {
            assert!(check_line(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("pmemsave 0 4096 \"/etc/x\"", "allowed are info"),
            ("dump-guest-memory /x", "allowed are info"),
            ("screendump /x", "allowed are info"),
            ("logfile /x", "allowed are info"),
            ("object_add x", "allowed are info"),
            ("drive_backup a /x", "allowed are info"),
            ("commit all", "allowed are info"),
            ("info/x status", "allowed are info"),
            ("infox", "allowed are info"),
            ("", "allowed are info"),
            ("stop", "'suspend'"),
            ("c", "'resume'"),
            ("system_reset", "'reset'"),
            ("device_add usb-tablet", "configuration"),
            ("balloon 100", "configuration"),
            ("migrate -d tcp:1", "'migrate'"),
            ("info status\nstop", "one line"),
        ] {
            let said = check_line(bad).unwrap_err().to_string();
            assert!(said.contains(word), "{bad}: {said}");
        }
    }
}
