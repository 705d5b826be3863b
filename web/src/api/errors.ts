/** What can go wrong with a request, told apart as the user has to act differently. */

export type Trouble =
  /** No answer: the node is off, restarting, or cut from this browser. */
  | 'unreachable'
  /** No answer within the time that every answer keeps to. */
  | 'timeout'
  /** The ticket has run out or was never there. */
  | 'signed-out'
  /** Signed in, but without the privilege. */
  | 'denied'
  /** Not served by this version. */
  | 'unsupported'
  /** Tried and refused or failed; the message says why. */
  | 'failed'

export class ApiError extends Error {
  override readonly name = 'ApiError'

  constructor(
    readonly trouble: Trouble,
    message: string,
    /** The request, e.g. `POST /nodes/n1/qemu/100/status/start`. */
    readonly request: string,
    readonly status?: number,
    /** What is wrong with single parameters, by name. */
    readonly errors: Record<string, string> = {},
  ) {
    super(message)
  }
}

interface ErrorBody {
  message?: unknown
  errors?: unknown
}

/** The error of an answer that is no success: the body's `message`, else the reason phrase, else the number. */
export function errorOf(request: string, status: number, reason: string, body: unknown): ApiError {
  const told = (typeof body === 'object' && body !== null ? body : {}) as ErrorBody
  const message =
    (typeof told.message === 'string' && told.message.trim()) ||
    reason.trim() ||
    `The server answered ${status}.`
  const errors: Record<string, string> = {}
  if (typeof told.errors === 'object' && told.errors !== null) {
    for (const [name, text] of Object.entries(told.errors)) errors[name] = String(text).trim()
  }
  return new ApiError(troubleOf(status), message, request, status, errors)
}

function troubleOf(status: number): Trouble {
  if (status === 401) return 'signed-out'
  if (status === 403) return 'denied'
  if (status === 501) return 'unsupported'
  return 'failed'
}

/** One sentence for any error, an unexpected one too. */
export function messageOf(error: unknown): string {
  if (error instanceof ApiError) return error.message
  return error instanceof Error ? error.message : String(error)
}
