//! What can be done to the cluster in a scenario, and how it is written.

use super::{Failing, Load, MIB, folder};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use stead_model::ha_cfg::{HaRule, RequestedState};
use stead_model::{FenceProfile, GuestKind, NodeName, ServiceId, Vmid};

/// A command that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the command '{command}' cannot be carried out: {why}")]
pub struct CommandError {
    /// The command.
    pub command: String,
    /// What is wrong with it.
    pub why: String,
}

/// A service as a scenario names it: `vm:101`, `ct:101`, or `fa:N`, a machine that fails as its digits say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Its name in the cluster.
    pub sid: ServiceId,
    /// Whether the scenario calls it `fa:N`.
    pub fails: bool,
}

/// Where `fa:N` lie among the VMIDs, so that they meet no `vm:N`.
const FAILING_FROM: u32 = 900_000_000;

impl Named {
    /// Reads a name.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(digits) = text.strip_prefix("fa:") else {
            let sid = text.parse().map_err(|e: stead_model::IdError| e.to_string())?;
            return Ok(Self { sid, fails: false });
        };
        let number: u32 = digits.parse().map_err(|_| format!("'{text}' is not fa:NUMBER"))?;
        let vmid = Vmid::new(FAILING_FROM.saturating_add(number)).map_err(|e| e.to_string())?;
        Ok(Self { sid: ServiceId { kind: GuestKind::Qemu, vmid }, fails: true })
    }

    /// What its digits say: `fa:abcdef`, b starts fail, c migrations fail, d it cannot be stopped, f starts fail on
    /// that node only.
    pub fn failing(self) -> Failing {
        if !self.fails {
            return Failing::default();
        }
        let digits: Vec<u32> =
            (self.sid.vmid.get() - FAILING_FROM).to_string().chars().filter_map(|c| c.to_digit(10)).collect();
        let at = |i: usize| digits.get(i).copied().unwrap_or(0);
        let on = (at(5) > 0).then_some(at(5) as usize);
        Failing { starts: at(1), moves: at(2), stop: at(3) > 0, on }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fails { write!(f, "fa:{}", self.sid.vmid.get() - FAILING_FROM) } else { self.sid.fmt(f) }
    }
}

/// Something done to a service.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceCommand {
    /// Its user wants it in that state.
    Want(RequestedState),
    /// Its user wants it stopped within that time; by force at once for zero.
    Stop(Duration),
    /// Moved while it runs.
    Migrate(NodeName),
    /// Stopped, moved, started.
    Relocate(NodeName),
    /// Created on a node, and given to HA; `running`: it runs there already.
    Add {
        /// Where.
        node: NodeName,
        /// What its user wants.
        state: RequestedState,
        /// It runs there already.
        running: bool,
    },
    /// Taken from HA. The guest itself stays.
    Delete,
    /// Its process dies by itself.
    Die,
    /// Its process answers nothing any more.
    Hang,
    /// A lock is put into its configuration.
    Lock(String),
    /// The lock is removed.
    Unlock,
    /// Its user moves it himself, outside HA.
    MoveByHand(NodeName),
    /// What it may use: CPUs, bytes.
    Static(Option<f64>, Option<u64>),
    /// What it uses: CPUs, bytes.
    Dynamic(Option<f64>, Option<u64>),
}

