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

    /// Passes a line to the program's own monitor. What would go around the guest's owner, its guard or its disks, or
    /// run programs on the host, is refused: there are verbs for it.
    pub async fn monitor(&self, vmid: Vmid, line: &str) -> Result<String, OpsError> {
        const REFUSED: [&str; 11] = [
            "cont",
            "c",
            "quit",
            "q",
            "migrate",
            "nbd_server",
            "drive_add",
            "chardev-add",
            "savevm",
            "loadvm",
            "gdbserver",
        ];
        let word = line.split_whitespace().next().unwrap_or_default();
        if REFUSED.iter().any(|r| word == *r || (r.len() > 5 && word.starts_with(r))) {
            return Err(OpsError::failed(format!(
                "the monitor's '{word}' is refused: use the cluster's own verbs"
            )));
        }
        Ok(self.guests.monitor(vmid, line).await?)
    }
}
