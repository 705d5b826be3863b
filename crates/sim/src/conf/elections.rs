//! How long a cluster is without a leader when it loses one: the figure on which leases rest (election p99 and two
//! heartbeats must be less than a lease).

use super::world::World;
use super::{Bug, Failure, Plan};

/// Kills the leader of three nodes on a quiet network at some moment. Gives the time from there until another leads
/// and has committed, in microseconds of virtual time.
pub fn election(seed: u64) -> Result<u64, Failure> {
    election_with(seed, None)
}

/// The same, where the third node is far away: a witness, whose frames take so many microseconds each way. The leader that
/// is lost is one of the other two, so that nothing goes without it.
pub fn election_by_witness(seed: u64, way: u64) -> Result<u64, Failure> {
    election_with(seed, Some((WITNESS, way)))
}

const WITNESS: u64 = 3;

fn election_with(seed: u64, far: Option<(u64, u64)>) -> Result<u64, Failure> {
    let plan = Plan { seed, bug: Bug::None, pages: false };
    let fail = |what: String| Failure { seed, at_us: 0, what };
    World::quiet(plan, far).and_then(|mut world| world.lose_leader()).map_err(fail)
}
