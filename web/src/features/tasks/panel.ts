/** Which task the panel shows, and which tasks of this tab are watched for their end. */

import { createStore } from '../../api/store'
import type { Task } from '../../api/types'
import { describeTask } from '../../api/upid'
import { successorOf } from './successor'

export interface Panel {
  open: boolean
  /** The UPID whose log is shown. */
  selected: string | null
}

const KEY = 'stead.tasks.open'

export const panel = createStore<Panel>({ open: localStorage.getItem(KEY) !== '0', selected: null })

/** What was started here, by UPID: `Start VM 100`. */
const watched = new Map<string, string>()

/** The task that is shown because it was started here, not because the user has chosen it. */
let followed: string | null = null

export function setPanelOpen(open: boolean): void {
  localStorage.setItem(KEY, open ? '1' : '0')
  panel.set({ ...panel.get(), open })
}

export function selectTask(upid: string | null): void {
  followed = null
  panel.set({ open: upid !== null || panel.get().open, selected: upid })
}

/** Shows a task that was just started here, and tells when it fails. */
export function followTask(upid: string, what: string): void {
  watched.set(upid, what)
  selectTask(upid)
  followed = upid
}

/** Goes on from a wish to HA to the task that fulfils it, while the user has chosen no other. */
export function followOn(tasks: Task[]): void {
  const { selected } = panel.get()
  if (!selected || selected !== followed) return
  const next = successorOf(selected, tasks)
  if (next) followTask(next.upid, describeTask(next.type, next.id))
}

/** What the ended task was started for, if it was started here; told once. */
export function takeWatched(upid: string): string | undefined {
  const what = watched.get(upid)
  watched.delete(upid)
  return what
}
