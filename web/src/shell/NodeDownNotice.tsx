import { Alert, List, ListItem } from '@patternfly/react-core'
import { reachability } from '../api/reachability'
import { useStore } from '../api/store'
import { otherNode } from '../app/links'
import { useCluster } from '../model/useCluster'

/** When the node that serves this page is gone: where else the console is. */
export function NodeDownNotice() {
  const down = useStore(reachability.down)
  const { cluster } = useCluster()
  if (!down) return null
  const local = cluster?.nodes.find((n) => n.local)?.name
  const others = (cluster?.nodes ?? []).filter((n) => !n.local && n.ip && n.state === 'online')
  return (
    <Alert
      variant="danger"
      isInline
      className="node-down"
      title={`${local ? `Node ${local}` : 'The node'} that serves this page does not answer`}
    >
      <p>
        What you see is as of the last answer. The console tries again by itself; the cluster may well be up.
        Every other node serves the same console:
      </p>
      {others.length > 0 ? (
        <List>
          {others.map(({ name, ip = '', port }) => {
            const url = otherNode(port === undefined ? { ip } : { ip, port }, location)
            return (
              <ListItem key={name}>
                {name}: <a href={url}>{url}</a>
              </ListItem>
            )
          })}
        </List>
      ) : (
        <p>No other node is known here.</p>
      )}
    </Alert>
  )
}
