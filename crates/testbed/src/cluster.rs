//! A cluster of real daemons on this machine.
//!
//! Three shapes of node: *loopback* needs no privileges, every node has an address of 127.0.0.0/8, and can be powered off,
//! frozen, and robbed of its daemon; *namespace* needs root, has networks that can be cut (see [`crate::netns`]), and
//! guests on a bridge; *machine* has such networks too, and boots (see [`crate::machine`]). Whatever was started is ended when the cluster is dropped, by process id.

use crate::api::{ApiClient, Refused, until};
use crate::bed::Bed;
use crate::machine::{Content, Machine};
use crate::netns::{self, Network};
use crate::node::{FILES, Node, Plan};
use crate::{addr, guest};
use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// How nodes are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Daemons on loopback addresses; no privileges.
    Loopback,
    /// Network namespaces; root, and the calling thread in one of its own ([`netns::enter_own`]).
    Namespace,
    /// Machines that boot, with the package installed; as `Namespace`, and what [`crate::machine::missing`] names.
    Machine,
}

/// How long a daemon may take to answer after its start.
const UP_WITHIN: Duration = Duration::from_secs(30);
/// So many daemons start at once: more would take each other's time until none is up within its own.
const START_AT_ONCE: usize = 8;
/// How long a join may take.
const JOINED_WITHIN: Duration = Duration::from_secs(60);

/// What a cluster shall be like.
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    shape: Shape,
    disk: Option<u64>,
    own_mounts: bool,
    files: bool,
    arguments: Vec<String>,
    witness: bool,
    links: u8,
    watchdog: bool,
    spare: Option<&'static str>,
}

/// Where a testbed's nodes are.
struct Place<'a> {
    bed: &'a Path,
    block: &'a addr::Block,
    port: u16,
    forward: Option<u16>,
    network: Option<&'a Arc<Network>>,
}

impl Builder {
    /// Gives each node so many links, each at a switch of its own. Namespace shape only. Default: 1.
    #[must_use]
    pub fn links(mut self, links: u8) -> Self {
        self.links = links;
        self
    }

    /// Makes the last of the nodes a witness.
    #[must_use]
    pub fn witness(mut self) -> Self {
        self.witness = true;
        self
    }

    /// Gives the last of the nodes the name of another, which is to be gone by the time that this one joins. Loopback shape only.
    #[must_use]
    pub fn spare(mut self, name: &'static str) -> Self {
        self.spare = Some(name);
        self
    }

    /// How many nodes, at most 60. Default: 3.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// The shape. Default: loopback.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Gives each node a watchdog: one whose processes all stand still is reset.
    #[must_use]
    pub fn watchdog(mut self) -> Self {
        self.watchdog = true;
        self
    }

    /// Gives each node's folder a file system of its own of so many bytes, so that it can be filled. Namespace shape only.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// Gives each node mounts of its own ([`Node::in_its_mounts`]). Namespace shape only.
    #[must_use]
    pub fn own_mounts(mut self) -> Self {
        self.own_mounts = true;
        self
    }

    /// Shows the configuration as files on each node, at [`Node::files`] among its mounts. Namespace shape only.
    #[must_use]
    pub fn files(mut self) -> Self {
        self.files = true;
        self.own_mounts()
    }

    /// One more argument for every daemon.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts the daemons, each a cluster of its own, and waits until they answer.
    pub async fn start(self) -> Result<Cluster> {
        ensure!((1..=60).contains(&self.nodes), "a testbed has 1 to 60 nodes");
        let bed = Bed::make()?;
        let block = addr::Block::take()?;
        let (network, port, forward) = match self.shape {
            Shape::Loopback => {
                let port = block.port(self.nodes, 8006, 0)?;
                (None, port, Some(block.port(self.nodes, 18_100, 20)? - 100))
            }
            Shape::Namespace | Shape::Machine => {
                (Some(Arc::new(Network::new(self.nodes, self.links)?)), 8006, None)
            }
        };
        let password = format!("{:016x}", rand::random::<u64>());
        write_private(&bed.dir().join("password"), &password)?;
        let shared = bed.dir().join("shared");
        fs::create_dir_all(&shared)?;

        let place = Place { bed: bed.dir(), block: &block, port, forward, network: network.as_ref() };
        let nodes: Result<Vec<Node>> = (1..=self.nodes).map(|n| self.node(&place, n)).collect();
        let cluster =
            Cluster { nodes: nodes?, links: self.links, network, forward, password, shared, bed, block };
        let at_once = if self.shape == Shape::Machine { cluster.nodes.len() } else { START_AT_ONCE };
        for some in cluster.nodes.chunks(at_once) {
            for node in some {
                node.power_on()?;
            }
            if self.shape == Shape::Machine {
                cluster.install().await?;
            }
            for node in some {
                cluster.wait_up(node).await?;
            }
        }
        Ok(cluster)
    }

