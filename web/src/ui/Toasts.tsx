import { Alert, AlertActionCloseButton, AlertActionLink, AlertGroup } from '@patternfly/react-core'
import { createStore, useStore } from '../api/store'

export interface Toast {
  id: string
  variant: 'success' | 'danger' | 'warning' | 'info'
  title: string
  text?: string
  action?: { label: string; run: () => void }
}

const toasts = createStore<Toast[]>([])

export function showToast(toast: Toast): void {
  toasts.set([...toasts.get().filter((t) => t.id !== toast.id), toast])
}

function close(id: string): void {
  toasts.set(toasts.get().filter((t) => t.id !== id))
}

/** Notices that come and go. What went wrong stays until it is closed. */
export function Toasts() {
  return (
    <AlertGroup isToast isLiveRegion>
      {useStore(toasts).map(({ id, variant, title, text, action }) => (
        <Alert
          key={id}
          variant={variant}
          title={title}
          timeout={variant === 'success' ? 5000 : false}
          onTimeout={() => close(id)}
          actionClose={<AlertActionCloseButton onClose={() => close(id)} />}
          actionLinks={
            action && (
              <AlertActionLink
                onClick={() => {
                  action.run()
                  close(id)
                }}
              >
                {action.label}
              </AlertActionLink>
            )
          }
        >
          {text}
        </Alert>
      ))}
    </AlertGroup>
  )
}
