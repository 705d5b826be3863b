import { expect, test } from 'vitest'
import type { ClusterStatusEntry, HaStatusEntry, Resource } from '../api/types'
import { clusterOf } from './cluster'
import { findingsOf } from './findings'
import { filterTree } from './tree'

const status: ClusterStatusEntry[] = [
  { type: 'cluster', id: 'cluster', name: 'demo', nodes: 3, quorate: 1 },
  { type: 'node', id: 'node/n10', name: 'n10', online: 1, ip: '10.0.0.10' },
  { type: 'node', id: 'node/n2', name: 'n2', online: 0, ip: '10.0.0.2' },
  { type: 'node', id: 'node/n1', name: 'n1', online: 1, local: 1, ip: '10.0.0.1', port: 8443 },
]
const ha: HaStatusEntry[] = [
  { type: 'quorum', id: 'quorum', node: 'n1', status: 'OK', quorate: 1 },
  { type: 'master', id: 'master', node: 'n1', status: 'n1 (active)' },
  { type: 'service', id: 'service:vm:101', sid: 'vm:101', node: 'n2', status: '', state: 'started' },
]
const resources: Resource[] = [
  { id: 'qemu/101', type: 'qemu', vmid: 101, name: 'db', node: 'n2', status: 'unknown', tags: 'prod;sql' },
  { id: 'qemu/100', type: 'qemu', vmid: 100, node: 'n1', status: 'running' },
  { id: 'qemu/102', type: 'qemu', vmid: 102, name: 'gone', node: 'n9', status: 'unknown' },
  { id: 'node/n1', type: 'node', node: 'n1', status: 'online', cpu: 0.5, maxcpu: 4 },
  { id: 'storage/n1/s', type: 'storage', storage: 's', node: 'n1', shared: 1, status: 'unknown' },
  {
    id: 'storage/n2/s',
    type: 'storage',
    storage: 's',
    node: 'n2',
    shared: 1,
    status: 'available',
    disk: 1,
    maxdisk: 2,
  },
  { id: 'storage/n1/local', type: 'storage', storage: 'local', node: 'n1', status: 'available' },
]

test('nodes stand in the order of their numbers, each with its guests', () => {
  const { nodes } = clusterOf(status, ha, resources)
  expect(nodes.map((n) => [n.name, n.state, n.guests.map((g) => g.vmid)])).toEqual([
    ['n1', 'online', [100]],
    ['n2', 'offline', [101]],
    ['n9', 'unknown', [102]],
    ['n10', 'online', []],
  ])
  expect(nodes[0]).toMatchObject({ local: true, ip: '10.0.0.1', port: 8443, cpu: 0.5 })
})

test('health is quorum, nodes online and the leader', () => {
  expect(clusterOf(status, ha, resources).health).toEqual({
    name: 'demo',
    quorate: true,
    online: 2,
    total: 4,
    leader: 'n1',
  })
})

test('a guest has a name of its own or one by its id, and its HA state from either answer', () => {
  const { guests } = clusterOf(status, ha, resources)
  expect(guests.map((g) => [g.vmid, g.name, g.ha])).toEqual([
    [100, 'VM 100', undefined],
    [101, 'db', 'started'],
    [102, 'gone', undefined],
  ])
})

test('a shared storage is shown once, by the node that reaches it', () => {
  expect(clusterOf(status, ha, resources).storages).toEqual([
    { name: 'local (n1)', shared: false, active: true },
    { name: 's', shared: true, active: true, used: 1, total: 2 },
  ])
})

test('a node that is lost is more than offline', () => {
  const lost = status.map((e) => (e.name === 'n2' ? { ...e, lost: 1 as const } : e))
  const state = (entries: ClusterStatusEntry[]) =>
    clusterOf(entries, ha, resources).nodes.find((n) => n.name === 'n2')?.state
  expect(state(lost)).toBe('lost')
  expect(state(status)).toBe('offline')
})

test('the cluster says who leads it, else HA does', () => {
  const told = status.map((e) => (e.type === 'cluster' ? { ...e, leader: 'n10' } : e))
  expect(clusterOf(told, ha, resources).health.leader).toBe('n10')
  expect(clusterOf(status, ha, resources).health.leader).toBe('n1')
})

test('findings name what is wrong before what is well', () => {
  const texts = findingsOf(clusterOf(status, ha, resources))
  expect(texts.map((f) => f.severity)).toEqual(['danger', 'danger', 'warning', 'ok', 'ok'])
  expect(texts[0]?.text).toBe('Node n2 does not answer. 1 guest on it.')
  const noQuorum = status.map((e) => (e.type === 'cluster' ? { ...e, quorate: 0 as const } : e))
  expect(findingsOf(clusterOf(noQuorum, [], resources))[0]?.text).toContain('No quorum')
})

test('the tree is filtered by node, id, name and tag', () => {
  const { nodes } = clusterOf(status, ha, resources)
  const found = (filter: string) =>
    filterTree(nodes, filter).map((n) => [n.name, n.guests.map((g) => g.vmid)])
  expect(found('N1')).toEqual([
    ['n1', [100]],
    ['n10', []],
  ])
  expect(found('sql')).toEqual([['n2', [101]]])
  expect(found('10')).toEqual([
    ['n1', [100]],
    ['n2', [101]],
    ['n9', [102]],
    ['n10', []],
  ])
  expect(found('nothing')).toEqual([])
})
