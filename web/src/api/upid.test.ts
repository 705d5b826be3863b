import { expect, test } from 'vitest'
import { describeTask, outcomeOf, parseUpid } from './upid'

test('a UPID gives its parts, numbers from hex', () => {
  expect(parseUpid('UPID:n1:0000A1B2:0001:6745C0FE:qmstart:100:root@pam:')).toEqual({
    node: 'n1',
    starttime: 0x6745c0fe,
    type: 'qmstart',
    id: '100',
    user: 'root@pam',
  })
})

test('what is no UPID is told so', () => {
  for (const text of ['', 'UPID:n1', 'TASK:n1:1:1:1:qmstart:100:root@pam:', 'UPID:n1:1:1:1:qmstart:100']) {
    expect(parseUpid(text), text).toBeNull()
  }
})

test('a task has an id or none, and a type that need not be known', () => {
  expect(describeTask('qmstart', '100')).toBe('VM 100: Start')
  expect(describeTask('startall', '')).toBe('Start all guests')
  expect(describeTask('newkind', 'x')).toBe('newkind (x)')
})

test('a task runs until it has an end, and fails by any other word than OK', () => {
  expect(outcomeOf({})).toBe('running')
  expect(outcomeOf({ status: 'running' })).toBe('running')
  expect(outcomeOf({ endtime: 5, status: 'OK' })).toBe('ok')
  expect(outcomeOf({ endtime: 5, status: 'WARNINGS: 2' })).toBe('warnings')
  expect(outcomeOf({ endtime: 5, status: 'no space left' })).toBe('failed')
  expect(outcomeOf({ status: 'no space left' })).toBe('failed')
})
