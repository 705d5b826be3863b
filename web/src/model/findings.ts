/** The cluster's health in sentences. Pure. */

import { plural } from '../ui/format'
import type { Cluster } from './cluster'

export type Severity = 'ok' | 'warning' | 'danger'

export interface Finding {
  severity: Severity
  text: string
}

/** What is wrong first, then what is well. */
export function findingsOf({ health, nodes, guests }: Cluster): Finding[] {
  const findings: Finding[] = []
  if (health.quorate === false) {
    findings.push({
      severity: 'danger',
      text: 'No quorum: guests go on, but nothing can be started or changed until a majority of the voters is back.',
    })
  }
  for (const { name, state, guests: there } of nodes) {
    if (state === 'lost') {
      findings.push({
        severity: 'danger',
        text: `Node ${name} is lost. Its guests under HA are started elsewhere.`,
      })
    } else if (state !== 'online') {
      const held = there.length > 0 ? ` ${plural(there.length, 'guest')} on it.` : ''
      findings.push({ severity: 'danger', text: `Node ${name} does not answer.${held}` })
    }
  }
  for (const g of guests) {
    if (g.ha === 'error') {
      findings.push({
        severity: 'danger',
        text: `HA has given up on ${g.vmid} (${g.name}): look at its tasks.`,
      })
    }
  }
  const unknown = guests.filter((g) => g.status === 'unknown').length
  if (unknown > 0)
    findings.push({ severity: 'warning', text: `The state of ${plural(unknown, 'guest')} is unknown.` })
  if (health.quorate && !health.leader) {
    findings.push({ severity: 'warning', text: 'No leader is known: HA acts again when one is elected.' })
  }
  return [...findings, ...good({ health, nodes })]
}

function good({ health, nodes }: Pick<Cluster, 'health' | 'nodes'>): Finding[] {
  const findings: Finding[] = []
  if (health.quorate) findings.push({ severity: 'ok', text: 'The cluster is quorate.' })
  if (nodes.length > 0 && health.online === health.total) {
    findings.push({
      severity: 'ok',
      text: nodes.length === 1 ? 'The node is online.' : `All ${nodes.length} nodes are online.`,
    })
  }
  if (health.leader) findings.push({ severity: 'ok', text: `${health.leader} leads.` })
  return findings
}
