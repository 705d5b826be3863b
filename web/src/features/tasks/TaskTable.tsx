import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import type { Task } from '../../api/types'
import { describeTask, outcomeOf } from '../../api/upid'
import { duration, time } from '../../ui/format'
import { TaskLabel } from '../../ui/state'

interface Props {
  tasks: Task[]
  label: string
  selected: string | null
  onSelect: (upid: string) => void
}

/** Running ones first, then the latest. */
export function TaskTable({ tasks, label, selected, onSelect }: Props) {
  if (tasks.length === 0) return <p className="muted tasks-none">No tasks yet.</p>
  const running = (t: Task) => (outcomeOf(t) === 'running' ? 1 : 0)
  const sorted = [...tasks].sort((a, b) => running(b) - running(a) || b.starttime - a.starttime)
  return (
    <Table
      role="table"
      aria-label={label}
      variant="compact"
      borders={false}
      className="task-table"
      isStickyHeader
    >
      <Thead>
        <Tr>
          <Th>Started</Th>
          <Th>Took</Th>
          <Th>Node</Th>
          <Th>User</Th>
          <Th>Task</Th>
          <Th>Result</Th>
        </Tr>
      </Thead>
      <Tbody>
        {sorted.map((task) => (
          <TaskRow key={task.upid} task={task} selected={task.upid === selected} onSelect={onSelect} />
        ))}
      </Tbody>
    </Table>
  )
}

function TaskRow({
  task,
  selected,
  onSelect,
}: {
  task: Task
  selected: boolean
  onSelect: Props['onSelect']
}) {
  const outcome = outcomeOf(task)
  const select = () => onSelect(task.upid)
  return (
    <Tr isClickable isRowSelected={selected} onRowClick={select}>
      <Td dataLabel="Started">{time(task.starttime)}</Td>
      <Td dataLabel="Took">{task.endtime === undefined ? '…' : duration(task.endtime - task.starttime)}</Td>
      <Td dataLabel="Node">{task.node}</Td>
      <Td dataLabel="User">{task.user}</Td>
      <Td dataLabel="Task">
        <button type="button" className="task-link" onClick={select}>
          {describeTask(task.type, task.id)}
        </button>
      </Td>
      <Td dataLabel="Result">
        <TaskLabel outcome={outcome} {...(outcome === 'warnings' ? { text: task.status } : {})} />
        {outcome === 'failed' && (
          <span className="task-error" title={task.status}>
            {task.status}
          </span>
        )}
      </Td>
    </Tr>
  )
}