impl ServiceCommand {
    /// Changes a guest's load, if that is what it does.
    pub fn change_load(&self, load: &mut Load) {
        match self {
            Self::Static(cpu, mem) => {
                load.maxcpu = cpu.unwrap_or(load.maxcpu);
                load.maxmem = mem.unwrap_or(load.maxmem);
            }
            Self::Dynamic(cpu, mem) => {
                load.cpu = cpu.unwrap_or(load.cpu);
                load.mem = mem.unwrap_or(load.mem);
            }
            _ => {}
        }
    }
}

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Power comes, with the network, or goes without a warning.
    Power(NodeName, bool),
    /// The node's network cable is plugged in, or out.
    Network(NodeName, bool),
    /// The node is shut down in order.
    Shutdown(NodeName),
    /// The node is rebooted in order.
    Reboot(NodeName),
    /// The node's daemon is restarted.
    RestartAgent(NodeName),
    /// Nothing happens for so long.
    Delay(Duration),
    /// Nothing: rounds of the manager are no part of this cluster's story.
    SkipRound,
    /// A service.
    Service(Named, ServiceCommand),
    /// The node is taken out of service for its maintenance, or back.
    Maintenance(NodeName, bool),
    /// HA is switched off; its services are left alone until then (`ignore`), or frozen.
    Disarm {
        /// Left alone altogether.
        ignore: bool,
    },
    /// HA is switched on again.
    Arm,
    /// The manager on that node gives its work to another one.
    StopManager(NodeName),
    /// Something stands still for so long.
    Pause {
        /// What.
        part: Part,
        /// On which node.
        node: NodeName,
        /// For how long.
        time: Duration,
    },
    /// Something is killed, and started again after so long.
    Kill {
        /// What.
        part: Part,
        /// On which node.
        node: NodeName,
        /// After how long.
        time: Duration,
    },
    /// What one node sends does not reach another one.
    Cut {
        /// Who is not heard.
        from: NodeName,
        /// By whom.
        to: NodeName,
        /// The other way neither.
        both: bool,
    },
    /// These nodes and all others do not hear each other.
    Split(BTreeSet<NodeName>),
    /// Cut links and splits are mended, and no message is lost any more. Cables that are out stay out.
    Mend,
    /// The configuration's store takes its time for so long: proposals hang, then are committed or not.
    Stall(Duration),
    /// Of 1000 messages so many are lost, very late, sent twice.
    Weather {
        /// Lost.
        loss: u32,
        /// Very late.
        late: u32,
        /// Sent twice.
        twice: u32,
    },
    /// A rule is made, or takes the place of the one of its name.
    Rule(Box<HaRule>),
    /// A rule is taken back.
    Unrule(String),
    /// From now on the storage of all disks is like this on that node.
    Storage(NodeName, Disks),
    /// Other times of leases and fencing.
    Profile(FenceProfile),
    /// An operator says that a lost node is off.
    ConfirmOff(NodeName),
}

/// How a node finds the storage that all guests' disks are on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Disks {
    /// There.
    #[default]
    Well,
    /// Gone: what is read or written fails at once.
    Lost,
    /// What is read or written hangs, and whoever waits for it is not ended by anything.
    Hung,
}

impl Disks {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "well" => Ok(Self::Well),
            "lost" => Ok(Self::Lost),
            "hung" => Ok(Self::Hung),
            other => Err(format!("'{other}' is none of 'well', 'lost', 'hung'")),
        }
    }
}

impl fmt::Display for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Well => "well",
            Self::Lost => "lost",
            Self::Hung => "hung",
        })
    }
}

/// What of a node stands still, or is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its daemon: it decides and talks to the others.
    Daemon,
    /// Its fence process: it holds the lease and makes guests safe.
    Fenced,
    /// All of it; a machine that is killed loses its power.
    Machine,
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "daemon" => Ok(Self::Daemon),
            "fence" => Ok(Self::Fenced),
            "machine" => Ok(Self::Machine),
            other => Err(format!("'{other}' is none of 'daemon', 'fence', 'machine'")),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "the daemon",
            Self::Fenced => "the fence process",
            Self::Machine => "the machine",
        })
    }
}

impl Command {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        read(&words).map_err(|why| CommandError { command: text.to_owned(), why })
    }
}

fn node(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|e: stead_model::IdError| e.to_string())
}

fn on(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("'{other}' is neither 'on' nor 'off'")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let s: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(s).map_err(|e| format!("'{text}': {e}"))
}

