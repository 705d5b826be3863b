/**
 * Who is signed in. The ticket is in the cookie that every request carries; what changes need besides (the CSRF token)
 * is in local storage, so that all tabs of the console share one session.
 */

import { createStore } from './store'
import type { Ticket } from './types'

const KEY = 'stead.session'
const COOKIE = 'PVEAuthCookie'

export interface Session {
  username: string
  csrf: string
  cluster?: string
  /** Milliseconds since 1970. */
  renewedAt: number
}

export const session = createStore<Session | null>(stored())

/** True after a session has ended by its age, until the next begins. */
export const expired = createStore(false)

window.addEventListener('storage', (event) => {
  if (event.key === KEY) session.set(stored())
})

/** Takes over what the server has answered to a sign-in or a renewal. */
export function beginSession(ticket: Ticket): void {
  if (ticket.ticket) {
    // Where the server has set the cookie itself, this one is the same.
    setCookie(`${COOKIE}=${encodeURIComponent(ticket.ticket)}; path=/; SameSite=Strict`)
  }
  const next: Session = {
    username: ticket.username,
    csrf: ticket.CSRFPreventionToken ?? '',
    renewedAt: Date.now(),
    ...(ticket.clustername ? { cluster: ticket.clustername } : {}),
  }
  localStorage.setItem(KEY, JSON.stringify(next))
  expired.set(false)
  session.set(next)
}

/** Forgets the session in all tabs; `session` is null afterwards. */
export function endSession(): void {
  setCookie(`${COOKIE}=; path=/; max-age=0`)
  localStorage.removeItem(KEY)
  session.set(null)
}

/** Ends the session that the server no longer takes. */
export function expireSession(): void {
  expired.set(true)
  endSession()
}

/** The ticket, unless the server keeps it from scripts. */
export function currentTicket(): string | undefined {
  const found = document.cookie.split('; ').find((part) => part.startsWith(`${COOKIE}=`))
  return found && decodeURIComponent(found.slice(COOKIE.length + 1))
}

function stored(): Session | null {
  try {
    const text = localStorage.getItem(KEY)
    return text ? (JSON.parse(text) as Session) : null
  } catch {
    return null
  }
}

function setCookie(cookie: string): void {
  // biome-ignore lint/suspicious/noDocumentCookie: the Cookie Store API is missing in some browsers.
  document.cookie = cookie + (location.protocol === 'https:' ? '; Secure' : '')
}
