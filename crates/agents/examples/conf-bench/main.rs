//! The load of the benchmark `conf_etcd`: writers, readers and watchers of three of Stead's configuration stores, and of three
//! members of etcd. An optimised program of its own, since the tests are not.
//!
//! ```text
//! conf-bench load DIR IP1 IP2 IP3 PORT   starts all six below DIR, at those addresses and the six ports from PORT on, measures, and
//!                                        prints a line of JSON for each figure
//! conf-bench node DIR N IP1 IP2 IP3 PORT one of Stead's three: configuration and Raft's streams as in the daemon, nothing else
//! ```
//!
//! `ROUNDS` and `SECONDS` say how often each kind of load is put on each of the two, in turn, and for how long.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what can't be measured ends the benchmark")]

mod children;
mod etcd;
mod load;
mod node;
mod stead;
mod wire;

use std::net::{IpAddr, SocketAddr};

/// Where the three of either side are.
#[derive(Debug, Clone)]
pub struct Places {
    ips: Vec<IpAddr>,
    port: u16,
}

impl Places {
    fn of(args: &[String]) -> Self {
        let ips = args[..3].iter().map(|ip| ip.parse().expect("an address")).collect();
        Self { ips, port: args[3].parse().expect("a port") }
    }

    /// Where node `n`, from 0, listens: port 0 is Stead's for its others, 1 for clients, 2 and 3 are etcd's.
    pub fn at(&self, n: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.ips[n], self.port + port)
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match args.first().map(String::as_str) {
        Some("load") => runtime.block_on(load::run(args[1].as_ref(), &Places::of(&args[2..]))),
        Some("node") => {
            let n = args[2].parse().expect("a number");
            runtime.block_on(node::run(args[1].as_ref(), n, &Places::of(&args[3..])));
        }
        _ => panic!("see the head of its source"),
    }
}
