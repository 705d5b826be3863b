/** What can be done to a guest, and when. Pure. */

export type VmActionId = 'start' | 'shutdown' | 'reboot' | 'stop' | 'migrate'

export interface GuestSituation {
  status: string
  template: boolean
  nodeOnline: boolean
  node: string
  quorate: boolean
}

/** Why the action is not possible now; null when it is. */
export function refusal(action: VmActionId, guest: GuestSituation): string | null {
  if (!guest.quorate) return 'The cluster has no quorum.'
  if (!guest.nodeOnline) return `Node ${guest.node} does not answer.`
  if (guest.template && action !== 'migrate') return 'A template is never run.'
  if (action === 'migrate') return null
  const stopped = guest.status === 'stopped'
  if (action === 'start') return stopped || guest.status === 'paused' ? null : 'It is running.'
  return stopped ? 'It is stopped.' : null
}
