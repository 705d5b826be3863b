import { Card, CardBody, CardTitle, Label, Spinner, Stack, StackItem } from '@patternfly/react-core'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { useQuery } from '@tanstack/react-query'
import { queries } from '../../api/queries'
import type { Guest } from '../../model/cluster'
import { type Row, rowsOf, type Section } from '../../model/hardware'
import { ReadError } from '../../ui/ErrorNotice'

const SECTIONS: Section[] = ['Hardware', 'Options']

/** The configuration, read-only. */
export function VmHardware({ guest: { node, vmid } }: { guest: Guest }) {
  const config = useQuery(queries.vmConfig(node, vmid))
  if (config.isPending) return <Spinner aria-label="Reading the configuration" />
  const rows = rowsOf(config.data ?? [])
  return (
    <Stack hasGutter>
      {config.error && (
        <StackItem>
          <ReadError
            title={`Could not read the configuration of VM ${vmid}`}
            error={config.error}
            onRetry={() => config.refetch()}
          />
        </StackItem>
      )}
      {SECTIONS.map((section) => (
        <StackItem key={section}>
          <Card isCompact>
            <CardTitle component="h2">{section}</CardTitle>
            <CardBody>
              <ConfigTable label={section} rows={rows.filter((r) => r.section === section)} />
            </CardBody>
          </Card>
        </StackItem>
      ))}
    </Stack>
  )
}

function ConfigTable({ label, rows }: { label: string; rows: Row[] }) {
  if (rows.length === 0) return <p className="muted">Nothing is set.</p>
  return (
    <Table role="table" aria-label={label} variant="compact">
      <Thead>
        <Tr>
          <Th width={30}>Setting</Th>
          <Th>Value</Th>
        </Tr>
      </Thead>
      <Tbody>
        {rows.map((row) => (
          <Tr key={row.key}>
            <Td dataLabel="Setting">{row.label}</Td>
            <Td dataLabel="Value" modifier="breakWord">
              <span className="config-value">{row.value}</span>
              {row.pending !== undefined && (
                <Label color="orange" isCompact className="config-pending">
                  after restart: {row.pending}
                </Label>
              )}
            </Td>
          </Tr>
        ))}
      </Tbody>
    </Table>
  )
}
