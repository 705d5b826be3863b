import { Spinner } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { queries } from '../../api/queries'
import { useStore } from '../../api/store'
import { usePollInterval } from '../../events/useClusterEvents'
import { ReadError } from '../../ui/ErrorNotice'
import { panel, selectTask } from './panel'
import { TaskTable } from './TaskTable'

/** The tasks of a node, or of a guest on it. */
export function ScopedTasks({ node, vmid }: { node: string; vmid?: number }) {
  const { selected } = useStore(panel)
  const tasks = useQuery({ ...queries.nodeTasks(node, vmid), refetchInterval: usePollInterval() })
  if (tasks.isPending) return <Spinner aria-label="Reading the tasks" />
  return (
    <>
      {tasks.error && (
        <ReadError
          title={`Could not read the tasks of ${node}`}
          error={tasks.error}
          onRetry={() => tasks.refetch()}
        />
      )}
      {tasks.data && <TaskTable tasks={tasks.data} label="Tasks" selected={selected} onSelect={selectTask} />}
    </>
  )
}
