//! How a guest's network devices reach the host: taps on bridges, or a user-mode network.

use crate::command::NetPlan;
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::time::Duration;
use stead_model::Vmid;
use stead_model::vmconfig::Net;

/// What becomes of a network device that names a bridge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bridges {
    /// A tap on the bridge, which must be there; only where this process may make none, user-mode with a warning.
    #[default]
    Auto,
    /// A tap, or the guest does not start.
    Required,
    /// Always user-mode, as the node's administrator wants it.
    Never,
}

/// A port of guests in a user-mode network, reachable on the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The guest's TCP port.
    pub guest_port: u16,
    /// The address to listen on.
    pub host_ip: IpAddr,
    /// The port to listen on is this plus the VMID, where that is a port.
    pub host_port_base: u16,
}

impl Forward {
    /// The host's port for a guest; none where the sum is no port.
    pub fn port(&self, vmid: Vmid) -> Option<u16> {
        u16::try_from(u32::from(self.host_port_base).checked_add(vmid.get())?).ok()
    }

    /// QEMU's rule, if the port is free.
    fn rule(&self, vmid: Vmid) -> Option<String> {
        let Some(port) = self.port(vmid) else {
            tracing::warn!(%vmid, base = self.host_port_base, "no port of the guest is forwarded: its VMID is too large");
            return None;
        };
        if let Err(e) = TcpListener::bind((self.host_ip, port)) {
            tracing::warn!(%vmid, port, error = %e, "no port of the guest is forwarded: the host's port is taken");
            return None;
        }
        let ip = match self.host_ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Some(format!("tcp:{ip}:{port}-:{}", self.guest_port))
    }
}

const CAP_NET_ADMIN: u32 = 12;

/// Whether this process may make network devices.
fn is_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_NET_ADMIN) != 0)
        && Path::new("/dev/net/tun").exists()
}

/// The largest packet of a bridge, in bytes; none if there is no such bridge in this process's network. `/sys` may show that of
/// another one.
async fn bridge_mtu(name: &str) -> Option<u32> {
    let shown = run("ip", &["-o", "link", "show", "dev", name, "type", "bridge"]).await.ok()?;
    mtu_of(&shown)
}

fn mtu_of(shown: &str) -> Option<u32> {
    let mut words = shown.split_ascii_whitespace();
    words.find(|word| *word == "mtu")?;
    words.next()?.parse().ok()
}

/// How long the kernel may take to change a network device.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `ip` or `tc`.
async fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let run = tokio::process::Command::new(program).args(args).kill_on_drop(true).output();
    let Ok(run) = tokio::time::timeout(PATIENCE, run).await else {
        return Err(format!("'{program}' did not end within {} s", PATIENCE.as_secs()));
    };
    match run {
        Err(e) => Err(format!("'{program}' could not be started ({e}): is the package iproute2 installed?")),
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
    }
}

/// What becomes of a bridge.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// A tap, for packets of that size.
    Tap(u32),
    User,
    /// User-mode, though something else was asked for.
    Instead(String),
    Refused(String),
}

/// Decides on a bridge. `there` is asked only where it counts.
async fn way(
    bridges: Bridges,
    privileged: bool,
    bridge: &str,
    there: impl Future<Output = Option<u32>>,
) -> Way {
    const UNPRIVILEGED: &str = "this daemon may make no taps (CAP_NET_ADMIN and /dev/net/tun)";
    match (bridges, privileged) {
        (Bridges::Never, _) => Way::User,
        (Bridges::Auto, false) => {
            Way::Instead(format!("user-mode network instead of bridge '{bridge}': {UNPRIVILEGED}"))
        }
        (Bridges::Required, false) => Way::Refused(UNPRIVILEGED.to_owned()),
        (Bridges::Auto | Bridges::Required, true) => {
            there.await.map_or_else(|| Way::Refused(format!("bridge '{bridge}' does not exist")), Way::Tap)
        }
    }
}

/// What a launch would do otherwise than the devices say, for people.
pub async fn warnings(nets: &[Net], bridges: Bridges) -> Vec<String> {
    let mut found = vec![];
    for (net, bridge) in nets.iter().filter_map(|n| Some((n, n.bridge.as_deref()?))) {
        if let Way::Instead(why) = way(bridges, is_privileged(), bridge, bridge_mtu(bridge)).await {
            found.push(format!("{}: {why}", net.key));
        }
    }
    found
}

