import { ActionList, ActionListGroup, ActionListItem, Button, Tooltip } from '@patternfly/react-core'
import MigrationIcon from '@patternfly/react-icons/dist/esm/icons/migration-icon'
import PlayIcon from '@patternfly/react-icons/dist/esm/icons/play-icon'
import PowerOffIcon from '@patternfly/react-icons/dist/esm/icons/power-off-icon'
import RedoIcon from '@patternfly/react-icons/dist/esm/icons/redo-icon'
import StopIcon from '@patternfly/react-icons/dist/esm/icons/stop-icon'
import { type ReactElement, useState } from 'react'
import type { Cluster, Guest } from '../../model/cluster'
import { refusal, type VmActionId } from '../../model/vmActions'
import { ConfirmDialog } from '../../ui/ConfirmDialog'
import { ErrorNotice } from '../../ui/ErrorNotice'
import { MigrateDialog } from './MigrateDialog'
import { describeCommand, useVmAction, type VmCommand } from './useVmAction'

interface Look {
  label: string
  icon: ReactElement
  variant: 'primary' | 'secondary'
  danger?: boolean
  /** What is asked first. */
  question?: string
}

const ACTIONS: Record<VmActionId, Look> = {
  start: { label: 'Start', icon: <PlayIcon />, variant: 'primary' },
  shutdown: {
    label: 'Shut down',
    icon: <PowerOffIcon />,
    variant: 'secondary',
    question: 'The guest is asked to shut down in order, as by its power button.',
  },
  reboot: {
    label: 'Reboot',
    icon: <RedoIcon />,
    variant: 'secondary',
    question:
      'The guest is shut down in order and started again. Changes that wait for a restart take effect.',
  },
  migrate: { label: 'Migrate', icon: <MigrationIcon />, variant: 'secondary' },
  stop: {
    label: 'Stop',
    icon: <StopIcon />,
    variant: 'secondary',
    danger: true,
    question:
      'The guest is switched off at once, as by pulling its plug. What it has not written to disk is lost.',
  },
}

export function VmActions({ guest, cluster }: { guest: Guest; cluster: Cluster }) {
  const [asked, setAsked] = useState<VmActionId | null>(null)
  const command = useVmAction()
  const { node, vmid, name } = guest
  const situation = {
    ...guest,
    nodeOnline: cluster.nodes.find((n) => n.name === node)?.state === 'online',
    quorate: cluster.health.quorate !== false,
  }
  const give = (given: VmCommand) => {
    setAsked(null)
    command.mutate(given)
  }
  const press = (action: VmActionId) => {
    if (action === 'migrate' || ACTIONS[action].question) setAsked(action)
    else give({ action, node, vmid })
  }
  const failed = command.variables
  return (
    <>
      <ActionList>
        <ActionListGroup className="vm-actions">
          {(Object.keys(ACTIONS) as VmActionId[]).map((action) => (
            <ActionListItem key={action}>
              <ActionButton
                action={action}
                refused={refusal(action, situation)}
                onPress={() => press(action)}
              />
            </ActionListItem>
          ))}
        </ActionListGroup>
      </ActionList>
      {command.error && failed && (
        <ErrorNotice
          title={`Could not ${describeCommand(failed)}`}
          error={command.error}
          onRetry={() => command.mutate(failed)}
          onClose={command.reset}
        />
      )}
      {asked === 'migrate' && (
        <MigrateDialog
          guest={guest}
          nodes={cluster.nodes}
          onMigrate={(target, online) => give({ action: 'migrate', node, vmid, target, online })}
          onCancel={() => setAsked(null)}
        />
      )}
      {asked && asked !== 'migrate' && (
        <ConfirmDialog
          title={`${ACTIONS[asked].label} ${name} (${vmid})?`}
          action={ACTIONS[asked].label}
          danger={ACTIONS[asked].danger === true}
          onConfirm={() => give({ action: asked, node, vmid })}
          onCancel={() => setAsked(null)}
        >
          {ACTIONS[asked].question}
        </ConfirmDialog>
      )}
    </>
  )
}

interface ButtonProps {
  action: VmActionId
  /** Why not now. */
  refused: string | null
  onPress: () => void
}

function ActionButton({ action, refused, onPress }: ButtonProps) {
  const { label, icon, variant, danger } = ACTIONS[action]
  const button = (
    <Button
      variant={variant}
      icon={icon}
      isDanger={danger === true}
      // Stays in reach of keyboard and pointer, so that the reason can be read.
      isAriaDisabled={refused !== null}
      onClick={onPress}
    >
      {label}
    </Button>
  )
  return refused ? <Tooltip content={refused}>{button}</Tooltip> : button
}