    /// What the fence process is told of the power switch.
    fn switch_at(&self, path: &Path) -> String {
        let kind = if self.watchdog { "watchdog" } else { "socket" };
        format!("{kind}:{}", path.display())
    }

    fn node(&self, place: &Place<'_>, n: u8) -> Result<Node> {
        let ip = if self.shape == Shape::Loopback { place.block.ip(n) } else { netns::node_ip(n) };
        let listen = addr::socket(ip, place.port);
        let folder = format!("n{n}");
        let name = self.spare.filter(|_| n == self.nodes).map_or_else(|| folder.clone(), str::to_owned);
        let dir = place.bed.join(&folder);
        let power = place.bed.join(format!("{folder}.power"));
        let password = place.bed.join("password");
        if let Some(bytes) = self.disk {
            own_disk(&dir, bytes, self.shape)?;
        }
        let mut more = self.arguments.clone();
        if self.witness && n == self.nodes {
            more.push("--witness".to_owned());
        }
        let mut machine = None;
        let mut arguments = vec![];
        // Nodes that share their mounts would meet at /etc/pve, and a machine would leave a folder there that nobody can remove.
        let at = if self.files { dir.join(FILES).display().to_string() } else { "none".to_owned() };
        more.splice(0..0, ["--files-path".to_owned(), at]);
        if self.shape == Shape::Machine {
            more.push(format!("--root-password-file {} --cluster-name testbed", password.display()));
            let seen = vec![power.clone(), password, place.bed.join("shared")];
            let files = Machine::new(&dir, &name, Content::Plain, seen)?;
            let power = self.switch_at(&power);
            let more = more.join(" ");
            let text = format!("STEAD_LISTEN={listen}\nSTEAD_POWER={power}\nSTEAD_OPTIONS={more}\n");
            // An administrator's own, which the package leaves as they are.
            files.debian().write("etc/default/stead", &text)?;
            machine = Some(files);
        } else {
            arguments = [
                ("--dir", dir.display().to_string()),
                ("--name", name.clone()),
                ("--listen", listen.to_string()),
                ("--power", self.switch_at(&power)),
                ("--root-password-file", password.display().to_string()),
                ("--cluster-name", "testbed".to_owned()),
            ]
            .into_iter()
            .flat_map(|(k, v)| [k.to_owned(), v])
            .collect();
            if let Some(base) = place.forward {
                // Run as root, too: these nodes have no bridges.
                arguments.extend(["--network", "user", "--user-net-forward"].map(str::to_owned));
                arguments.push(format!("80:{base}"));
            }
            arguments.extend(more);
        }
        Node::new(Plan {
            name,
            folder,
            number: n,
            bed: place.bed.to_owned(),
            listen,
            daemon: program("steadd")?,
            arguments,
            network: place.network.cloned(),
            own_mounts: self.own_mounts,
            machine,
        })
    }

    /// Starts the daemons and joins them to one cluster.
    pub async fn form(self) -> Result<Cluster> {
        let cluster = self.start().await?;
        let links = cluster.links_of(0);
        if !links.is_empty() {
            let form: Vec<(&str, &str)> = links.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let path = format!("/cluster/config/nodes/{}", cluster.nodes[0].name());
            cluster.api(0).await?.put(&path, &form).await.context("giving the first node its links")?;
        }
        for n in 1..cluster.nodes.len() {
            cluster.join(n).await?;
        }
        Ok(cluster)
    }
}

/// A running testbed. Nodes are counted from 0; node 0 is `n1`.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    links: u8,
    network: Option<Arc<Network>>,
    forward: Option<u16>,
    password: String,
    shared: PathBuf,
    bed: Bed,
    block: addr::Block,
}

