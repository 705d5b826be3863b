import { expect, test } from 'vitest'
import { type GuestSituation, refusal, type VmActionId } from './vmActions'

const guest = (more: Partial<GuestSituation>): GuestSituation => ({
  status: 'running',
  template: false,
  nodeOnline: true,
  node: 'n1',
  quorate: true,
  ...more,
})
const possible = (more: Partial<GuestSituation>) =>
  (['start', 'shutdown', 'reboot', 'stop', 'migrate'] satisfies VmActionId[]).filter(
    (a) => !refusal(a, guest(more)),
  )

test('what can be done depends on what the guest does', () => {
  expect(possible({})).toEqual(['shutdown', 'reboot', 'stop', 'migrate'])
  expect(possible({ status: 'stopped' })).toEqual(['start', 'migrate'])
  expect(possible({ status: 'stopped', template: true })).toEqual(['migrate'])
  expect(possible({ status: 'unknown' })).toEqual(['shutdown', 'reboot', 'stop', 'migrate'])
})

test('nothing is done without quorum or on a node that is away, and it is said why', () => {
  expect(possible({ quorate: false })).toEqual([])
  expect(possible({ nodeOnline: false })).toEqual([])
  expect(refusal('start', guest({ nodeOnline: false }))).toBe('Node n1 does not answer.')
})
