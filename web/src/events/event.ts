/** An event of the cluster, and which of the console's data it makes stale. Pure. */

import type { Frame } from './sse'

export interface ClusterEvent {
  /** Where to resume. */
  cursor?: string
  /** `object`, `guest`, `node`, `task-start`, `task-end`, `task-log`, `reset`; others may come. */
  kind: string
  /** What it concerns: `qemu/100`, a path of the configuration, a UPID. */
  id?: string
  data?: unknown
}

/** The event in a frame; null for what is none, e.g. a greeting. */
export function eventOf(frame: Frame): ClusterEvent | null {
  try {
    const value: unknown = JSON.parse(frame.data)
    if (typeof value !== 'object' || value === null) return null
    const event = value as Partial<ClusterEvent>
    const kind = typeof event.kind === 'string' ? event.kind : frame.event
    if (!kind) return null
    const cursor = event.cursor ?? frame.id
    return { ...event, kind, ...(cursor ? { cursor } : {}) }
  } catch {
    return null
  }
}

/** The beginnings of the query keys that the event makes stale; `all` after a gap. */
export function staleAfter(event: ClusterEvent): 'all' | string[][] {
  if (event.kind === 'reset') return 'all'
  if (event.kind === 'task-log' || event.kind === 'log')
    return event.id ? [['task-log', event.id]] : [['task-log']]
  if (event.kind.startsWith('task')) {
    const tasks = [['tasks'], ['node-tasks']]
    // What a task has done shows at once when it ends.
    return event.kind === 'task-end' || event.kind === 'task'
      ? [...tasks, ['task-log', ...(event.id ? [event.id] : [])], ['cluster'], ['node'], ['vm']]
      : tasks
  }
  return [['cluster'], ['node'], ['vm']]
}
