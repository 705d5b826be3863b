import { expect, test } from 'vitest'
import { eventOf, staleAfter } from './event'

test('an event is read from its frame; the frame gives what the event lacks', () => {
  const data = '{"cursor":"7-1","kind":"guest","id":"qemu/100","data":null}'
  expect(eventOf({ data })).toEqual({ cursor: '7-1', kind: 'guest', id: 'qemu/100', data: null })
  expect(eventOf({ data: '{}', event: 'node', id: '7-2' })).toEqual({ kind: 'node', cursor: '7-2' })
})

test('what is no event is passed over', () => {
  for (const data of ['', 'hello', '1', 'null', '{}']) expect(eventOf({ data }), data).toBeNull()
})

test('a log line makes only its log stale, the end of a task what the task may have changed', () => {
  expect(staleAfter({ kind: 'task-log', id: 'UPID:x' })).toEqual([['task-log', 'UPID:x']])
  expect(staleAfter({ kind: 'task-end', id: 'UPID:x' })).toContainEqual(['cluster'])
  expect(staleAfter({ kind: 'task-start', id: 'UPID:x' })).not.toContainEqual(['cluster'])
})

test('after a gap all is stale; a kind not known yet refreshes the objects', () => {
  expect(staleAfter({ kind: 'reset' })).toBe('all')
  expect(staleAfter({ kind: 'something-new' })).toEqual([['cluster'], ['node'], ['vm']])
})
