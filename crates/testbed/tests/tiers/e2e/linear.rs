//! What clients of a real cluster are answered can have come of one copy of the configuration, whatever befalls the nodes: daemons
//! killed, a node frozen, its network cut, its disk full.
//!
//! Three clients, each at a node of its own, change one file over what they have read of it. What they read may be old, and is not
//! judged; what they are answered is, by the checker that judges the fault search.

use super::super::support::{RECOVERY, namespaces};
use anyhow::{Context, Result, ensure};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use stead_sim::linear::{self, Answer, Call, Change, Check, Operation, Rules, State};
use stead_testbed::api::until;
use stead_testbed::{ApiClient, Cluster};

/// The file, as the checker knows it.
const FILE: &str = "mapping/directory.cfg";
/// It holds one mapping, whose description is the name of the transaction that wrote it.
const MAPPING: &str = "/cluster/mapping/dir/linear";
/// How long a client waits for an answer. Without one nobody knows what became of it.
const ANSWER: Duration = Duration::from_secs(4);
/// A disk for each node, so that it can be filled.
const DISK: u64 = 64 << 20;

/// What all clients did.
struct Clients {
    began: Instant,
    names: Cell<u64>,
    history: RefCell<Vec<Operation>>,
    is_over: Cell<bool>,
}

impl Clients {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What a node shows: the transaction that has written the mapping last, and the file's digest.
    async fn look(api: &ApiClient) -> Result<(u64, String)> {
        let seen = tokio::time::timeout(ANSWER, api.get(MAPPING)).await??;
        let writer = seen["description"].as_str().and_then(|text| text.parse().ok());
        let digest = seen["digest"].as_str().context("a mapping without a digest")?;
        Ok((writer.with_context(|| format!("{seen}"))?, digest.to_owned()))
    }

    /// Changes the file over and over, by one node.
    async fn client(&self, api: ApiClient) {
        while !self.is_over.get() {
            match Self::look(&api).await {
                Ok(seen) if self.change(&api, &seen).await != Answer::Unknown => {}
                // It has a moment until it is asked again.
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn change(&self, api: &ApiClient, (writer, digest): &(u64, String)) -> Answer {
        let name = self.names.get() + 1;
        self.names.set(name);
        let call = Call::Transact {
            name,
            checks: vec![Check::Writer(FILE.into(), *writer)],
            changes: vec![Change::Put(FILE.into(), name)],
        };
        let begin = self.now();
        let description = name.to_string();
        let form = [("digest", digest.as_str()), ("description", &description)];
        let answer = match tokio::time::timeout(ANSWER, api.put(MAPPING, &form)).await {
            Ok(Ok(_)) => Answer::Done,
            Ok(Err(e)) if e.to_string().contains("detected modified configuration") => Answer::Refused,
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        };
        let operation = Operation { begin, end: self.now(), call, answer, hint: 0 };
        self.history.borrow_mut().push(operation);
        answer
    }

    fn count(&self, answer: Answer) -> usize {
        self.history.borrow().iter().filter(|o| o.answer == answer).count()
    }
}

/// One fault at a time, each on another node, with time between in which all is whole.
async fn faults(cluster: &Cluster) -> Result<()> {
    let pause = async |ms| tokio::time::sleep(Duration::from_millis(ms)).await;
    let network = cluster.network()?;
    for round in 0..2 {
        for n in 0..3 {
            let node = cluster.node((n + round) % 3);
            match (n + 2 * round) % 4 {
                0 => {
                    node.kill_daemon()?;
                    pause(300).await;
                    node.start_daemon()?;
                }
                1 => {
                    node.freeze();
                    pause(2500).await;
                    node.thaw();
                }
                2 => {
                    let number = u8::try_from((n + round) % 3 + 1)?;
                    network.link(number, false)?;
                    pause(2500).await;
                    network.link(number, true)?;
                }
                _ => {
                    node.fill_disk()?;
                    pause(1500).await;
                    node.free_disk()?;
                    // It has stopped, rather than promise what it can't keep.
                    node.restart_daemon()?;
                }
            }
            pause(1500).await;
        }
    }
    Ok(())
}

#[test]
fn what_clients_are_answered_can_have_come_of_one_copy() {
    namespaces(async |builder| {
        let cluster = builder.disk(DISK).form().await?;
        let api = cluster.api(0).await?;
        let shared = cluster.shared_dir().display().to_string();
        let map: Vec<String> =
            (0..3).map(|n| format!("node={},path={shared}", cluster.node(n).name())).collect();
        let mut form = vec![("id", "linear"), ("description", "0")];
        form.extend(map.iter().map(|m| ("map", m.as_str())));
        api.post("/cluster/mapping/dir", &form).await?;

        let clients = Clients {
            began: Instant::now(),
            names: Cell::new(0),
            history: RefCell::default(),
            is_over: Cell::new(false),
        };
        let apis = [0, 1, 2].map(|n| api.at(cluster.node(n).addr()));
        let [a, b, c] = apis;
        let worked = async {
            let done = faults(&cluster).await;
            clients.is_over.set(true);
            done
        };
        let (done, (), (), ()) =
            tokio::join!(worked, clients.client(a?), clients.client(b?), clients.client(c?));
        done?;

        // Each has it in the end, and it is the last of what was done.
        let last = until("all nodes show the same", RECOVERY, async || {
            let mut seen = vec![];
            for n in 0..3 {
                seen.push(Clients::look(&cluster.api(n).await?).await?.0);
            }
            Ok(seen.iter().all(|s| *s == seen[0]).then_some(seen[0]))
        })
        .await?;
        let now = clients.now();
        let cell = linear::Cell { value: last, writer: last };
        let mut history = clients.history.borrow().clone();
        history.push(Operation {
            begin: now,
            end: now,
            call: Call::Read(FILE.into()),
            answer: Answer::Read(Some(cell)),
            hint: 0,
        });
        let [done, refused, unknown] =
            [Answer::Done, Answer::Refused, Answer::Unknown].map(|answer| clients.count(answer));
        println!("{done} done, {refused} refused, {unknown} unknown");
        let begin = State::from([(FILE.to_owned(), linear::Cell { value: 0, writer: 0 })]);
        linear::check(&begin, &history, Rules::default()).context("the history is kept as it is")?;
        ensure!(done > 100 && refused > 10, "too little was tried: {done} done, {refused} refused");
        Ok(())
    });
}
