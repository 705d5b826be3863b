import { expect, test } from 'vitest'
import { coalesce } from './coalesce'

function bench(everyMs: number) {
  let now = 0
  let timers: { at: number; run: () => void }[] = []
  const flushed: { at: number; items: string[] }[] = []
  const add = coalesce<string>(everyMs, (items) => flushed.push({ at: now, items }), {
    now: () => now,
    later: (run, ms) => timers.push({ at: now + ms, run }),
  })
  const advance = (to: number) => {
    for (;;) {
      const [next] = timers.filter((t) => t.at <= to).sort((a, b) => a.at - b.at)
      if (!next) break
      timers = timers.filter((t) => t !== next)
      now = next.at
      next.run()
    }
    now = to
  }
  return { add, advance, flushed }
}

test('the first is passed on at once, those that follow closely together later', () => {
  const { add, advance, flushed } = bench(100)
  add('a')
  advance(10)
  add('b')
  advance(20)
  add('c')
  advance(300)
  expect(flushed).toEqual([
    { at: 0, items: ['a'] },
    { at: 100, items: ['b', 'c'] },
  ])
})

test('after a quiet time there is no waiting', () => {
  const { add, advance, flushed } = bench(100)
  add('a')
  advance(500)
  add('b')
  advance(500)
  expect(flushed.map((f) => f.at)).toEqual([0, 500])
})
