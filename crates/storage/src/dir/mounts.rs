//! Whether something is mounted at a path.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Whether a file system is mounted at exactly `point`. A missing directory is not mounted.
pub fn is_mounted(point: &Path) -> std::io::Result<bool> {
    let Ok(point) = point.canonicalize() else { return Ok(false) };
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(mount_points(&table).any(|mounted| mounted == point))
}

/// The mount points of a `mountinfo` table.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape)
}

/// Blanks and backslashes stand as octal numbers.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let table = b"36 35 98:0 / /mnt/my\\040disk rw - ext3 /dev/root rw\n1 1 0:5 / /proc rw - proc x rw\n";
        let found: Vec<_> = mount_points(table).collect();
        assert_eq!(found, [PathBuf::from("/mnt/my disk"), PathBuf::from("/proc")]);
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
        assert_eq!(unescape(b"a\\9").as_os_str().as_bytes(), b"a\\9");
    }
}
