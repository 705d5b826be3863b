//! What a guest's users see while something is done to it: requests every 20 ms, pings every 10 ms, and one connection that
//! stays open and is used every 20 ms.
//!
//! For guests with an address of their own ([`crate::Shape::Namespace`]), as root: pings need a raw socket. All of it runs on a
//! thread of its own, which lies in the network namespace of whoever starts it.

use crate::poll::{Counts, INTERVAL, LOST_AFTER, Poller};
use anyhow::{Context, Result, anyhow};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Between two pings.
const PING: Duration = Duration::from_millis(10);
/// The guest's port that sends back what it is sent.
const ECHO: u16 = 7;
/// A connection that stands still for so long is broken.
const BROKEN_AFTER: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Requests; one that is not answered within half a second is lost.
    pub requests: Counts,
    /// Pings; the same.
    pub pings: Counts,
    /// Bytes that came back on the open connection, and the longest time that one took. The connection is never made anew.
    pub echoes: Counts,
    /// Why the open connection is broken, if it is.
    pub broken: Option<String>,
}

/// Clients that go on until [`Watch::finish`].
#[derive(Debug)]
pub struct Watch {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<Seen>>,
}

impl Watch {
    /// Begins, and returns once each of the clients has had an answer.
    ///
    /// # Errors
    /// The guest does not answer, or there is no raw socket for this user.
    pub fn start(place: SocketAddr) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, follow(place, &ready, stopped))
        })?;
        match is_ready.recv() {
            Ok(()) => Ok(Self { stop, thread }),
            Err(_) => Err(ended(thread).err().unwrap_or_else(|| anyhow!("it has ended by itself"))),
        }
    }

    /// Ends the clients, after as long as an answer may still come, and gives what they saw.
    ///
    /// # Errors
    /// They have died.
    pub fn finish(self) -> Result<Seen> {
        let _ = self.stop.send(());
        ended(self.thread)
    }
}

fn ended(thread: JoinHandle<Result<Seen>>) -> Result<Seen> {
    thread.join().map_err(|_| anyhow!("the thread of the clients has panicked"))?
}

