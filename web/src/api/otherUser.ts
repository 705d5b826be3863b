/** Notices that whoever was signed in no longer is: by hand, by age, or since another tab has signed in somebody else. */

import type { Store } from './store'

interface SignedIn {
  username: string
}

/** Calls `act` with who is signed in now, if anybody, whenever it is no longer the same user; the result ends that. */
export function onOtherUser<S extends SignedIn>(
  session: Store<S | null>,
  act: (now: S | null) => void,
): () => void {
  let user = session.get()?.username
  return session.subscribe(() => {
    const now = session.get()
    const before = user
    user = now?.username
    // Nobody's turn leaves nothing behind.
    if (before !== undefined && before !== user) act(now)
  })
}
