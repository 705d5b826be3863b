/** The state behind `mock.mjs`: three nodes, a few guests, tasks that take their time. */

import { EventEmitter } from 'node:events'

export const events = new EventEmitter()
const GiB = 2 ** 30
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

function emit(kind, id, data = null) {
  cursor += 1
  events.emit('event', { cursor: `1-${cursor}`, kind, id, data })
}

const hex = (n, width) => n.toString(16).toUpperCase().padStart(width, '0')

/** A task whose steps are `[milliseconds, line, effect]`. */
function task(where, type, id, steps, failure) {
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

function finish(record, status) {
  for (const timer of record.timers) clearTimeout(timer)
  record.lines.push(status === 'OK' ? 'TASK OK' : `TASK ERROR: ${status}`)
  record.status = status
  record.endtime = Math.floor(Date.now() / 1000)
  emit('task-end', record.upid, { status })
}

function start(g) {
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

function migrate(g, target) {
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

const uptime = (g) => (g.status === 'running' ? Math.floor((Date.now() - g.since) / 1000) : 0)
const load = (g) => (g.status === 'running' ? 0.12 + 0.1 * Math.sin(Date.now() / 3000 + g.vmid) : 0)

function resources() {
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

const shownTask = ({ lines, timers, ...rest }) => rest
const tasksOf = (filter = () => true) =>
  [...cluster.tasks.values()]
    .filter(filter)
    .map(shownTask)
    .sort((a, b) => b.starttime - a.starttime)

function config(g) {
  return [
    { key: 'memory', value: String(Math.round(g.maxmem / 2 ** 20)) },
    { key: 'cores', value: g.cores, pending: g.vmid === 101 ? 12 : undefined },
    { key: 'cpu', value: 'x86-64-v2-AES' },
    { key: 'scsihw', value: 'virtio-scsi-single' },
    { key: 'name', value: g.name },
    { key: 'scsi0', value: `shared:${g.vmid}/vm-${g.vmid}-disk-0.qcow2,iothread=1,size=32G` },
    { key: 'ide2', value: 'shared:iso/debian-12.iso,media=cdrom' },
    { key: 'net0', value: 'virtio=BC:24:11:5E:0A:01,bridge=vmbr0' },
    { key: 'boot', value: 'order=scsi0;ide2' },
    { key: 'ostype', value: 'l26' },
    { key: 'onboot', value: 1 },
    { key: 'digest', value: 'x' },
  ]
}

const routes = [
  ['GET', /^\/version$/, () => ({ version: '9.0.3', release: '9.0' })],
  [
    'GET',
    /^\/access\/domains$/,
    () => [
      { realm: 'pam', type: 'pam', comment: 'System accounts', default: 1 },
      { realm: 'stead', type: 'pve', comment: 'Accounts of the cluster' },
    ],
  ],
  [
    'POST',
    /^\/access\/ticket$/,
    (p) => {
      if (p.password !== 'stead' && !p.password?.startsWith('PVE:'))
        throw { status: 401, message: 'authentication failure' }
      return {
        username: p.username,
        ticket: `PVE:${p.username}:${hex(Date.now(), 8)}::c2lnbmF0dXJl+/=`,
        CSRFPreventionToken: 'token',
        clustername: 'demo',
      }
    },
  ],
  [
    'GET',
    /^\/cluster\/status$/,
    () => [
      {
        type: 'cluster',
        id: 'cluster',
        name: 'demo',
        nodes: 3,
        quorate: [...cluster.nodes.values()].filter((n) => n.online).length >= 2 ? 1 : 0,
      },
      ...[...cluster.nodes.values()].map((n, i) => ({
        type: 'node',
        id: `node/${n.name}`,
        name: n.name,
        ip: n.ip,
        nodeid: i + 1,
        online: n.online ? 1 : 0,
        lost: n.lost ? 1 : 0,
        local: i === 0 ? 1 : 0,
      })),
    ],
  ],
  [
    'GET',
    /^\/cluster\/ha\/status\/current$/,
    () => [
      { type: 'quorum', id: 'quorum', status: 'OK', quorate: 1 },
      { type: 'master', id: 'master', node: cluster.leader, status: `${cluster.leader} (active)` },
    ],
  ],
  [
    'POST',
    /^\/cluster\/ha\/resources$/,
    (p) => {
      const g = cluster.guests.get(Number(p.sid.slice(3)))
      if (g.ha) throw { status: 500, message: `resource ID '${p.sid}' already defined` }
      g.ha = 'started'
      emit('ha', p.sid)
      return null
    },
  ],
  ['GET', /^\/cluster\/resources$/, resources],
  ['GET', /^\/cluster\/tasks$/, () => tasksOf().slice(0, 50)],
  [
    'GET',
    /^\/nodes\/(\w+)\/status$/,
    (_, name) => {
      const n = cluster.nodes.get(name)
      return {
        uptime: 1_040_000,
        cpu: n.cpu,
        cpuinfo: { cpus: 16, sockets: 1, cores: 16, model: 'AMD EPYC 7313P 16-Core Processor' },
        memory: { total: n.maxmem, used: n.mem },
        rootfs: { total: 100 * GiB, used: 23 * GiB },
        loadavg: ['1.22', '0.98', '0.75'],
        'current-kernel': { release: '6.1.0-28-amd64' },
        pveversion: 'stead/0.1.0',
      }
    },
  ],
  [
    'GET',
    /^\/nodes\/(\w+)\/tasks$/,
    (p, name) => tasksOf((t) => (p.vmid ? t.id === p.vmid : t.node === name)),
  ],
  [
    'GET',
    /^\/nodes\/\w+\/tasks\/([^/]+)\/status$/,
    (_, upid) => {
      const t = cluster.tasks.get(upid)
      return {
        ...shownTask(t),
        status: t.endtime ? 'stopped' : 'running',
        ...(t.endtime ? { exitstatus: t.status } : {}),
      }
    },
  ],
  [
    'GET',
    /^\/nodes\/\w+\/tasks\/([^/]+)\/log$/,
    (p, upid) => {
      const { lines } = cluster.tasks.get(upid)
      const from = Number(p.start ?? 0)
      return lines.slice(from, from + Number(p.limit ?? 50)).map((t, i) => ({ n: from + i + 1, t }))
    },
  ],
  [
    'DELETE',
    /^\/nodes\/\w+\/tasks\/([^/]+)$/,
    (_, upid) => {
      finish(cluster.tasks.get(upid), 'stopped by root@pam')
      return null
    },
  ],
  [
    'GET',
    /^\/nodes\/\w+\/qemu\/(\d+)\/status\/current$/,
    (_, vmid) => {
      const g = cluster.guests.get(Number(vmid))
      return {
        vmid: g.vmid,
        name: g.name,
        status: g.status === 'running' ? 'running' : 'stopped',
        cpu: load(g),
        cpus: g.cores,
        mem: g.mem,
        maxmem: g.maxmem,
        uptime: uptime(g),
        netin: 81_000_000,
        netout: 2_400_000,
        diskread: 512_000_000,
        diskwrite: 48_000_000,
        ...(g.status === 'running'
          ? { pid: 4711, 'running-machine': 'pc-q35-10.0', 'running-qemu': '10.0.2' }
          : {}),
      }
    },
  ],
  ['GET', /^\/nodes\/\w+\/qemu\/(\d+)\/pending$/, (_, vmid) => config(cluster.guests.get(Number(vmid)))],
  [
    'GET',
    /^\/nodes\/(\w+)\/qemu\/(\d+)\/migrate$/,
    (_, from, vmid) => {
      const g = cluster.guests.get(Number(vmid))
      return {
        running: g.status === 'running' ? 1 : 0,
        local_resources: [],
        local_disks: g.localDisk ? [{ volid: 'local:110/vm-110-disk-1.raw', size: GiB }] : [],
        allowed_nodes: [...cluster.nodes.values()]
          .filter((n) => n.online && n.name !== from && !g.localDisk)
          .map((n) => n.name),
        not_allowed_nodes: g.localDisk ? { n3: { unavailable_storages: ['local-nvme'] } } : {},
      }
    },
  ],
  [
    'POST',
    /^\/nodes\/\w+\/qemu\/(\d+)\/migrate$/,
    (p, vmid) => migrate(cluster.guests.get(Number(vmid)), p.target),
  ],
  [
    'POST',
    /^\/nodes\/\w+\/qemu\/(\d+)\/status\/start$/,
    (_, vmid) => start(cluster.guests.get(Number(vmid))),
  ],
  [
    'POST',
    /^\/nodes\/\w+\/qemu\/(\d+)\/status\/(stop|shutdown)$/,
    (_, vmid, verb) => {
      const g = cluster.guests.get(Number(vmid))
      return task(g.node, `qm${verb}`, g.vmid, [
        [
          700,
          verb === 'stop' ? 'killing QEMU' : 'asked the guest to shut down',
          () => Object.assign(g, { status: 'stopped' }),
        ],
      ])
    },
  ],
  [
    'POST',
    /^\/nodes\/\w+\/qemu\/(\d+)\/status\/reboot$/,
    () => {
      throw {
        status: 400,
        message: 'Parameter verification failed.',
        errors: { timeout: "type check ('integer') failed - got 'soon'" },
      }
    },
  ],
  [
    'POST',
    /^\/nodes\/(\w+)\/qemu\/(\d+)\/vncproxy$/,
    (_, name, vmid) => ({
      ...task(name, 'vncproxy', vmid, [[50, 'screen opened']]),
      port: '5900',
      ticket: 'PVEVNC:6745C0FE::c2ln',
      user: 'root@pam',
    }),
  ],
]

/** Answers a call; throws `{status, message, errors}`. */
export function api(method, path, params) {
  for (const [verb, pattern, handle] of routes) {
    const found = verb === method && path.match(pattern)
    if (!found) continue
    const answer = handle(params, ...found.slice(1).map(decodeURIComponent))
    const isTask = typeof answer === 'object' && answer !== null && Object.keys(answer).join() === 'data'
    return isTask ? answer : { data: answer }
  }
  throw { status: 501, message: `Method '${method} ${path}' not implemented` }
}
