import { Badge, Button } from '@patternfly/react-core'
import AngleDownIcon from '@patternfly/react-icons/dist/esm/icons/angle-down-icon'
import AngleUpIcon from '@patternfly/react-icons/dist/esm/icons/angle-up-icon'
import { useQuery } from '@tanstack/react-query'
import { useEffect } from 'react'
import { queries } from '../../api/queries'
import { useStore } from '../../api/store'
import type { Task } from '../../api/types'
import { outcomeOf } from '../../api/upid'
import { usePollInterval } from '../../events/useClusterEvents'
import { ReadError } from '../../ui/ErrorNotice'
import { plural } from '../../ui/format'
import { showToast } from '../../ui/Toasts'
import { followOn, panel, selectTask, setPanelOpen, takeWatched } from './panel'
import { TaskLog } from './TaskLog'
import { TaskTable } from './TaskTable'
import './tasks.css'

/** The cluster's latest tasks at the bottom of every page, with the live log of the selected one. */
export function TaskPanel() {
  const { open, selected } = useStore(panel)
  const tasks = useQuery({ ...queries.tasks(), refetchInterval: usePollInterval() })
  const list = tasks.data ?? []
  useFailureToasts(list)
  useEffect(() => followOn(tasks.data ?? []), [tasks.data])
  const running = list.filter((t) => outcomeOf(t) === 'running').length
  return (
    <section className={open ? 'tasks tasks-open' : 'tasks'} aria-label="Tasks">
      <div className="tasks-bar">
        <Button
          variant="plain"
          aria-expanded={open}
          aria-label={open ? 'Collapse tasks' : 'Expand tasks'}
          icon={open ? <AngleDownIcon /> : <AngleUpIcon />}
          onClick={() => setPanelOpen(!open)}
        />
        <h2>Tasks</h2>
        {running > 0 && <Badge screenReaderText="tasks">{running} running</Badge>}
        <span className="muted" aria-live="polite">
          {running > 0 ? '' : `${plural(list.length, 'recent task')}`}
        </span>
      </div>
      {open && (
        <div className="tasks-body">
          <div className="tasks-list">
            {tasks.error && (
              <ReadError
                title="Could not read the tasks"
                error={tasks.error}
                onRetry={() => tasks.refetch()}
              />
            )}
            <TaskTable
              tasks={list}
              selected={selected}
              onSelect={selectTask}
              label="Latest tasks of the cluster"
            />
          </div>
          {selected && (
            <TaskLog
              key={selected}
              upid={selected}
              task={list.find((t) => t.upid === selected)}
              onClose={() => selectTask(null)}
            />
          )}
        </div>
      )}
    </section>
  )
}

/** A task started here that ends badly is told, unless its log is in sight. */
function useFailureToasts(tasks: Task[]): void {
  useEffect(() => {
    for (const task of tasks) {
      const outcome = outcomeOf(task)
      if (outcome === 'running') continue
      const what = takeWatched(task.upid)
      if (!what || outcome === 'ok') continue
      const { open, selected } = panel.get()
      if (open && selected === task.upid) continue
      const failed = outcome === 'failed'
      showToast({
        id: task.upid,
        variant: failed ? 'danger' : 'warning',
        title: failed ? `Failed: ${what}` : `Done with warnings: ${what}`,
        action: { label: 'Show log', run: () => selectTask(task.upid) },
        ...(task.status ? { text: task.status } : {}),
      })
    }
  }, [tasks])
}