/// Decides for each device. The error names the device.
pub async fn plan(
    vmid: Vmid,
    nets: &[Net],
    bridges: Bridges,
    forward: Option<&Forward>,
) -> Result<Vec<NetPlan>, (String, String)> {
    let mut plans = Vec::new();
    let mut forward = forward;
    for net in nets {
        if let Some(bridge) = &net.bridge {
            match way(bridges, is_privileged(), bridge, bridge_mtu(bridge)).await {
                Way::Tap(mtu) => {
                    plans.push(tap(vmid, net, bridge, mtu)?);
                    continue;
                }
                Way::User => {}
                Way::Instead(why) => tracing::warn!(%vmid, device = net.key, "{why}"),
                Way::Refused(why) => return Err((net.key.clone(), why)),
            }
        }
        needs_no_tap(net).map_err(|why| (net.key.clone(), why))?;
        // A port can be forwarded to one device only: the first.
        plans.push(NetPlan::User { forward: forward.take().and_then(|f| f.rule(vmid)) });
    }
    Ok(plans)
}

/// Refuses what only a tap can do.
fn needs_no_tap(net: &Net) -> Result<(), String> {
    let asked = [("queues", net.queues.is_some()), ("mtu", net.mtu.is_some()), ("rate", net.rate.is_some())];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => {
            Err(format!("{name}: a user-mode network has none: take it out, or name a bridge"))
        }
        None => Ok(()),
    }
}

/// What a device's tap is called.
pub fn tap_name(vmid: Vmid, net: &Net) -> String {
    format!("tap{vmid}i{}", net.index)
}

/// Bytes a second. The number is none that is negative, and what is cut off is less than a byte.
fn bytes(rate: f64) -> u64 {
    ((rate * 1_048_576.0) as u64).max(1)
}

fn tap(vmid: Vmid, net: &Net, bridge: &str, mtu: u32) -> Result<NetPlan, (String, String)> {
    if let Some(large) = net.mtu.filter(|large| *large > mtu) {
        let why = format!("mtu={large}: bridge '{bridge}' takes packets of at most {mtu} bytes");
        return Err((net.key.clone(), why));
    }
    if let Some(tag) = net.tag {
        // Without its VLAN it would reach machines that it must not reach.
        let why = format!("VLAN tag {tag}: VLANs on bridges are not supported yet");
        return Err((net.key.clone(), why));
    }
    let vhost = net.model == stead_model::vmconfig::NetModel::Virtio
        && std::fs::File::options().read(true).write(true).open("/dev/vhost-net").is_ok();
    let rate = net.rate.map(bytes);
    Ok(NetPlan::Tap { ifname: tap_name(vmid, net), bridge: bridge.to_owned(), vhost, mtu, rate })
}

/// Puts a tap that QEMU has made on its bridge, with its limit. It goes with QEMU.
pub async fn attach(plan: &NetPlan) -> Result<(), String> {
    let NetPlan::Tap { ifname, bridge, mtu, rate, .. } = plan else { return Ok(()) };
    if rate.is_some()
        && let Err(e) = limit(ifname, *rate).await
    {
        // That it runs matters more than how fast its network is.
        tracing::warn!("{e}: it has no limit");
    }
    // A bridge takes over the smallest size among its members.
    let set =
        run("ip", &["link", "set", "dev", ifname, "mtu", &mtu.to_string(), "master", bridge, "up"]).await;
    set.map(drop).map_err(|e| format!("{ifname} could not be put on bridge '{bridge}': {e}"))
}

/// Puts a running guest's tap on the bridge that its device names now, with the limit that it has now. `taps`: those that the guest
/// has.
pub async fn attach_again(vmid: Vmid, net: &Net, taps: &[String]) -> Result<(), String> {
    let ifname = tap_name(vmid, net);
    if !taps.contains(&ifname) {
        return needs_no_tap(net);
    }
    if let Some(bridge) = &net.bridge {
        // A bridge takes over the smallest size among its members.
        let mtu = bridge_mtu(bridge).await.ok_or_else(|| format!("bridge '{bridge}' does not exist"))?;
        let mtu = mtu.to_string();
        let args = ["link", "set", "dev", &ifname, "mtu", &mtu, "master", bridge, "up"];
        run("ip", &args).await.map_err(|e| format!("{ifname} could not be put on bridge '{bridge}': {e}"))?;
    }
    limit(&ifname, net.rate.map(bytes)).await
}

