/** HA answers a wish at once and acts by a task of its own later. Pure. */

import type { Task } from '../../api/types'
import { parseUpid } from '../../api/upid'

/** The task by which HA does what was wished for by `upid`; undefined while there is none, or it is no wish to HA. */
export function successorOf(upid: string, tasks: Task[]): Task | undefined {
  const wish = parseUpid(upid)
  if (!wish?.type.startsWith('ha')) return undefined
  return tasks
    .filter((t) => t.id === wish.id && t.starttime >= wish.starttime && !t.type.startsWith('ha'))
    .filter((t) => t.type !== 'vncproxy' && t.type !== 'termproxy')
    .sort((a, b) => a.starttime - b.starttime)[0]
}
