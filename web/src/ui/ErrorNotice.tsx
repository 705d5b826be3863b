import { Alert, AlertActionCloseButton, AlertActionLink, List, ListItem } from '@patternfly/react-core'
import { ApiError, messageOf } from '../api/errors'
import { reachability } from '../api/reachability'
import { useStore } from '../api/store'

interface Props {
  /** What was attempted: `Could not start VM 100`. */
  title: string
  error: unknown
  onRetry?: (() => void) | undefined
  onClose?: (() => void) | undefined
}

/** An error in full: what was attempted, why it failed, which parameters are wrong, and the way to try again. */
export function ErrorNotice({ title, error, onRetry, onClose }: Props) {
  const api = error instanceof ApiError ? error : null
  const details = Object.entries(api?.errors ?? {})
  return (
    <Alert
      variant="danger"
      isInline
      title={title}
      actionLinks={onRetry && <AlertActionLink onClick={onRetry}>Try again</AlertActionLink>}
      actionClose={onClose && <AlertActionCloseButton onClose={onClose} />}
    >
      <p className="error-message">{messageOf(error)}</p>
      {details.length > 0 && (
        <List>
          {details.map(([name, text]) => (
            <ListItem key={name}>
              <code>{name}</code>: {text}
            </ListItem>
          ))}
        </List>
      )}
      {api && (
        <p className="error-request">
          {decodeURI(api.request)}
          {api.status ? ` → ${api.status}` : ''}
        </p>
      )}
    </Alert>
  )
}

/** An error of reading. While the serving node is away, the notice of that says it all. */
export function ReadError(props: Props) {
  const down = useStore(reachability.down)
  const { error } = props
  if (down && error instanceof ApiError && (error.trouble === 'unreachable' || error.trouble === 'timeout'))
    return null
  return <ErrorNotice {...props} />
}
