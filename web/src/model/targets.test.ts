import { expect, test } from 'vitest'
import type { Node } from './cluster'
import { proposed, targetsOf } from './targets'

const node = (name: string, mem: number, state: Node['state'] = 'online'): Node => ({
  name,
  state,
  local: false,
  guests: [],
  mem,
  maxmem: 100,
})
const nodes = [node('n1', 10), node('n2', 50), node('n3', 20), node('n4', 0, 'lost')]

test('a guest goes to any other node that is online, best to the emptiest', () => {
  const targets = targetsOf(nodes, 'n1', { running: 1 })
  expect(targets.map((t) => [t.node.name, t.obstacle])).toEqual([
    ['n2', null],
    ['n3', null],
    ['n4', 'The node is lost.'],
  ])
  expect(proposed(targets)).toBe('n3')
})

test('reasons of a kind not known yet are shown as they are', () => {
  const [target] = targetsOf([node('n2', 0)], 'n1', {
    running: 1,
    not_allowed_nodes: { n2: { reasons: ['It is full.'] } },
  })
  expect(target?.obstacle).toBe('It is full.')
})

test('what the server holds against a node is said', () => {
  const targets = targetsOf(nodes, 'n1', {
    running: 0,
    allowed_nodes: [],
    not_allowed_nodes: {
      n2: {
        unavailable_storages: ['a', 'b'],
        'blocking-ha-resources': [{ sid: 'vm:101', cause: 'resource-affinity' }],
      },
    },
  })
  expect(targets.map((t) => t.obstacle)).toEqual([
    'Storage a, b is not available there. HA resource vm:101 is against it (resource-affinity).',
    'The server does not allow it.',
    'The node is lost.',
  ])
  expect(proposed(targets)).toBeUndefined()
})
