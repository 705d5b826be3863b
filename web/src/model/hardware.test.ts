import { expect, test } from 'vitest'
import { rowsOf } from './hardware'

test('rows stand in a fixed order, hardware first, and the digest is none', () => {
  const rows = rowsOf([
    { key: 'digest', value: 'abc' },
    { key: 'name', value: 'web' },
    { key: 'net0', value: 'virtio=BC:24:11:00:00:01' },
    { key: 'scsi10', value: 'local:x,size=1G' },
    { key: 'scsi2', value: 'local:iso/a.iso,media=cdrom' },
    { key: 'memory', value: 2048 },
    { key: 'later', value: 'x' },
  ])
  expect(rows.map((r) => [r.section, r.label, r.value])).toEqual([
    ['Hardware', 'Memory', '2048 MiB'],
    ['Hardware', 'CD/DVD drive (scsi2)', 'local:iso/a.iso,media=cdrom'],
    ['Hardware', 'Disk (scsi10)', 'local:x,size=1G'],
    ['Hardware', 'Network device (net0)', 'virtio=BC:24:11:00:00:01'],
    ['Options', 'Name', 'web'],
    ['Options', 'later', 'x'],
  ])
})

test('what waits for a restart is shown beside the value', () => {
  const [memory, net, onboot] = rowsOf([
    { key: 'memory', value: 512, pending: 1024 },
    { key: 'onboot', value: 1, delete: 1 },
    { key: 'net1', pending: 'virtio' },
  ]).sort((a, b) => a.key.localeCompare(b.key))
  expect(memory).toMatchObject({ value: '512 MiB', pending: '1024 MiB' })
  expect(onboot).toMatchObject({ key: 'onboot', value: 'Yes', pending: 'removed' })
  expect(net).toMatchObject({ key: 'net1', value: '–', pending: 'virtio' })
})
