//! The test guest's one program: process 1.
//!
//! It mounts, inserts the modules, sets the network up (by itself rather than by a script of many processes: under
//! emulation each costs 20 ms). Then it answers HTTP on port 80 with its counter, boot id and hostname; writes a sequence number to the data disk every
//! 100 ms (see `record`); prints a line a second on the screen and the serial port; and switches off when the power
//! button is pressed. Port 7 sends back what it is sent. The standard library is all that it uses; it is linked statically.
//!
//! Asked for `/ram/MIB/RATE` it holds so much memory, in each page of which something is written, and goes on writing to
//! RATE MiB of them a second, as a busy program would.
//!
//! The data disk is the first one that has neither our system on it nor anything else: blank or written by us.
//!
//! Where QEMU's guest agent lies beside it, that runs as soon as its port is there, and a disk with an ext4 file system is
//! mounted: a line is written to its file `log` with each tick, so that a freeze of the file systems shows.

mod record;

use record::{CELL, CONFLICTS, DISK, KIND_CELL, KIND_CONFLICT, KIND_LANE, KIND_RECORD, RING, Record, SECTOR};
use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a sequence number is written.
const TICK: Duration = Duration::from_millis(100);
/// `O_DIRECT | O_DSYNC` on x86-64: what a write acknowledges is on the disk.
const DIRECT: i32 = 0o40000 | 0o10000;

/// 64-bit words in a page.
const PAGE: usize = 512;
/// Pages in a MiB.
const MIB: usize = 256;

/// QEMU's guest agent, in the images that have it.
const AGENT: &str = "/bin/qemu-ga";

/// `finit_module` on x86-64.
const FINIT_MODULE: c_long = 313;

