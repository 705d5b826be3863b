/** What the mock cluster answers to the console's calls. */

import {
  cluster,
  emit,
  finish,
  GiB,
  hex,
  load,
  migrate,
  resources,
  start,
  task,
  uptime,
} from './mock-cluster.mjs'

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
