//! The HTTP guest's bootable disk image: our boot code, the kernel as it is, and an initial RAM disk in `cpio`'s format.
//!
//! Made without root, boot loader or file system tools. The result is kept in the user's cache under a name that tells
//! its content, so that the next run needs no network and takes no time.

use super::kernel::{self, Parts};
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const LOADER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/boot.bin"));
const GUESTD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guestd"));
const UDHCPC: &[u8] = include_bytes!("../../../../guests/http/udhcpc");

const SECTOR: usize = 512;
/// Images are a multiple of this, as storages hand out disks.
const ALIGN: usize = 1 << 20;

/// Memory in MiB that the guest needs at least, and is given in tests.
pub const MEMORY_MIB: u32 = 256;

/// Where images and packages are kept: `STEAD_GUEST_CACHE`, else `$XDG_CACHE_HOME/stead/guest`, else
/// `~/.cache/stead/guest`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("STEAD_GUEST_CACHE") {
        return Ok(dir.into());
    }
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("stead/guest"))
}

/// The cache, which nobody else changes as long as the second part of the answer lives.
pub(super) fn locked_cache() -> Result<(PathBuf, File)> {
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("locking the guest cache")?;
    Ok((cache, lock))
}

/// The image's path, made first if need be. Any number of processes may ask at once.
pub fn http_guest(progress: &dyn Fn(&str)) -> Result<PathBuf> {
    kept("http", kernel::OF_A_GUEST, &[], progress)
}

/// As [`http_guest`], with QEMU's guest agent in it, which this machine has installed. A disk with an ext4 file system is
/// mounted, and its file `log` grows by a line each 100 ms.
pub fn agent_guest(progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let found = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].map(Path::new).into_iter().find(|p| p.exists());
    let agent = found.context("there is no qemu-ga here (Debian's package qemu-guest-agent, `make deps`)")?;
    let mut files = program_files(agent)?;
    files[0].0 = "bin/qemu-ga".to_owned();
    let modules: Vec<&str> = kernel::OF_A_GUEST.iter().chain(kernel::OF_AN_AGENT).copied().collect();
    kept("agent", &modules, &files, progress)
}

/// The kept image of this content.
fn kept(
    name: &str,
    modules: &[&str],
    files: &[(String, Vec<u8>)],
    progress: &dyn Fn(&str),
) -> Result<PathBuf> {
    let (cache, _lock) = locked_cache()?;
    let parts = kernel::parts(&cache, modules, progress)?;
    let image = build(&parts, files)?;
    let path = cache.join(format!("{name}-{:016x}.raw", super::disklog::record::checksum(&image)));
    if !path.exists() {
        let part = path.with_extension("part");
        fs::write(&part, &image).with_context(|| format!("writing {}", part.display()))?;
        fs::rename(&part, &path)?;
    }
    Ok(path)
}

/// A program and what it is linked with, its loader included, as files of a RAM disk.
pub(super) fn program_files(program: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let out = Command::new("ldd").arg(program).output().context("running ldd")?;
    ensure!(out.status.success(), "ldd {} failed", program.display());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    let files = [program].into_iter().chain(libraries).map(|path| {
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok((path.strip_prefix("/").unwrap_or(path).display().to_string(), content))
    });
    files.collect()
}

