/** Where a guest can be migrated to. Pure. */

import type { MigratePreconditions } from '../api/types'
import type { Node } from './cluster'

export interface Target {
  node: Node
  /** Why not; null when it can go there. */
  obstacle: string | null
}

export function targetsOf(
  nodes: Node[],
  from: string,
  conditions: MigratePreconditions | undefined,
): Target[] {
  return nodes
    .filter((node) => node.name !== from)
    .map((node) => ({ node, obstacle: obstacle(node, conditions) }))
}

function obstacle(node: Node, conditions: MigratePreconditions | undefined): string | null {
  if (node.state !== 'online') return `The node is ${node.state}.`
  const refused = conditions?.not_allowed_nodes[node.name]
  if (refused) return refused.reasons.join(' ') || 'The server does not allow it.'
  const allowed = conditions?.allowed_nodes
  return allowed && !allowed.includes(node.name) ? 'The server does not allow it.' : null
}

/** The target to propose: of those possible, the one with the most free memory. */
export function proposed(targets: Target[]): string | undefined {
  const free = (t: Target) => (t.node.maxmem ?? 0) - (t.node.mem ?? 0)
  return targets.filter((t) => t.obstacle === null).sort((a, b) => free(b) - free(a))[0]?.node.name
}
