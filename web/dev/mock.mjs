/**
 * A stand-in for a cluster, to work on the console's looks without one: `npm run mock`, then `npm run dev`, or open
 * http://127.0.0.1:8099 for what `npm run build` has made. Any user, password `stead`. Tests never use it: they are
 * held against real daemons.
 *
 * Power off a node: `curl -X POST http://127.0.0.1:8099/mock/power-off/n2`; back on with `power-on`. Break the event
 * stream: `/mock/break-stream`.
 */

import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { extname, join, normalize } from 'node:path'
import { api } from './mock-api.mjs'
import { cluster, events, powerOff, powerOn } from './mock-cluster.mjs'
import { serveScreen } from './mock-screen.mjs'

const PORT = Number(process.env.PORT ?? 8099)
const DIST = join(import.meta.dirname, '../dist')
/** As strict as the console can live with; a daemon may send the same. */
const CSP =
  "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'self'; base-uri 'none'; form-action 'self'"
const TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.woff2': 'font/woff2',
}

const streams = new Set()
events.on('event', (event) => {
  for (const response of streams) response.write(`id: ${event.cursor}\ndata: ${JSON.stringify(event)}\n\n`)
})

const server = createServer(async (request, response) => {
  const url = new URL(request.url, 'http://mock')
  const mock = url.pathname.match(/^\/mock\/(power-off|power-on|break-stream)\/?(\w*)$/)
  if (mock) {
    if (mock[1] === 'power-off') powerOff(mock[2])
    if (mock[1] === 'power-on') powerOn(mock[2])
    if (mock[1] === 'break-stream') for (const stream of streams) stream.destroy()
    return response.end('done\n')
  }
  if (!url.pathname.startsWith('/api2/json/')) return serveFile(url.pathname, response)
  const path = url.pathname.slice('/api2/json'.length)
  const signedIn = request.headers.cookie?.includes('PVEAuthCookie=PVE')
  if (path === '/cluster/events') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' })
    response.write(': hello\n\n')
    streams.add(response)
    response.on('close', () => streams.delete(response))
    return
  }
  const body = Object.fromEntries(new URLSearchParams(await textOf(request)))
  const query = Object.fromEntries(url.searchParams)
  try {
    if (!signedIn && !path.startsWith('/access/')) throw { status: 401, message: 'No ticket' }
    const answer = api(request.method, path, { ...query, ...body })
    response.writeHead(200, { 'Content-Type': 'application/json' })
    response.end(JSON.stringify(answer))
  } catch (error) {
    const status = error.status ?? 500
    response.writeHead(status, error.message, { 'Content-Type': 'application/json' })
    response.end(JSON.stringify({ data: null, message: error.message, errors: error.errors }))
  }
})

server.on('upgrade', (request, socket) => {
  const found = request.url.match(/\/nodes\/(\w+)\/qemu\/(\d+)\/vncwebsocket/)
  const guest = found && cluster.guests.get(Number(found[2]))
  if (guest?.status === 'running') serveScreen(request, socket, guest)
  else socket.end('HTTP/1.1 500 VM is not running\r\n\r\n')
})

async function serveFile(path, response) {
  const wanted = join(DIST, normalize(path))
  const type = TYPES[extname(wanted)]
  try {
    const file = type ? wanted : join(DIST, 'index.html')
    const content = await readFile(file)
    response.writeHead(200, { 'Content-Type': type ?? 'text/html', 'Content-Security-Policy': CSP })
    response.end(content)
  } catch {
    response.writeHead(404).end('Not found')
  }
}

async function textOf(request) {
  let text = ''
  for await (const chunk of request) text += chunk
  return text
}

server.listen(PORT, '127.0.0.1', () => console.log(`mock cluster at http://127.0.0.1:${PORT}`))
