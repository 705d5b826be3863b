import {
  Alert,
  Bullseye,
  Card,
  CardBody,
  CardTitle,
  Flex,
  Grid,
  GridItem,
  PageSection,
  Spinner,
  Title,
} from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { queries } from '../../api/queries'
import { usePollInterval } from '../../events/useClusterEvents'
import type { Node } from '../../model/cluster'
import { useCluster } from '../../model/useCluster'
import { NotFound } from '../../shell/NotFound'
import { ReadError } from '../../ui/ErrorNotice'
import { NodeLabel } from '../../ui/state'
import { ScopedTasks } from '../tasks/ScopedTasks'
import { GuestTable } from '../vms/GuestTable'
import { NodeSummary } from './NodeSummary'

export function NodePage({ name }: { name: string }) {
  const { cluster, error, retry } = useCluster()
  const node = cluster?.nodes.find((n) => n.name === name)
  if (cluster && !node) return <NotFound what={`Node ${name}`} />
  return (
    <>
      <PageSection>
        <Flex alignItems={{ default: 'alignItemsCenter' }}>
          <Title headingLevel="h1">{name}</Title>
          {node && <NodeLabel state={node.state} />}
          {node && cluster?.health.leader === name && <span className="muted">leads the cluster</span>}
        </Flex>
        {error && <ReadError title="Could not read the cluster's state" error={error} onRetry={retry} />}
        {node && node.state !== 'online' && <AwayNotice node={node} />}
      </PageSection>
      {node ? (
        <Body node={node} />
      ) : (
        !error && (
          <Bullseye>
            <Spinner aria-label="Reading the node" />
          </Bullseye>
        )
      )}
    </>
  )
}

/** What it means that the node is away. */
function AwayNotice({ node: { name, state } }: { node: Node }) {
  const text =
    state === 'lost'
      ? 'The cluster has given it up: its guests under HA are started on other nodes. When it is back it joins again by itself.'
      : 'It may be off, or cut from the others. If it stays away, its guests under HA are started on other nodes once it is certain that they no longer run here.'
  return (
    <Alert
      variant="danger"
      isInline
      title={state === 'lost' ? `Node ${name} is lost` : `Node ${name} does not answer`}
    >
      {text}
    </Alert>
  )
}

function Body({ node }: { node: Node }) {
  const online = node.state === 'online'
  const status = useQuery({
    ...queries.nodeStatus(node.name),
    enabled: online,
    refetchInterval: usePollInterval(),
  })
  return (
    <PageSection isFilled>
      <Grid hasGutter>
        {online && status.error && (
          <GridItem span={12}>
            <ReadError
              title={`Could not read the state of ${node.name}`}
              error={status.error}
              onRetry={() => status.refetch()}
            />
          </GridItem>
        )}
        {online && (
          <GridItem span={12}>
            <NodeSummary node={node} status={status.data} />
          </GridItem>
        )}
        <GridItem span={12}>
          <Card isCompact>
            <CardTitle component="h2">Guests</CardTitle>
            <CardBody>
              <GuestTable guests={node.guests} withNode={false} />
            </CardBody>
          </Card>
        </GridItem>
        {online && (
          <GridItem span={12}>
            <Card isCompact>
              <CardTitle component="h2">Tasks</CardTitle>
              <CardBody>
                <ScopedTasks node={node.name} />
              </CardBody>
            </Card>
          </GridItem>
        )}
      </Grid>
    </PageSection>
  )
}
