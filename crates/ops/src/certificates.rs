//! A node's certificate, and the CA's: what they say, and how they are made anew.
//!
//! ```text
//!  due? ─▶ barrier: a majority is in contact ─▶ this node's record names it ─▶ the CA's is due? one transaction
//!      ─▶ signed for the key that the node has ─▶ on the disk, whole ─▶ shown to new connections
//! ```
//!
//! Every member has the CA's key, sealed in the configuration: a node signs its own certificate, and no call gives one out but the one
//! that lets a node in. The key stays the same. A new one would take nothing from whoever has the old one: that certificate is good
//! between nodes for as long as the node is a member, and for clients until it ends. What the same key gives is that certificate and
//! key can never be a wrong pair, and that clients which have pinned the key go on.
//!
//! What goes by time goes by the cluster's clock, the median of the nodes' ([`crate::status`]). Where that can't be told, nothing is
//! made for reasons of time; where a node's addresses have changed, its certificate gets new names and keeps its time.
//!
//! | clock that is wrong | what comes of it |
//! |---|---|
//! | one of three or more | nothing: the others' median counts |
//! | one of two | nothing is made until somebody has set it right, or says `--force` |
//! | all, by the same, behind | nothing: one that has not begun is not replaced, since the clock may be what is wrong |
//! | all, by the same, ahead | certificates by that clock; when it is right again they have not begun, and an operator says `--force` |

use crate::peers::call;
use crate::status::is_clock_wrong;
use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use stead_api_derive::Schema;
use stead_model::{NodeName, NodeRecord, paths};
use stead_transport::ca::{CA_VALIDITY, NODE_VALIDITY};
use stead_transport::renewal::{Due, Validity, renewal_due};
use stead_transport::{ClusterCa, Facts, PeerIdentity};

/// Asks a member to make its certificate anew; it signs that itself.
pub const RENEW_CALL: &str = "certificates/renew";
/// How long it is waited until the other nodes' clocks were heard: a little longer than they need after a start.
const CLOCKS: Duration = Duration::from_secs(15);
/// How long another node may take.
const ANSWER: Duration = Duration::from_secs(25);
/// How many seconds a time that was settled may be from the cluster's when something is signed by it: other nodes are waited for
/// in between.
const APART: u64 = 120;
/// How often the CA's certificate is made anew again, when another node has been quicker.
const ATTEMPTS: usize = 3;
/// With less than this part of its life left, somebody should look at why a certificate was not made anew.
const WARN: i64 = 6;

/// What the daemon keeps and shows: PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The CA's certificate.
    pub ca: String,
    /// The node's.
    pub cert: String,
}

/// What goes on with this node's certificate.
#[derive(Debug, Default)]
pub struct Certificates {
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    /// Why it could not be made anew, when that was tried last.
    trouble: Mutex<Option<String>>,
}

/// Which certificates are made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Also those that are good still, and by clocks that disagree.
    pub force: bool,
    /// Who wishes it.
    pub by: String,
}

/// What became of a node's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Renewal {
    /// The node.
    pub node: NodeName,
    /// It was made anew.
    pub renewed: bool,
    /// Until when the node's certificate is good, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notafter: Option<i64>,
    /// The certificate's SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Why it could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A certificate, as `GET /nodes/{node}/certificates/info` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct CertificateInfo {
    /// What it is: `pve-root-ca.pem`, the cluster's CA, or `pve-ssl.pem`, the node's.
    pub filename: &'static str,
    /// Its SHA-256.
    pub fingerprint: String,
    /// Who has signed it.
    pub issuer: String,
    /// It is good until then, in seconds since 1970.
    pub notafter: i64,
    /// It is good from then on, in seconds since 1970.
    pub notbefore: i64,
    /// All of it.
    pub pem: String,
    /// How long its key is.
    #[serde(rename = "public-key-bits")]
    pub public_key_bits: usize,
    /// What kind of key it is.
    #[serde(rename = "public-key-type")]
    pub public_key_type: String,
    /// The names and addresses that it is good for.
    pub san: Vec<String>,
    /// Whose it is.
    pub subject: String,
}

/// Why a node's certificate is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Asked,
    Time(Due),
    Addresses,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("it was asked for"),
            Self::Time(due) => due.fmt(f),
            Self::Addresses => f.write_str("the node's addresses have changed"),
        }
    }
}

