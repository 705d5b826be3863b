//! The types of parameters' values.

use super::params::{Kind, Param, ParamSchema, boolean};
use std::net::IpAddr;
use stead_access::AuthId;
use stead_model::{
    DeviceId, DomainName, GuestKind, NodeName, ServiceId, StorageId, Upid, UserId, Vmid, VolumeId,
};

impl Param for String {
    fn describe(s: ParamSchema) -> ParamSchema {
        s
    }
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Param for bool {
    fn describe(s: ParamSchema) -> ParamSchema {
        ParamSchema { kind: Kind::Boolean, ..s }
    }
    fn read(text: &str) -> Result<Self, String> {
        boolean(text).ok_or_else(|| format!("type check ('boolean') failed - got '{text}'"))
    }
}

impl Param for f64 {
    fn describe(s: ParamSchema) -> ParamSchema {
        ParamSchema { kind: Kind::Number, ..s }
    }
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("type check ('number') failed - got '{text}'"))
    }
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Param for $t {
            fn describe(s: ParamSchema) -> ParamSchema {
                ParamSchema { kind: Kind::Integer, ..s }
            }
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("value '{text}' is out of range"))
            }
        }
    )*};
}
integers!(u16, u32, u64, i64, usize);

/// Types with `FromStr`, by their format's name.
macro_rules! parsed {
    ($($t:ty, $format:literal);* $(;)?) => {$(
        impl Param for $t {
            fn describe(s: ParamSchema) -> ParamSchema {
                s.format($format)
            }
            fn read(text: &str) -> Result<Self, String> {
                text.parse::<$t>().map_err(|e| format!("invalid format - {e}"))
            }
        }
    )*};
}
parsed! {
    NodeName, "pve-node";
    StorageId, "pve-storage-id";
    DeviceId, "pve-configid";
    DomainName, "stead-domain";
    UserId, "pve-userid";
    AuthId, "pve-authid";
    VolumeId, "pve-volume-id";
    ServiceId, "pve-ha-resource-or-vm-id";
    Upid, "pve-upid";
    IpAddr, "ip";
}

impl Param for Vmid {
    fn describe(s: ParamSchema) -> ParamSchema {
        let s = ParamSchema { kind: Kind::Integer, ..s }.format("pve-vmid");
        s.min(f64::from(Self::MIN)).max(f64::from(Self::MAX))
    }
    fn read(text: &str) -> Result<Self, String> {
        text.parse::<Self>().map_err(|e| format!("invalid format - {e}"))
    }
}

impl Param for GuestKind {
    fn describe(s: ParamSchema) -> ParamSchema {
        s.choices(&["qemu", "lxc"])
    }
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "qemu" => Ok(Self::Qemu),
            "lxc" => Ok(Self::Lxc),
            _ => Err(format!("'{text}' is no kind of guest")),
        }
    }
}

/// Declares an enum that is a parameter's value, by the words that clients use.
#[macro_export]
macro_rules! choice {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// The word that clients use.
            #[allow(dead_code)]
            $vis fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl $crate::framework::params::Param for $name {
            fn describe(s: $crate::framework::params::ParamSchema) -> $crate::framework::params::ParamSchema {
                s.choices(&[$($word),*])
            }
            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(format!("'{other}' is none of the choices")),
                }
            }
        }
    };
}
