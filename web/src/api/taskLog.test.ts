import { expect, test } from 'vitest'
import { appendLines, noLines } from './taskLog'

test('pages are put together without gap or repetition', () => {
  const one = appendLines(
    noLines,
    [
      { n: 1, t: 'a' },
      { n: 2, t: 'b' },
    ],
    2,
  )
  const two = appendLines(
    one,
    [
      { n: 2, t: 'b' },
      { n: 3, t: 'c' },
    ],
    3,
  )
  expect(two).toEqual({ lines: ['a', 'b', 'c'], total: 3 })
  expect(one.lines).toEqual(['a', 'b'])
})

test('a line beyond a gap waits for those before it', () => {
  expect(appendLines(noLines, [{ n: 3, t: 'c' }]).lines).toEqual([])
})

test('the stand-in of an empty log is no line', () => {
  expect(appendLines(noLines, [{ n: 1, t: 'no content' }], 0).lines).toEqual([])
})
