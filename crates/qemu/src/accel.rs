//! Which accelerator a node has.
//!
//! A `/dev/kvm` that opens is not enough: on some hosts (nested under a paravirtual hypervisor) it does and
//! real systems hang on it. KVM counts as usable only where the processor shows its own extension too.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: slow, and everywhere.
    Tcg,
}

impl Accel {
    /// As QEMU spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The best that this machine has.
    pub fn probe() -> Self {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if device && has_extension(&flags) { Self::Kvm } else { Self::Tcg }
    }
}

/// Whether `cpuinfo` shows Intel's or AMD's extension for virtual machines.
fn has_extension(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Accel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("'{s}' is no accelerator: kvm or tcg")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_processors_own_extension() {
        assert!(has_extension("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_extension("flags\t\t: fpu svm\n"));
        assert!(!has_extension("flags\t\t: fpu hypervisor vmx_x svmx\nbugs\t\t: vmx\n"));
    }
}
