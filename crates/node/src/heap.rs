//! Memory goes back to the system when it is freed.
//!
//! The C library's allocator gives a large block back when it is freed, but takes the block's size as a hint: blocks up to
//! that size (32 MiB at most) come from its heaps from then on, and stay there. One check of a password takes
//! 19 MiB for a moment; after some dozens of sign-ins hundreds of MiB were kept. A limit that was set is not moved.

/// Blocks from this size on are given back to the system as soon as they are freed.
const GIVEN_BACK: std::ffi::c_int = 1 << 20;

/// Sets the limit. Called before anything large was allocated.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
        // Refused, it only costs memory.
        mallopt(M_MMAP_THRESHOLD, GIVEN_BACK);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
// SAFETY: this is glibc's declaration of a function that every program linked to glibc has. It takes two numbers by value,
// checks them, and locks what it changes, so that any thread may call it at any time.
unsafe extern "C" {
    safe fn mallopt(param: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Anonymous memory of this process in KiB.
    fn taken() -> i64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn large_blocks_are_given_back() {
        give_back();
        let before = taken();
        // The first one that is freed would move the limit, the second would stay.
        for _ in 0..2 {
            drop(std::hint::black_box(vec![1u8; 19 << 20]));
        }
        let kept = taken() - before;
        assert!(kept < 4096, "{kept} KiB of a freed block are kept");
    }
}
