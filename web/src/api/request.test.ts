import { expect, test } from 'vitest'
import { prepare, screenUrl } from './request'

test('path parameters are filled in and encoded, the rest of a GET goes into the query', () => {
  const { method, url, body } = prepare('GET /nodes/{node}/tasks/{upid}/log', {
    node: 'n1',
    upid: 'UPID:n1:1:2:3:qmstart:100:root@pam:',
    start: 0,
    limit: 50,
  })
  expect(method).toBe('GET')
  expect(url).toBe(
    '/api2/json/nodes/n1/tasks/UPID%3An1%3A1%3A2%3A3%3Aqmstart%3A100%3Aroot%40pam%3A/log?start=0&limit=50',
  )
  expect(body).toBeUndefined()
})

test('the rest of a change goes into its body, of a DELETE into the query', () => {
  const post = prepare('POST /nodes/{node}/qemu/{vmid}/migrate', {
    node: 'n1',
    vmid: 100,
    target: 'n2',
    online: true,
    bwlimit: undefined,
  })
  expect(post.url).toBe('/api2/json/nodes/n1/qemu/100/migrate')
  expect(post.body?.toString()).toBe('target=n2&online=1')
  expect(prepare('DELETE /storage/{storage}', { storage: 's', force: 1 }).url).toBe(
    '/api2/json/storage/s?force=1',
  )
})

test('a missing path parameter is a mistake of the caller', () => {
  expect(() => prepare('GET /nodes/{node}/status', {})).toThrow('node is missing')
})

test('a screen is on the websocket of the node that serves the page', () => {
  expect(
    screenUrl('https://h:8006', { node: 'n1', vmid: 100 }, { port: 5900, ticket: 'PVEVNC:1::a+/=' }),
  ).toBe(
    'wss://h:8006/api2/json/nodes/n1/qemu/100/vncwebsocket?port=5900&vncticket=PVEVNC%3A1%3A%3Aa%2B%2F%3D',
  )
})