/// Whether a node's certificate is to be made anew; without `now`, for another reason than time.
fn due(facts: &Facts, addresses: &BTreeSet<IpAddr>, now: Option<i64>) -> Option<Why> {
    // A clock that is behind would put one that has ended long since in the place of a good one.
    let by_time = now.and_then(|now| renewal_due(now, facts.validity, NODE_VALIDITY));
    let by_time = by_time.filter(|due| *due != Due::NotBegun);
    let by_name = (facts.addresses != *addresses).then_some(Why::Addresses);
    by_time.map(Why::Time).or(by_name)
}

/// Where clients reach a node.
fn addresses(record: &NodeRecord) -> BTreeSet<IpAddr> {
    record.addrs().iter().map(SocketAddr::ip).collect()
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn failed(e: impl std::fmt::Display) -> OpsError {
    OpsError::failed(e.to_string())
}

impl Ops {
    /// Now, by the cluster's clock.
    pub(crate) fn cluster_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.status.cluster_ms(crate::clock::unix_ms()))
    }

    /// The same, if certificates may be made by it: the other nodes' clocks were heard, and most agree.
    async fn settled_time(&self) -> Result<SystemTime, OpsError> {
        let others = self.others();
        if !others.is_empty() {
            let mut told = self.status.clock_told();
            let heard = tokio::time::timeout(CLOCKS, told.wait_for(|told| *told)).await.is_ok();
            // Whoever goes on alone has its own.
            if !heard && others.iter().any(|n| self.online(n)) {
                return Err(failed("the other nodes' clocks have not been heard yet; try again in a moment"));
            }
        }
        self.clocks_agree()?;
        Ok(self.cluster_time())
    }

    /// Refuses while nobody can tell which clock is right. This node's own is judged by what it was told last: what it has reported
    /// may be older.
    fn clocks_agree(&self) -> Result<(), OpsError> {
        let (me, mut wrong) = (&self.me.name, self.status.wrong_clocks());
        wrong.retain(|(node, _)| node != me);
        let heard = 1 + self.status.all().iter().filter(|r| r.node != *me).count();
        let own = self.status.ahead_ms();
        if !self.others().is_empty() && is_clock_wrong(own) {
            wrong.push((me.clone(), own));
        }
        if !wrong.is_empty() && wrong.len() * 2 >= heard {
            let names: Vec<String> = wrong.iter().map(|(node, _)| format!("'{node}'")).collect();
            return Err(OpsError::failed(format!(
                "the nodes' clocks disagree (see {}), and nobody can tell which one is right: set them right first",
                names.join(", ")
            )));
        }
        Ok(())
    }

    /// Refuses if what was taken for the cluster's time is no longer so: something is about to be signed by it.
    fn still_settled(&self, now: SystemTime) -> Result<(), OpsError> {
        self.clocks_agree()?;
        match seconds(self.cluster_time()).abs_diff(seconds(now)) > APART {
            true => Err(failed("the cluster's clock has changed meanwhile; try again")),
            false => Ok(()),
        }
    }

    /// Whether this node's certificate, or the CA's, is to be made anew, as far as that can be told without asking anybody.
    /// `by_time`: also since it ends; what has ended is due in any case.
    pub fn certificate_is_due(&self, by_time: bool) -> Result<bool, OpsError> {
        let kept = self.host.certificates();
        let (ca, _) = self.file(paths::CA_CERT)?;
        let facts = Facts::of(&kept.cert).map_err(failed)?;
        let record = self.node_record(&self.me.name)?.value;
        let now = self.cluster_time();
        let ca_due = self.cluster_ca()?.due(now).map_err(failed)?;
        let ca_due = ca_due.is_some_and(|due| by_time || due == Due::Ended);
        let has_ended = seconds(now) >= facts.validity.not_after;
        let own = due(&facts, &addresses(&record), (by_time || has_ended).then(|| seconds(now)));
        Ok(ca_due || own.is_some() || kept.ca != ca)
    }

    /// Makes this node's certificate anew if that is due, the CA's before it; with `force` in any case. What came of it.
    ///
    /// # Errors
    /// If no majority is in contact, this node is no member, the nodes' clocks disagree, or the disk does not take it; the old one
    /// stays then.
    pub async fn renew_own(&self, request: &RenewRequest) -> Result<Renewal, OpsError> {
        let _turn = self.certificates.turn.lock().await;
        let done = self.renew_in_turn(request).await;
        let trouble = done.as_ref().err().map(ToString::to_string);
        *self.certificates.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        done
    }

    async fn renew_in_turn(&self, request: &RenewRequest) -> Result<Renewal, OpsError> {
        // Who was removed hears nothing from a majority.
        self.conf.barrier().await?;
        let record = self.node_record(&self.me.name)?.value;
        if record.uuid != self.me.uuid {
            return Err(OpsError::failed(format!(
                "the cluster knows node '{}' with another UUID: this machine is no member",
                self.me.name
            )));
        }
        let kept = self.host.certificates();
        let (facts, known) = (Facts::of(&kept.cert).map_err(failed)?, addresses(&record));
        let now = match self.settled_time().await {
            Ok(now) => Some(now),
            Err(_) if request.force => Some(self.cluster_time()),
            // New names depend on no clock.
            Err(_) if due(&facts, &known, None).is_some() => None,
            Err(e) => return Err(e),
        };
        let ca = self.lasting_ca(request, now).await?;
        let why = match request.force {
            true => Some(Why::Asked),
            false => due(&facts, &known, now.map(seconds)),
        };
        if let Some(why) = why {
            let anew = now.filter(|_| why != Why::Addresses);
            if let Some(now) = anew.filter(|_| !request.force) {
                self.still_settled(now)?;
            }
            self.sign_own(&ca, &known, anew, facts.validity).await?;
            tracing::info!("this node's certificate was made anew: {why}");
        } else if kept.ca != ca.cert_pem() {
            self.keep(Kept { ca: ca.cert_pem().to_owned(), ..kept }).await?;
        }
        let facts = Facts::of(&self.host.certificates().cert).map_err(failed)?;
        Ok(Renewal {
            node: self.me.name.clone(),
            renewed: why.is_some(),
            notafter: Some(facts.validity.not_after),
            fingerprint: Some(facts.fingerprint.to_string()),
            error: None,
        })
    }

    /// Signs this node's certificate, for its present key: good for two years from `now`, or for as long as the old one.
    async fn sign_own(
        &self,
        ca: &ClusterCa,
        known: &BTreeSet<IpAddr>,
        now: Option<SystemTime>,
        was: Validity,
    ) -> Result<(), OpsError> {
        let me = PeerIdentity { name: self.me.name.clone(), uuid: self.me.uuid.clone() };
        let request = self.host.signing_request().map_err(failed)?;
        let ips: Vec<IpAddr> = known.iter().copied().collect();
        let cert = match now {
            Some(now) => ca.sign(&request, &me, &ips, now),
            None => ca.sign_for(&request, &me, &ips, was),
        };
        self.keep(Kept { ca: ca.cert_pem().to_owned(), cert: cert.map_err(failed)? }).await
    }

    async fn keep(&self, kept: Kept) -> Result<(), OpsError> {
        let host = self.host.clone();
        // It is synced to the disk.
        let done =
            tokio::task::spawn_blocking(move || host.keep_certificates(&kept)).await.map_err(failed)?;
        done.map_err(|why| OpsError::failed(format!("the new certificate could not be kept: {why}")))?;
        // Its fingerprint is in the reports.
        self.flush.soon();
        Ok(())
    }

    /// The cluster's CA, its certificate made anew if that is due.
    async fn lasting_ca(
        &self,
        request: &RenewRequest,
        now: Option<SystemTime>,
    ) -> Result<ClusterCa, OpsError> {
        let mut refused = None;
        for _ in 0..ATTEMPTS {
            let (_, revision) = self.file(paths::CA_CERT)?;
            let ca = self.cluster_ca()?;
            let Some(now) = now else { return Ok(ca) };
            let Some(why) = ca.due(now).map_err(failed)? else { return Ok(ca) };
            if !request.force {
                self.still_settled(now)?;
            }
            let new = ca.renewed(now).map_err(failed)?;
            let mut txn =
                store::txn(&request.by, format!("certificate of the cluster's CA made anew: {why}"));
            store::put_over(&mut txn, paths::CA_CERT, revision, new.cert_pem());
            match self.conf.transact(txn).await {
                Ok(_) => {
                    tracing::warn!(
                        "the certificate of the cluster's CA was made anew ({why}): clients that trust it need the new one before the \
                         old one ends"
                    );
                    return Ok(new);
                }
                Err(e) => refused = Some(e),
            }
        }
        Err(refused.map_or_else(|| failed("the CA's certificate keeps changing; try again"), OpsError::from))
    }

    /// The cluster's CA, with its key.
    pub(crate) fn cluster_ca(&self) -> Result<ClusterCa, OpsError> {
        let (cert, _) = self.file(paths::CA_CERT)?;
        let key = self.conf.secret(paths::CA_KEY).map_err(failed)?;
        let key = key.ok_or_else(|| failed("the cluster CA's key is missing"))?;
        let key = String::from_utf8(key).map_err(|_| failed("the cluster CA's key is damaged"))?;
        ClusterCa::load(&cert, &key).map_err(failed)
    }

    /// Has every member, or one, make its certificate anew; each signs its own. What came of it, a row each.
    ///
    /// # Errors
    /// If there is no such member. What goes wrong on a node is in its row.
    pub async fn renew_certificates(
        &self,
        actor: &Actor,
        node: Option<&NodeName>,
        force: bool,
    ) -> Result<Vec<Renewal>, OpsError> {
        let nodes = match node {
            None => self.node_records(),
            Some(name) => {
                let At { value, .. } =
                    self.node_record(name).map_err(|e| OpsError::invalid("node", e.to_string()))?;
                vec![value]
            }
        };
        let request = RenewRequest { force, by: actor.who.clone() };
        Ok(join_all(nodes.iter().map(|node| self.renew_on(node, &request))).await)
    }

    async fn renew_on(&self, node: &NodeRecord, request: &RenewRequest) -> Renewal {
        let done = if node.name == self.me.name {
            self.renew_own(request).await
        } else {
            let asked = call::<_, Renewal>(&*self.peers, node, RENEW_CALL, request, ANSWER).await;
            asked.map_err(OpsError::from)
        };
        done.unwrap_or_else(|e| Renewal {
            node: node.name.clone(),
            renewed: false,
            notafter: None,
            fingerprint: None,
            error: Some(e.to_string()),
        })
    }

    /// The certificates of this node: the CA's, and its own.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn certificate_info(&self) -> Result<Vec<CertificateInfo>, OpsError> {
        let Kept { ca, cert } = self.host.certificates();
        [("pve-root-ca.pem", ca), ("pve-ssl.pem", cert)]
            .into_iter()
            .map(|(name, pem)| info(name, pem))
            .collect()
    }

    /// What somebody should look at: certificates that should have been made anew long since.
    pub(crate) fn certificate_warnings(&self) -> Vec<String> {
        let Kept { ca, cert } = self.host.certificates();
        let now = seconds(self.cluster_time());
        let trouble = self.certificates.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = [
            (format!("of node '{}'", self.me.name), cert, NODE_VALIDITY),
            ("of the cluster's CA".to_owned(), ca, CA_VALIDITY),
        ];
        let warning = |(whose, pem, full): (String, String, Duration)| {
            let Validity { not_before, not_after } = Facts::of(&pem).ok()?.validity;
            let left = not_after.saturating_sub(now);
            // As what is due goes by it: one that is longer than its kind is not due before.
            let full = i64::try_from(full.as_secs()).unwrap_or(i64::MAX);
            let life = not_after.saturating_sub(not_before).clamp(0, full);
            let mut force = "";
            let state = if left <= 0 {
                "has ended".to_owned()
            } else if now < not_before {
                force = " --force";
                "has not begun yet".to_owned()
            } else if left < life / WARN {
                format!("ends in {} days", left / 86_400)
            } else {
                return None;
            };
            let why = trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            Some(format!(
                "the certificate {whose} {state} and was not made anew{why}: run 'stead cluster renew-certificates{force}'"
            ))
        };
        all.into_iter().filter_map(warning).collect()
    }
}

fn info(filename: &'static str, pem: String) -> Result<CertificateInfo, OpsError> {
    let facts = Facts::of(&pem).map_err(failed)?;
    Ok(CertificateInfo {
        filename,
        fingerprint: facts.fingerprint.to_string(),
        issuer: facts.issuer,
        notafter: facts.validity.not_after,
        notbefore: facts.validity.not_before,
        pem,
        public_key_bits: facts.key_bits,
        public_key_type: facts.key_kind,
        san: facts.names,
        subject: facts.subject,
    })
}
