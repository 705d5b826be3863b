import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { Link } from '@tanstack/react-router'
import { links } from '../../app/links'
import type { Node } from '../../model/cluster'
import { bytes, duration } from '../../ui/format'
import { Meter, shareOf } from '../../ui/Meter'
import { NodeLabel } from '../../ui/state'

export function NodeTable({ nodes, leader }: { nodes: Node[]; leader?: string | undefined }) {
  return (
    <Table role="table" aria-label="Nodes" variant="compact">
      <Thead>
        <Tr>
          <Th>Name</Th>
          <Th>Status</Th>
          <Th>Address</Th>
          <Th width={20}>CPU</Th>
          <Th width={25}>Memory</Th>
          <Th>Guests</Th>
          <Th>Uptime</Th>
        </Tr>
      </Thead>
      <Tbody>
        {nodes.map((node) => {
          const live = node.state === 'online'
          return (
            <Tr key={node.name}>
              <Td dataLabel="Name">
                <Link {...links.node(node.name)}>{node.name}</Link>
                {node.name === leader && <span className="muted"> leader</span>}
              </Td>
              <Td dataLabel="Status">
                <NodeLabel state={node.state} />
              </Td>
              <Td dataLabel="Address">{node.ip ?? '–'}</Td>
              <Td dataLabel="CPU">
                <Meter label={`CPU of ${node.name}`} share={live ? node.cpu : undefined} />
              </Td>
              <Td dataLabel="Memory">
                <Meter
                  label={`Memory of ${node.name}`}
                  share={live ? shareOf(node.mem, node.maxmem) : undefined}
                  text={bytes(node.mem)}
                />
              </Td>
              <Td dataLabel="Guests">{node.guests.length}</Td>
              <Td dataLabel="Uptime">{live ? duration(node.uptime) : '–'}</Td>
            </Tr>
          )
        })}
      </Tbody>
    </Table>
  )
}