fn read(words: &[&str]) -> Result<Command, String> {
    match words {
        ["power", n, power] => Ok(Command::Power(node(n)?, on(power)?)),
        ["network", n, network] => Ok(Command::Network(node(n)?, on(network)?)),
        ["shutdown", n] => Ok(Command::Shutdown(node(n)?)),
        ["reboot", n] => Ok(Command::Reboot(node(n)?)),
        ["restart-lrm", n] => Ok(Command::RestartAgent(node(n)?)),
        ["delay", time] => Ok(Command::Delay(seconds(time)?)),
        ["skip-round", ..] => Ok(Command::SkipRound),
        ["service", sid, rest @ ..] => Ok(Command::Service(Named::parse(sid)?, service(rest)?)),
        ["crm", n, rest @ ..] => crm(n, rest),
        _ => fault(words),
    }
}

fn fault(words: &[&str]) -> Result<Command, String> {
    match words {
        ["pause", part, n, time] => {
            Ok(Command::Pause { part: Part::parse(part)?, node: node(n)?, time: seconds(time)? })
        }
        ["kill", part, n, time] => {
            Ok(Command::Kill { part: Part::parse(part)?, node: node(n)?, time: seconds(time)? })
        }
        ["cut", from, to, way @ ..] => {
            let both = match way {
                [] => true,
                ["one-way"] => false,
                _ => return Err("after the nodes nothing is understood but 'one-way'".to_owned()),
            };
            Ok(Command::Cut { from: node(from)?, to: node(to)?, both })
        }
        ["split", side] => Ok(Command::Split(side.split(',').map(node).collect::<Result<_, _>>()?)),
        ["mend"] => Ok(Command::Mend),
        ["stall", time] => Ok(Command::Stall(seconds(time)?)),
        ["weather", loss, late, twice] => Ok(Command::Weather {
            loss: thousandth(loss)?,
            late: thousandth(late)?,
            twice: thousandth(twice)?,
        }),
        ["rule", kind, id, options @ ..] => {
            let mut text = String::new();
            section(&mut text, kind, id, options);
            let rule = folder::rules(&text).map_err(|e| e.to_string())?.pop();
            rule.map(|r| Command::Rule(Box::new(r))).ok_or_else(|| "that is no rule".to_owned())
        }
        ["unrule", id] => Ok(Command::Unrule((*id).to_owned())),
        ["storage", n, disks] => Ok(Command::Storage(node(n)?, Disks::parse(disks)?)),
        ["profile", profile] => Ok(Command::Profile(self::profile(profile)?)),
        ["confirm-off", n] => Ok(Command::ConfirmOff(node(n)?)),
        _ => Err("no such command".to_owned()),
    }
}

/// Reads a profile's name.
pub(super) fn profile(text: &str) -> Result<FenceProfile, String> {
    text.parse::<FenceProfile>().map_err(|e| e.to_string())
}

fn thousandth(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n <= 1000).ok_or_else(|| format!("'{text}' is no number up to 1000"))
}

/// Writes a line's words as a section of a configuration file.
pub(super) fn section(out: &mut String, kind: &str, id: &str, options: &[&str]) {
    out.push_str(&format!("{kind}: {id}\n"));
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, "1"));
        out.push_str(&format!("\t{key} {value}\n"));
    }
    out.push('\n');
}

fn crm(name: &str, words: &[&str]) -> Result<Command, String> {
    match words {
        ["enable-node-maintenance"] => Ok(Command::Maintenance(node(name)?, true)),
        ["disable-node-maintenance"] => Ok(Command::Maintenance(node(name)?, false)),
        ["disarm-ha", "freeze"] => Ok(Command::Disarm { ignore: false }),
        ["disarm-ha", "ignore"] => Ok(Command::Disarm { ignore: true }),
        ["arm-ha"] => Ok(Command::Arm),
        ["stop"] => Ok(Command::StopManager(node(name)?)),
        _ => Err("no such command of the manager".to_owned()),
    }
}

fn state(text: &str) -> Result<RequestedState, String> {
    RequestedState::from_text(text).ok_or_else(|| format!("'{text}' is no state that can be requested"))
}

