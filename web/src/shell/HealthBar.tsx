import { Label, Tooltip } from '@patternfly/react-core'
import CheckCircleIcon from '@patternfly/react-icons/dist/esm/icons/check-circle-icon'
import ClusterIcon from '@patternfly/react-icons/dist/esm/icons/cluster-icon'
import ExclamationCircleIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon'
import ServerIcon from '@patternfly/react-icons/dist/esm/icons/server-icon'
import SyncAltIcon from '@patternfly/react-icons/dist/esm/icons/sync-alt-icon'
import { reachability } from '../api/reachability'
import { useStore } from '../api/store'
import { useStreamState } from '../events/useClusterEvents'
import type { Health } from '../model/cluster'
import { useCluster } from '../model/useCluster'

/** Health at a glance, on every page. */
export function HealthBar() {
  const { cluster } = useCluster()
  return (
    <div className="health" role="status" aria-label="Cluster health">
      {cluster && <HealthLabels health={cluster.health} />}
      <LiveLabel />
    </div>
  )
}

function HealthLabels({ health }: { health: Health }) {
  const { name, quorate, online, total, leader } = health
  const allOnline = online === total
  return (
    <>
      {name && <Label icon={<ClusterIcon />}>{name}</Label>}
      {quorate !== undefined && (
        <Label
          color={quorate ? 'green' : 'red'}
          icon={quorate ? <CheckCircleIcon /> : <ExclamationCircleIcon />}
        >
          {quorate ? 'Quorate' : 'No quorum'}
        </Label>
      )}
      <Label color={allOnline ? 'green' : 'red'} icon={<ServerIcon />}>
        {online}/{total} nodes online
      </Label>
      {leader && <Label variant="outline">Leader {leader}</Label>}
    </>
  )
}

/** Whether what is shown is live. */
function LiveLabel() {
  const state = useStreamState()
  const down = useStore(reachability.down)
  if (state === 'live' && !down) {
    return (
      <Tooltip content="Changes show as they happen.">
        <Label className="live" variant="outline" icon={<span className="live-dot" aria-hidden="true" />}>
          Live
        </Label>
      </Tooltip>
    )
  }
  return (
    <Tooltip content="The event stream is interrupted. The state is read every 3 seconds meanwhile.">
      <Label color="orange" icon={<SyncAltIcon className="turning" />}>
        Reconnecting…
      </Label>
    </Tooltip>
  )
}
