//! The few fields of a qcow2 header that a listing needs.
//!
//! `qemu-img info` would do too, but costs a process per image and refuses an image that a guest has open.

/// What the header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// Where the backing file's name lies: offset and length in bytes.
    pub backing: Option<(u64, u32)>,
}

/// Bytes that [`parse`] wants.
pub const LENGTH: usize = 32;

/// Reads a header; none when these are not the first bytes of a qcow2 image.
pub fn parse(bytes: &[u8; LENGTH]) -> Option<Header> {
    let u32_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if bytes.get(..4)? != b"QFI\xfb" || !(2..=3).contains(&u32_at(4)?) {
        return None;
    }
    let (offset, length) = (u64_at(8)?, u32_at(16)?);
    // A name is at most 1023 bytes long; more is a damaged or hostile header.
    let backing = (offset != 0 && length <= 1023).then_some((offset, length));
    Some(Header { virtual_size: u64_at(24)?, backing })
}

/// Bytes that [`check_alone`] wants: up to the end of what a program must know of an image.
pub const WHOLE: usize = 80;
/// It keeps its data in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// What else a program must know of an image and names no file: dirty, corrupt, its compression, its extended tables (QEMU's
/// docs/interop/qcow2.txt).
const HARMLESS: u64 = 0b1_1011;

/// Refuses an image that needs other files, by its header. What is none is refused, too.
pub fn check_alone(bytes: &[u8; WHOLE]) -> Result<(), String> {
    let mut first = [0; LENGTH];
    first.copy_from_slice(&bytes[..LENGTH]);
    if parse(&first).is_none() {
        return Err("it is no qcow2 image".to_owned());
    }
    if bytes[8..16] != [0; 8] {
        return Err("it is built on another image: flatten it first ('qemu-img convert')".to_owned());
    }
    let mut features = [0; 8];
    features.copy_from_slice(&bytes[72..80]);
    // The second version has none.
    let features = if bytes[7] == 3 { u64::from_be_bytes(features) } else { 0 };
    if features & EXTERNAL_DATA != 0 {
        return Err("it keeps its data in another file: convert it first ('qemu-img convert')".to_owned());
    }
    match features & !HARMLESS {
        0 => Ok(()),
        unknown => Err(format!(
            "it has features that are not known ({unknown:#x}): convert it first ('qemu-img convert')"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_gives_size_and_backing_file() {
        let mut h = [0u8; LENGTH];
        h[..4].copy_from_slice(b"QFI\xfb");
        h[7] = 3;
        h[24..].copy_from_slice(&(5u64 << 30).to_be_bytes());
        assert_eq!(parse(&h), Some(Header { virtual_size: 5 << 30, backing: None }));
        h[8..16].copy_from_slice(&0x200u64.to_be_bytes());
        h[19] = 9;
        assert_eq!(parse(&h).unwrap().backing, Some((0x200, 9)));
        h[0] = 0;
        assert_eq!(parse(&h), None);
    }

    #[test]
    fn an_image_that_names_other_files_is_found_out() {
        let mut h = [0u8; WHOLE];
        h[..4].copy_from_slice(b"QFI\xfb");
        h[7] = 3;
        assert_eq!(check_alone(&h), Ok(()));
        for (at, byte, why) in [
            (9, 1, "built on"),
            (15, 9, "built on"),
            (79, 4, "another file"),
            (79, 32, "not known"),
            (72, 1, "not known"),
            (0, 0, "no qcow2"),
        ] {
            let mut bad = h;
            bad[at] = byte;
            assert!(check_alone(&bad).unwrap_err().contains(why), "{at}");
        }
        // What else a program must know names no file.
        h[79] = 0b11011;
        assert_eq!(check_alone(&h), Ok(()));
    }
}
