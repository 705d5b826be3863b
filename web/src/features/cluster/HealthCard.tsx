import { Card, CardBody, CardTitle, Icon } from '@patternfly/react-core'
import CheckCircleIcon from '@patternfly/react-icons/dist/esm/icons/check-circle-icon'
import ExclamationCircleIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon'
import ExclamationTriangleIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon'
import type { Cluster } from '../../model/cluster'
import { findingsOf, type Severity } from '../../model/findings'

const LOOK = {
  ok: { status: 'success', icon: <CheckCircleIcon /> },
  warning: { status: 'warning', icon: <ExclamationTriangleIcon /> },
  danger: { status: 'danger', icon: <ExclamationCircleIcon /> },
} as const satisfies Record<Severity, unknown>

/** What is well and what is not, in sentences. */
export function HealthCard({ cluster }: { cluster: Cluster }) {
  return (
    <Card isFullHeight isCompact>
      <CardTitle component="h2">Health</CardTitle>
      <CardBody>
        <ul className="findings">
          {findingsOf(cluster).map(({ severity, text }) => (
            <li key={text}>
              <Icon status={LOOK[severity].status}>{LOOK[severity].icon}</Icon>
              <span>{text}</span>
            </li>
          ))}
        </ul>
      </CardBody>
    </Card>
  )
}
