//! Debian's pacemaker and corosync, in machines, with a fence device for each node.
//!
//! Fencing is on in either tuning, and a minority stops what it runs: that nothing runs twice is what both owe, as Stead does.
//! corosync tells that a node is gone; pacemaker has it turned off, and starts its resource when the device has said that it is.

use super::super::super::bench::failover::VM;
use super::super::super::bench::now;
use super::super::super::bench::trace::Traces;
use super::super::super::support::{BOOT, RECOVERY};
use super::guest::Guest;
use super::stead::runs_once;
use super::{Contender, Took};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_testbed::api::until;
use stead_testbed::bmc::{PASSWORD, USER};
use stead_testbed::guest::tick;
use stead_testbed::netns;
use stead_testbed::peer::{Given, Peer};

const NODES: u8 = 3;
/// Cluster options of every tuning. The first two are what they are by default. On a machine that others load, it should not
/// hold itself back.
const CHOSEN: [(&str, &str); 3] =
    [("stonith-enabled", "true"), ("no-quorum-policy", "stop"), ("load-threshold", "1000%")];
/// A first start waits for a coordinator that may be there, by default for 20 s.
const FORMED: Duration = Duration::from_secs(120);

/// What an administrator may choose.
pub struct Tuning {
    /// Of corosync.conf's section `totem`.
    totem: &'static str,
    /// Cluster options.
    options: &'static [(&'static str, &'static str)],
    /// Whether the guest is started before a fence device's own agent is, which the lost node has looked after.
    guest_first: bool,
    agent: Agent,
}

/// How a node's power is taken.
enum Agent {
    /// fence_ipmilan, and the node's service processor.
    Ipmi,
    /// One that has nothing to start, to sign in to or to ask.
    AtOnce,
}

/// Nothing is chosen.
pub const DEFAULT: Tuning = Tuning { totem: "", options: &[], guest_first: false, agent: Agent::Ipmi };

/// Nothing is chosen but the device.
pub const AT_ONCE: Tuning = Tuning { agent: Agent::AtOnce, ..DEFAULT };

/// As quick as it is safe; docs/benchmarks.md says why.
pub const TUNED: Tuning = Tuning {
    totem: "token: 1000\n token_coefficient: 0\n",
    // The node's way back is not waited for.
    options: &[("stonith-action", "off")],
    guest_first: true,
    agent: Agent::AtOnce,
};

/// Something that its logs tell.
pub struct Step {
    /// In the samples.
    pub name: &'static str,
    /// In the report.
    pub title: &'static str,
    /// What a line of the log has.
    mark: &'static str,
}

/// In their order.
pub const STEPS: [Step; 4] = [
    Step {
        name: "missed",
        title: "corosync misses the node (token)",
        mark: "A processor failed, forming new configuration",
    },
    Step { name: "formed", title: "the others are a membership (consensus)", mark: "A new membership (" },
    Step { name: "fenced", title: "the device has confirmed the power-off", mark: ": OK (complete)" },
    Step {
        name: "start",
        title: "the resource's start is ordered",
        mark: "Initiating start operation guest_start_0",
    },
];

/// A cluster with one guest.
pub struct Pacemaker {
    traces: Traces,
    disk: PathBuf,
    peer: Peer,
}

/// What it says of itself.
struct Status(String);

impl Status {
    /// The value of an attribute in the first element that begins so.
    fn value(&self, element: &str, attribute: &str) -> Option<&str> {
        let (_, rest) = self.0.split_once(element)?;
        let (tag, _) = rest.split_once('>')?;
        let (_, value) = tag.split_once(&format!(" {attribute}=\""))?;
        value.split('"').next()
    }

    fn node(name: &str) -> Result<usize> {
        let number: usize = name.strip_prefix('n').context("a node's name")?.parse()?;
        Ok(number - 1)
    }

    /// The node that decides for all.
    fn coordinator(&self) -> Result<usize> {
        Self::node(self.value("<current_dc", "name").context("there is no coordinator")?)
    }

    /// Where the guest runs.
    fn guest(&self) -> Result<usize> {
        let (_, rest) = self.0.split_once("<resource id=\"guest\"").context("there is no guest")?;
        Self::node(Status(rest.to_owned()).value("<node", "name").context("the guest runs nowhere")?)
    }

    /// All nodes are members, and all resources run where they should.
    fn whole(&self) -> bool {
        let count = |what: &str| self.0.matches(what).count();
        let nodes = usize::from(NODES);
        self.value("<current_dc", "with_quorum") == Some("true")
            && count(" online=\"true\" ") == nodes
            && count(" pending=\"true\" ") + count(" unclean=\"true\" ") == 0
            && count(" role=\"Started\" ") == nodes + 1
            && count(" failed=\"true\" ") == 0
            && self.guest().is_ok()
    }
}

