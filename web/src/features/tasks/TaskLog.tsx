import { Button, Flex } from '@patternfly/react-core'
import TimesIcon from '@patternfly/react-icons/dist/esm/icons/times-icon'
import { useMutation, useQuery } from '@tanstack/react-query'
import { useEffect, useRef } from 'react'
import { call } from '../../api/client'
import { queries } from '../../api/queries'
import type { Task } from '../../api/types'
import { describeTask, outcomeOf, outcomeOfExit, parseUpid, type TaskOutcome } from '../../api/upid'
import { ErrorNotice, ReadError } from '../../ui/ErrorNotice'
import { TaskLabel } from '../../ui/state'

interface Props {
  upid: string
  /** The task in the list, where it is already there. */
  task: Task | undefined
  onClose: () => void
}

/** Besides the events: a log line whose event was lost still shows soon. */
const POLL_MS = 1_000
/** Its node may be gone for long. */
const POLL_AFTER_ERROR_MS = 5_000

/** A task's log while it is written. */
export function TaskLog({ upid, task, onClose }: Props) {
  const parsed = parseUpid(upid)
  const node = parsed?.node ?? task?.node ?? ''
  const status = useQuery({
    ...queries.taskStatus(node, upid),
    refetchInterval: ({ state }) =>
      state.data?.status === 'stopped' ? false : state.error ? POLL_AFTER_ERROR_MS : POLL_MS,
  })
  const ended = status.data?.status === 'stopped'
  const log = useQuery({
    ...queries.taskLog(node, upid),
    refetchInterval: ended ? false : status.error ? POLL_AFTER_ERROR_MS : POLL_MS,
  })
  // The end is known before the last lines are: they are read once more.
  const { refetch } = log
  useEffect(() => {
    if (ended) refetch()
  }, [ended, refetch])
  const stop = useMutation({ mutationFn: () => call('DELETE /nodes/{node}/tasks/{upid}', { node, upid }) })

  const exit = status.data?.exitstatus ?? task?.status
  const outcome: TaskOutcome = ended ? outcomeOfExit(exit) : task ? outcomeOf(task) : 'running'
  const title = parsed ? describeTask(parsed.type, parsed.id) : upid
  return (
    <section className="task-log" aria-label={`Log of ${title}`}>
      <Flex className="task-log-head" alignItems={{ default: 'alignItemsCenter' }} gap={{ default: 'gapSm' }}>
        <h3>{title}</h3>
        <TaskLabel outcome={outcome} />
        <span className="muted">on {node}</span>
        <span className="task-log-actions">
          {outcome === 'running' && (
            <Button
              variant="secondary"
              size="sm"
              isDanger
              isLoading={stop.isPending}
              onClick={() => stop.mutate()}
            >
              Stop task
            </Button>
          )}
          <Button variant="plain" size="sm" aria-label="Close log" icon={<TimesIcon />} onClick={onClose} />
        </span>
      </Flex>
      {stop.error && <ErrorNotice title="Could not stop the task" error={stop.error} onClose={stop.reset} />}
      {outcome === 'failed' && <p className="task-log-error">{exit}</p>}
      {log.error && !log.data && (
        <ReadError title="Could not read the log" error={log.error} onRetry={() => log.refetch()} />
      )}
      <LogText lines={log.data?.lines ?? []} />
    </section>
  )
}

/** Keeps the newest line in sight, unless the reader has scrolled up. */
function LogText({ lines }: { lines: string[] }) {
  const box = useRef<HTMLPreElement>(null)
  const atEnd = useRef(true)
  const count = lines.length
  useEffect(() => {
    const element = box.current
    if (element && atEnd.current && count > 0) element.scrollTop = element.scrollHeight
  }, [count])
  return (
    <pre
      ref={box}
      className="task-log-text"
      role="log"
      // Scrolling by keyboard needs the focus.
      // biome-ignore lint/a11y/noNoninteractiveTabindex: a scrollable region has to be reachable by keyboard.
      tabIndex={0}
      onScroll={({ currentTarget: e }) => {
        atEnd.current = e.scrollHeight - e.scrollTop - e.clientHeight < 24
      }}
    >
      {lines.join('\n')}
    </pre>
  )
}