async fn follow(
    place: SocketAddr,
    ready: &mpsc::Sender<()>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Seen> {
    const FIRST: Duration = Duration::from_secs(10);
    let mut pings = Pings::new(place)?;
    let connection = TcpStream::connect(SocketAddr::new(place.ip(), ECHO));
    let connection = timeout(FIRST, connection).await.context("the guest's echo does not answer")??;
    connection.set_nodelay(true)?;
    let poller = Poller::start(vec![place]);
    poller.wait(FIRST, |_| true).await?;
    pings.first(FIRST).await?;
    poller.take_counts();
    let (echo_stop, echo_stopped) = oneshot::channel();
    let echo = tokio::task::spawn_local(echo(connection, echo_stopped));
    let _ = ready.send(());
    pings.follow(&mut stopped).await;
    // What is on its way now may still be answered.
    let requests = poller.take_counts();
    let _ = echo_stop.send(());
    let (echoes, broken) = echo.await?;
    Ok(Seen { requests, pings: pings.counts, echoes, broken })
}

/// One byte after the other on an open connection, each when the one before is back.
async fn echo(mut stream: TcpStream, mut stopped: oneshot::Receiver<()>) -> (Counts, Option<String>) {
    let mut counts = Counts::default();
    let mut clock = interval(INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for byte in (0..=u8::MAX).cycle() {
        tokio::select! {
            _ = clock.tick() => {}
            _ = &mut stopped => return (counts, None),
        }
        let begin = Instant::now();
        let exchange = async {
            stream.write_all(&[byte]).await?;
            let mut back = [0];
            stream.read_exact(&mut back).await?;
            Ok::<_, std::io::Error>(back[0])
        };
        let broken = match timeout(BROKEN_AFTER, exchange).await {
            Ok(Ok(back)) if back == byte => None,
            Ok(Ok(back)) => Some(format!("sent {byte}, and {back} came back")),
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some(format!("nothing came back within {BROKEN_AFTER:?}")),
        };
        counts.longest_gap = counts.longest_gap.max(begin.elapsed());
        if broken.is_some() {
            counts.lost += 1;
            return (counts, broken);
        }
        counts.answered += 1;
    }
    (counts, None)
}

/// ICMP's echo, by a raw socket: what the kernel lets others use is switched off in new namespaces.
struct Pings {
    /// A raw socket sends and receives as one of UDP does, but that a packet comes with its IP header.
    socket: UdpSocket,
    id: u16,
    next: u16,
    /// When those were sent that are not answered, by their numbers.
    open: BTreeMap<u16, Instant>,
    last: Option<Instant>,
    counts: Counts,
}

impl Pings {
    fn new(place: SocketAddr) -> Result<Self> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))
            .context("a raw socket for pings (needs root)")?;
        let socket = StdSocket::from(raw);
        socket.connect(SocketAddr::new(place.ip(), 0))?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let (id, open) = (rand::random(), BTreeMap::new());
        Ok(Self { socket, id, next: 0, open, last: None, counts: Counts::default() })
    }

    async fn first(&mut self, within: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < within {
            self.send().await;
            let _ = timeout(Duration::from_millis(200), self.socket.readable()).await;
            self.receive();
            if self.counts.answered > 0 {
                (self.counts, self.open) = (Counts::default(), BTreeMap::new());
                return Ok(());
            }
        }
        Err(anyhow!("the guest answers no ping within {within:?}"))
    }

    /// Sends and receives until it is told to stop, and for as long as an answer may come after that.
    async fn follow(&mut self, stopped: &mut oneshot::Receiver<()>) {
        let mut clock = interval(PING);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut until = None;
        while until.is_none_or(|until| Instant::now() < until) {
            tokio::select! {
                _ = clock.tick() => if until.is_none() { self.send().await },
                // An error is the next read's.
                _ = self.socket.readable() => self.receive(),
                _ = &mut *stopped, if until.is_none() => {
                    self.gap();
                    until = Some(Instant::now() + LOST_AFTER);
                }
            }
            self.give_up();
        }
        self.counts.lost += self.open.len() as u64;
    }

    async fn send(&mut self) {
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, Instant::now());
        // What cannot be sent is not answered, and counts as such.
        let _ = self.socket.send(&request(self.id, self.next)).await;
    }

    /// Takes one packet, if there is one; all of this address's pings come by here, whoever has sent them.
    fn receive(&mut self) {
        let mut packet = [0; 256];
        let Ok(n) = self.socket.try_recv(&mut packet) else { return };
        let Some((id, number)) = answer(&packet[..n]) else { return };
        if id == self.id && self.open.remove(&number).is_some() {
            self.counts.answered += 1;
            self.gap();
            self.last = Some(Instant::now());
        }
    }

    fn gap(&mut self) {
        let gap = self.last.map_or(Duration::ZERO, |last| last.elapsed());
        self.counts.longest_gap = self.counts.longest_gap.max(gap);
    }

    fn give_up(&mut self) {
        let before = self.open.len();
        self.open.retain(|_, sent| sent.elapsed() < LOST_AFTER);
        self.counts.lost += (before - self.open.len()) as u64;
    }
}

/// An echo request (RFC 792): type, code, checksum, id, number.
fn request(id: u16, number: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Id and number of an echo reply behind its IP header.
fn answer(packet: &[u8]) -> Option<(u16, u16)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..header + 8)?;
    let word = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
    (icmp[0] == 0).then(|| (word(4), word(6)))
}

/// The internet's checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum = words.fold(0, |sum: u32, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_made_and_its_answer_is_read() {
        let sent = request(0x1234, 7);
        assert_eq!(checksum(&sent), 0, "with its checksum in it, it sums up to nothing");
        let mut packet = vec![0x45; 20];
        packet.extend(sent);
        assert_eq!(answer(&packet), None, "that is a request");
        packet[20] = 0;
        assert_eq!(answer(&packet), Some((0x1234, 7)));
        assert_eq!(answer(&packet[..24]), None);
        assert_eq!(answer(&[]), None);
    }

    #[test]
    fn pings_of_this_machine_are_answered() {
        if !crate::skip::is_root() {
            crate::skip!("needs root for a raw socket");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let counts = runtime.block_on(async {
            let mut pings = Pings::new("127.0.0.1:0".parse().unwrap()).unwrap();
            pings.first(Duration::from_secs(5)).await.unwrap();
            let (stop, mut stopped) = oneshot::channel();
            let wait = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                stop.send(()).unwrap();
            };
            tokio::join!(pings.follow(&mut stopped), wait);
            pings.counts
        });
        assert!(counts.answered > 3 && counts.lost == 0, "{counts:?}");
    }
}
