import {
  Bullseye,
  Card,
  CardBody,
  CardTitle,
  Grid,
  GridItem,
  PageSection,
  Spinner,
  Title,
} from '@patternfly/react-core'
import type { Cluster } from '../../model/cluster'
import { useCluster } from '../../model/useCluster'
import { ReadError } from '../../ui/ErrorNotice'
import { bytes } from '../../ui/format'
import { Meter, shareOf } from '../../ui/Meter'
import { GuestTable } from '../vms/GuestTable'
import { HealthCard } from './HealthCard'
import { NodeTable } from './NodeTable'
import './cluster.css'

/** The whole cluster: its health, what it has and uses, its nodes and guests. */
export function ClusterPage() {
  const { cluster, error, retry } = useCluster()
  return (
    <>
      <PageSection>
        <Title headingLevel="h1">{cluster?.health.name ? `Cluster ${cluster.health.name}` : 'Cluster'}</Title>
        {error && <ReadError title="Could not read the cluster's state" error={error} onRetry={retry} />}
      </PageSection>
      {cluster ? (
        <Overview cluster={cluster} />
      ) : (
        !error && (
          <Bullseye>
            <Spinner aria-label="Reading the cluster" />
          </Bullseye>
        )
      )}
    </>
  )
}

function Overview({ cluster }: { cluster: Cluster }) {
  return (
    <PageSection isFilled>
      <Grid hasGutter>
        <GridItem md={6} xl={4}>
          <HealthCard cluster={cluster} />
        </GridItem>
        <GridItem md={6} xl={4}>
          <GuestsCard cluster={cluster} />
        </GridItem>
        <GridItem md={12} xl={4}>
          <ResourcesCard cluster={cluster} />
        </GridItem>
        <GridItem span={12}>
          <Card isCompact>
            <CardTitle component="h2">Nodes</CardTitle>
            <CardBody>
              <NodeTable nodes={cluster.nodes} leader={cluster.health.leader} />
            </CardBody>
          </Card>
        </GridItem>
        <GridItem span={12}>
          <Card isCompact>
            <CardTitle component="h2">Guests</CardTitle>
            <CardBody>
              <GuestTable guests={cluster.guests} />
            </CardBody>
          </Card>
        </GridItem>
      </Grid>
    </PageSection>
  )
}

function GuestsCard({ cluster }: { cluster: Cluster }) {
  const count = (status: string) => cluster.guests.filter((g) => g.status === status).length
  const running = count('running')
  const stopped = count('stopped')
  const figures: [string, number][] = [
    ['running', running],
    ['stopped', stopped],
    ['other', cluster.guests.length - running - stopped],
    ['under HA', cluster.guests.filter((g) => g.ha).length],
  ]
  return (
    <Card isFullHeight isCompact>
      <CardTitle component="h2">Guests</CardTitle>
      <CardBody>
        <dl className="figures">
          {figures.map(([label, n]) => (
            <div key={label}>
              <dd>{n}</dd>
              <dt>{label}</dt>
            </div>
          ))}
        </dl>
      </CardBody>
    </Card>
  )
}

function ResourcesCard({ cluster }: { cluster: Cluster }) {
  const online = cluster.nodes.filter((n) => n.state === 'online')
  const sum = (of: (n: (typeof online)[number]) => number | undefined) =>
    online.reduce((total, n) => total + (of(n) ?? 0), 0)
  const cpus = sum((n) => n.maxcpu)
  const busy = sum((n) => (n.cpu ?? 0) * (n.maxcpu ?? 0))
  const mem = sum((n) => n.mem)
  const maxmem = sum((n) => n.maxmem)
  return (
    <Card isFullHeight isCompact>
      <CardTitle component="h2">Resources</CardTitle>
      <CardBody className="meters">
        <Meter
          label="CPU"
          title="CPU"
          share={shareOf(busy, cpus)}
          text={`${busy.toFixed(1)} of ${cpus} CPUs`}
        />
        <Meter
          label="Memory"
          title="Memory"
          share={shareOf(mem, maxmem)}
          text={`${bytes(mem)} of ${bytes(maxmem)}`}
        />
        {cluster.storages
          .filter((s) => s.shared)
          .map((s) => (
            <Meter
              key={s.name}
              label={`Storage ${s.name}`}
              title={`Storage ${s.name}${s.active ? '' : ' (not available)'}`}
              share={shareOf(s.used, s.total)}
              text={`${bytes(s.used)} of ${bytes(s.total)}`}
            />
          ))}
      </CardBody>
    </Card>
  )
}
