/**
 * Which endpoints the console calls. What they take and what they answer comes from the API's document
 * (`schema.d.ts`), which is made from the types that the server writes.
 */

import type { paths } from './schema'

export type Endpoint =
  | 'GET /version'
  | 'GET /access/domains'
  | 'POST /access/ticket'
  | 'GET /cluster/status'
  | 'GET /cluster/ha/status/current'
  | 'GET /cluster/resources'
  | 'GET /cluster/tasks'
  | 'GET /nodes/{node}/status'
  | 'GET /nodes/{node}/tasks'
  | 'GET /nodes/{node}/tasks/{upid}/status'
  | 'GET /nodes/{node}/tasks/{upid}/log'
  | 'DELETE /nodes/{node}/tasks/{upid}'
  | 'GET /nodes/{node}/qemu/{vmid}/status/current'
  | 'GET /nodes/{node}/qemu/{vmid}/pending'
  | 'GET /nodes/{node}/qemu/{vmid}/migrate'
  | 'POST /nodes/{node}/qemu/{vmid}/migrate'
  | 'POST /nodes/{node}/qemu/{vmid}/status/start'
  | 'POST /nodes/{node}/qemu/{vmid}/status/shutdown'
  | 'POST /nodes/{node}/qemu/{vmid}/status/stop'
  | 'POST /nodes/{node}/qemu/{vmid}/status/reboot'
  | 'POST /nodes/{node}/qemu/{vmid}/vncproxy'

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

/** The `data` of its answer. */
export type AnswerOf<E extends Endpoint> =
  Operation<E> extends { responses: { 200: { content: { 'application/json': { data: infer D } } } } }
    ? D
    : never
