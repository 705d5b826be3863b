/**
 * Which endpoints the console calls. What they take comes from the API's document (`schema.d.ts`); what they answer is
 * told here, since the document leaves most answers open.
 */

import type { paths } from './schema'
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

/** A task's id. */
type Upid = string

interface Answers {
  'GET /version': Version
  'GET /access/domains': Realm[]
  'POST /access/ticket': Ticket
  'GET /cluster/status': ClusterStatusEntry[]
  'GET /cluster/ha/status/current': HaStatusEntry[]
  'GET /cluster/resources': Resource[]
  'GET /cluster/tasks': Task[]
  'GET /nodes/{node}/status': NodeStatus
  'GET /nodes/{node}/tasks': Task[]
  'GET /nodes/{node}/tasks/{upid}/status': TaskStatus
  'GET /nodes/{node}/tasks/{upid}/log': LogLine[]
  'DELETE /nodes/{node}/tasks/{upid}': null
  'GET /nodes/{node}/qemu/{vmid}/status/current': VmStatus
  'GET /nodes/{node}/qemu/{vmid}/pending': PendingEntry[]
  'GET /nodes/{node}/qemu/{vmid}/migrate': MigratePreconditions
  'POST /nodes/{node}/qemu/{vmid}/migrate': Upid
  'POST /nodes/{node}/qemu/{vmid}/status/start': Upid
  'POST /nodes/{node}/qemu/{vmid}/status/shutdown': Upid
  'POST /nodes/{node}/qemu/{vmid}/status/stop': Upid
  'POST /nodes/{node}/qemu/{vmid}/status/reboot': Upid
  'POST /nodes/{node}/qemu/{vmid}/vncproxy': VncProxy
}

export type Endpoint = keyof Answers
export type AnswerOf<E extends Endpoint> = Answers[E]

/** The operation in the document; what is not there does not compile. */
type Operation<E extends Endpoint> = E extends `${infer M} ${infer P extends keyof paths & string}`
  ? paths[P][Lowercase<M> & keyof paths[P]]
  : never

type Part<O, K extends 'path' | 'query'> = O extends { parameters: { [k in K]?: infer V } }
  ? [V] extends [undefined]
    ? unknown
    : Exclude<V, undefined>
  : unknown

type Body<O> = O extends { requestBody?: { content: { 'application/x-www-form-urlencoded': infer B } } }
  ? B
  : unknown

/** Everything the endpoint takes, wherever it travels. */
export type ParamsOf<E extends Endpoint> = Part<Operation<E>, 'path'> &
  Part<Operation<E>, 'query'> &
  Body<Operation<E>>
