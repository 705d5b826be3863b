/** Whether the node that serves this page still answers, judged from the requests that are made anyway. */

import { createStore } from './store'

/** So many failures in a row, with no answer between them, are no accident. */
const FAILURES = 2

const down = createStore(false)
let failures = 0

export const reachability = {
  /** True while the serving node does not answer. */
  down,
  answered(): void {
    failures = 0
    down.set(false)
  },
  failed(): void {
    failures += 1
    if (failures >= FAILURES) down.set(true)
  },
}