unsafe extern "C" {
    fn mount(
        what: *const c_char,
        at: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn sethostname(name: *const c_char, len: usize) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// What the threads share.
struct State {
    boot: [u8; 16],
    boot_text: String,
    hostname: String,
    began: Instant,
    requests: AtomicU64,
    seq: AtomicU64,
    conflicts: AtomicU64,
    disk_errors: AtomicU64,
    disk: Mutex<String>,
    /// The memory to be held and to be written to each second, in MiB; who changes it says so.
    ram: (Mutex<(usize, u64)>, Condvar),
    /// MiB of memory written so far.
    written: AtomicU64,
}

fn main() -> io::Result<()> {
    setup()?;
    let boot_text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let state = Arc::new(State {
        boot: parse_uuid(&boot_text),
        boot_text,
        hostname,
        began: Instant::now(),
        requests: AtomicU64::new(0),
        seq: AtomicU64::new(0),
        conflicts: AtomicU64::new(0),
        disk_errors: AtomicU64::new(0),
        disk: Mutex::new(String::from("none")),
        ram: (Mutex::new((0, 0)), Condvar::new()),
        written: AtomicU64::new(0),
    });
    let listener = TcpListener::bind(("0.0.0.0", 80))?;
    if std::path::Path::new(AGENT).exists() {
        thread::spawn(run_agent);
        thread::spawn(write_log);
    }
    thread::spawn(echo);
    for work in [print_ticks as fn(&State), write_disk, write_memory, watch_power_button] {
        let state = Arc::clone(&state);
        thread::spawn(move || work(&state));
    }
    for stream in listener.incoming().flatten() {
        // One at a time and bounded: a client that says nothing holds nobody up for long.
        let _ = answer(&state, stream);
    }
    Ok(())
}

/// What other systems leave to scripts: file systems, modules, host name, network.
fn setup() -> io::Result<()> {
    for (kind, at) in [(c"devtmpfs", c"/dev"), (c"proc", c"/proc"), (c"sysfs", c"/sys")] {
        mount_at(kind, at);
    }
    for module in std::fs::read_to_string("/modules/order")?.lines() {
        let file = File::open(format!("/modules/{module}"))?;
        // SAFETY: the descriptor is open, the parameters are an empty text, the flags none. A module that finds no
        // device or does not fit is no reason to stop.
        unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0 as c_int) };
    }
    let mac = std::fs::read_to_string("/sys/class/net/eth0/address").unwrap_or_default();
    let octets: Vec<u8> = mac.trim().split(':').filter_map(|o| u8::from_str_radix(o, 16).ok()).collect();
    if let [a, b, c, x, y, z] = octets[..] {
        let name = format!("vm-{x:02x}{y:02x}{z:02x}");
        // SAFETY: the length is the text's.
        unsafe { sethostname(name.as_ptr().cast(), name.len()) };
        thread::spawn(move || network([a, b, c] == [2, 0x53, 0x54], [x, y, z]));
    }
    // A shell for who looks around on the second console (Alt-F2), once the first answers are out.
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(4));
        let _ = Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status();
        loop {
            let shell =
                Command::new("/bin/busybox").args(["openvt", "-c", "2", "-w", "/bin/busybox", "sh"]).status();
            if shell.is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn mount_at(kind: &CStr, at: &CStr) {
    // SAFETY: all are texts that end with a zero byte; no data goes with them. An error shows in what follows.
    unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

/// The testbed's own addresses are told by the network card's, 02:53:54 and three bytes: 10 and those three. QEMU's
/// user-mode network answers DHCP at once; elsewhere it may take its time.
fn network(ours: bool, [x, y, z]: [u8; 3]) {
    let busybox = |args: &[&str]| Command::new("/bin/busybox").args(args).status().is_ok_and(|s| s.success());
    busybox(&["ip", "link", "set", "eth0", "up"]);
    if ours {
        busybox(&["ip", "addr", "add", &format!("10.{x}.{y}.{z}/8"), "dev", "eth0"]);
    } else {
        busybox(&["udhcpc", "-i", "eth0", "-s", "/udhcpc", "-t", "30", "-T", "1", "-b", "-q"]);
    }
    busybox(&["ip", "link", "set", "lo", "up"]);
}

fn parse_uuid(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter_map(|c| (c as char).to_digit(16).map(|d| d as u8)).collect();
    let mut out = [0u8; 16];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    out
}

fn answer(state: &State, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    stream.set_nodelay(true)?;
    let mut request = [0u8; 2048];
    let mut got = 0;
    while got < request.len() && !request[..got].windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut request[got..])? {
            0 => return Ok(()),
            n => got += n,
        }
    }
    if let Some(wanted) = wanted_memory(&request[..got]) {
        *state.ram.0.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        state.ram.1.notify_all();
    }
    let requests = state.requests.fetch_add(1, Relaxed) + 1;
    let body = format!(
        "{{\"counter\":{},\"boot_id\":\"{}\",\"hostname\":\"{}\",\"uptime_ms\":{},\"requests\":{requests},\"conflicts\":{},\"disk\":\"{}\",\"disk_errors\":{},\"written_mib\":{}}}\n",
        state.seq.load(Relaxed),
        state.boot_text,
        state.hostname,
        state.began.elapsed().as_millis(),
        state.conflicts.load(Relaxed),
        state.disk.lock().map(|d| d.clone()).unwrap_or_default(),
        state.disk_errors.load(Relaxed),
        state.written.load(Relaxed),
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

/// MiB to hold and MiB a second to write, where a request asks for `/ram/MIB/RATE`.
fn wanted_memory(request: &[u8]) -> Option<(usize, u64)> {
    let text = std::str::from_utf8(request).ok()?;
    let (mib, rate) = text.strip_prefix("GET /ram/")?.split_once(' ')?.0.split_once('/')?;
    Some((mib.parse().ok()?, rate.parse().ok()?))
}

/// Sends back what it is sent, to each client for as long as it likes.
fn echo() {
    let Ok(listener) = TcpListener::bind(("0.0.0.0", 7)) else { return };
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut buf = [0u8; 512];
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                if stream.write_all(&buf[..n]).is_err() {
                    return;
                }
            }
        });
    }
}

/// Holds memory and writes to it as it is told: a word of each page, which makes the page another one.
fn write_memory(state: &State) {
    let (mut memory, mut at, mut value) = (Vec::new(), 0, 1u64);
    let (mut began, mut done) = (Instant::now(), 0);
    let mut had = (0, 0);
    loop {
        let wanted = {
            let wanted = state.ram.0.lock().unwrap_or_else(PoisonError::into_inner);
            // With all written and nothing to be written it sleeps: a guest that idles must idle.
            let idle = |w: &mut (usize, u64)| *w == had && w.1 == 0;
            *state.ram.1.wait_while(wanted, idle).unwrap_or_else(PoisonError::into_inner)
        };
        if wanted.0 != had.0 {
            drop(std::mem::take(&mut memory));
            memory = vec![0u64; wanted.0 * MIB * PAGE];
            (0..wanted.0).for_each(|mib| touch(state, &mut memory, mib, value));
        }
        if wanted != had {
            (had, began, done) = (wanted, Instant::now(), 0);
        }
        if wanted.0 == 0 || wanted.1 == 0 {
            continue;
        }
        value += 1;
        at = (at + 1) % wanted.0;
        touch(state, &mut memory, at, value);
        done += 1;
        let due = Duration::from_micros(done * 1_000_000 / wanted.1);
        match due.checked_sub(began.elapsed()) {
            Some(early) => thread::sleep(early),
            // What it was kept from for long it does not catch up on.
            None if began.elapsed() > due + TICK => (began, done) = (Instant::now(), 0),
            None => {}
        }
    }
}

