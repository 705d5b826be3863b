/** Takes the API's document from a node (`STEAD_URL`) into openapi.json, in an order that makes changes show. */

import { writeFileSync } from 'node:fs'
import { get } from 'node:https'

const url = process.env.STEAD_URL
if (!url) throw new Error('STEAD_URL is not set: the address of a node, e.g. https://127.0.0.1:8006')

// The document is public and lands under review: the node's certificate need not be known here.
get(new URL('/api2/openapi.json', url), { rejectUnauthorized: false }, async (response) => {
  let text = ''
  for await (const chunk of response) text += chunk
  if (response.statusCode !== 200) throw new Error(`the node answered ${response.statusCode}: ${text}`)
  const file = new URL('openapi.json', import.meta.url)
  writeFileSync(file, `${JSON.stringify(sorted(JSON.parse(text)), null, 2)}\n`)
})

/** Objects by name; the order of lists means something. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, inner]) => [key, sorted(inner)]),
  )
}
