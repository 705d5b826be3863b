import type { QueryClient } from '@tanstack/react-query'
import { onOtherUser } from '../api/otherUser'
import type { Store } from '../api/store'

/** Forgets what was read for a user when that user is gone: the next one must not see what this one was allowed to. */
export function forgetWithUser(client: QueryClient, session: Store<{ username: string } | null>): () => void {
  return onOtherUser(session, (now) => {
    // Pages that are open are read again for whoever is there now; for nobody there are none.
    if (now) void client.resetQueries()
    else client.clear()
  })
}