impl Pacemaker {
    /// With a tuning, and Stead's guest.
    pub async fn new(tuning: &Tuning, guest: &Guest) -> Result<Self> {
        let mut line = Ok(String::new());
        let peer = Peer::start(NODES, |shared| {
            line = guest.script(shared);
            let file = |path, text: &str, program| Given { path, text: text.to_owned(), program };
            vec![
                file("etc/guest/line", line.as_deref().unwrap_or_default(), false),
                file("usr/lib/ocf/resource.d/bench/qemu", include_str!("qemu-agent.sh"), true),
                file("usr/sbin/fence_bench", include_str!("fence-bench.pl"), true),
                file("etc/corosync/corosync.conf", &corosync(tuning), false),
            ]
        })
        .await?;
        line?;
        let traces = Traces::new(peer.shared_dir())?;
        let disk = disk(peer.shared_dir());
        fs::create_dir_all(disk.parent().context("a disk lies in a folder")?)?;
        tick::write_disk(&disk)?;
        let mut all = Self { traces, disk, peer };
        let formed = all.form(tuning).await;
        if formed.is_err() {
            all.keep_logs();
        }
        formed.map(|()| all)
    }

    async fn form(&self, tuning: &Tuning) -> Result<()> {
        for n in 0..usize::from(NODES) {
            self.ask(n, "systemctl start pacemaker").await?;
        }
        until("all nodes are online", FORMED, async || {
            let status = self.status(0).await?;
            Ok((status.0.matches(" online=\"true\" ").count() == usize::from(NODES)).then_some(()))
        })
        .await?;
        let changes = [
            ("crm_config", self.options(tuning)),
            ("rsc_defaults", defaults()),
            ("resources", self.resources(&tuning.agent)),
            ("constraints", constraints(tuning)),
        ];
        for (section, xml) in changes {
            let change = format!("cibadmin --modify --allow-create --scope {section} --xml-text '{xml}'");
            self.ask(0, &change).await.with_context(|| format!("configuring {section}"))?;
        }
        self.settled(0).await
    }

    /// What one of its nodes answers.
    async fn ask(&self, n: usize, script: &str) -> Result<String> {
        // Nothing of it may take for ever.
        let script = format!("timeout 60 sh -c '{}'", script.replace('\'', r"'\''"));
        self.peer.node(n).shell(&script).await
    }

    async fn status(&self, n: usize) -> Result<Status> {
        self.ask(n, "crm_mon --one-shot --output-as=xml").await.map(Status)
    }

    /// Waits until nothing is missing and nothing left to do, as a node sees it.
    async fn settled(&self, n: usize) -> Result<()> {
        until("the peer's cluster is whole", RECOVERY, async || {
            if !self.status(n).await?.whole() {
                return Ok(None);
            }
            self.ask(n, "crm_resource --wait --timeout 30").await?;
            Ok(self.status(n).await?.whole().then_some(()))
        })
        .await?;
        let counted = tick::read_cell(&self.disk)?;
        let counts = async || Ok(tick::read_cell(&self.disk)?.filter(|c| Some(*c) != counted));
        let cell = until("the guest writes", BOOT, counts).await?;
        ensure!(cell.conflicts == 0, "the guest ran twice: {cell:?}");
        Ok(())
    }

    /// Brings the guest to the coordinator's node, or off it; gives where it is.
    async fn place(&self, on_coordinator: bool) -> Result<usize> {
        self.settled(0).await?;
        let status = self.status(0).await?;
        let (at, coordinator) = (status.guest()?, status.coordinator()?);
        if (at == coordinator) == on_coordinator {
            return Ok(at);
        }
        let to = if on_coordinator { coordinator } else { (coordinator + 1) % usize::from(NODES) };
        self.ask(0, &format!("crm_resource --move --resource guest --node n{}", to + 1)).await?;
        until("the guest has moved", RECOVERY, async || {
            Ok((self.status(0).await?.guest()? == to).then_some(()))
        })
        .await?;
        self.ask(0, "crm_resource --clear --resource guest").await?;
        self.settled(0).await?;
        let status = self.status(0).await?;
        let placed = (status.guest()?, status.coordinator()?) == (to, coordinator);
        ensure!(placed, "it has moved elsewhere meanwhile");
        Ok(to)
    }

    /// When the logs of those that are left first say each of the steps.
    async fn steps(&self, begin: f64, lost: usize) -> Result<Vec<(&'static str, f64)>> {
        let since = begin.floor();
        let mut lines = vec![];
        for n in (0..usize::from(NODES)).filter(|n| *n != lost) {
            let script = format!(
                "journalctl --boot --output=short-unix --since=@{since} --unit=corosync --unit=pacemaker"
            );
            let said = self.ask(n, &script).await?;
            lines.extend(said.lines().filter_map(|l| {
                let (at, line) = l.split_once(' ')?;
                Some((at.parse::<f64>().ok()? - begin, line.to_owned()))
            }));
        }
        let first = |step: &Step| {
            let all = lines.iter().filter(|(at, line)| *at > 0.0 && line.contains(step.mark));
            all.map(|(at, _)| *at).min_by(f64::total_cmp).map(|at| (step.name, at))
        };
        Ok(STEPS.iter().filter_map(first).collect())
    }

