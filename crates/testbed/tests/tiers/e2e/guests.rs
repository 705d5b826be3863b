//! The test guests themselves, on QEMU without a cluster: what they promise holds, or no other test means anything.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stead_testbed::api::until;
use stead_testbed::guest::{disklog::DiskLog, image, tick};
use stead_testbed::{addr, poll};

/// QEMU, killed when dropped.
struct Qemu(Child);

impl Qemu {
    fn start(memory: u32, arguments: &[String]) -> Result<Self> {
        let memory = memory.to_string();
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-display", "none", "-monitor", "none", "-serial", "none", "-m", &memory])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        Ok(Self(child))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drive(path: &Path, locking: bool) -> [String; 2] {
    let lock = if locking { "auto" } else { "off" };
    ["-drive".to_owned(), format!("file={},format=raw,if=virtio,file.locking={lock}", path.display())]
}

#[test]
fn the_http_guest_answers_counts_and_writes() {
    super::super::support::loopback(async |_| {
        let dir = tempfile::tempdir()?;
        let (system, data) = (dir.path().join("system.raw"), dir.path().join("data.raw"));
        let made = tokio::task::spawn_blocking(|| image::http_guest(&|_| {})).await??;
        image::copy_disk(&made, &system)?;
        std::fs::File::create(&data)?.set_len(64 << 20)?;
        let block = addr::Block::take()?;
        let place = addr::socket(block.ip(1), block.port(1, 18_000, 0)?);
        let network = format!("user,id=n,hostfwd=tcp:{place}-:80");
        let more = ["-netdev", &network, "-device", "virtio-net-pci,netdev=n"].map(str::to_owned);
        let all = [&drive(&system, true)[..], &drive(&data, true), &more].concat();

        let begin = Instant::now();
        let guest = Qemu::start(image::MEMORY_MIB, &all)?;
        let ask = async || Ok(poll::ask(place, Duration::from_secs(1)).await.ok());
        let first = until("the first answer", Duration::from_secs(60), ask).await?;
        println!("first answer after {:.2} s", begin.elapsed().as_secs_f64());
        let second = until("five more numbers", Duration::from_secs(30), async || {
            Ok(poll::ask(place, Duration::from_secs(1)).await.ok().filter(|a| a.counter >= first.counter + 5))
        })
        .await?;
        ensure!(
            second.boot_id == first.boot_id && second.disk == "vdb" && second.disk_errors == 0,
            "{second:?}"
        );
        drop(guest);

        let log = DiskLog::read(&data)?;
        ensure!(log.boots.len() == 1 && log.last() >= second.counter, "answered, but not written: {log:?}");
        ensure!(log.two_writers().is_none());

        // Booted anew it goes on where it was.
        let _guest = Qemu::start(image::MEMORY_MIB, &all)?;
        let again = until("an answer of the next boot", Duration::from_secs(60), ask).await?;
        ensure!(again.boot_id != first.boot_id && again.counter >= second.counter, "{again:?}");
        Ok(())
    });
}

#[test]
fn the_tick_guest_shows_two_writers() {
    super::super::support::loopback(async |_| {
        let dir = tempfile::tempdir()?;
        let disk = dir.path().join("tick.raw");
        tick::write_disk(&disk)?;
        let count = |from: u32| {
            let disk = disk.clone();
            async move || Ok(tick::read_cell(&disk)?.filter(|c| c.count >= from))
        };
        let one = Qemu::start(32, &drive(&disk, false))?;
        let alone = until("ten ticks", Duration::from_secs(30), count(10)).await?;
        ensure!(alone.conflicts == 0, "{alone:?}");
        drop(one);
        let one = Qemu::start(32, &drive(&disk, false))?;
        let next = until("ten more ticks", Duration::from_secs(30), count(alone.count + 10)).await?;
        ensure!(next.conflicts == 0 && next.id != alone.id, "one after the other is no conflict: {next:?}");
        let _two = Qemu::start(32, &drive(&disk, false))?;
        until("a conflict", Duration::from_secs(30), async || {
            Ok(tick::read_cell(&disk)?.filter(|c| c.conflicts > 0))
        })
        .await?;
        drop(one);
        Ok(())
    });
}