impl Cluster {
    /// What a cluster shall be like.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            shape: Shape::Loopback,
            disk: None,
            own_mounts: false,
            files: false,
            arguments: Vec::new(),
            witness: false,
            links: 1,
            watchdog: false,
            spare: None,
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its number from 0.
    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n]
    }

    /// A node's number by its name.
    pub fn number(&self, name: &str) -> Result<usize> {
        self.nodes.iter().position(|n| n.name() == name).with_context(|| format!("no node is called {name}"))
    }

    /// The network between the nodes, where it can be cut.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_deref().context("networks can be cut in the namespace shape only")
    }

    /// root@pam's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The folder that the storage `shared` lies in, once [`Self::add_shared_storage`] was called.
    pub fn shared_dir(&self) -> &Path {
        &self.shared
    }

    /// The testbed's folder.
    pub fn dir(&self) -> &Path {
        self.bed.dir()
    }

    /// Keeps the logs when the testbed ends.
    pub fn keep_logs(&mut self) {
        self.bed.keep();
    }

    /// An address of this testbed's that no node was given, with the nodes' port, for [`Node::move_to`]. Loopback shape only.
    pub fn free_addr(&self, n: usize) -> SocketAddr {
        addr::socket(self.block.ip(100 + n as u8), self.nodes[n].addr().port())
    }

    /// The further links of a node, as parameters.
    fn links_of(&self, n: usize) -> Vec<(String, String)> {
        let ip = |link| netns::link_ip(link, n as u8 + 1).to_string();
        (1..self.links).map(|link| (format!("link{link}"), ip(link))).collect()
    }

    /// A client of a node by one of its links that has signed in as root@pam.
    pub async fn api_by(&self, link: u8, n: usize) -> Result<ApiClient> {
        let ip = netns::link_ip(link, n as u8 + 1);
        let api = ApiClient::new(addr::socket(ip, self.nodes[n].addr().port()))?;
        api.login("root@pam", &self.password).await?;
        Ok(api)
    }

    /// The package that machines have; [`crate::machine::package`] makes it.
    pub fn package(&self) -> PathBuf {
        self.bed.dir().join("stead.deb")
    }

    /// Installs the package on each of the machines, all at once.
    async fn install(&self) -> Result<()> {
        let built = crate::machine::package(self.bed.dir())?;
        fs::rename(built, self.package())?;
        let deb = self.package();
        try_join_all(self.nodes.iter().map(|node| node.install(&deb))).await.map(drop)
    }

    /// A client of a node that has signed in as root@pam.
    pub async fn api(&self, n: usize) -> Result<ApiClient> {
        let api = ApiClient::new(self.nodes[n].addr())?;
        api.login("root@pam", &self.password).await?;
        Ok(api)
    }

    /// Waits until a node answers.
    pub async fn wait_up(&self, node: &Node) -> Result<()> {
        let what = format!("{} answers at {}", node.name(), node.addr());
        let up = until(&what, UP_WITHIN, async || {
            if !node.is_running() {
                bail!("its daemon has ended");
            }
            ApiClient::new(node.addr())?.login("root@pam", &self.password).await.map(Some)
        });
        up.await.with_context(|| tail(&node.log()))
    }

    /// Joins node `n` to the cluster of node 0, as an administrator does: join information from a member, then the join on
    /// the node to be added. Waits until every member so far sees it online.
    pub async fn join(&self, n: usize) -> Result<()> {
        let member = self.api(0).await?;
        let info = member.get("/cluster/config/join").await.context("join information")?;
        let preferred = info["preferred_node"].as_str().unwrap_or(self.nodes[0].name());
        let entry = info["nodelist"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|e| e["name"] == preferred))
            .with_context(|| format!("join information names no member: {info}"))?;
        let fingerprint = entry["pve_fp"].as_str().with_context(|| format!("no fingerprint in {info}"))?;
        let hostname = self.nodes[0].addr().to_string();
        let mut form =
            vec![("hostname", hostname.as_str()), ("fingerprint", fingerprint), ("password", &self.password)];
        let links = self.links_of(n);
        form.extend(links.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let newcomer = self.api(n).await?;
        newcomer
            .post("/cluster/config/join", &form)
            .await
            .with_context(|| format!("joining {}", self.nodes[n].name()))?;
        let name = self.nodes[n].name();
        let all = n + 1;
        let is_online = |row: &&serde_json::Value| row["type"] != "cluster" && row["online"] == 1;
        until(&format!("{name} joins"), JOINED_WITHIN, async || {
            for k in [0, n] {
                let api = self.api(k).await?;
                let status = api.get("/cluster/status").await?;
                let rows = status.as_array().context("/cluster/status is no list")?;
                let device = api.get("/cluster/config/qdevice").await?;
                let witnesses = device["witnesses"].as_array().cloned().unwrap_or_default();
                let online = rows.iter().chain(&witnesses).filter(is_online).count();
                let quorate = rows.iter().any(|r| r["type"] == "cluster" && r["quorate"] == 1);
                if online < all || !quorate {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
        .with_context(|| format!("{}\n{}", tail(&self.nodes[0].log()), tail(&self.nodes[n].log())))
    }

    /// Adds the storage `shared`, a folder that every node sees.
    pub async fn add_shared_storage(&self) -> Result<()> {
        let path = self.shared.display().to_string();
        let form = [
            ("storage", "shared"),
            ("type", "dir"),
            ("path", &path),
            ("shared", "1"),
            ("content", "images,iso"),
        ];
        self.api(0).await?.post("/storage", &form).await.context("adding the shared storage").map(drop)
    }

    /// Adds a storage of that name which one node alone has; its folder.
    pub async fn add_local_storage(&self, n: usize, id: &str) -> Result<PathBuf> {
        let folder = self.shared.with_file_name(id);
        fs::create_dir_all(&folder)?;
        let (path, node) = (folder.display().to_string(), self.node(n).name());
        let form =
            [("storage", id), ("type", "dir"), ("path", &path), ("content", "images"), ("nodes", node)];
        let added = self.api(0).await?.post("/storage", &form).await;
        added.with_context(|| format!("adding storage '{id}'"))?;
        Ok(folder)
    }

    /// Creates a VM of the HTTP guest on a node: its system disk a copy of the image, its data disk new.
    pub async fn create_http_guest(&self, n: usize, vmid: u32, name: &str) -> Result<()> {
        let image = tokio::task::spawn_blocking(|| guest::image::http_guest(&|_| {})).await??;
        self.create_linux_guest(n, vmid, name, &image, &[]).await
    }

    /// The same with QEMU's agent in it, and a third disk with a file system.
    pub async fn create_agent_guest(&self, n: usize, vmid: u32, name: &str) -> Result<()> {
        let image = tokio::task::spawn_blocking(|| guest::image::agent_guest(&|_| {})).await??;
        let disk = self.disk_path(vmid, 2);
        if let Some(dir) = disk.parent() {
            fs::create_dir_all(dir)?;
        }
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).arg("16M").status();
        ensure!(made.context("running mkfs.ext4")?.success(), "mkfs.ext4 failed");
        let more = [
            ("agent", "1".to_owned()),
            ("virtio2", format!("shared:{vmid}/vm-{vmid}-disk-2.raw,cache=none")),
        ];
        self.create_linux_guest(n, vmid, name, &image, &more).await
    }

    async fn create_linux_guest(
        &self,
        n: usize,
        vmid: u32,
        name: &str,
        image: &Path,
        more: &[(&str, String)],
    ) -> Result<()> {
        guest::image::copy_disk(image, &self.disk_path(vmid, 0))?;
        let memory = guest::image::MEMORY_MIB.to_string();
        let system = format!("shared:{vmid}/vm-{vmid}-disk-0.raw,cache=none");
        let net = match &self.network {
            None => "virtio".to_owned(),
            Some(_) => format!("virtio={},bridge=vmbr0", netns::guest_ip(vmid).1),
        };
        let form = [
            ("vmid", vmid.to_string()),
            ("name", name.to_owned()),
            ("memory", memory),
            ("cores", "1".to_owned()),
            ("virtio0", system),
            ("virtio1", "shared:1,format=raw,cache=none".to_owned()),
            ("boot", "order=virtio0".to_owned()),
            ("net0", net),
            ("serial0", "socket".to_owned()),
        ];
        self.create_vm(n, &[&form, more].concat()).await
    }

    /// Creates a VM of the boot-sector guest on a node.
    pub async fn create_tick_guest(&self, n: usize, vmid: u32) -> Result<()> {
        let disk = self.disk_path(vmid, 0);
        if let Some(dir) = disk.parent() {
            fs::create_dir_all(dir)?;
        }
        guest::tick::write_disk(&disk)?;
        let form = [
            ("vmid", vmid.to_string()),
            ("name", format!("tick-{vmid}")),
            ("memory", "32".to_owned()),
            ("virtio0", format!("shared:{vmid}/vm-{vmid}-disk-0.raw,cache=none")),
            ("boot", "order=virtio0".to_owned()),
            ("serial0", "socket".to_owned()),
        ];
        self.create_vm(n, &form).await
    }

    async fn create_vm(&self, n: usize, form: &[(&str, String)]) -> Result<()> {
        let form: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let path = format!("/nodes/{}/qemu", self.nodes[n].name());
        let made = self.api(n).await?.post_and_wait(&path, &form, Duration::from_secs(60)).await;
        made.with_context(|| format!("creating the VM on {}", self.nodes[n].name()))
    }

    /// Where a guest's disk lies on the shared storage.
    pub fn disk_path(&self, vmid: u32, disk: u32) -> PathBuf {
        self.shared.join(format!("images/{vmid}/vm-{vmid}-disk-{disk}.raw"))
    }

    /// Where a guest answers HTTP: a port of each node's address in the loopback shape, its own address otherwise.
    pub fn guest_places(&self, vmid: u32) -> Vec<SocketAddr> {
        match self.forward {
            Some(base) => {
                let port = base + (vmid % 1000) as u16;
                self.nodes.iter().map(|n| SocketAddr::new(n.addr().ip(), port)).collect()
            }
            None => vec![addr::socket(netns::guest_ip(vmid).0, 80)],
        }
    }

    /// What the data disk of a guest of [`Self::create_http_guest`] tells: two writers show there.
    pub fn disk_log(&self, vmid: u32) -> Result<guest::disklog::DiskLog> {
        guest::disklog::DiskLog::read(&self.disk_path(vmid, 1))
    }

    /// A guest's row of `/cluster/resources`, seen from node `n`.
    pub async fn guest_row(&self, api: &ApiClient, vmid: u32) -> Result<serde_json::Value> {
        let rows = api.get("/cluster/resources?type=vm").await?;
        let rows = rows.as_array().context("/cluster/resources is no list")?;
        rows.iter()
            .find(|r| r["vmid"] == vmid)
            .cloned()
            .with_context(|| format!("no VM {vmid} in /cluster/resources"))
    }

    /// The number of the leader's node, as a node sees it.
    pub async fn leader(&self, api: &ApiClient) -> Result<usize> {
        let status = api.get("/cluster/status").await?;
        let leader = status.as_array().and_then(|rows| rows.iter().find_map(|r| r["leader"].as_str()));
        self.number(leader.context("the cluster has no leader")?)
    }
}

/// Whether an error is the API's refusal with this status.
pub fn is_refused(error: &anyhow::Error, status: u16) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|r| r.status == status)
}

/// Mounts a file system of its own over a node's folder, in this thread's mount namespace.
fn own_disk(dir: &Path, bytes: u64, shape: Shape) -> Result<()> {
    ensure!(shape == Shape::Namespace, "a disk of its own is for the namespace shape");
    fs::create_dir_all(dir)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=700"), "node"])
        .arg(dir)
        .status()?;
    ensure!(mounted.success(), "mounting a disk for {} failed", dir.display());
    fs::write(dir.join(".own-disk"), "")?;
    Ok(())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}").with_context(|| format!("writing {}", path.display()))
}

/// A program of ours: in `STEAD_BIN_DIR`, beside this program, or, for a test, one folder above it.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let beside = here.parent().map(Path::to_owned);
    let above = beside.as_ref().and_then(|d| d.parent()).map(Path::to_owned);
    let given = std::env::var_os("STEAD_BIN_DIR").map(PathBuf::from);
    let found = [given, beside, above].into_iter().flatten().map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("{name} is not built (`make build`), or not in STEAD_BIN_DIR"))
}

/// The end of a log, for an error's context.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(25)..].join("\n  ");
    format!("end of {}:\n  {last}", log.display())
}
