//! Where the guests' kernel, its modules and busybox come from.
//!
//! On Debian: from the packages `linux-image-cloud-amd64` and `busybox-static`, downloaded by `apt-get download` and
//! unpacked by `dpkg-deb`, which needs no root and installs nothing. They are kept, so that later runs need no network.
//! Elsewhere: from `STEAD_GUEST_KERNEL` (a bzImage), `STEAD_GUEST_MODULES` (its folder under `/lib/modules`) and
//! `STEAD_GUEST_BUSYBOX` (a static one).

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on the newest cloud kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What the HTTP guest can be made of: each bus that a disk or network device of a VM may sit on, and the power button.
pub const OF_A_GUEST: &[&str] = &[
    "virtio_pci",
    "virtio_scsi",
    "virtio_blk",
    "sd_mod",
    "ata_piix",
    "ahci",
    "virtio_net",
    "e1000",
    "button",
    "evdev",
    "virtio_balloon",
    "virtio_rng",
];

/// What QEMU's guest agent needs beside that: its port, a file system that it can freeze, CDs, and directories of its host.
pub const OF_AN_AGENT: &[&str] = &["virtio_console", "ext4", "sr_mod", "isofs", "virtio_balloon", "virtiofs"];

/// The parts that an image is made of.
#[derive(Debug)]
pub struct Parts {
    /// The kernel, a bzImage.
    pub kernel: Vec<u8>,
    /// Modules in the order in which they can be inserted: file name and content.
    pub modules: Vec<(String, Vec<u8>)>,
    /// A static busybox.
    pub busybox: Vec<u8>,
}

/// Finds the parts, downloading packages into `cache` if they are not there yet; `progress` hears what takes time.
/// Of the modules, what the kernel has built in, or has not at all, is left out.
pub fn parts(cache: &Path, wanted: &[&str], progress: &dyn Fn(&str)) -> Result<Parts> {
    let (kernel, modules, busybox) = match env::var_os("STEAD_GUEST_KERNEL") {
        Some(kernel) => {
            let need = |name: &str| {
                env::var_os(name)
                    .map(PathBuf::from)
                    .with_context(|| format!("STEAD_GUEST_KERNEL needs {name} too"))
            };
            (PathBuf::from(kernel), need("STEAD_GUEST_MODULES")?, need("STEAD_GUEST_BUSYBOX")?)
        }
        None => debian(cache, progress)?,
    };
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    Ok(Parts { kernel: read(&kernel)?, modules: pick_modules(&modules, wanted)?, busybox: read(&busybox)? })
}

/// The paths of kernel, modules and busybox in the cache.
fn debian(cache: &Path, progress: &dyn Fn(&str)) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let root = cache.join("debian");
    if !root.join("bin/busybox").exists() {
        progress("downloading Debian's kernel and busybox packages (30 MB, once)");
        let work = cache.join(format!("work.{}", std::process::id()));
        let done = download(&work)
            .and_then(|()| fs::rename(work.join("root"), &root).context("keeping the unpacked packages"));
        let _ = fs::remove_dir_all(&work);
        done?;
    }
    let only = |folder: &str, prefix: &str| -> Result<PathBuf> {
        let folder = root.join(folder);
        let mut found: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("listing {}", folder.display()))?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
            .collect();
        found.sort();
        found.pop().with_context(|| {
            format!("no {prefix}* in {}; remove {} and try again", folder.display(), root.display())
        })
    };
    let modules = only("lib/modules", "").or_else(|_| only("usr/lib/modules", ""))?;
    Ok((only("boot", "vmlinuz-")?, modules, root.join("bin/busybox")))
}

/// Downloads and unpacks the two packages to `work/root`.
fn download(work: &Path) -> Result<()> {
    if run("apt-get", &["--version"], Path::new("/")).is_err() {
        bail!(
            "the test guest is made from Debian's kernel, and there is no apt-get here; set STEAD_GUEST_KERNEL (a \
             bzImage), STEAD_GUEST_MODULES (its folder under /lib/modules) and STEAD_GUEST_BUSYBOX (a static busybox)"
        );
    }
    fs::create_dir_all(work).with_context(|| format!("making {}", work.display()))?;
    let depends = run("apt-cache", &["depends", KERNEL_PACKAGE], work)
        .context("asking apt for the kernel package; `sudo apt-get update` if apt has no lists yet")?;
    let kernel = depends
        .lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "))
        .find(|p| p.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL_PACKAGE} depends on no kernel: {depends}"))?
        .to_owned();
    run("apt-get", &["download", "-q", &kernel, "busybox-static"], work)
        .context("downloading the test guest's packages; `sudo apt-get update` if apt's lists are old")?;
    for entry in fs::read_dir(work)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let path = path.to_string_lossy().into_owned();
            run("dpkg-deb", &["-x", &path, "root"], work)?;
        }
    }
    // Debian 13 and later: /bin is /usr/bin.
    let merged = work.join("root/usr/bin/busybox");
    if merged.exists() && !work.join("root/bin/busybox").exists() {
        fs::create_dir_all(work.join("root/bin"))?;
        fs::rename(&merged, work.join("root/bin/busybox"))?;
    }
    ensure!(work.join("root/bin/busybox").exists(), "the package busybox-static holds no bin/busybox");
    Ok(())
}

fn run(program: &str, args: &[&str], dir: &Path) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .with_context(|| format!("running {program} {}", args.join(" ")))?;
    ensure!(
        out.status.success(),
        "{program} {} failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Those modules that there are, each after what it depends on.
fn pick_modules(root: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    collect(&root.join("kernel"), &mut files)?;
    let mut picked = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        pick(name, &files, &mut seen, &mut picked)?;
    }
    Ok(picked)
}

/// Module name (with `_` for `-`) to file.
fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some((stem, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn pick(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    picked: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let content = read_module(path)?;
    for dependency in depends(&content) {
        pick(&dependency, files, seen, picked)?;
    }
    picked.push((format!("{name}.ko"), content));
    Ok(())
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let out =
        Command::new(program).arg("-dc").arg(path).output().with_context(|| format!("running {program}"))?;
    ensure!(out.status.success(), "{program} cannot unpack {}", path.display());
    Ok(out.stdout)
}

/// What a module's `.modinfo` says it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|d| !d.is_empty()).map(|d| d.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel/x");
        fs::create_dir_all(&kernel).unwrap();
        for (file, depends) in
            [("virtio_pci", "virtio-ring,virtio"), ("virtio-ring", "virtio"), ("virtio", ""), ("unused", "")]
        {
            let text = format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(kernel.join(format!("{file}.ko")), text).unwrap();
        }
        let names: Vec<String> =
            pick_modules(dir.path(), OF_A_GUEST).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko"]);
    }
}
