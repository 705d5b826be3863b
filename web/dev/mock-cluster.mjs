/** The state behind `mock.mjs`: three nodes, a few guests, tasks that take their time. */

import { EventEmitter } from 'node:events'

export const events = new EventEmitter()
export const GiB = 2 ** 30
const started = Date.now()
let cursor = 0
let serial = 0x1000

const node = (name, ip, cpu, mem) => [
  name,
  { name, ip, online: true, cpu, mem: mem * GiB, maxmem: 64 * GiB, maxcpu: 16 },
]
const guest = (vmid, name, where, status, ha, more = {}) => [
  vmid,
  {
    vmid,
    name,
    node: where,
    status,
    ha,
    since: Date.now() - 7_400_000,
    mem: 1.2 * GiB,
    maxmem: 2 * GiB,
    cores: 2,
    ...more,
  },
]

export const cluster = {
  leader: 'n1',
  nodes: new Map([
    node('n1', '127.0.0.11', 0.21, 18),
    node('n2', '127.0.0.12', 0.47, 31),
    node('n3', '127.0.0.13', 0.08, 9),
  ]),
  guests: new Map([
    guest(100, 'web-frontend', 'n2', 'stopped', undefined, { tags: 'web;prod' }),
    guest(101, 'db-primary', 'n2', 'running', 'started', {
      mem: 14.9 * GiB,
      maxmem: 16 * GiB,
      cores: 8,
      tags: 'db',
    }),
    guest(102, 'db-replica', 'n3', 'running', 'started', {
      maxmem: 16 * GiB,
      mem: 9 * GiB,
      cores: 8,
      tags: 'db',
    }),
    guest(103, 'mail', 'n1', 'running', 'started'),
    guest(110, 'build-runner-1', 'n1', 'running', undefined, { localDisk: true }),
    guest(111, 'build-runner-2', 'n3', 'stopped'),
    guest(120, 'broken-image', 'n1', 'stopped'),
  ]),
  tasks: new Map(),
}

export function emit(kind, id, data = null) {
  cursor += 1
  events.emit('event', { cursor: `1-${cursor}`, kind, id, data })
}

export const hex = (n, width) => n.toString(16).toUpperCase().padStart(width, '0')

/** A task whose steps are `[milliseconds, line, effect]`. */
export function task(where, type, id, steps, failure) {
  const at = Math.floor(Date.now() / 1000)
  serial += 1
  const upid = `UPID:${where}:${hex(serial, 8)}:${hex(42, 8)}:${hex(at, 8)}:${type}:${id}:root@pam:`
  const record = {
    upid,
    node: where,
    type,
    id: String(id),
    user: 'root@pam',
    starttime: at,
    lines: [],
    timers: [],
  }
  cluster.tasks.set(upid, record)
  emit('task-start', upid)
  let delay = 0
  for (const [ms, line, effect] of steps) {
    delay += ms
    record.timers.push(
      setTimeout(() => {
        if (line) {
          record.lines.push(line)
          emit('task-log', upid, { n: record.lines.length, t: line })
        }
        if (effect) {
          effect()
          emit('guest', `qemu/${id}`)
        }
      }, delay),
    )
  }
  record.timers.push(setTimeout(() => finish(record, failure ?? 'OK'), delay + 200))
  return { data: upid }
}

export function finish(record, status) {
  for (const timer of record.timers) clearTimeout(timer)
  record.lines.push(status === 'OK' ? 'TASK OK' : `TASK ERROR: ${status}`)
  record.status = status
  record.endtime = Math.floor(Date.now() / 1000)
  emit('task-end', record.upid, { status })
}

