import { expect, test } from 'vitest'
import { errorOf, messageOf } from './errors'

test('the message is the body’s, else the reason phrase, else the number', () => {
  expect(errorOf('GET /x', 500, 'Reason', { message: 'no such VM\n' }).message).toBe('no such VM')
  expect(errorOf('GET /x', 500, 'VM is locked (migrate)', { data: null }).message).toBe(
    'VM is locked (migrate)',
  )
  expect(errorOf('GET /x', 595, '', null).message).toBe('The server answered 595.')
})

test('parameters that are wrong are kept by name', () => {
  const { errors } = errorOf('POST /x', 400, '', {
    message: 'Parameter verification failed.',
    errors: { target: 'no such node\n' },
  })
  expect(errors).toEqual({ target: 'no such node' })
})

test('what the user has to do differs by number', () => {
  expect([401, 403, 501, 500, 596].map((status) => errorOf('GET /x', status, 'r', null).trouble)).toEqual([
    'signed-out',
    'denied',
    'unsupported',
    'failed',
    'failed',
  ])
})

test('anything thrown has a message', () => {
  expect(messageOf(new Error('a'))).toBe('a')
  expect(messageOf('b')).toBe('b')
})
