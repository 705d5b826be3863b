/** Getting a ticket, and keeping it fresh. */

import { call } from './client'
import { beginSession, currentTicket, session } from './session'

/** A ticket lasts two hours; it is renewed long before. */
const RENEW_AFTER_MS = 20 * 60 * 1000
const CHECK_EVERY_MS = 60 * 1000

export async function signIn(user: string, realm: string, password: string): Promise<void> {
  const username = user.includes('@') ? user : `${user}@${realm}`
  beginSession(await call('POST /access/ticket', { username, password }))
}

/** Renews the ticket whenever it is due, until the returned function is called. */
export function keepFresh(): () => void {
  const timer = setInterval(() => {
    // A failure shows where it matters: in the next request that needs the ticket.
    renewIfDue().catch(() => undefined)
  }, CHECK_EVERY_MS)
  return () => clearInterval(timer)
}

/** The present ticket counts as the password. */
async function renewIfDue(): Promise<void> {
  const now = session.get()
  const ticket = currentTicket()
  if (!now || !ticket || Date.now() - now.renewedAt < RENEW_AFTER_MS) return
  beginSession(await call('POST /access/ticket', { username: now.username, password: ticket }))
}
