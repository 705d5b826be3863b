//! `steadd`: wiring only. It builds the parts, connects them and waits to be told to end.

mod args;
mod bootstrap;
mod epoch;
mod fence;
mod heap;
mod host;
mod links;
mod members;
mod serve;
mod web;

use anyhow::{Context, Result};
use args::Args;
use clap::Parser;
use identity::Home;
use members::Members;
use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::time::Duration;
use stead_agents::fence_client::FenceClient;
use stead_agents::peers::Link;
use stead_agents::rpc::Rpc;
use stead_api::{Api, Backend};
use stead_conf::Conf;
use stead_fenced::notify::{READY, STOPPING, notify};
use stead_home::{identity, offline, restore};
use stead_model::{NodeName, NodeRecord, paths};
use stead_ops::join::JOIN_WORKER;
use stead_ops::{Flush, Lease, Me, Ops, store};
use stead_tasks::{Resumer, Tasks};
use stead_transport::{Credentials, Limits, PeerClient, Server, Tls};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

fn main() -> Result<()> {
    stead_files::keeper::be_one_if_asked();
    heap::give_back();
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("STEAD_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(offline::Offline::Store(command)) = args.offline {
        let done = runtime.block_on(offline::run(&args.dir, command, stead_qemu::find_by_pidfile));
        // Read by a person, whom a trace tells nothing.
        if let Err(e) = done {
            eprintln!("error: {e:#}");
            std::process::exit(1);
        }
        return Ok(());
    }
    let again = runtime.block_on(run(args))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    if again {
        tracing::info!("starting anew");
        let program = std::env::current_exe().context("can't find this program")?;
        // It only comes back if it could not be started.
        let e = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
        return Err(e).context("can't start anew");
    }
    Ok(())
}

/// Runs until told to end. Returns whether to start anew.
async fn run(args: Args) -> Result<bool> {
    let home = Home::open(&args.dir)?;
    let _only = home.lock()?;
    restore::knock(&home).await?;
    let started = bootstrap::start(&home, &args)?;
    let conf = started.conf.clone();
    let members = Members::new(conf.clone(), home.members()?);
    let keys = started.keys;
    let credentials =
        Credentials { ca_pem: keys.ca.clone(), cert_pem: keys.cert.clone(), key_pem: keys.key.clone() };
    let tls = Tls::new(&credentials, None, Arc::new(members.clone()))?;
    let peers = PeerClient::of_epoch(tls.clone(), started.identity.era)?;
    let restart = Arc::new(Notify::new());
    let key = *identity::cluster_key(&keys.cluster_key)?.expose();
    let daemon = host::Daemon {
        home: home.clone(),
        identity: started.identity.clone(),
        tls: tls.clone(),
        key,
        keys: std::sync::Mutex::new(keys),
        keeping: std::sync::Mutex::default(),
        restart: restart.clone(),
    };
    let fence = FenceClient::new(&home.at("run/fenced.sock"));
    check_role(&conf, &started.identity.name, args.witness)?;
    if !args.witness {
        let program = fence::FenceProgram::new(&args, &home)?;
        fence::ensure(program, fence.clone()).await?;
    }

    let (lease, leased) = watch::channel(Lease::default());
    let (flush, flushes) = mpsc::channel(64);
    let unix_ms = stead_agents::clock::unix_ms();
    let tasks = Tasks::open(home.at("tasks"), started.identity.name.clone())?;
    let guests = guests(&home, &args, started.identity.uuid.as_str());
    let ops = Arc::new(Ops {
        me: Me {
            name: started.identity.name,
            uuid: started.identity.uuid,
            boot: started.boot,
            addr: args.listen,
            dir: home.0.clone(),
            started: unix_ms,
            era: started.identity.era,
            version: env!("CARGO_PKG_VERSION"),
            witness: args.witness,
        },
        conf: conf.clone(),
        tasks: tasks.clone(),
        guests,
        fence: Arc::new(fence),
        fence_agents: stead_ops::fence_devices::agent::Agents::new(&args.fence_agents),
        cds: Arc::new(stead_storage::Xorriso::new(&home.at("run/cd"))),
        storage_types: vec![Arc::new(stead_ops::kept_open::KeptOpen::new(stead_storage::DirType))],
        epochs: stead_ops::epochs::Epochs::default(),
        certificates: stead_ops::certificates::Certificates::default(),
        peers: Arc::new(Link::new(peers.clone())),
        remotes: Arc::new(stead_agents::remote::Remotes),
        status: stead_ops::status::ClusterStatus::default(),
        events: stead_ops::events::Events::new(unix_ms),
        lease: leased,
        flush: Flush(flush),
        host: Arc::new(daemon),
        guest_locks: stead_ops::GuestLocks::default(),
        sign_ins: stead_ops::access::SignIns::default(),
        departure: stead_ops::departure::Departure::default(),
    });

    let (tell, directory) = watch::channel(links::directory(&members));
    tokio::spawn(stead_agents::raft::send(
        conf.clone(),
        peers.clone(),
        directory,
        uuid::Uuid::new_v4().as_u64_pair().0,
    ));
    let grant = stead_agents::grant::start(ops.clone());
    let server =
        serve(&home, &args, &ops, tls, peers.clone(), Rpc { ops: ops.clone(), grant: grant.clone() }).await?;
    let leases = Arc::new(stead_agents::restart::Restart::default());
    let replace_voters = args.replace_voters_after.map(Duration::from_secs);
    start_agents(&ops, grant, lease, flushes, leases.clone(), replace_voters);
    finish_tasks(&ops, &tasks);
    tokio::spawn(links::follow(ops.clone(), members, peers, server.clone(), tell));
    tracing::info!("node '{}' serves {} and {}", ops.me.name, args.listen, home.at("run/api.sock").display());

    let files = stead_files::start(&ops, &args.files);
    notify(READY);
    let again = until_told(&restart, &conf).await?;
    if !again {
        notify(STOPPING);
        leases.prepare(&ops).await;
    }
    files.unmount().await;
    server.shutdown(Duration::from_secs(3)).await;
    stead_agents::witness::hand_over(&conf).await;
    conf.shutdown().await;
    Ok(again)
}

