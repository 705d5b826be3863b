/**
 * The objects of the API that the console shows, by the names it has for them. Their shapes come from the API's document;
 * booleans travel as 0 and 1.
 */

import type { AnswerOf } from './endpoints'

export type Flag = 0 | 1

type Item<T> = T extends (infer I)[] ? I : never

export type Ticket = AnswerOf<'POST /access/ticket'>
/** An entry of /cluster/status: the cluster itself, or one of its nodes. */
export type ClusterStatusEntry = Item<AnswerOf<'GET /cluster/status'>>
/** An entry of /cluster/ha/status/current. */
export type HaStatusEntry = Item<AnswerOf<'GET /cluster/ha/status/current'>>
export type Resource = Item<AnswerOf<'GET /cluster/resources'>>
export type NodeStatus = AnswerOf<'GET /nodes/{node}/status'>
export type VmStatus = AnswerOf<'GET /nodes/{node}/qemu/{vmid}/status/current'>
/** A key of a guest's configuration, with the value it will have after the next start where that differs. */
export type PendingEntry = Item<AnswerOf<'GET /nodes/{node}/qemu/{vmid}/pending'>>
export type MigratePreconditions = AnswerOf<'GET /nodes/{node}/qemu/{vmid}/migrate'>
export type Task = Item<AnswerOf<'GET /cluster/tasks'>>
export type LogLine = Item<AnswerOf<'GET /nodes/{node}/tasks/{upid}/log'>>
