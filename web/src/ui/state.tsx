/** How states look: one table for tree, tables and headers. */

import { Icon, Label, Spinner } from '@patternfly/react-core'
import CheckCircleIcon from '@patternfly/react-icons/dist/esm/icons/check-circle-icon'
import ExclamationCircleIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon'
import ExclamationTriangleIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon'
import OffIcon from '@patternfly/react-icons/dist/esm/icons/off-icon'
import PauseCircleIcon from '@patternfly/react-icons/dist/esm/icons/pause-circle-icon'
import PlayIcon from '@patternfly/react-icons/dist/esm/icons/play-icon'
import QuestionCircleIcon from '@patternfly/react-icons/dist/esm/icons/question-circle-icon'
import type { ReactElement } from 'react'
import type { TaskOutcome } from '../api/upid'

type IconStatus = 'success' | 'danger' | 'warning' | 'info' | 'custom'

interface Look {
  text: string
  color: 'green' | 'red' | 'orange' | 'blue' | 'grey' | 'yellow'
  icon: ReactElement
  status?: IconStatus
}

const GUEST: Record<string, Look> = {
  running: { text: 'Running', color: 'green', icon: <PlayIcon />, status: 'success' },
  stopped: { text: 'Stopped', color: 'grey', icon: <OffIcon /> },
  paused: { text: 'Paused', color: 'orange', icon: <PauseCircleIcon />, status: 'warning' },
  unknown: { text: 'Unknown', color: 'yellow', icon: <QuestionCircleIcon />, status: 'warning' },
}

const NODE: Record<string, Look> = {
  online: { text: 'Online', color: 'green', icon: <CheckCircleIcon />, status: 'success' },
  offline: { text: 'Offline', color: 'red', icon: <ExclamationCircleIcon />, status: 'danger' },
  lost: { text: 'Lost', color: 'red', icon: <ExclamationCircleIcon />, status: 'danger' },
  unknown: { text: 'Unknown', color: 'yellow', icon: <QuestionCircleIcon />, status: 'warning' },
}

const TASK: Record<TaskOutcome, Look> = {
  running: { text: 'Running', color: 'blue', icon: <Spinner size="sm" aria-label="Running" /> },
  ok: { text: 'OK', color: 'green', icon: <CheckCircleIcon />, status: 'success' },
  warnings: { text: 'Warnings', color: 'orange', icon: <ExclamationTriangleIcon />, status: 'warning' },
  failed: { text: 'Failed', color: 'red', icon: <ExclamationCircleIcon />, status: 'danger' },
}

const HA_COLOR: Record<string, Look['color']> = {
  started: 'green',
  error: 'red',
  fence: 'orange',
  recovery: 'orange',
  migrate: 'blue',
  relocate: 'blue',
  request_start: 'blue',
  request_stop: 'blue',
}

function lookOf(table: Record<string, Look>, state: string): Look {
  return table[state] ?? { text: state, color: 'yellow', icon: <QuestionCircleIcon />, status: 'warning' }
}

function StateLabel({ look }: { look: Look }) {
  return (
    <Label color={look.color} icon={look.icon} isCompact>
      {look.text}
    </Label>
  )
}

function StateIcon({ look }: { look: Look }) {
  return (
    <Icon {...(look.status ? { status: look.status } : {})} title={look.text}>
      {look.icon}
    </Icon>
  )
}

export const GuestLabel = ({ status }: { status: string }) => <StateLabel look={lookOf(GUEST, status)} />
export const GuestIcon = ({ status }: { status: string }) => <StateIcon look={lookOf(GUEST, status)} />
export const NodeLabel = ({ state }: { state: string }) => <StateLabel look={lookOf(NODE, state)} />
export const NodeIcon = ({ state }: { state: string }) => <StateIcon look={lookOf(NODE, state)} />
export const TaskIcon = ({ outcome }: { outcome: TaskOutcome }) => <StateIcon look={TASK[outcome]} />

export function TaskLabel({ outcome, text }: { outcome: TaskOutcome; text?: string | undefined }) {
  const look = TASK[outcome]
  return <StateLabel look={text ? { ...look, text } : look} />
}

export function HaLabel({ state }: { state: string | undefined }) {
  if (!state) return <span className="muted">Not managed</span>
  return (
    <Label color={HA_COLOR[state] ?? 'grey'} isCompact variant="outline">
      {state}
    </Label>
  )
}
