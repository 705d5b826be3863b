/**
 * One event stream for all tabs of the console, since a browser holds few connections to a server: the tab that gets
 * the lock reads it and hands every event on. When that tab closes, the browser gives the lock to the next.
 *
 * Not a SharedWorker: a browser does not extend the user's consent to a self-signed certificate to workers.
 */

import type { ClusterEvent } from './event'
import { followStream, type StreamHandlers, type StreamState } from './stream'

const NAME = 'stead.events'

type Message = { event: ClusterEvent } | { state: StreamState } | { ask: 'state' } | { ask: 'interrupt' }

export interface SharedStream {
  /** Says that the connection is held for dead, whichever tab has it. */
  interrupt(): void
  stop(): void
}

export function followShared(handlers: StreamHandlers): SharedStream {
  const end = new AbortController()
  const channel = new BroadcastChannel(NAME)
  const tell = (message: Message) => channel.postMessage(message)
  let leading: { interrupt(): void } | null = null
  let state: StreamState = 'connecting'

  const lead = async () => {
    const stream = followStream(
      {
        onEvent(event) {
          tell({ event })
          handlers.onEvent(event)
        },
        onState(next) {
          state = next
          tell({ state })
          handlers.onState(next)
        },
      },
      end.signal,
    )
    leading = stream
    await stream.done
    leading = null
  }

  channel.onmessage = ({ data }: MessageEvent<Message>) => {
    if ('event' in data) handlers.onEvent(data.event)
    else if ('state' in data) handlers.onState(data.state)
    else if (!leading) return
    else if (data.ask === 'state') tell({ state })
    else leading.interrupt()
  }
  tell({ ask: 'state' })

  if (navigator.locks) {
    navigator.locks.request(NAME, { signal: end.signal }, lead).catch(() => undefined)
  } else {
    void lead()
  }

  return {
    interrupt: () => (leading ? leading.interrupt() : tell({ ask: 'interrupt' })),
    stop() {
      end.abort()
      channel.close()
    },
  }
}
