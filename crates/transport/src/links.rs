//! Which links of the peers answer, and trying several one after the other.
//!
//! ```text
//!               answered                     failed, or no answer in time
//!   (unknown) ───────────▶ answers ─────────────────────────────────────▶ silent
//!                             ▲   answered                                  │
//!                             └─────────────────────────────────────────────┘
//! ```
//!
//! A link that is silent is tried last, until [`RETRIED`] has passed; by then it may have been mended, and the next
//! connection tries it in its turn again. Nothing waits for it: a link that does not answer at once gets company by the next.
//! Of peers with one link nothing is kept.

use crate::Peer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use stead_model::NodeUuid;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// So long a silent link is tried last.
const RETRIED: Duration = Duration::from_secs(30);

/// What is known of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Whether it has answered when it was tried last.
    pub answers: bool,
    /// Since when it does or does not.
    pub since: SystemTime,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    state: LinkState,
    /// When it was tried last.
    tried: Instant,
}

/// Which links answer, as far as they were tried. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<HashMap<NodeUuid, HashMap<SocketAddr, Seen>>>>);

impl Health {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeUuid, HashMap<SocketAddr, Seen>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link has answered.
    pub(crate) fn answered(&self, peer: &Peer, link: SocketAddr) {
        self.note(peer, link, Instant::now(), None);
    }

    /// A link has not answered to what was begun then, and why.
    pub(crate) fn silent(&self, peer: &Peer, link: SocketAddr, began: Instant, why: &dyn std::fmt::Display) {
        self.note(peer, link, began, Some(why));
    }

    fn note(&self, peer: &Peer, link: SocketAddr, began: Instant, silent: Option<&dyn std::fmt::Display>) {
        let mut all = self.lock();
        if peer.addrs.len() < 2 {
            all.remove(&peer.uuid);
            return;
        }
        let answers = silent.is_none();
        let links = all.entry(peer.uuid.clone()).or_default();
        // A node that has moved leaves nothing behind.
        links.retain(|addr, _| peer.addrs.values().any(|a| a == addr));
        if !answers && links.get(&link).is_some_and(|seen| seen.state.answers && seen.tried > began) {
            // It has answered since.
            return;
        }
        let known = links.get(&link).map(|seen| seen.state);
        let state = known
            .filter(|s| s.answers == answers)
            .unwrap_or_else(|| LinkState { answers, since: SystemTime::now() });
        links.insert(link, Seen { state, tried: Instant::now() });
        drop(all);
        match (known.map(|s| s.answers), silent) {
            (None | Some(true), Some(why)) => {
                tracing::warn!("node '{}' does not answer at {link}: {why}", peer.name);
            }
            (Some(false), None) => tracing::info!("node '{}' answers at {link} again", peer.name),
            _ => {}
        }
    }

    /// Whether a link did not answer lately.
    pub(crate) fn is_silent(&self, peer: &NodeUuid, link: SocketAddr) -> bool {
        let all = self.lock();
        let seen = all.get(peer).and_then(|links| links.get(&link));
        seen.is_some_and(|s| !s.state.answers && s.tried.elapsed() < RETRIED)
    }

    /// A peer's links, those that are silent last.
    pub(crate) fn in_order(&self, peer: &Peer) -> Vec<SocketAddr> {
        let mut links: Vec<SocketAddr> = peer.addrs.values().copied().collect();
        links.sort_by_key(|link| self.is_silent(&peer.uuid, *link));
        links
    }

    /// What is known of a link.
    pub(crate) fn of(&self, peer: &NodeUuid, link: SocketAddr) -> Option<LinkState> {
        self.lock().get(peer)?.get(&link).map(|s| s.state)
    }

    /// Forgets a peer.
    pub(crate) fn forget(&self, peer: &NodeUuid) {
        self.lock().remove(peer);
    }
}

/// Copies of one question, each by a link of its own. That a link is silent is noted only beside one that answers: else
/// it is the node that is slow, or gone.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<Answered>);

#[derive(Debug, Default)]
struct Answered {
    any: bool,
    /// Links that were silent before any other had answered.
    silent: Vec<(SocketAddr, Instant, String)>,
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Answered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link has answered.
    pub(crate) fn answered(&self, health: &Health, peer: &Peer, link: SocketAddr) {
        let silent = {
            let mut now = self.lock();
            now.any = true;
            std::mem::take(&mut now.silent)
        };
        health.answered(peer, link);
        for (link, began, why) in silent {
            health.silent(peer, link, began, &why);
        }
    }

    /// A link has not.
    pub(crate) fn silent(
        &self,
        health: &Health,
        peer: &Peer,
        link: SocketAddr,
        began: Instant,
        why: &dyn std::fmt::Display,
    ) {
        let mut now = self.lock();
        if now.any {
            drop(now);
            health.silent(peer, link, began, why);
        } else {
            now.silent.push((link, began, why.to_string()));
        }
    }
}

