/** Task ids: `UPID:node:pid:pstart:starttime:type:id:user:`, numbers in hex. Pure. */

export interface Upid {
  node: string
  /** Seconds since 1970. */
  starttime: number
  type: string
  /** What the task works on, often a VMID. */
  id: string
  user: string
}

export function parseUpid(upid: string): Upid | null {
  const parts = upid.split(':')
  const [head, node, , , start, type, id, user] = parts
  if (head !== 'UPID' || parts.length < 9 || !node || !start || !type) return null
  return { node, starttime: Number.parseInt(start, 16), type, id: id ?? '', user: user ?? '' }
}

const VM_TASKS: Record<string, string> = {
  qmstart: 'Start',
  qmstop: 'Stop',
  qmshutdown: 'Shut down',
  qmreboot: 'Reboot',
  qmreset: 'Reset',
  qmsuspend: 'Hibernate',
  qmpause: 'Pause',
  qmresume: 'Resume',
  qmigrate: 'Migrate',
  qmcreate: 'Create',
  qmdestroy: 'Destroy',
  qmclone: 'Clone',
  qmconfig: 'Configure',
  qmmove: 'Move disk',
  qmresize: 'Resize disk',
  qmtemplate: 'Convert to template',
  vncproxy: 'Screen',
  termproxy: 'Terminal',
  hamigrate: 'HA: migrate',
  harelocate: 'HA: relocate',
  hastart: 'HA: start',
  hastop: 'HA: stop',
  harecover: 'HA: recover',
}

const OTHER_TASKS: Record<string, string> = {
  imgcopy: 'Upload',
  imgdel: 'Delete image',
  download: 'Download',
  startall: 'Start all guests',
  stopall: 'Stop all guests',
  clusterjoin: 'Join cluster',
}

/** What a task does, in words: `VM 100: Start`. */
export function describeTask(type: string, id: string): string {
  const ofVm = VM_TASKS[type]
  if (ofVm) return id ? `VM ${id}: ${ofVm}` : ofVm
  const other = OTHER_TASKS[type] ?? type
  return id ? `${other} (${id})` : other
}

export type TaskOutcome = 'running' | 'ok' | 'warnings' | 'failed'

/** How a task of a list stands. */
export function outcomeOf(task: { endtime?: number; status?: string }): TaskOutcome {
  if (task.endtime === undefined && (task.status === undefined || task.status === 'running')) return 'running'
  return outcomeOfExit(task.status)
}

export function outcomeOfExit(exit: string | undefined): TaskOutcome {
  if (exit === undefined || exit === 'OK') return 'ok'
  return exit.startsWith('WARNINGS') ? 'warnings' : 'failed'
}
