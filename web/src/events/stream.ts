/**
 * The event stream of the node that serves this page, read with `fetch`: unlike EventSource it shows bytes as signs of
 * life, so that a node whose power is off is noticed (its connection never ends by itself).
 *
 *   connecting ──► live ──► broken ──(a moment)──► connecting
 */

import { API } from '../api/request'
import { type ClusterEvent, eventOf } from './event'
import { frameParser } from './sse'

export type StreamState = 'connecting' | 'live' | 'broken'

/** The server sends at least a comment this often, with much room. */
const SILENCE_MS = 40_000
const CONNECT_MS = 6_000
const RETRY_MS = [500, 1000, 2000, 3000]

export interface StreamHandlers {
  onEvent(event: ClusterEvent): void
  onState(state: StreamState): void
}

/** Follows the stream until the signal says otherwise. `interrupt` breaks a connection that is held for dead. */
export function followStream(
  handlers: StreamHandlers,
  signal: AbortSignal,
): { interrupt(): void; done: Promise<void> } {
  let attempt = new AbortController()
  const loop = async () => {
    let cursor: string | undefined
    let failures = 0
    while (!signal.aborted) {
      handlers.onState('connecting')
      attempt = new AbortController()
      const either = AbortSignal.any([signal, attempt.signal])
      try {
        await readOnce(cursor, either, () => attempt.abort(), {
          onState: handlers.onState,
          onEvent(event) {
            failures = 0
            cursor = event.cursor ?? cursor
            handlers.onEvent(event)
          },
        })
      } catch {
        // Every way for it to end is answered alike: say so, wait a moment, connect again.
      }
      if (signal.aborted) return
      handlers.onState('broken')
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] ?? 3000, signal)
      failures += 1
    }
  }
  return { interrupt: () => attempt.abort(), done: loop() }
}

async function readOnce(
  cursor: string | undefined,
  signal: AbortSignal,
  giveUp: () => void,
  handlers: StreamHandlers,
): Promise<void> {
  let watchdog = setTimeout(giveUp, CONNECT_MS)
  try {
    const response = await fetch(`${API}/cluster/events`, {
      signal,
      cache: 'no-store',
      headers: { Accept: 'text/event-stream', ...(cursor ? { 'Last-Event-ID': cursor } : {}) },
    })
    if (!response.ok || !response.body) throw new Error(`the event stream was refused: ${response.status}`)
    handlers.onState('live')
    const parse = frameParser()
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
    for (;;) {
      clearTimeout(watchdog)
      watchdog = setTimeout(giveUp, SILENCE_MS)
      const { value, done } = await reader.read()
      if (done) return
      for (const frame of parse(value)) {
        const event = eventOf(frame)
        if (event) handlers.onEvent(event)
      }
    }
  } finally {
    clearTimeout(watchdog)
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    signal.addEventListener('abort', end)
  })
}
