/** The tree's filter. Pure. */

import type { Node } from './cluster'

/** Nodes whose name matches, with all their guests; else those with guests that match, by id, name or tag. */
export function filterTree(nodes: Node[], filter: string): Node[] {
  const wanted = filter.trim().toLowerCase()
  if (!wanted) return nodes
  const has = (text: string) => text.toLowerCase().includes(wanted)
  return nodes.flatMap((node) => {
    if (has(node.name)) return [node]
    const guests = node.guests.filter((g) => has(String(g.vmid)) || has(g.name) || g.tags.some(has))
    return guests.length > 0 ? [{ ...node, guests }] : []
  })
}
