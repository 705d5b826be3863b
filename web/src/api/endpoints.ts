/** Which endpoints the console calls, with what, and what they answer. */

import type {
  ClusterStatusEntry,
  HaStatusEntry,
  LogLine,
  MigratePreconditions,
  NodeStatus,
  PendingEntry,
  Realm,
  Resource,
  Task,
  TaskStatus,
  Ticket,
  Version,
  VmStatus,
  VncProxy,
} from './types'

type Nothing = Record<never, never>
type AtNode = { node: string }
type AtVm = { node: string; vmid: number }
type Upid = string

export interface Endpoints {
  'GET /version': { params: Nothing; answer: Version }
  'GET /access/domains': { params: Nothing; answer: Realm[] }
  'POST /access/ticket': { params: { username: string; password: string }; answer: Ticket }
  'GET /cluster/status': { params: Nothing; answer: ClusterStatusEntry[] }
  'GET /cluster/ha/status/current': { params: Nothing; answer: HaStatusEntry[] }
  'GET /cluster/resources': { params: Nothing; answer: Resource[] }
  'GET /cluster/tasks': { params: Nothing; answer: Task[] }
  'GET /nodes/{node}/status': { params: AtNode; answer: NodeStatus }
  'GET /nodes/{node}/tasks': {
    params: AtNode & { vmid?: number; limit?: number; source?: string }
    answer: Task[]
  }
  'GET /nodes/{node}/tasks/{upid}/status': { params: AtNode & { upid: Upid }; answer: TaskStatus }
  'GET /nodes/{node}/tasks/{upid}/log': {
    params: AtNode & { upid: Upid; start: number; limit: number }
    answer: LogLine[]
  }
  'DELETE /nodes/{node}/tasks/{upid}': { params: AtNode & { upid: Upid }; answer: null }
  'GET /nodes/{node}/qemu/{vmid}/status/current': { params: AtVm; answer: VmStatus }
  'GET /nodes/{node}/qemu/{vmid}/pending': { params: AtVm; answer: PendingEntry[] }
  'GET /nodes/{node}/qemu/{vmid}/migrate': { params: AtVm; answer: MigratePreconditions }
  'POST /nodes/{node}/qemu/{vmid}/migrate': { params: AtVm & { target: string; online?: 1 }; answer: Upid }
  'POST /nodes/{node}/qemu/{vmid}/status/start': { params: AtVm; answer: Upid }
  'POST /nodes/{node}/qemu/{vmid}/status/shutdown': { params: AtVm; answer: Upid }
  'POST /nodes/{node}/qemu/{vmid}/status/stop': { params: AtVm; answer: Upid }
  'POST /nodes/{node}/qemu/{vmid}/status/reboot': { params: AtVm; answer: Upid }
  'POST /nodes/{node}/qemu/{vmid}/vncproxy': { params: AtVm & { websocket: 1 }; answer: VncProxy }
}

export type Endpoint = keyof Endpoints
export type ParamsOf<E extends Endpoint> = Endpoints[E]['params']
export type AnswerOf<E extends Endpoint> = Endpoints[E]['answer']
