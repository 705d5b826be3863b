import { expect, test } from 'vitest'
import { frameParser } from './sse'

const whole = ': hello\n\nid: 7-1\nevent: object\ndata: {"a":\ndata: 1}\n\ndata: two\r\n\r\ndata\n\nid: 9\n\n'

test('frames have id, event and all their data; comments and frames without data give nothing', () => {
  expect(frameParser()(whole)).toEqual([
    { id: '7-1', event: 'object', data: '{"a":\n1}' },
    { data: 'two' },
    { data: '' },
  ])
})

test('however the text is cut, the frames are the same', () => {
  const expected = frameParser()(whole)
  for (let size = 1; size <= whole.length; size += 1) {
    const parse = frameParser()
    const found = []
    for (let at = 0; at < whole.length; at += size) found.push(...parse(whole.slice(at, at + size)))
    expect(found, `in pieces of ${size}`).toEqual(expected)
  }
})
