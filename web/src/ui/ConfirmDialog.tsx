import { Button, Modal, ModalBody, ModalFooter, ModalHeader } from '@patternfly/react-core'
import type { ReactNode } from 'react'

interface Props {
  title: string
  action: string
  danger?: boolean
  children: ReactNode
  onConfirm: () => void
  onCancel: () => void
}

export function ConfirmDialog({ title, action, danger = false, children, onConfirm, onCancel }: Props) {
  return (
    <Modal
      variant="small"
      isOpen
      onClose={onCancel}
      aria-labelledby="confirm-title"
      aria-describedby="confirm-body"
    >
      <ModalHeader
        title={title}
        labelId="confirm-title"
        {...(danger ? { titleIconVariant: 'warning' } : {})}
      />
      <ModalBody id="confirm-body">{children}</ModalBody>
      <ModalFooter>
        <Button variant={danger ? 'danger' : 'primary'} onClick={onConfirm}>
          {action}
        </Button>
        <Button variant="link" onClick={onCancel}>
          Cancel
        </Button>
      </ModalFooter>
    </Modal>
  )
}