    /// A node that has lost its power has it again.
    async fn back(&self, at: usize) -> Result<()> {
        self.peer.power_on(at)?;
        self.peer.node(at).wait_booted().await?;
        self.ask(at, "systemctl start pacemaker").await?;
        self.settled((at + 1) % usize::from(NODES)).await
    }

    fn options(&self, tuning: &Tuning) -> String {
        let mut xml = String::from("<cluster_property_set id=\"chosen\">");
        for (name, value) in CHOSEN.iter().chain(tuning.options) {
            let _ = write!(xml, "<nvpair id=\"chosen-{name}\" name=\"{name}\" value=\"{value}\"/>");
        }
        xml + "</cluster_property_set>"
    }

    /// The guest, and a fence device for each node.
    fn resources(&self, agent: &Agent) -> String {
        let mut xml = String::from(
            "<resources><primitive id=\"guest\" class=\"ocf\" provider=\"bench\" type=\"qemu\"><operations>\
             <op id=\"guest-monitor\" name=\"monitor\" interval=\"10s\" timeout=\"20s\"/></operations></primitive>",
        );
        for n in 0..usize::from(NODES) {
            let (addr, id) = (self.peer.bmc(n).addr(), format!("fence-n{}", n + 1));
            let text = str::to_owned;
            let (kind, options) = match agent {
                Agent::AtOnce => ("fence_bench", vec![("switch", self.peer.switch(n).display().to_string())]),
                // As Bmc::options, which says why.
                Agent::Ipmi => (
                    "fence_ipmilan",
                    vec![
                        ("ip", addr.ip().to_string()),
                        ("ipport", addr.port().to_string()),
                        ("username", text(USER)),
                        ("password", text(PASSWORD)),
                        ("lanplus", text("1")),
                        ("cipher", text("3")),
                        ("power_wait", text("0")),
                    ],
                ),
            };
            let _ = write!(
                xml,
                "<primitive id=\"{id}\" class=\"stonith\" type=\"{kind}\"><instance_attributes id=\"{id}-set\">"
            );
            for (name, value) in [("pcmk_host_list", format!("n{}", n + 1))].into_iter().chain(options) {
                let _ = write!(xml, "<nvpair id=\"{id}-{name}\" name=\"{name}\" value=\"{value}\"/>");
            }
            let _ = write!(
                xml,
                "</instance_attributes><operations><op id=\"{id}-monitor\" name=\"monitor\" interval=\"60s\"/>\
                 </operations></primitive>"
            );
        }
        xml + "</resources>"
    }
}

impl Contender for Pacemaker {
    async fn run(&mut self, on_coordinator: bool) -> Result<Took> {
        let at = self.place(on_coordinator).await?;
        let begin = now();
        self.peer.node(at).power_off()?;
        let running = self.traces.running_after(begin, RECOVERY).await?;
        runs_once(self.peer.nodes(), at)?;
        let steps = self.steps(begin, at).await?;
        self.back(at).await?;
        Ok(Took { running: running - begin, steps })
    }

    fn keep_logs(&mut self) {
        self.peer.keep_logs();
    }
}

/// Where Stead would have it.
fn disk(shared: &Path) -> PathBuf {
    shared.join(format!("images/{VM}/vm-{VM}-disk-0.raw"))
}

/// Debian's own, with the nodes, and its log where the other's is.
fn corosync(tuning: &Tuning) -> String {
    let node = |n: u8| {
        let ip = netns::node_ip(n);
        format!(" node {{\n  name: n{n}\n  nodeid: {n}\n  ring0_addr: {ip}\n }}\n")
    };
    let nodes: String = (1..=NODES).map(node).collect();
    format!(
        "totem {{\n version: 2\n cluster_name: debian\n crypto_cipher: none\n crypto_hash: none\n {}}}\nnodelist {{\n\
         {nodes}}}\nquorum {{\n provider: corosync_votequorum\n}}\nlogging {{\n to_stderr: no\n to_syslog: yes\n}}\n",
        tuning.totem
    )
}

/// A node is fenced by others.
fn constraints(tuning: &Tuning) -> String {
    let mut xml = String::from("<constraints>");
    for n in 1..=NODES {
        let _ = write!(
            xml,
            "<rsc_location id=\"not-itself-{n}\" rsc=\"fence-n{n}\" node=\"n{n}\" score=\"-INFINITY\"/>"
        );
        if tuning.guest_first {
            let _ = write!(
                xml,
                "<rsc_order id=\"guest-first-{n}\" first=\"guest\" then=\"fence-n{n}\" kind=\"Optional\" \
                 symmetrical=\"false\"/>"
            );
        }
    }
    xml + "</constraints>"
}

/// A resource stays where it is, as the usual tools for administrators set it.
fn defaults() -> String {
    "<rsc_defaults><meta_attributes id=\"stay\"><nvpair id=\"stay-1\" name=\"resource-stickiness\" value=\"1\"/>\
     </meta_attributes></rsc_defaults>"
        .to_owned()
}
