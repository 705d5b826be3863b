/**
 * Collects what events make stale and hands it over together: at once after a quiet time, and at most once in
 * `everyMs` while they pour in.
 */
export function coalesce<T>(
  everyMs: number,
  flush: (items: T[]) => void,
  clock: { now(): number; later(f: () => void, ms: number): void } = {
    now: () => performance.now(),
    later: (f, ms) => void setTimeout(f, ms),
  },
): (item: T) => void {
  let items: T[] = []
  let last = Number.NEGATIVE_INFINITY
  let waiting = false
  return (item) => {
    items.push(item)
    if (waiting) return
    waiting = true
    clock.later(
      () => {
        const all = items
        items = []
        waiting = false
        last = clock.now()
        flush(all)
      },
      Math.max(0, last + everyMs - clock.now()),
    )
  }
}
