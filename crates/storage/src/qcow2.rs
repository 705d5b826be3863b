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
}
