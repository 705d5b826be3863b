import { Card, CardBody, CardTitle, Grid, GridItem, Label } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { queries } from '../../api/queries'
import type { VmStatus } from '../../api/types'
import { links } from '../../app/links'
import { usePollInterval } from '../../events/useClusterEvents'
import type { Guest } from '../../model/cluster'
import { ReadError } from '../../ui/ErrorNotice'
import { Facts } from '../../ui/Facts'
import { bytes, duration, percent } from '../../ui/format'
import { Meter, shareOf } from '../../ui/Meter'
import { GuestLabel, HaLabel } from '../../ui/state'

export function VmSummary({ guest, away }: { guest: Guest; away: boolean }) {
  const { node, vmid } = guest
  const status = useQuery({
    ...queries.vmStatus(node, vmid),
    // A node that does not answer is not asked.
    enabled: !away,
    refetchInterval: usePollInterval(),
  })
  const now = status.data
  return (
    <Grid hasGutter>
      {status.error && !away && (
        <GridItem span={12}>
          <ReadError
            title={`Could not read the state of VM ${vmid} from ${node}`}
            error={status.error}
            onRetry={() => status.refetch()}
          />
        </GridItem>
      )}
      <GridItem lg={6}>
        <Card isFullHeight isCompact>
          <CardTitle component="h2">Status</CardTitle>
          <CardBody>
            <StatusFacts guest={guest} now={now} />
          </CardBody>
        </Card>
      </GridItem>
      <GridItem lg={6}>
        <LoadCard guest={guest} now={now} />
      </GridItem>
    </Grid>
  )
}

function StatusFacts({ guest, now }: { guest: Guest; now: VmStatus | undefined }) {
  const { node, status, ha, lock, tags, uptime } = guest
  const live = status === 'running' || status === 'paused'
  const nodeLink = (
    <Link key="n" {...links.node(node)}>
      {node}
    </Link>
  )
  const labels = tags.map((t) => (
    <Label key={t} isCompact>
      {t}
    </Label>
  ))
  return (
    <Facts
      label="Status"
      facts={[
        ['Status', <GuestLabel key="s" status={status} />],
        ['Node', nodeLink],
        ['HA state', <HaLabel key="h" state={ha} />],
        ['Lock', lock],
        ['Addresses', live ? now?.addresses?.join(', ') : undefined],
        ['Uptime', live ? duration(now?.uptime ?? uptime) : undefined],
        ['Machine', live ? now?.['running-machine'] : undefined],
        ['QEMU', live ? now?.['running-qemu'] : undefined],
        ['Process', live ? now?.pid : undefined],
        ['Tags', labels.length > 0 ? labels : undefined],
      ]}
    />
  )
}

function LoadCard({ guest, now }: { guest: Guest; now: VmStatus | undefined }) {
  const live = guest.status === 'running' || guest.status === 'paused'
  const cpus = now?.cpus ?? guest.maxcpu
  const cpu = live ? (now?.cpu ?? guest.cpu) : 0
  const total = now?.maxmem ?? guest.maxmem
  const mem = live ? (now?.mem ?? guest.mem) : 0
  return (
    <Card isFullHeight isCompact>
      <CardTitle component="h2">Load</CardTitle>
      <CardBody className="meters">
        <Meter label="CPU" title="CPU" share={cpu} text={`${percent(cpu)} of ${cpus ?? '?'} CPUs`} />
        <Meter
          label="Memory"
          title="Memory"
          share={shareOf(mem, total)}
          text={`${bytes(mem)} of ${bytes(total)}`}
        />
        {live && now && (
          <Facts
            label="Transfers since start"
            facts={[
              ['Network in', bytes(now.netin)],
              ['Network out', bytes(now.netout)],
              ['Disk read', bytes(now.diskread)],
              ['Disk written', bytes(now.diskwrite)],
            ]}
          />
        )}
      </CardBody>
    </Card>
  )
}
