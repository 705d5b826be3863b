import { EmptyState, EmptyStateBody } from '@patternfly/react-core'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { Link } from '@tanstack/react-router'
import { links } from '../../app/links'
import type { Guest } from '../../model/cluster'
import { bytes, duration } from '../../ui/format'
import { Meter, shareOf } from '../../ui/Meter'
import { GuestLabel, HaLabel } from '../../ui/state'

export function GuestTable({ guests, withNode = true }: { guests: Guest[]; withNode?: boolean }) {
  if (guests.length === 0) {
    return (
      <EmptyState variant="sm" titleText="No guests" headingLevel="h3">
        <EmptyStateBody>
          Virtual machines made by the API or the command line show here at once.
        </EmptyStateBody>
      </EmptyState>
    )
  }
  return (
    <Table role="table" aria-label="Guests" variant="compact">
      <Thead>
        <Tr>
          <Th>ID</Th>
          <Th>Name</Th>
          <Th>Status</Th>
          {withNode && <Th>Node</Th>}
          <Th>HA state</Th>
          <Th width={20}>CPU</Th>
          <Th width={20}>Memory</Th>
          <Th>Uptime</Th>
        </Tr>
      </Thead>
      <Tbody>
        {guests.map((guest) => (
          <GuestRow key={guest.vmid} guest={guest} withNode={withNode} />
        ))}
      </Tbody>
    </Table>
  )
}

function GuestRow({ guest, withNode }: { guest: Guest; withNode: boolean }) {
  const { vmid, name, node, status, ha, cpu, mem, maxmem, uptime } = guest
  const live = status === 'running' || status === 'paused'
  return (
    <Tr>
      <Td dataLabel="ID">{vmid}</Td>
      <Td dataLabel="Name">
        <Link {...links.vm(vmid)}>{name}</Link>
      </Td>
      <Td dataLabel="Status">
        <GuestLabel status={status} />
      </Td>
      {withNode && (
        <Td dataLabel="Node">
          <Link {...links.node(node)}>{node}</Link>
        </Td>
      )}
      <Td dataLabel="HA state">
        <HaLabel state={ha} />
      </Td>
      <Td dataLabel="CPU">
        <Meter label={`CPU of ${name}`} share={live ? cpu : undefined} />
      </Td>
      <Td dataLabel="Memory">
        <Meter
          label={`Memory of ${name}`}
          share={live ? shareOf(mem, maxmem) : undefined}
          text={bytes(mem)}
        />
      </Td>
      <Td dataLabel="Uptime">{live ? duration(uptime) : '–'}</Td>
    </Tr>
  )
}