fn guests(home: &Home, args: &Args, tag: &str) -> Arc<dyn stead_driver::guest::GuestDriver> {
    let mut options = stead_qemu::QemuOptions::new(home.at("run"));
    options.cgroup_root = stead_qemu::find_cgroup_root(tag);
    options.cpu_root = stead_qemu::find_cpu_root(tag);
    options.accel = args.no_kvm.then_some(stead_qemu::Accel::Tcg);
    options.bridges = match args.network {
        args::Network::Bridge => stead_qemu::Bridges::Auto,
        args::Network::User => stead_qemu::Bridges::Never,
    };
    options.forward = args.user_net_forward.map(|(guest_port, host_port_base)| stead_qemu::Forward {
        guest_port,
        host_ip: args.listen.ip(),
        host_port_base,
    });
    Arc::new(stead_qemu::QemuDriver::new(options))
}

async fn serve(
    home: &Home,
    args: &Args,
    ops: &Arc<Ops>,
    tls: Tls,
    client: PeerClient,
    rpc: Rpc,
) -> Result<Server> {
    let backend = Arc::new(Backend::new(
        ops.clone(),
        Arc::new(host::NodeAdmin { ops: ops.clone(), power: args.power.clone() }),
    ));
    let others = Arc::new(serve::Others { ops: ops.clone(), client });
    let api = Api::new(stead_api::registry(), backend.clone(), others);
    let router = Arc::new(serve::Router {
        api,
        backend,
        rpc,
        conf: ops.conf.clone(),
        heard: stead_agents::raft::Heard::default(),
    });
    let server = Server::new(tls, router.handler(), Limits::default());
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("can't listen on {}", args.listen))?;
    let local = home.at("run/api.sock");
    // Left over from an earlier daemon: the lock says that none is there now.
    let _ = std::fs::remove_file(&local);
    let unix = UnixListener::bind(&local).with_context(|| format!("can't listen on {}", local.display()))?;
    server.listen_tls(listener);
    server.listen_unix(unix);
    Ok(server)
}

