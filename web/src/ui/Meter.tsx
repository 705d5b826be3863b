import { Progress, ProgressMeasureLocation, ProgressVariant } from '@patternfly/react-core'
import { percent } from './format'

interface Props {
  /** Names it for screen readers: `CPU of n1`. */
  label: string
  /** Of 1. */
  share: number | undefined
  /** Shown in place of the share. */
  text?: string
  title?: string
}

const WARN = 0.85
const DANGER = 0.95

/** How full something is. */
export function Meter({ label, share, text, title }: Props) {
  if (share === undefined || !Number.isFinite(share)) return <span className="muted">–</span>
  const value = Math.min(100, Math.max(0, share * 100))
  const variant =
    share >= DANGER ? ProgressVariant.danger : share >= WARN ? ProgressVariant.warning : undefined
  return (
    <Progress
      size="sm"
      className={title ? 'meter' : 'meter meter-inline'}
      aria-label={label}
      {...(title ? { title } : {})}
      value={value}
      label={text ?? percent(share)}
      measureLocation={title ? ProgressMeasureLocation.top : ProgressMeasureLocation.outside}
      {...(variant ? { variant } : {})}
    />
  )
}

export function shareOf(used: number | undefined, total: number | undefined): number | undefined {
  return used === undefined || !total ? undefined : used / total
}