fn service(words: &[&str]) -> Result<ServiceCommand, String> {
    match words {
        ["stop", timeout] => Ok(ServiceCommand::Stop(seconds(timeout)?)),
        ["migrate", to] => Ok(ServiceCommand::Migrate(node(to)?)),
        ["relocate", to] => Ok(ServiceCommand::Relocate(node(to)?)),
        ["manual-migrate", to] => Ok(ServiceCommand::MoveByHand(node(to)?)),
        ["add", at, rest @ ..] => {
            let wanted = rest.first().map_or(Ok(RequestedState::Started), |s| state(s))?;
            let running = rest.get(1).is_some_and(|r| *r != "0");
            Ok(ServiceCommand::Add { node: node(at)?, state: wanted, running })
        }
        ["delete"] => Ok(ServiceCommand::Delete),
        ["die"] => Ok(ServiceCommand::Die),
        ["hang"] => Ok(ServiceCommand::Hang),
        ["lock", rest @ ..] => Ok(ServiceCommand::Lock((*rest.first().unwrap_or(&"backup")).to_owned())),
        ["unlock"] => Ok(ServiceCommand::Unlock),
        ["set-static-stats", rest @ ..] => {
            let (cpu, mem) = stats(rest, "maxcpu", "maxmem")?;
            Ok(ServiceCommand::Static(cpu, mem))
        }
        ["set-dynamic-stats", rest @ ..] => {
            let (cpu, mem) = stats(rest, "cpu", "mem")?;
            Ok(ServiceCommand::Dynamic(cpu, mem))
        }
        [wanted] => Ok(ServiceCommand::Want(state(wanted)?)),
        _ => Err("no such command for a service".to_owned()),
    }
}

/// CPUs, and memory that is written in MiB.
fn stats(words: &[&str], cpu: &str, mem: &str) -> Result<(Option<f64>, Option<u64>), String> {
    let mut read = (None, None);
    for pair in words.chunks(2) {
        let [key, value] = pair else { return Err("a value is missing".to_owned()) };
        if *key == cpu {
            read.0 = Some(value.parse().map_err(|_| format!("'{value}' is no number of CPUs"))?);
        } else if *key == mem {
            let mib: u64 = value.parse().map_err(|_| format!("'{value}' is no number of MiB"))?;
            read.1 = Some(mib.saturating_mul(MIB));
        } else {
            return Err(format!("'{key}' is neither '{cpu}' nor '{mem}'"));
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let read = |text: &str| Command::parse(text).unwrap();
        let n1: NodeName = "n1".parse().unwrap();
        assert_eq!(read("power n1 off"), Command::Power(n1.clone(), false));
        assert_eq!(read("crm n1 disarm-ha freeze"), Command::Disarm { ignore: false });
        let Command::Service(named, what) = read("service fa:120003 stop 37") else { panic!() };
        assert_eq!(named.to_string(), "fa:120003");
        assert_eq!(named.failing(), Failing { starts: 2, moves: 0, stop: false, on: Some(3) });
        assert_eq!(what, ServiceCommand::Stop(Duration::from_secs(37)));
        let Command::Service(_, what) = read("service vm:101 set-dynamic-stats cpu 1.5 mem 2") else {
            panic!()
        };
        assert_eq!(what, ServiceCommand::Dynamic(Some(1.5), Some(2 * MIB)));
        let Command::Service(_, what) = read("service vm:101 add n1 stopped 1") else { panic!() };
        assert_eq!(what, ServiceCommand::Add { node: n1, state: RequestedState::Stopped, running: true });
    }

    #[test]
    fn a_wrong_command_is_named() {
        let said = |text: &str| Command::parse(text).unwrap_err().to_string();
        assert_eq!(
            said("power n1 away"),
            "the command 'power n1 away' cannot be carried out: 'away' is neither 'on' nor 'off'"
        );
        assert!(said("explode n1").ends_with("no such command"));
        assert!(said("service vm:101 dance").contains("'dance' is no state"));
    }
}
