import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { fingerprint, reducedDocument } from '../../openapi/reduce.mjs'

test('the types were made from the document as it is: if not, `npm run api`', () => {
  const types = readFileSync(new URL('schema.d.ts', import.meta.url), 'utf8')
  expect(types).toContain(`Document: ${fingerprint(reducedDocument())}`)
})
