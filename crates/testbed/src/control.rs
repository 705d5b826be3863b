//! Faults on request: for tests in other languages, which have the cluster's address but not its processes.
//!
//! One line a connection on a loopback port, `TOKEN VERB NODE`; the answer is `ok` or the error.

use crate::Cluster;
use anyhow::{Result, bail, ensure};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Control {
    addr: SocketAddr,
    token: String,
    task: JoinHandle<()>,
}

impl Control {
    /// Serves the faults of a cluster.
    pub async fn start(cluster: Arc<Cluster>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (addr, token) = (listener.local_addr()?, format!("{:016x}", rand::random::<u64>()));
        let expected = token.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One at a time: faults have an order.
                let _ = serve(&cluster, &expected, stream).await;
            }
        });
        Ok(Self { addr, token, task })
    }

    /// A shell command that carries `VERB {node}` out, where the caller puts a node's name for `{node}`.
    pub fn command(&self, verb: &str) -> String {
        let Self { addr, token, .. } = self;
        let (ip, port) = (addr.ip(), addr.port());
        format!(
            "bash -c 'exec 3<>/dev/tcp/{ip}/{port} && echo {token} {verb} {{node}} >&3 && read -r answer <&3; echo \
             \"$answer\"; test \"$answer\" = ok'"
        )
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(cluster: &Arc<Cluster>, token: &str, mut stream: TcpStream) -> Result<()> {
    let (input, mut output) = stream.split();
    let mut line = String::new();
    BufReader::new(input).read_line(&mut line).await?;
    let (cluster, token) = (Arc::clone(cluster), token.to_owned());
    let done = tokio::task::spawn_blocking(move || carry_out(&cluster, &token, &line)).await?;
    let answer = done.map_or_else(|e| format!("{e:#}").replace('\n', " "), |()| "ok".to_owned());
    Ok(output.write_all(format!("{answer}\n").as_bytes()).await?)
}

fn carry_out(cluster: &Cluster, token: &str, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [given, verb, name] = words[..] else { bail!("expected: TOKEN VERB NODE") };
    ensure!(given == token, "wrong token");
    let node = cluster.node(cluster.number(name)?);
    match verb {
        "power-off" => node.power_off(),
        "power-on" => node.power_on(),
        "kill-daemon" => node.kill_daemon(),
        "start-daemon" => node.start_daemon(),
        "freeze" => {
            node.freeze();
            Ok(())
        }
        "thaw" => {
            node.thaw();
            Ok(())
        }
        _ => bail!("no fault is called {verb}"),
    }
}
