/** Makes src/api/schema.d.ts. */

import { writeFileSync } from 'node:fs'
import openapiTS, { astToString } from 'openapi-typescript'
import { fingerprint, reducedDocument } from './reduce.mjs'

const document = reducedDocument()
const header = `/**
 * What the endpoints that the console calls take. Made by \`npm run api\` from crates/api/openapi.json; not to be
 * edited. It stays whole, as it is made.
 *
 * Document: ${fingerprint(document)}
 */

`
const types = astToString(await openapiTS(document, { defaultNonNullable: false }))
writeFileSync(new URL('../src/api/schema.d.ts', import.meta.url), header + types)
