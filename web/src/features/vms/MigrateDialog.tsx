import {
  Alert,
  Button,
  Content,
  List,
  ListItem,
  Modal,
  ModalBody,
  ModalFooter,
  ModalHeader,
  Radio,
  Skeleton,
} from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { queries } from '../../api/queries'
import type { MigratePreconditions } from '../../api/types'
import { flag, type Guest, type Node } from '../../model/cluster'
import { proposed, type Target, targetsOf } from '../../model/targets'
import { ReadError } from '../../ui/ErrorNotice'
import { bytes, percent } from '../../ui/format'

interface Props {
  guest: Guest
  nodes: Node[]
  onMigrate: (target: string, online: boolean) => void
  onCancel: () => void
}

/** Where to, with what speaks against a node said beside it. */
export function MigrateDialog({ guest, nodes, onMigrate, onCancel }: Props) {
  const { vmid, name, node, status } = guest
  const conditions = useQuery(queries.migratePreconditions(node, vmid))
  const [picked, setPicked] = useState<string>()
  const targets = targetsOf(nodes, node, conditions.data)
  const proposal = conditions.data && proposed(targets)
  // Proposed once: what stands as chosen must not move when loads change, just before it is clicked.
  if (picked === undefined && proposal) setPicked(proposal)
  const possible = targets.some((t) => t.node.name === picked && t.obstacle === null)
  const running = conditions.data ? flag(conditions.data.running) : status !== 'stopped'
  return (
    <Modal
      variant="medium"
      isOpen
      onClose={onCancel}
      aria-labelledby="migrate-title"
      aria-describedby="migrate-body"
    >
      <ModalHeader
        title={`Migrate ${name} (${vmid})`}
        labelId="migrate-title"
        description={
          running
            ? `From ${node}. The guest goes on running; its users notice a pause of milliseconds.`
            : `From ${node}. The guest is stopped and stays so.`
        }
      />
      <ModalBody id="migrate-body">
        {conditions.error && (
          <ReadError
            title="Could not ask where the guest can go"
            error={conditions.error}
            onRetry={() => conditions.refetch()}
          />
        )}
        {conditions.isPending && <Skeleton height="6rem" screenreaderText="Asking where the guest can go" />}
        {conditions.data && (
          <>
            <Obstacles conditions={conditions.data} />
            <fieldset className="targets">
              <legend>Target node</legend>
              {targets.map((t) => (
                <TargetChoice
                  key={t.node.name}
                  target={t}
                  chosen={t.node.name === picked}
                  onPick={setPicked}
                />
              ))}
              {targets.length === 0 && <Content component="p">The cluster has no other node.</Content>}
            </fieldset>
          </>
        )}
      </ModalBody>
      <ModalFooter>
        <Button
          variant="primary"
          isDisabled={!conditions.data || !possible}
          onClick={() => picked && onMigrate(picked, running)}
        >
          Migrate
        </Button>
        <Button variant="link" onClick={onCancel}>
          Cancel
        </Button>
      </ModalFooter>
    </Modal>
  )
}

function TargetChoice({
  target,
  chosen,
  onPick,
}: {
  target: Target
  chosen: boolean
  onPick: (n: string) => void
}) {
  const { node, obstacle } = target
  const load = `CPU ${percent(node.cpu)}, memory ${bytes(node.mem)} of ${bytes(node.maxmem)}, ${node.guests.length} guests`
  return (
    <Radio
      id={`target-${node.name}`}
      name="target"
      label={node.name}
      description={obstacle ?? load}
      isDisabled={obstacle !== null}
      isChecked={chosen}
      onChange={() => onPick(node.name)}
    />
  )
}

/** What ties the guest to its node. */
function Obstacles({ conditions }: { conditions: MigratePreconditions }) {
  const disks = (conditions.local_disks ?? []).map((d) => `${d.volid}${flag(d.cdrom) ? ' (CD)' : ''}`)
  const all = [...disks, ...(conditions.local_resources ?? [])]
  if (all.length === 0) return null
  return (
    <Alert
      variant="warning"
      isInline
      title="The guest uses what only its node has; the migration may be refused"
    >
      <List>
        {all.map((item) => (
          <ListItem key={item}>
            <code>{item}</code>
          </ListItem>
        ))}
      </List>
    </Alert>
  )
}
