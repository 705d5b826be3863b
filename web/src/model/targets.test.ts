import { expect, test } from 'vitest'
import type { MigratePreconditions } from '../api/types'
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
const conditions = (
  allowed_nodes: string[],
  not_allowed_nodes: MigratePreconditions['not_allowed_nodes'],
): MigratePreconditions => ({
  running: 1,
  allowed_nodes,
  not_allowed_nodes,
  local_disks: [],
  local_resources: [],
  'mapped-resources': [],
  'mapped-resource-info': {},
  'has-dbus-vmstate': 0,
})
const nodes = [node('n1', 10), node('n2', 50), node('n3', 20), node('n4', 0, 'lost')]

test('a guest goes to any other node that is online, best to the emptiest', () => {
  const targets = targetsOf(nodes, 'n1', conditions(['n2', 'n3', 'n4'], {}))
  expect(targets.map((t) => [t.node.name, t.obstacle])).toEqual([
    ['n2', null],
    ['n3', null],
    ['n4', 'The node is lost.'],
  ])
  expect(proposed(targets)).toBe('n3')
})

test('what the server holds against a node is said', () => {
  const refused = { n2: { reasons: ['It is full.', 'It is old.'] } }
  const targets = targetsOf(nodes, 'n1', conditions([], refused))
  expect(targets.map((t) => t.obstacle)).toEqual([
    'It is full. It is old.',
    'The server does not allow it.',
    'The node is lost.',
  ])
  expect(proposed(targets)).toBeUndefined()
})