fn touch(state: &State, memory: &mut [u64], mib: usize, value: u64) {
    for page in memory[mib * MIB * PAGE..(mib + 1) * MIB * PAGE].chunks_exact_mut(PAGE) {
        page[0] = value;
    }
    std::hint::black_box(memory);
    state.written.fetch_add(1, Relaxed);
}

fn print_ticks(state: &State) {
    let mut outputs: Vec<File> = ["/dev/tty0", "/dev/ttyS0"]
        .iter()
        .filter_map(|p| OpenOptions::new().write(true).open(p).ok())
        .collect();
    for n in 0u64.. {
        let line = format!(
            "tick {n} boot {} seq {} requests {} conflicts {}\r\n",
            &state.boot_text[..8],
            state.seq.load(Relaxed),
            state.requests.load(Relaxed),
            state.conflicts.load(Relaxed)
        );
        for out in &mut outputs {
            let _ = out.write_all(line.as_bytes());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// A buffer as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Aligned([u8; SECTOR]);

fn read_sector(disk: &File, sector: u64) -> io::Result<[u8; SECTOR]> {
    let mut buf = Aligned([0; SECTOR]);
    disk.read_exact_at(&mut buf.0, sector * SECTOR as u64)?;
    Ok(buf.0)
}

fn write_record(disk: &File, sector: u64, record: Record) -> io::Result<()> {
    let buf = Aligned(record.to_sector());
    disk.write_all_at(&buf.0, sector * SECTOR as u64)
}

/// Whether ext4's magic number stands where it should.
fn has_file_system(disk: &File) -> bool {
    read_sector(disk, 2).is_ok_and(|s| s[0x38..0x3a] == [0x53, 0xef])
}

/// The data disk and its size in bytes, once there is one.
fn find_disk() -> Option<(String, File, u64)> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for name in names.iter().filter(|n| n.starts_with("vd") || n.starts_with("sd")) {
        let size = std::fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
        let bytes = size.trim().parse::<u64>().ok()? * SECTOR as u64;
        let Ok(file) =
            OpenOptions::new().read(true).write(true).custom_flags(DIRECT).open(format!("/dev/{name}"))
        else {
            continue;
        };
        if has_file_system(&file) {
            continue;
        }
        let Ok(first) = read_sector(&file, 0) else { continue };
        let ours = Record::from_sector(&first).is_some_and(|r| r.kind == DISK);
        if (ours || first.iter().all(|b| *b == 0)) && record::lanes(bytes) > 0 {
            return Some((name.clone(), file, bytes));
        }
    }
    None
}

fn write_disk(state: &State) {
    let (disk, bytes) = loop {
        if let Some((name, file, bytes)) = find_disk() {
            if let Ok(mut shown) = state.disk.lock() {
                *shown = name;
            }
            break (file, bytes);
        }
        // No data disk: the counter runs all the same.
        state.seq.fetch_add(1, Relaxed);
        thread::sleep(TICK);
    };
    let mut writer = loop {
        match Writer::begin(state, &disk, bytes) {
            Ok(w) => break w,
            Err(_) => state.disk_errors.fetch_add(1, Relaxed),
        };
        thread::sleep(TICK);
    };
    loop {
        thread::sleep(TICK);
        if writer.tick(state).is_err() {
            state.disk_errors.fetch_add(1, Relaxed);
        }
    }
}

struct Writer<'a> {
    disk: &'a File,
    lane: u64,
    seq: u64,
    written: u64,
    conflicts: u64,
}

impl<'a> Writer<'a> {
    /// Marks the disk, takes a lane, claims the cell.
    fn begin(state: &State, disk: &'a File, bytes: u64) -> io::Result<Self> {
        let blank = Record {
            kind: DISK,
            boot: state.boot,
            seq: 0,
            time_ms: now_ms(),
            other_boot: [0; 16],
            other_seq: 0,
        };
        if Record::from_sector(&read_sector(disk, 0)?).is_none() {
            write_record(disk, 0, blank)?;
        }
        let found = Record::from_sector(&read_sector(disk, CELL)?);
        let seq = found.map_or(0, |r| r.seq);
        let count = record::lanes(bytes);
        // A place told by the boot id, so that two boots which begin at once take different lanes.
        let mut lane = record::checksum(&state.boot) % count;
        for _ in 0..count {
            match Record::from_sector(&read_sector(disk, record::lane_sector(lane))?) {
                Some(r) if r.boot != state.boot => lane = (lane + 1) % count,
                _ => break,
            }
        }
        let header = Record { kind: KIND_LANE, seq, other_boot: found.map_or([0; 16], |r| r.boot), ..blank };
        write_record(disk, record::lane_sector(lane), header)?;
        write_record(disk, CELL, Record { kind: KIND_CELL, seq, ..blank })?;
        state.seq.store(seq, Relaxed);
        Ok(Self { disk, lane: record::lane_sector(lane), seq, written: 0, conflicts: 0 })
    }

    /// Looks whether anybody else has written, then writes the next number.
    fn tick(&mut self, state: &State) -> io::Result<()> {
        let base = Record {
            kind: KIND_RECORD,
            boot: state.boot,
            seq: self.seq,
            time_ms: now_ms(),
            other_boot: [0; 16],
            other_seq: 0,
        };
        let cell = Record::from_sector(&read_sector(self.disk, CELL)?);
        let (other_boot, other_seq) = cell.map_or(([0; 16], 0), |c| (c.boot, c.seq));
        if (other_boot, other_seq) != (state.boot, self.seq) {
            if self.conflicts < CONFLICTS {
                let conflict = Record { kind: KIND_CONFLICT, other_boot, other_seq, ..base };
                write_record(self.disk, self.lane + 1 + self.conflicts, conflict)?;
            }
            self.conflicts += 1;
            state.conflicts.store(self.conflicts, Relaxed);
        }
        let next = Record { seq: self.seq + 1, ..base };
        // The cell first: a boot that is cut off between the two leaves no number that the next one does not find.
        write_record(self.disk, CELL, Record { kind: KIND_CELL, ..next })?;
        self.seq += 1;
        write_record(self.disk, self.lane + 1 + CONFLICTS + self.written % RING, next)?;
        self.written += 1;
        state.seq.store(self.seq, Relaxed);
        Ok(())
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Runs the agent on its port, again whenever it ends.
fn run_agent() {
    loop {
        if let Some(port) = agent_port() {
            let _ = Command::new(AGENT).args(["-m", "virtio-serial", "-t", "/run", "-p"]).arg(port).status();
        }
        thread::sleep(TICK);
    }
}

/// The device of the port that is named as the agent's.
fn agent_port() -> Option<String> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let is_its = |port: &std::fs::DirEntry| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|n| n.trim() == "org.qemu.guest_agent.0")
    };
    let port = ports.into_iter().find(is_its)?;
    Some(format!("/dev/{}", port.file_name().to_string_lossy()))
}

