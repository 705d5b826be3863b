//! Once the faults are over, within a bounded time there is one leader, every member commits, barriers are answered,
//! and all members are equal.

use super::super::node::Node;
use stead_conf::StateHash;

/// How long it may take, in microseconds of virtual time.
pub const HEALED_WITHIN: u64 = 15_000_000;

/// Why the members are not in order yet; `None` if they are.
pub fn missing(nodes: &[Node]) -> Option<String> {
    let leaders: Vec<_> =
        nodes.iter().filter(|node| node.status().is_some_and(|status| status.is_leader)).collect();
    let [leader] = leaders.as_slice() else { return Some(format!("there are {} leaders", leaders.len())) };
    let Some(running) = &leader.running else { return Some("the leader is down".to_owned()) };
    let members = running.machine.members().all();
    let want: (u64, StateHash) = (running.machine.applied(), running.machine.hash());
    for node in nodes.iter().filter(|node| members.contains(&node.id)) {
        let Some(machine) = node.running.as_ref().map(|running| &running.machine) else {
            return Some(format!("node {} is down", node.id));
        };
        if (machine.applied(), machine.hash()) != want {
            return Some(format!("node {} is at {}, the leader at {}", node.id, machine.applied(), want.0));
        }
    }
    None
}
