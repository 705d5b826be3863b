import { useQuery } from '@tanstack/react-query'
import { useMemo } from 'react'
import { queries } from '../api/queries'
import { usePollInterval } from '../events/useClusterEvents'
import { type Cluster, clusterOf } from './cluster'

/** The whole cluster, followed. `cluster` is there as soon as it was read once, and stays while errors come. */
export function useCluster(): { cluster: Cluster | undefined; error: Error | null; retry: () => void } {
  const refetchInterval = usePollInterval()
  const status = useQuery({ ...queries.clusterStatus(), refetchInterval })
  const ha = useQuery({ ...queries.haStatus(), refetchInterval })
  const resources = useQuery({ ...queries.resources(), refetchInterval })
  const cluster = useMemo(
    () => (status.data && resources.data ? clusterOf(status.data, ha.data ?? [], resources.data) : undefined),
    [status.data, ha.data, resources.data],
  )
  return {
    cluster,
    // HA's part is extra: without the privilege to see it the rest still shows.
    error: resources.error ?? status.error,
    retry() {
      status.refetch()
      ha.refetch()
      resources.refetch()
    },
  }
}
