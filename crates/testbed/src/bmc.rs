//! A node's service processor: OpenIPMI's simulator, whose power button is the node's power switch.
//!
//! It says that the power is off only when nothing of the node is left, as a real one does; and can do nothing but press the
//! button of its own node.

use crate::procs::BED_DIR;
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Who may press the button.
pub const USER: &str = "stead";
/// With this.
pub const PASSWORD: &str = "open-sesame";

/// The programs that are needed, with their packages.
pub const PROGRAMS: [(&str, &str); 3] =
    [("ipmi_sim", "openipmi"), ("ipmitool", "ipmitool"), ("fence_ipmilan", "fence-agents")];

/// What the simulator calls to press the button, and to look.
const CHASSIS: &str = r#"#!/usr/bin/env python3
import socket, sys
state, switch = sys.argv[1:3]
words = sys.argv[3:]
if words[:2] == ["get", "power"]:
    print("power:" + open(state).read())
elif words == ["set", "power", "0"]:
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(switch)
        s.sendall(b"off\n")
        while s.recv(16):
            pass
    open(state, "w").write("0")
elif words == ["set", "power", "1"]:
    open(state, "w").write("1")
else:
    sys.exit(1)
"#;

/// A running service processor. Ends when dropped.
#[derive(Debug)]
pub struct Bmc {
    child: Child,
    addr: SocketAddr,
    state: PathBuf,
}

/// The first of [`PROGRAMS`] that is missing, and its package.
pub fn missing() -> Option<(&'static str, &'static str)> {
    let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    PROGRAMS.into_iter().find(|(program, _)| !dirs.iter().any(|d| Path::new(d).join(program).is_file()))
}

impl Bmc {
    /// Starts one for node `name` of the testbed in `bed`, which has power, at a free UDP port of `ip`, in the network namespace
    /// of this thread.
    pub fn start(bed: &Path, name: &str, ip: IpAddr) -> Result<Self> {
        let free = std::net::UdpSocket::bind((ip, 0)).context("a port for a service processor")?;
        let addr = free.local_addr()?;
        drop(free);
        let dir = bed.join(format!("{name}.bmc"));
        fs::create_dir_all(dir.join("kept"))?;
        let (state, chassis, conf) = (dir.join("power"), dir.join("chassis"), dir.join("lan.conf"));
        fs::write(&state, "1")?;
        fs::write(&chassis, CHASSIS)?;
        fs::set_permissions(&chassis, fs::Permissions::from_mode(0o700))?;
        let switch = bed.join(format!("{name}.power"));
        let button = format!("{} {} {}", chassis.display(), state.display(), switch.display());
        fs::write(&conf, lan_conf(name, addr, &button))?;
        fs::write(
            dir.join("sim.emu"),
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n",
        )?;
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new("ipmi_sim")
            .arg("-n")
            .args([Path::new("-c"), &conf, Path::new("-f"), &dir.join("sim.emu")])
            .args([Path::new("-s"), &dir.join("kept")])
            .env(BED_DIR, bed)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting ipmi_sim")?;
        let bmc = Self { child, addr, state };
        bmc.wait_up()?;
        Ok(bmc)
    }

    /// Waits until it answers a ping of its protocol.
    fn wait_up(&self) -> Result<()> {
        const WITHIN: Duration = Duration::from_secs(10);
        // RMCP, class ASF: presence ping.
        const PING: [u8; 12] = [6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0];
        let until = Instant::now() + WITHIN;
        while Instant::now() < until {
            let socket = std::net::UdpSocket::bind((self.addr.ip(), 0))?;
            socket.connect(self.addr)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            if socket.send(&PING).is_ok() && socket.recv(&mut [0; 64]).is_ok() {
                return Ok(());
            }
        }
        bail!("the service processor at {} does not answer within {WITHIN:?}", self.addr)
    }

    /// Whether the power is on, by its word.
    pub fn is_on(&self) -> Result<bool> {
        Ok(fs::read_to_string(&self.state)?.trim() == "1")
    }

    /// Somebody has pressed the button of a node that was off.
    ///
    /// # Errors
    /// It cannot be noted.
    pub fn turned_on(&self) -> Result<()> {
        fs::write(&self.state, "1").context("noting that a node has power")
    }

    /// Where it answers.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The options by which a fence agent reaches it, without the password.
    pub fn options(&self) -> String {
        let (ip, port) = (self.addr.ip(), self.addr.port());
        // The simulator takes ten seconds to say which ciphers it knows; the agent waits two after each order, if not told
        // otherwise.
        format!("ip={ip} ipport={port} username={USER} lanplus=1 cipher=3 power_wait=0")
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        // It is this one's child and not reaped: its process id is its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lan_conf(name: &str, addr: SocketAddr, button: &str) -> String {
    // The simulator opens no session of version 2.0 where any of these is missing.
    const AUTHS: &str = "none md2 md5 straight";
    let auths: String = ["callback", "user", "operator", "admin"]
        .map(|who| format!("    allowed_auths_{who} {AUTHS}\n"))
        .concat();
    format!(
        "name \"{name}\"\nset_working_mc 0x20\n  startlan 1\n    addr {} {}\n    priv_limit admin\n{auths}    \
         guid a123456789abcdefa123456789abcdef\n  endlan\n  chassis_control \"{button}\"\n  \
         user 2 true \"{USER}\" \"{PASSWORD}\" admin 10 {AUTHS}\n",
        addr.ip(),
        addr.port()
    )
}
