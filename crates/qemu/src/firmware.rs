//! The UEFI firmware's files: its program, and the variables that it begins with, as Debian's package `ovmf` has them.

use crate::command::{Chipset, refuse};
use std::path::{Path, PathBuf};
use stead_driver::guest::GuestError;
use stead_model::vmconfig::EfiVariables;

const FOLDER: &str = "/usr/share/OVMF";

/// The firmware of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The program.
    pub code: PathBuf,
    /// The program that Secure Boot can trust, where the guest's variables ask for it. It needs a machine of the newer kind.
    pub secure: Option<PathBuf>,
    /// The guest's variables.
    pub vars: PathBuf,
    /// Their format: `raw` or `qcow2`.
    pub format: String,
    /// The name of their node in QEMU's block layer.
    pub node: String,
}

impl Firmware {
    /// The program for a chipset, and whether it is the one for Secure Boot.
    pub fn code(&self, chipset: Chipset) -> (&Path, bool) {
        match &self.secure {
            Some(secure) if chipset == Chipset::Q35 => (secure, true),
            _ => (&self.code, false),
        }
    }
}

fn suffix(variables: EfiVariables) -> &'static str {
    if variables.large { "_4M" } else { "" }
}

fn file(name: &str) -> Result<PathBuf, GuestError> {
    let path = Path::new(FOLDER).join(name);
    if path.exists() {
        return Ok(path);
    }
    refuse("bios", format!("the UEFI firmware's '{name}' is not on this node: install the package ovmf"))
}

/// The variables that a new guest begins with.
pub fn variables(of: EfiVariables) -> Result<PathBuf, GuestError> {
    let keys = if of.enrolled { ".ms" } else { "" };
    file(&format!("OVMF_VARS{}{keys}.fd", suffix(of)))
}

/// The programs that go with variables: the plain one, and the one for Secure Boot if they ask for it.
pub fn programs(of: EfiVariables) -> Result<(PathBuf, Option<PathBuf>), GuestError> {
    let plain = file(&format!("OVMF_CODE{}.fd", suffix(of)))?;
    let secure = of.enrolled.then(|| file(&format!("OVMF_CODE{}.secboot.fd", suffix(of)))).transpose()?;
    Ok((plain, secure))
}

/// Those of a guest without a disk for them: lost with its process.
pub fn of_a_run() -> Result<EfiVariables, GuestError> {
    let large = EfiVariables { large: true, enrolled: false };
    let small = EfiVariables { large: false, enrolled: false };
    variables(large).map(|_| large).or_else(|_| variables(small).map(|_| small))
}
