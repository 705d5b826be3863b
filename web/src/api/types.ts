/** The objects of the API that the console shows, as the answers carry them. Booleans travel as 0 and 1. */

export type Flag = 0 | 1 | boolean

export interface Ticket {
  username: string
  ticket?: string
  CSRFPreventionToken?: string
  clustername?: string
}

export interface Realm {
  realm: string
  type: string
  comment?: string
  default?: Flag
}

/** An entry of /cluster/status: the cluster itself, or one of its nodes. */
export interface ClusterStatusEntry {
  type: 'cluster' | 'node'
  id: string
  name: string
  nodes?: number
  quorate?: Flag
  nodeid?: number
  online?: Flag
  local?: Flag
  ip?: string
  /** The port of the node's API; 8006 or that of this page where it is not told. */
  port?: number
  /** Of a node: committed lost, so that its guests are started elsewhere. */
  lost?: Flag
  /** Of the cluster: who leads it. */
  leader?: string | null
}

/** An entry of /cluster/ha/status/current. */
export interface HaStatusEntry {
  type: 'quorum' | 'master' | 'lrm' | 'service' | 'fencing'
  id: string
  node?: string
  status: string
  quorate?: Flag
  sid?: string
  state?: string
  request_state?: string
  crm_state?: string
  timestamp?: number
  [more: string]: unknown
}

export interface Resource {
  id: string
  type: 'node' | 'qemu' | 'lxc' | 'storage' | 'pool' | 'sdn' | 'network' | 'openvz'
  node?: string
  status?: string
  name?: string
  vmid?: number
  template?: Flag
  hastate?: string
  lock?: string
  tags?: string
  /** Share of all its CPUs, 0 to 1. */
  cpu?: number
  maxcpu?: number
  /** Bytes. */
  mem?: number
  maxmem?: number
  disk?: number
  maxdisk?: number
  /** Seconds. */
  uptime?: number
  storage?: string
  plugintype?: string
  content?: string
  shared?: Flag
}

export interface NodeStatus {
  uptime?: number
  cpu?: number
  cpuinfo?: { cpus?: number; cores?: number; sockets?: number; model?: string }
  memory?: { total: number; used: number; free?: number }
  rootfs?: { total: number; used: number; avail?: number }
  swap?: { total: number; used: number }
  loadavg?: (string | number)[]
  kversion?: string
  'current-kernel'?: { release?: string; sysname?: string; machine?: string }
  pveversion?: string
}

export interface VmStatus {
  vmid: number
  status: 'running' | 'stopped' | string
  name?: string
  qmpstatus?: string
  lock?: string
  cpu?: number
  cpus?: number
  mem?: number
  maxmem?: number
  maxdisk?: number
  uptime?: number
  pid?: number
  netin?: number
  netout?: number
  diskread?: number
  diskwrite?: number
  'running-machine'?: string
  'running-qemu'?: string
  ha?: { managed?: Flag; state?: string; group?: string }
}

/** A key of a guest's configuration, with the value it will have after the next start where that differs. */
export interface PendingEntry {
  key: string
  value?: string | number
  pending?: string | number
  delete?: Flag | 2
}

export interface MigratePreconditions {
  running: Flag
  allowed_nodes?: string[]
  not_allowed_nodes?: Record<string, NotAllowed | undefined>
  local_disks?: { volid: string; size?: number; cdrom?: Flag; is_unused?: Flag }[]
  local_resources?: string[]
}

export interface NotAllowed {
  unavailable_storages?: string[]
  'blocking-ha-resources'?: { sid: string; cause: string }[]
  /** Further reasons, in words. */
  [more: string]: unknown
}

export interface Task {
  upid: string
  node: string
  type: string
  id: string
  user: string
  /** Seconds since 1970. */
  starttime: number
  endtime?: number
  /** Of an ended one: `OK`, `WARNINGS: n`, or what went wrong. */
  status?: string
}

export interface TaskStatus {
  upid: string
  status: 'running' | 'stopped'
  exitstatus?: string
}

export interface LogLine {
  n: number
  t: string
}

export interface VncProxy {
  port: number | string
  ticket: string
  user?: string
  cert?: string
  password?: string
}

export interface Version {
  version: string
  release: string
  [more: string]: unknown
}