export function start(g) {
  if (g.vmid === 120) {
    const reason = `could not open disk 'shared:120/vm-120-disk-0.qcow2': Image is corrupt: L2 table offset 0x9e00 unaligned (guest 120). Check it with 'qemu-img check', or restore the disk from a backup.`
    return task(
      g.node,
      'qmstart',
      g.vmid,
      [
        [200, 'checking quorum and ownership, epoch 3'],
        [400, 'starting QEMU 10.0.2 (pc-q35-10.0, tcg)'],
        [300, reason],
      ],
      reason,
    )
  }
  return task(g.node, 'qmstart', g.vmid, [
    [150, 'checking quorum and ownership, epoch 4'],
    [250, 'activating storage shared'],
    [350, 'starting QEMU 10.0.2 (pc-q35-10.0, tcg)'],
    [
      300,
      'registered with the fence process; continued',
      () => Object.assign(g, { status: 'running', since: Date.now() }),
    ],
  ])
}

export function migrate(g, target) {
  const from = g.node
  const steps = [
    [200, `migrating VM ${g.vmid} from ${from} to ${target}, live`],
    [400, `QEMU waits on ${target}, registered with its fence process`],
  ]
  for (let i = 1; i <= 8; i += 1)
    steps.push([350, `memory: ${(i * 0.25).toFixed(2)} GiB of 2.00 GiB, 780 MiB/s, 1 pass`])
  steps.push([
    200,
    'completed on the source; ownership committed: epoch 5',
    () => Object.assign(g, { node: target }),
  ])
  steps.push([150, 'downtime 12 ms, total 3.4 s'])
  return task(from, 'qmigrate', g.vmid, steps)
}

export function powerOff(name) {
  const lost = cluster.nodes.get(name)
  if (!lost) return
  lost.online = false
  emit('node', name)
  for (const g of cluster.guests.values()) if (g.node === name && g.status === 'running') g.status = 'unknown'
  const next = [...cluster.nodes.values()].find((n) => n.online)?.name
  if (cluster.leader === name) cluster.leader = next
  setTimeout(() => {
    if (lost.online) return
    lost.lost = true
    emit('node', name)
    for (const g of cluster.guests.values()) {
      if (g.node !== name || !g.ha) continue
      g.node = next
      task(next, 'harecover', g.vmid, [
        [
          600,
          `recovering from ${name}, epoch 6`,
          () => Object.assign(g, { status: 'running', since: Date.now() }),
        ],
      ])
    }
  }, 7000)
}

export function powerOn(name) {
  Object.assign(cluster.nodes.get(name), { online: true, lost: false })
  emit('node', name)
}

export const uptime = (g) => (g.status === 'running' ? Math.floor((Date.now() - g.since) / 1000) : 0)
export const load = (g) => (g.status === 'running' ? 0.12 + 0.1 * Math.sin(Date.now() / 3000 + g.vmid) : 0)

export function resources() {
  const nodes = [...cluster.nodes.values()].map((n) => ({
    id: `node/${n.name}`,
    type: 'node',
    node: n.name,
    status: n.online ? 'online' : 'offline',
    cpu: Math.max(0.01, n.cpu + 0.05 * Math.sin(Date.now() / 4000)),
    maxcpu: n.maxcpu,
    mem: n.mem,
    maxmem: n.maxmem,
    uptime: Math.floor((Date.now() - started) / 1000) + 86_400 * 12,
  }))
  const guests = [...cluster.guests.values()].map((g) => ({
    id: `qemu/${g.vmid}`,
    type: 'qemu',
    vmid: g.vmid,
    name: g.name,
    node: g.node,
    status: g.status,
    template: 0,
    cpu: load(g),
    maxcpu: g.cores,
    mem: g.status === 'running' ? g.mem : 0,
    maxmem: g.maxmem,
    uptime: uptime(g),
    ...(g.ha ? { hastate: g.ha } : {}),
    ...(g.tags ? { tags: g.tags } : {}),
  }))
  const storages = [...cluster.nodes.keys()].map((n) => ({
    id: `storage/${n}/shared`,
    type: 'storage',
    storage: 'shared',
    node: n,
    shared: 1,
    plugintype: 'dir',
    status: 'available',
    disk: 812 * GiB,
    maxdisk: 2048 * GiB,
  }))
  return [...nodes, ...guests, ...storages]
}
