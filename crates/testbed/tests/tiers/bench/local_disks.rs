//! Live migration of a VM with a disk of 4 GiB that its node alone has, against `qemu-img convert` of the same image from an NBD
//! server on the other side: plain, and under TLS as Stead's is.

use super::super::support::{BOOT, cluster, loopback, start};
use super::{Figures, Report, runs};
use anyhow::{Context, Result, ensure};
use rand::Rng;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stead_testbed::addr;
use stead_testbed::api::until;
use stead_testbed::guest::tick;

const VM: u32 = 100;
const GIB: u64 = 4;
const LIMIT: Duration = Duration::from_secs(300);
const STORAGES: [&str; 2] = ["here", "there"];

#[test]
fn live_migration_with_a_local_disk() {
    loopback(async |builder| {
        let cluster = cluster(builder.nodes(2)).await?;
        let api = cluster.api(0).await?;
        let folders = [
            cluster.add_local_storage(0, STORAGES[0]).await?,
            cluster.add_local_storage(1, STORAGES[1]).await?,
        ];
        cluster.create_tick_guest(0, VM).await?;
        let config = |n: usize| format!("/nodes/{}/qemu/{VM}/config", cluster.node(n).name());
        let disk = format!("here:{GIB},format=raw");
        api.post_and_wait(&config(0), &[("scsi0", &disk)], BOOT).await?;
        noise(&image(&api.get(&config(0)).await?, &folders)?)?;
        start(&cluster, &api, 0, VM).await?;
        let hand = Hand::new(&cluster.dir().join("hand"))?;
        let (mut ours, mut plain, mut encrypted) =
            (Figures::default(), Figures::default(), Figures::default());
        for n in 0..runs(3) {
            let (from, to) = (n % 2, 1 - n % 2);
            let source = image(&api.get(&config(from)).await?, &folders)?;
            for (tls, to_be) in [(false, &mut plain), (true, &mut encrypted)] {
                to_be.0.push(hand.convert(&source, &folders[to].join("by-hand.raw"), tls).await?);
            }
            let map = format!("{}:{}", STORAGES[from], STORAGES[to]);
            let form = [
                ("target", cluster.node(to).name()),
                ("online", "1"),
                ("with-local-disks", "1"),
                ("targetstorage", &map),
            ];
            let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(from).name());
            let begin = Instant::now();
            api.post_and_wait(&path, &form, LIMIT).await.with_context(|| format!("run {n}"))?;
            ours.0.push(begin.elapsed().as_secs_f64());
            println!("run {n}: Stead {:.1?}, plain {:.1?}, TLS {:.1?}", ours.0, plain.0, encrypted.0);
        }
        let cell = tick::read_cell(&cluster.disk_path(VM, 0))?.context("it has not ticked")?;
        ensure!(cell.conflicts == 0, "VM {VM} ran twice: {cell:?}");
        let mut report = Report::new("Live migration with a local disk of 4 GiB");
        report.table("seconds | n | min | p50 | max | Stead's p50 to this one");
        report.row(&format!("Stead, order → the task's end | {} |", ours.cells(1)));
        for (name, figures) in [("plain", &plain), ("TLS", &encrypted)] {
            let ratio = ours.p50() / figures.p50();
            report.row(&format!("`qemu-img convert` over NBD, {name} | {} | {ratio:.2}", figures.cells(1)));
        }
        report.publish()
    });
}

/// Where a VM's local disk lies.
fn image(config: &serde_json::Value, folders: &[PathBuf; 2]) -> Result<PathBuf> {
    let volume = config["scsi0"].as_str().and_then(|v| v.split(',').next()).context("it has no scsi0")?;
    let (storage, name) = volume.split_once(':').context("its disk is no volume")?;
    let n = STORAGES.iter().position(|s| *s == storage).with_context(|| format!("where is {volume}?"))?;
    Ok(folders[n].join("images").join(name))
}

/// Fills an image with what cannot be packed or left out.
fn noise(path: &Path) -> Result<()> {
    let mut file = fs::File::options().write(true).open(path)?;
    let mut chunk = vec![0u8; 4 << 20];
    for _ in 0..(GIB << 30) / chunk.len() as u64 {
        rand::rng().fill_bytes(&mut chunk);
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(())
}

/// The copy by hand: an NBD server at the source, and the tool at the target.
struct Hand {
    dir: PathBuf,
    at: SocketAddr,
    _block: addr::Block,
}

impl Hand {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("keys.psk"), format!("qemu:{:032x}\n", rand::random::<u128>()))?;
        let block = addr::Block::take()?;
        let at = addr::socket(block.ip(1), block.port(1, 10_809, 0)?);
        Ok(Self { dir: dir.to_owned(), at, _block: block })
    }

    /// Seconds that it takes until the copy is on disk.
    async fn convert(&self, from: &Path, to: &Path, tls: bool) -> Result<f64> {
        let key = |end: &str| format!("tls-creds-psk,id=tls,dir={},endpoint={end}", self.dir.display());
        let (ip, port) = (self.at.ip().to_string(), self.at.port().to_string());
        let mut server = Command::new("qemu-nbd");
        // Its guest has it open, and writes nothing to it.
        server.args(["--read-only", "--persistent", "--cache=none", "--aio=native", "--image-opts"]);
        server.args(["--bind", &ip, "--port", &port]);
        let mut tool = Command::new("qemu-img");
        tool.args(["convert", "-t", "none", "-O", "raw"]);
        let mut source = format!(
            "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host={ip},file.server.port={port}"
        );
        if tls {
            server.args(["--object", &key("server"), "--tls-creds", "tls"]);
            tool.args(["--object", &key("client")]);
            source += ",file.tls-creds=tls";
        }
        let image = format!(
            "driver=raw,file.driver=file,file.locking=off,file.aio=native,file.cache.direct=on,file.filename={}",
            from.display()
        );
        let server = Server(server.arg(image).stdin(Stdio::null()).spawn().context("starting qemu-nbd")?);
        until("qemu-nbd answers", BOOT, async || Ok(TcpStream::connect(self.at).ok().map(drop))).await?;
        tool.args(["--image-opts", &source]).arg(to);
        let begin = Instant::now();
        let done = tool.stdin(Stdio::null()).output().context("running qemu-img")?;
        let seconds = begin.elapsed().as_secs_f64();
        drop(server);
        ensure!(done.status.success(), "qemu-img: {}", String::from_utf8_lossy(&done.stderr));
        fs::remove_file(to)?;
        Ok(seconds)
    }
}

/// Ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
