/** Keeps the console's data fresh by the event stream, and tells how that stands. */

import { type QueryClient, useQueryClient } from '@tanstack/react-query'
import { useEffect } from 'react'
import { onOtherUser } from '../api/otherUser'
import { reachability } from '../api/reachability'
import { session } from '../api/session'
import { createStore, useStore } from '../api/store'
import { coalesce } from './coalesce'
import { type ClusterEvent, staleAfter } from './event'
import { followShared } from './sharing'
import type { StreamState } from './stream'

const state = createStore<StreamState>('connecting')

/** Events that come together are answered by one round of reading. */
const REFRESH_EVERY_MS = 400

/** How often to read what no event announces (load, memory) while the stream lives, and everything while it does not. */
const LIVE_POLL_MS = 5_000
const BROKEN_POLL_MS = 3_000

export function useStreamState(): StreamState {
  return useStore(state)
}

/** The interval at which to read again besides the events. */
export function usePollInterval(): number {
  return useStore(state) === 'live' ? LIVE_POLL_MS : BROKEN_POLL_MS
}

/** Follows the stream while the component is there. */
export function useClusterEvents(): void {
  const client = useQueryClient()
  useEffect(() => {
    const refresh = coalesce<ClusterEvent>(REFRESH_EVERY_MS, (events) => invalidate(client, events))
    let missed = false
    const stream = followShared({
      onEvent: refresh,
      onState(next) {
        // What happened while there was no stream was missed.
        if (next === 'live' && missed) client.invalidateQueries()
        missed = next !== 'live' && (missed || next === 'broken')
        state.set(next)
      },
    })
    const unfollow = reachability.down.subscribe(() => {
      if (reachability.down.get()) stream.interrupt()
    })
    // The stream shows what its reader may see.
    const stay = onOtherUser(session, (now) => now && stream.interrupt())
    return () => {
      stay()
      unfollow()
      stream.stop()
      state.set('connecting')
    }
  }, [client])
}

function invalidate(client: QueryClient, events: ClusterEvent[]): void {
  const keys = new Map<string, string[]>()
  for (const event of events) {
    const stale = staleAfter(event)
    if (stale === 'all') {
      client.invalidateQueries()
      return
    }
    for (const key of stale) keys.set(key.join('\0'), key)
  }
  for (const queryKey of keys.values()) client.invalidateQueries({ queryKey })
}