/// Bounds what passes a tap: what the guest receives waits a little, what it sends too much is dropped, since nothing can make it
/// wait. All or nothing.
async fn limit(ifname: &str, rate: Option<u64>) -> Result<(), String> {
    let clear = async || {
        // There may be none.
        for which in ["root", "ingress"] {
            let _ = run("tc", &["qdisc", "del", "dev", ifname, which]).await;
        }
    };
    let Some(rate) = rate else {
        clear().await;
        return Ok(());
    };
    // What may pass at once: the largest packet that the kernel puts together, or what passes in a tenth of a second.
    let burst = (rate / 10).clamp(128 << 10, 1 << 30).to_string();
    let speed = format!("{}bit", rate.saturating_mul(8));
    let shape = ["root", "tbf", "rate", &speed, "burst", &burst, "latency", "50ms"];
    let police =
        ["action", "police", "rate", &speed, "burst", &burst, "mtu", "131072", "conform-exceed", "drop"];
    let steps = [
        [&["qdisc", "replace", "dev", ifname][..], &shape].concat(),
        ["qdisc", "replace", "dev", ifname, "handle", "ffff:", "ingress"].to_vec(),
        [
            &["filter", "replace", "dev", ifname, "parent", "ffff:", "protocol", "all", "prio", "1"][..],
            &["handle", "1", "matchall"],
            &police,
        ]
        .concat(),
    ];
    for step in steps {
        if let Err(e) = run("tc", &step).await {
            clear().await;
            return Err(format!("rate: this node can't limit {ifname}: tc {}: {e}", step[..2].join(" ")));
        }
    }
    Ok(())
}

/// Bytes that the guest received and sent over its taps, by the kernel's counters.
pub fn traffic(taps: &[String]) -> (u64, u64) {
    if taps.is_empty() {
        return (0, 0);
    }
    count(&std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default(), taps)
}

fn count(table: &str, taps: &[String]) -> (u64, u64) {
    let mut sum = (0, 0);
    for (name, counters) in table.lines().filter_map(|l| l.split_once(':')) {
        if taps.iter().any(|t| t == name.trim()) {
            let counters: Vec<u64> =
                counters.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
            // What the host sends into the tap, the guest receives.
            sum.0 += counters.get(8).copied().unwrap_or(0);
            sum.1 += counters.first().copied().unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bridge_is_replaced_only_where_no_tap_can_be_made() {
        let ask = async |bridges, privileged, there: bool| {
            way(bridges, privileged, "vmbr0", std::future::ready(there.then_some(1500))).await
        };
        assert_eq!(ask(Bridges::Auto, true, true).await, Way::Tap(1500));
        let missing = Way::Refused("bridge 'vmbr0' does not exist".to_owned());
        assert_eq!(ask(Bridges::Auto, true, false).await, missing);
        assert_eq!(ask(Bridges::Required, true, false).await, missing);
        assert!(matches!(ask(Bridges::Auto, false, false).await, Way::Instead(why) if why.contains("vmbr0")));
        assert!(matches!(ask(Bridges::Required, false, true).await, Way::Refused(_)));
        assert_eq!(ask(Bridges::Never, true, true).await, Way::User);
    }

    #[test]
    fn the_size_of_a_bridge_s_packets_is_read() {
        let shown = "3: vmbr0: <BROADCAST,MULTICAST> mtu 9000 qdisc noop state DOWN mode DEFAULT group default\\    link/ether 0a";
        assert_eq!((mtu_of(shown), mtu_of("")), (Some(9000), None));
    }

    #[tokio::test]
    async fn what_only_a_tap_can_do_is_refused_elsewhere() {
        for (value, word) in [("queues=4", "queues"), ("mtu=1", "mtu"), ("rate=0.5", "rate")] {
            let net = Net::parse("net1", &format!("virtio=BC:24:11:00:00:01,bridge=vmbr0,{value}")).unwrap();
            let vmid = Vmid::new(100).unwrap();
            let (key, why) = plan(vmid, std::slice::from_ref(&net), Bridges::Never, None).await.unwrap_err();
            assert!(key == "net1" && why.starts_with(word) && why.contains("user-mode"), "{why}");
            assert!(attach_again(vmid, &net, &[]).await.is_err());
        }
        let large = Net::parse("net1", "virtio=BC:24:11:00:00:01,bridge=vmbr0,mtu=9000").unwrap();
        let (key, why) = tap(Vmid::new(100).unwrap(), &large, "vmbr0", 1500).unwrap_err();
        assert!(key == "net1" && why.contains("at most 1500 bytes"), "{why}");
    }

    #[test]
    fn the_guest_receives_what_the_host_sends() {
        let table = "Inter-| Receive | Transmit\n face |bytes ...\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                     tap100i0:  20 1 0 0 0 0 0 0  300 1 0 0 0 0 0 0\ntap100i1: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n";
        assert_eq!(count(table, &["tap100i0".into(), "tap100i1".into()]), (302, 21));
        assert_eq!(count(table, &["tap100i9".into()]), (0, 0));
    }
}