/// Mounts the disk with a file system, once there is one, and writes to it for ever.
fn write_log() {
    let mut log = loop {
        if let Some(log) = mount_disk().and_then(|()| File::create("/mnt/log").ok()) {
            break log;
        }
        thread::sleep(TICK);
    };
    for n in 0u64.. {
        let _ = writeln!(log, "{n}").and_then(|()| log.sync_data());
        thread::sleep(TICK);
    }
}

fn mount_disk() -> Option<()> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    for disk in disks {
        let device = format!("/dev/{}", disk.file_name().to_string_lossy());
        if File::open(&device).is_ok_and(|f| has_file_system(&f)) {
            let device = std::ffi::CString::new(device).ok()?;
            // SAFETY: all are texts that end with a zero byte; no data goes with them.
            let done =
                unsafe { mount(device.as_ptr(), c"/mnt".as_ptr(), c"ext4".as_ptr(), 0, std::ptr::null()) };
            return (done == 0).then_some(());
        }
    }
    None
}

/// Waits for the power button (ACPI's shutdown request) and switches off.
fn watch_power_button(_: &State) {
    const EVENT: usize = 24;
    const KEY_POWER: u16 = 116;
    for n in 0..4 {
        let Ok(mut input) = File::open(format!("/dev/input/event{n}")) else { continue };
        thread::spawn(move || {
            let mut event = [0u8; EVENT];
            while input.read_exact(&mut event).is_ok() {
                let word = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
                if (word(16), word(18), word(20)) == (1, KEY_POWER, 1) {
                    let _ = Command::new("/bin/busybox").args(["poweroff", "-f"]).status();
                }
            }
        });
    }
}
