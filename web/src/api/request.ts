/** How an endpoint and its parameters become a method, an address and a body. Pure. */

export const API = '/api2/json'

export interface Prepared {
  method: string
  url: string
  /** Form-encoded, for the methods that have one. */
  body?: URLSearchParams
}

/** Names in the endpoint's path are taken from `params`; the rest goes into the query, or into the body of a change. */
export function prepare(endpoint: string, params: object): Prepared {
  const given = new Map<string, unknown>(Object.entries(params))
  const space = endpoint.indexOf(' ')
  const method = endpoint.slice(0, space)
  const used = new Set<string>()
  const path = endpoint.slice(space + 1).replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = given.get(name)
    if (value === undefined) throw new Error(`${endpoint}: ${name} is missing`)
    used.add(name)
    return encodeURIComponent(String(value))
  })
  const rest = new URLSearchParams()
  for (const [name, value] of given) {
    if (!used.has(name) && value !== undefined) rest.append(name, shown(value))
  }
  if (method === 'POST' || method === 'PUT') return { method, url: API + path, body: rest }
  const query = rest.toString()
  return { method, url: API + path + (query ? `?${query}` : '') }
}

/** Booleans travel as 0 and 1. */
function shown(value: unknown): string {
  return typeof value === 'boolean' ? String(Number(value)) : String(value)
}

/** The address of a guest's screen on this node's websocket. */
export function screenUrl(
  origin: string,
  vm: { node: string; vmid: number },
  proxy: { port: number | string; ticket: string },
): string {
  const path = `${API}/nodes/${encodeURIComponent(vm.node)}/qemu/${vm.vmid}/vncwebsocket`
  const query = new URLSearchParams({ port: String(proxy.port), vncticket: proxy.ticket })
  return `${origin.replace(/^http/, 'ws')}${path}?${query}`
}
