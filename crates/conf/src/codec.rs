//! One envelope for everything that leaves memory, on the wire and on disk: kind, version, length, checksum, body.
//! What was cut, torn or flipped is noticed before anything of it is understood.
//!
//! ```text
//! kind u8 | version u8 | length of the body u32 LE | CRC-32 of kind, version and body u32 LE | body (postcard)
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

const HEADER: usize = 10;

/// What an envelope holds, with the one version that is written, and the versions that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub id: u8,
    pub version: u8,
    pub name: &'static str,
}

/// A frame between nodes.
pub(crate) const FRAME: Kind = Kind { id: b'F', version: 1, name: "frame" };
/// A row of the log.
pub(crate) const LOG: Kind = Kind { id: b'L', version: 1, name: "log row" };
/// A store's head.
pub(crate) const HEAD: Kind = Kind { id: b'H', version: 1, name: "head" };
/// A whole state.
pub(crate) const IMAGE: Kind = Kind { id: b'I', version: 1, name: "state image" };
/// A proposal in the log.
pub(crate) const PROPOSAL: Kind = Kind { id: b'P', version: 1, name: "proposal" };

/// Why an envelope was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Shorter or longer than it says.
    #[error("a {name} of {len} bytes is cut")]
    Cut {
        /// What it should be.
        name: &'static str,
        /// The bytes there are.
        len: usize,
    },
    /// Another kind.
    #[error("a {name} was expected, kind {found} found")]
    Kind {
        /// What it should be.
        name: &'static str,
        /// What it says it is.
        found: u8,
    },
    /// A version that is not known here.
    #[error("a {name} has version {found}, not {known}")]
    Version {
        /// What it is.
        name: &'static str,
        /// Its version.
        found: u8,
        /// What is known.
        known: u8,
    },
    /// The checksum is wrong.
    #[error("a {name} has a wrong checksum")]
    Checksum {
        /// What it is.
        name: &'static str,
    },
    /// The body is not of its kind.
    #[error("a {name} cannot be read: {why}")]
    Body {
        /// What it is.
        name: &'static str,
        /// Why.
        why: String,
    },
}

fn checksum(kind: Kind, version: u8, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind.id, version]);
    crc.update(body);
    crc.finalize()
}

/// Wraps a value.
pub(crate) fn pack<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let fault = |error: postcard::Error| CodecError::Body { name: kind.name, why: error.to_string() };
    let mut out = postcard::to_extend(value, vec![0; HEADER]).map_err(fault)?;
    let body = out.len() - HEADER;
    let len = u32::try_from(body).map_err(|_| CodecError::Cut { name: kind.name, len: body })?;
    let crc = checksum(kind, kind.version, &out[HEADER..]);
    out[0] = kind.id;
    out[1] = kind.version;
    out[2..6].copy_from_slice(&len.to_le_bytes());
    out[6..HEADER].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Opens an envelope, which must end where `data` ends.
pub(crate) fn unpack<T: DeserializeOwned>(kind: Kind, data: &[u8]) -> Result<T, CodecError> {
    let name = kind.name;
    let cut = || CodecError::Cut { name, len: data.len() };
    let (header, body) = data.split_first_chunk::<HEADER>().ok_or_else(cut)?;
    let [id, version, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if id != kind.id {
        return Err(CodecError::Kind { name, found: id });
    }
    if version != kind.version {
        return Err(CodecError::Version { name, found: version, known: kind.version });
    }
    if u32::from_le_bytes([l0, l1, l2, l3]) as usize != body.len() {
        return Err(cut());
    }
    if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(kind, version, body) {
        return Err(CodecError::Checksum { name });
    }
    postcard::from_bytes(body).map_err(|error| CodecError::Body { name, why: error.to_string() })
}

/// Compares with the recorded bytes; `STEAD_GOLDEN=write` records them, for a new version of a format.
#[cfg(test)]
pub(crate) fn golden(data: &[u8], file: &str) {
    let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    // As it is where the test runs: what was built in one checkout may run in another.
    let package =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let path = std::path::Path::new(&package).join("tests").join(file);
    if std::env::var("STEAD_GOLDEN").is_ok_and(|mode| mode == "write") {
        let _there = std::fs::create_dir_all(path.parent().unwrap_or(&path));
        let _compared = std::fs::write(&path, format!("{hex}\n"));
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(recorded.trim(), hex, "{file}");
}
