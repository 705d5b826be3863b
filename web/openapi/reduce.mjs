/**
 * The part of the API's document that the console calls: of the endpoints that src/api/endpoints.ts names, path,
 * parameters and success. The whole would make thousands of lines of types.
 */

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'

const read = (path) => readFileSync(new URL(path, import.meta.url), 'utf8')

/** Throws when the console calls what the API does not have. */
export function reducedDocument() {
  const whole = JSON.parse(read('../../crates/api/openapi.json'))
  const used = [...read('../src/api/endpoints.ts').matchAll(/'(GET|POST|PUT|DELETE) (\/[^']*)'/g)]
  const paths = {}
  for (const [, verb, path] of used) {
    const method = verb.toLowerCase()
    const operation = whole.paths[path]?.[method]
    if (!operation) throw new Error(`the API has no ${verb} ${path}`)
    paths[path] = { ...paths[path], [method]: reducedOperation(operation) }
  }
  return { openapi: whole.openapi, info: { title: whole.info.title, version: '' }, paths }
}

function reducedOperation({ parameters, requestBody, responses }) {
  const form = requestBody?.content['application/x-www-form-urlencoded']
  return {
    parameters,
    ...(form
      ? {
          requestBody: {
            required: requestBody.required,
            content: { 'application/x-www-form-urlencoded': form },
          },
        }
      : {}),
    responses: { 200: responses['200'] },
  }
}

/** By which the generated types tell what they were made from. */
export function fingerprint(document) {
  return createHash('sha256').update(JSON.stringify(document)).digest('hex')
}