/// Begins one attempt after the other, each when the one before has failed or has taken `stagger`; gives the first
/// that succeeds, else the first error. None if there are no attempts.
///
/// Attempts that are under way when one succeeds go on by themselves to their ends, so that what they find is noted; dropped, it
/// ends them all.
pub(crate) async fn first_of<T, E, F>(
    attempts: impl IntoIterator<Item = F>,
    stagger: Duration,
) -> Option<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter().peekable();
    let mut under_way = JoinSet::new();
    let mut error = None;
    loop {
        if let Some(next) = waiting.next() {
            under_way.spawn(next);
        }
        let patience = if waiting.peek().is_some() { stagger } else { Duration::MAX };
        let Ok(ended) = timeout(patience, under_way.join_next()).await else { continue };
        match ended {
            Some(Ok(Ok(first))) => {
                under_way.detach_all();
                return Some(Ok(first));
            }
            Some(Ok(Err(e))) => error = error.or(Some(e)),
            // It broke off: as good as failed.
            Some(Err(_)) => {}
            None => return error.map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::BoxFuture;
    use std::future::pending;

    fn peer() -> Peer {
        let addr = |n: u8| SocketAddr::from(([192, 0, 2, n], 8006));
        let uuid = "7a3c1f52-8f0e-4d9b-9d5f-000000000001".parse().unwrap();
        Peer { name: "n1".parse().unwrap(), uuid, addrs: (0..3).map(|n| (n, addr(n + 1))).collect() }
    }

    #[test]
    fn a_silent_link_is_tried_last_until_it_answers() {
        let (health, peer) = (Health::default(), peer());
        let order = || -> Vec<u8> {
            let last = |a: SocketAddr| match a.ip() {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            };
            health.in_order(&peer).into_iter().map(last).collect()
        };
        assert_eq!(order(), [1, 2, 3]);
        health.silent(&peer, peer.addrs[&0], Instant::now(), &"unplugged");
        assert_eq!(order(), [2, 3, 1]);
        let since = health.of(&peer.uuid, peer.addrs[&0]).unwrap().since;
        health.silent(&peer, peer.addrs[&0], Instant::now(), &"unplugged");
        assert_eq!(health.of(&peer.uuid, peer.addrs[&0]), Some(LinkState { answers: false, since }));
        health.answered(&peer, peer.addrs[&1]);
        health.answered(&peer, peer.addrs[&0]);
        assert_eq!(order(), [1, 2, 3]);
        let before = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        health.silent(&peer, peer.addrs[&0], before, &"given up late");
        assert_eq!(order(), [1, 2, 3], "it has answered since that was begun");
        // It has lost a link: nothing is kept of that.
        let mut moved = peer.clone();
        moved.addrs.remove(&2);
        health.answered(&peer, peer.addrs[&2]);
        health.answered(&moved, peer.addrs[&0]);
        assert_eq!(health.of(&peer.uuid, peer.addrs[&2]), None);
        health.forget(&peer.uuid);
        assert_eq!(health.of(&peer.uuid, peer.addrs[&0]), None);
    }

    #[test]
    fn of_a_peer_with_one_link_nothing_is_kept() {
        let (health, peer) = (Health::default(), peer());
        let first = peer.addrs[&0];
        health.silent(&peer, first, Instant::now(), &"off");
        assert!(health.is_silent(&peer.uuid, first));
        let alone = Peer { addrs: [(0, first)].into(), ..peer };
        health.silent(&alone, first, Instant::now(), &"off");
        assert_eq!(health.of(&alone.uuid, first), None);
    }

    #[test]
    fn a_node_that_answers_by_no_link_is_slow_and_its_links_are_not_silent() {
        let (health, peer, copies) = (Health::default(), peer(), Copies::default());
        let silent = |link: u8| copies.silent(&health, &peer, peer.addrs[&link], Instant::now(), &"late");
        silent(0);
        assert_eq!(health.of(&peer.uuid, peer.addrs[&0]), None);
        copies.answered(&health, &peer, peer.addrs[&1]);
        silent(2);
        let answers = [0, 1, 2].map(|n| health.of(&peer.uuid, peer.addrs[&n]).map(|s| s.answers));
        assert_eq!(answers, [Some(false), Some(true), Some(false)]);
    }

    const STAGGER: Duration = Duration::from_millis(50);

    fn attempt(result: Option<Result<u8, u8>>) -> BoxFuture<'static, Result<u8, u8>> {
        Box::pin(async move {
            match result {
                Some(result) => result,
                None => pending().await,
            }
        })
    }

    #[tokio::test]
    async fn the_next_is_tried_when_one_fails_or_takes_its_time() {
        let first = async |attempts: Vec<Option<Result<u8, u8>>>| {
            let began = Instant::now();
            let got = first_of(attempts.into_iter().map(attempt), STAGGER).await;
            (got, began.elapsed())
        };
        assert_eq!(first(vec![Some(Ok(1)), Some(Ok(2))]).await.0, Some(Ok(1)));
        let never = Duration::MAX;
        let failed = first_of([Some(Err(1)), Some(Ok(2))].map(attempt), never).await;
        assert_eq!(failed, Some(Ok(2)), "a failure is not waited out");
        let (got, took) = first(vec![None, None, Some(Ok(3))]).await;
        assert_eq!(got, Some(Ok(3)));
        assert!(took >= STAGGER * 2, "{took:?}");
        assert_eq!(first(vec![Some(Err(1)), Some(Err(2))]).await.0, Some(Err(1)), "the first link's error");
        assert_eq!(first(vec![]).await.0, None);
    }
}
