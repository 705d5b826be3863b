/** Calls of the API. Every request of the console goes through here. */

import type { AnswerOf, Endpoint, ParamsOf } from './endpoints'
import { ApiError, errorOf } from './errors'
import { reachability } from './reachability'
import { prepare } from './request'
import { expireSession, session } from './session'

/** Every answer comes within 5 s; a change may wait a little longer for a quorum. */
const READ_TIMEOUT_MS = 6_000
const CHANGE_TIMEOUT_MS = 15_000

interface Envelope<T> {
  data: T
  total?: number
}

/** Calls an endpoint and returns its data; throws an [`ApiError`]. */
export async function call<E extends Endpoint>(
  endpoint: E,
  params: ParamsOf<E>,
  signal?: AbortSignal,
): Promise<AnswerOf<E>> {
  return (await callWhole(endpoint, params, signal)).data
}

/** As `call`, with what stands beside the data. */
export async function callWhole<E extends Endpoint>(
  endpoint: E,
  params: ParamsOf<E>,
  signal?: AbortSignal,
): Promise<Envelope<AnswerOf<E>>> {
  const { method, url, body } = prepare(endpoint, params as object)
  const request = `${method} ${url}`
  const response = await send(request, url, {
    method,
    body: body ?? null,
    headers: method === 'GET' ? {} : { CSRFPreventionToken: session.get()?.csrf ?? '' },
    signal: deadline(method === 'GET' ? READ_TIMEOUT_MS : CHANGE_TIMEOUT_MS, signal),
  })
  const answer: unknown = await response.json().catch(() => null)
  if (!response.ok) {
    const error = errorOf(request, response.status, response.statusText, answer)
    // A ticket that has run out ends the session in every tab; a wrong password when signing in does not.
    if (error.trouble === 'signed-out' && session.get() && !url.endsWith('/access/ticket')) expireSession()
    throw error
  }
  if (typeof answer !== 'object' || answer === null || !('data' in answer)) {
    throw new ApiError('failed', 'The answer could not be read: it has no data.', request, response.status)
  }
  return answer as Envelope<AnswerOf<E>>
}

async function send(request: string, url: string, init: RequestInit): Promise<Response> {
  try {
    const response = await fetch(url, { credentials: 'same-origin', cache: 'no-store', ...init })
    reachability.answered()
    return response
  } catch (cause) {
    const name = cause instanceof DOMException ? cause.name : ''
    // Given up by the page itself, e.g. because it was left: says nothing about the node.
    if (name === 'AbortError') throw cause
    reachability.failed()
    if (name === 'TimeoutError') {
      throw new ApiError('timeout', `${location.host} did not answer in time.`, request)
    }
    throw new ApiError('unreachable', `${location.host} could not be reached.`, request)
  }
}

function deadline(ms: number, signal?: AbortSignal): AbortSignal {
  const timeout = AbortSignal.timeout(ms)
  return signal ? AbortSignal.any([signal, timeout]) : timeout
}
