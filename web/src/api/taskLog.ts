/** A task's log as it grows. Pure. */

import type { LogLine } from './types'

export interface LogSoFar {
  lines: string[]
  total: number
}

export const noLines: LogSoFar = { lines: [], total: 0 }

/** Adds a page of lines. Those already there are skipped, so is the stand-in that an empty log answers with. */
export function appendLines(log: LogSoFar, page: LogLine[], total?: number): LogSoFar {
  const lines = [...log.lines]
  for (const { n, t } of page) {
    const standIn = page.length === 1 && t === 'no content'
    if (n === lines.length + 1 && !standIn) lines.push(t)
  }
  return { lines, total: Math.max(total ?? 0, lines.length) }
}
