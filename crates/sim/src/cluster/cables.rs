//! Which cables are out, and which links are cut.

use std::collections::BTreeSet;

/// What keeps messages from their way.
#[derive(Debug, Clone, Default)]
pub(super) struct Cables {
    /// Nodes whose cable is out.
    pub unplugged: BTreeSet<usize>,
    /// Links that are cut: from, to.
    pub cut: BTreeSet<(usize, usize)>,
    /// One side of a split; the other side is all other nodes.
    pub side: BTreeSet<usize>,
}

impl Cables {
    /// Whether what one node sends does not reach another.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.unplugged.contains(&from)
            || self.unplugged.contains(&to)
            || self.side.contains(&from) != self.side.contains(&to)
            || self.cut.contains(&(from, to))
    }
}
