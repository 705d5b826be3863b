/** Which task the panel shows, and which tasks of this tab are watched for their end. */

import { createStore } from '../../api/store'

export interface Panel {
  open: boolean
  /** The UPID whose log is shown. */
  selected: string | null
}

const KEY = 'stead.tasks.open'

export const panel = createStore<Panel>({ open: localStorage.getItem(KEY) !== '0', selected: null })

/** What was started here, by UPID: `Start VM 100`. */
const watched = new Map<string, string>()

export function setPanelOpen(open: boolean): void {
  localStorage.setItem(KEY, open ? '1' : '0')
  panel.set({ ...panel.get(), open })
}

export function selectTask(upid: string | null): void {
  panel.set({ open: upid !== null || panel.get().open, selected: upid })
}

/** Shows a task that was just started here, and tells when it fails. */
export function followTask(upid: string, what: string): void {
  watched.set(upid, what)
  selectTask(upid)
}

/** What the ended task was started for, if it was started here; told once. */
export function takeWatched(upid: string): string | undefined {
  const what = watched.get(upid)
  watched.delete(upid)
  return what
}
