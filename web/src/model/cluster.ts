/** The cluster as the console shows it, put together from the API's answers. Pure. */

import type { ClusterStatusEntry, Flag, HaStatusEntry, Resource } from '../api/types'

/** `lost`: committed lost, its guests under HA are started elsewhere. `unknown`: nothing fresh is known. */
export type NodeState = 'online' | 'offline' | 'lost' | 'unknown'

export interface Guest {
  vmid: number
  name: string
  node: string
  /** `running`, `stopped`, `paused`, `unknown`, … as the server says. */
  status: string
  /** HA state; absent when the guest is not under HA. */
  ha?: string
  lock?: string
  tags: string[]
  template: boolean
  cpu?: number
  maxcpu?: number
  mem?: number
  maxmem?: number
  uptime?: number
}

export interface Node {
  name: string
  state: NodeState
  /** It is the one that serves this page. */
  local: boolean
  ip?: string
  port?: number
  cpu?: number
  maxcpu?: number
  mem?: number
  maxmem?: number
  uptime?: number
  guests: Guest[]
}

export interface Storage {
  name: string
  shared: boolean
  type?: string
  used?: number
  total?: number
  active: boolean
}

export interface Health {
  name?: string
  quorate?: boolean
  online: number
  total: number
  leader?: string
}

export interface Cluster {
  health: Health
  nodes: Node[]
  guests: Guest[]
  storages: Storage[]
}

export function flag(value: Flag | undefined): boolean {
  return value === 1
}

export function clusterOf(status: ClusterStatusEntry[], ha: HaStatusEntry[], resources: Resource[]): Cluster {
  const haStates = new Map(ha.filter((e) => e.type === 'service').map((e) => [e.sid ?? e.id, e.state]))
  const guests = resources
    .filter((r) => r.type === 'qemu' && r.vmid !== undefined)
    .map((r) => guestOf(r, haStates))
    .sort((a, b) => a.vmid - b.vmid)
  const nodes = nodesOf(status, resources, guests)
  return { health: healthOf(status, ha, nodes), nodes, guests, storages: storagesOf(resources) }
}

function guestOf(r: Resource, haStates: Map<string, string | undefined>): Guest {
  const ha = r.hastate || haStates.get(`vm:${r.vmid}`) || haStates.get(`service:vm:${r.vmid}`)
  return {
    vmid: r.vmid ?? 0,
    name: r.name || `VM ${r.vmid}`,
    node: r.node ?? '',
    status: r.status ?? 'unknown',
    tags: (r.tags ?? '').split(/[;, ]+/).filter(Boolean),
    template: flag(r.template),
    ...defined({
      ha: ha === 'unmanaged' ? undefined : ha,
      lock: r.lock,
      cpu: r.cpu,
      maxcpu: r.maxcpu,
      mem: r.mem,
      maxmem: r.maxmem,
      uptime: r.uptime,
    }),
  }
}

function nodesOf(status: ClusterStatusEntry[], resources: Resource[], guests: Guest[]): Node[] {
  const entries = new Map(status.filter((e) => e.type === 'node').map((e) => [e.name, e]))
  const loads = new Map(resources.filter((r) => r.type === 'node').map((r) => [r.node ?? '', r]))
  // A guest can stand on a node that is in neither list, e.g. one just removed: it must still be found.
  const names = new Set([...entries.keys(), ...loads.keys(), ...guests.map((g) => g.node)])
  names.delete('')
  return [...names].sort(byName).map((name) => {
    const entry = entries.get(name)
    const load = loads.get(name)
    return {
      name,
      state: nodeState(entry, load),
      local: flag(entry?.local),
      guests: guests.filter((g) => g.node === name),
      ...defined({
        ip: entry?.ip,
        port: entry?.port,
        cpu: load?.cpu,
        maxcpu: load?.maxcpu,
        mem: load?.mem,
        maxmem: load?.maxmem,
        uptime: load?.uptime,
      }),
    }
  })
}

function nodeState(entry?: ClusterStatusEntry, load?: Resource): NodeState {
  if (flag(entry?.lost)) return 'lost'
  if (entry) return flag(entry.online) ? 'online' : 'offline'
  if (load?.status === 'online' || load?.status === 'offline') return load.status
  return 'unknown'
}

function healthOf(status: ClusterStatusEntry[], ha: HaStatusEntry[], nodes: Node[]): Health {
  const cluster = status.find((e) => e.type === 'cluster')
  const quorum = ha.find((e) => e.type === 'quorum')
  const quorate = cluster?.quorate ?? quorum?.quorate
  return {
    online: nodes.filter((n) => n.state === 'online').length,
    total: nodes.length,
    ...defined({
      name: cluster?.name,
      quorate: quorate === undefined ? undefined : flag(quorate),
      leader: cluster?.leader ?? ha.find((e) => e.type === 'master')?.node,
    }),
  }
}

/** A shared storage is told once by each node and shown once. */
function storagesOf(resources: Resource[]): Storage[] {
  const found = new Map<string, Storage>()
  for (const r of resources) {
    if (r.type !== 'storage' || !r.storage) continue
    const shared = flag(r.shared)
    const name = shared ? r.storage : `${r.storage} (${r.node})`
    const active = r.status === 'available'
    const known = found.get(name)
    if (known && (known.active || !active)) continue
    found.set(name, {
      name,
      shared,
      active,
      ...defined({ type: r.plugintype, used: r.disk, total: r.maxdisk }),
    })
  }
  return [...found.values()].sort((a, b) => byName(a.name, b.name))
}

/** `n2` before `n10`. */
export function byName(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true })
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> }

function defined<T extends object>(value: T): Defined<T> {
  return Object.fromEntries(
    Object.entries(value).filter(([, v]) => v !== undefined && v !== ''),
  ) as Defined<T>
}