/// Lays loader, kernel and RAM disk out on a disk.
fn build(parts: &Parts, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let kernel = &parts.kernel;
    ensure!(kernel.len() > 0x264 && kernel[0x202..0x206] == *b"HdrS", "the guest's kernel is not a bzImage");
    let initrd = initrd(parts, files);
    let setup_sectors = match kernel[0x1f1] {
        0 => 5,
        n => usize::from(n) + 1,
    };
    ensure!(
        setup_sectors * SECTOR <= 0xe000,
        "the kernel's real-mode part is larger than its place in memory"
    );

    let word = |at: usize| u32::from_le_bytes([kernel[at], kernel[at + 1], kernel[at + 2], kernel[at + 3]]);
    // It unpacks itself from its preferred address on; the RAM disk goes behind that.
    let (preferred, needs, highest) = (word(0x258), word(0x260), word(0x22c));
    let initrd_at = (preferred + needs).next_multiple_of(ALIGN as u32);
    let end = u64::from(initrd_at) + initrd.len() as u64;
    if end > u64::from(highest) || end > u64::from(MEMORY_MIB) << 20 {
        bail!("kernel and RAM disk need {end} bytes of memory, the guest has {MEMORY_MIB} MiB");
    }

    let kernel_at = LOADER.len().next_multiple_of(SECTOR);
    let initrd_from = (kernel_at + kernel.len()).next_multiple_of(SECTOR);
    let mut image = vec![0u8; (initrd_from + initrd.len()).next_multiple_of(ALIGN)];
    image[..LOADER.len()].copy_from_slice(LOADER);
    image[kernel_at..kernel_at + kernel.len()].copy_from_slice(kernel);
    image[initrd_from..initrd_from + initrd.len()].copy_from_slice(&initrd);

    let table = [
        kernel_at / SECTOR + setup_sectors,
        kernel.len().div_ceil(SECTOR) - setup_sectors,
        kernel_at / SECTOR,
        setup_sectors,
        initrd_from / SECTOR,
        initrd.len(),
        initrd_at as usize,
    ];
    for (slot, value) in image[12..40].chunks_exact_mut(4).zip(table) {
        slot.copy_from_slice(&u32::try_from(value)?.to_le_bytes());
    }
    Ok(image)
}

/// The initial RAM disk, not compressed: reading a little more costs less than unpacking under emulation.
fn initrd(parts: &Parts, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "mnt", "proc", "run", "sys", "modules"] {
        cpio.add(dir, 0o040_755, &[]);
    }
    cpio.add("udhcpc", 0o100_755, UDHCPC);
    cpio.add("init", 0o100_755, GUESTD);
    cpio.add("bin/busybox", 0o100_755, &parts.busybox);
    cpio.add_modules(&parts.modules);
    cpio.add_programs(files);
    cpio.finish()
}

/// An archive in the "new ASCII" format, which the kernel unpacks.
#[derive(Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    pub(super) fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), size of name, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Programs and libraries, with the folders that they lie in.
    pub(super) fn add_programs(&mut self, files: &[(String, Vec<u8>)]) {
        for (name, content) in files {
            for (slash, _) in name.match_indices('/') {
                self.add(&name[..slash], 0o040_755, &[]);
            }
            self.add(name, 0o100_755, content);
        }
    }

    /// Modules in the folder of that name, with the order in which they are inserted.
    pub(super) fn add_modules(&mut self, modules: &[(String, Vec<u8>)]) {
        let mut order = String::new();
        for (name, content) in modules {
            self.add(&format!("modules/{name}"), 0o100_644, content);
            order += name;
            order.push('\n');
        }
        self.add("modules/order", 0o100_644, order.as_bytes());
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Copies an image to where a VM's disk is to lie, sharing blocks where the file system can, with holes otherwise.
pub fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_finds_kernel_and_ram_disk() {
        let mut kernel = vec![0u8; 10 * SECTOR + 100];
        kernel[0x1f1] = 3;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x258..0x25c].copy_from_slice(&0x0100_0000u32.to_le_bytes());
        kernel[0x260..0x264].copy_from_slice(&0x0300_0001u32.to_le_bytes());
        kernel[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        kernel[4 * SECTOR] = 0xab;
        let image = build(&Parts { kernel, modules: vec![], busybox: b"box".to_vec() }, &[]).unwrap();
        let word = |n: usize| {
            let at = 12 + 4 * n;
            u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
        };
        assert_eq!(&image[4..12], b"STEADGST");
        assert_eq!(image[510..512], [0x55, 0xaa]);
        assert_eq!(image[word(0) * SECTOR], 0xab, "the protected-mode part");
        assert_eq!(word(1), 7);
        assert_eq!(&image[word(2) * SECTOR + 0x202..][..4], b"HdrS");
        assert_eq!(word(3), 4);
        assert_eq!(&image[word(4) * SECTOR..][..6], b"070701");
        assert_eq!(word(6), 0x0410_0000);
        assert_eq!(image.len() % ALIGN, 0);
    }
}
