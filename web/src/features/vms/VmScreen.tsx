import { Button, EmptyState, EmptyStateBody, Flex, Label } from '@patternfly/react-core'
import DesktopIcon from '@patternfly/react-icons/dist/esm/icons/desktop-icon'
import ExpandIcon from '@patternfly/react-icons/dist/esm/icons/expand-icon'
import KeyboardIcon from '@patternfly/react-icons/dist/esm/icons/keyboard-icon'
import { useRef } from 'react'
import { messageOf } from '../../api/errors'
import type { Guest } from '../../model/cluster'
import { useScreen } from './useScreen'

/** The guest's screen, keyboard and pointer. */
export default function VmScreen({ guest, away }: { guest: Guest; away: boolean }) {
  if (away) {
    return (
      <EmptyState titleText={`Node ${guest.node} does not answer`} headingLevel="h2" icon={DesktopIcon}>
        <EmptyStateBody>The screen shows again here as soon as the guest runs.</EmptyStateBody>
      </EmptyState>
    )
  }
  if (guest.status === 'stopped') {
    return (
      <EmptyState titleText="The guest is stopped" headingLevel="h2" icon={DesktopIcon}>
        <EmptyStateBody>Its screen shows here once it is started.</EmptyStateBody>
      </EmptyState>
    )
  }
  return <LiveScreen guest={guest} />
}

function LiveScreen({ guest: { node, vmid, name } }: { guest: Guest }) {
  const target = useRef<HTMLDivElement>(null)
  const { state, connectNow, sendCtrlAltDel } = useScreen(target, node, vmid)
  const connected = state.is === 'connected'
  return (
    <div className="screen">
      <Flex className="screen-bar" alignItems={{ default: 'alignItemsCenter' }} gap={{ default: 'gapSm' }}>
        <Label color={connected ? 'green' : 'orange'} isCompact aria-live="polite">
          {connected ? `Connected to ${node}` : state.is === 'waiting' ? 'Reconnecting…' : 'Connecting…'}
        </Label>
        {state.is === 'waiting' && <span className="muted">{messageOf(state.why)}</span>}
        <span className="screen-actions">
          {state.is === 'waiting' && (
            <Button variant="secondary" size="sm" onClick={connectNow}>
              Reconnect now
            </Button>
          )}
          <Button
            variant="secondary"
            size="sm"
            icon={<KeyboardIcon />}
            isDisabled={!connected}
            onClick={sendCtrlAltDel}
          >
            Ctrl+Alt+Del
          </Button>
          <Button
            variant="secondary"
            size="sm"
            icon={<ExpandIcon />}
            isDisabled={!connected}
            onClick={() => target.current?.requestFullscreen()}
          >
            Full screen
          </Button>
        </span>
      </Flex>
      <section
        ref={target}
        className="screen-target"
        aria-label={`Screen of ${name}`}
        data-connected={connected}
      />
    </div>
  )
}
