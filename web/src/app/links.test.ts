import { expect, test } from 'vitest'
import { links, otherNode } from './links'

test('another node is at its own port, else at that of this page', () => {
  const here = { protocol: 'https:', port: '8006' }
  expect(otherNode({ ip: '10.0.0.2' }, here)).toBe('https://10.0.0.2:8006/')
  expect(otherNode({ ip: 'fd00::2', port: 8443 }, here)).toBe('https://[fd00::2]:8443/')
  expect(otherNode({ ip: '10.0.0.2' }, { protocol: 'https:', port: '' })).toBe('https://10.0.0.2/')
})

test('signing in leads back to where one was', () => {
  expect(links.signIn('/vms/100/screen').search).toEqual({ back: '/vms/100/screen' })
  expect(links.signIn('/').search).toEqual({})
})