fn start_agents(
    ops: &Arc<Ops>,
    grant: stead_agents::grant::GrantHandle,
    lease: watch::Sender<Lease>,
    flushes: mpsc::Receiver<tokio::sync::oneshot::Sender<()>>,
    leases: Arc<stead_agents::restart::Restart>,
    replace_voters: Option<Duration>,
) {
    let (reports, reported) = watch::channel(stead_agents::ha::Reports::default());
    let (storages, seen) = watch::channel(vec![]);
    tokio::spawn(stead_agents::storages::run(ops.clone(), storages));
    tokio::spawn(stead_agents::report::run(ops.clone(), flushes, reported, seen));
    tokio::spawn(stead_agents::members::run(ops.clone(), replace_voters));
    tokio::spawn(stead_agents::epochs::run(ops.clone()));
    tokio::spawn(stead_agents::certificates::run(ops.clone()));
    tokio::spawn(stead_agents::ha::manage(ops.clone(), grant.clone()));
    tokio::spawn(stead_agents::ha::foresee(ops.clone(), grant.clone()));
    tokio::spawn(stead_agents::events::run(ops.clone()));
    if ops.me.witness {
        tokio::spawn(stead_agents::witness::run(ops.clone(), lease));
        return;
    }
    tokio::spawn(stead_agents::guests::run(ops.clone()));
    tokio::spawn(stead_agents::balloon::run(ops.clone()));
    tokio::spawn(stead_agents::addresses::run(ops.clone()));
    tokio::spawn(stead_agents::ha::agent(ops.clone(), reports));
    tokio::spawn(stead_agents::lease::run(ops.clone(), grant, lease, leases));
}

/// A node stays what it was let in as: others place guests on it, or rely on it having none.
fn check_role(conf: &Conf, name: &NodeName, witness: bool) -> Result<()> {
    let recorded = conf.view(|t| store::record::<NodeRecord>(t, &paths::node(name)))?;
    match recorded.map(|r| r.value.witness) {
        Some(was) if was != witness => {
            let (was, is) = if was { ("a witness", "a node") } else { ("a node", "a witness") };
            anyhow::bail!(
                "'{name}' belongs to its cluster as {was} and cannot be started as {is}: remove it from the cluster, empty \
                 its folder, and join it again"
            );
        }
        _ => Ok(()),
    }
}

/// Tasks of an earlier daemon: a join goes on, the others are ended honestly.
fn finish_tasks(ops: &Arc<Ops>, tasks: &Tasks) {
    let after = ops.clone();
    tasks.on_end(move |_| {
        let flush = after.flush.clone();
        async move { flush.now().await }
    });
    let joining = ops.clone();
    let resume: Resumer = Arc::new(move |cx| {
        let ops = joining.clone();
        Box::pin(async move { ops.resume_join(&cx).await })
    });
    tasks.adopt(&HashMap::from([(JOIN_WORKER, resume)]));
    if !ops.host.bringing().is_empty() {
        let ops = ops.clone();
        tokio::spawn(async move {
            while let Err(e) = ops.bring_guests().await {
                tracing::debug!("guests that came along are not recorded yet: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// Waits for a signal (false) or for the wish to start anew (true). A configuration that has stopped, since its disk
/// failed, is an error: guests under HA are paused then, and recovered elsewhere.
async fn until_told(restart: &Notify, conf: &Conf) -> Result<bool> {
    let mut status = conf.status();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => Ok(false),
        _ = int.recv() => Ok(false),
        () = restart.notified() => Ok(true),
        // One that is an older copy is replaced, and the daemon started anew, by the agent for epochs.
        stopped = status.wait_for(|s| s.stopped.is_some() && !s.lost) => match stopped {
            Ok(s) => anyhow::bail!("the configuration has stopped: {}", s.stopped.as_deref().unwrap_or_default()),
            Err(_) => anyhow::bail!("the configuration has ended"),
        },
    }
}
