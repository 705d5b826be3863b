/** All links of the console are made here. */

import { linkOptions } from '@tanstack/react-router'

export type VmTab = 'summary' | 'screen' | 'hardware' | 'tasks'
export const VM_TABS: readonly VmTab[] = ['summary', 'screen', 'hardware', 'tasks']

export const links = {
  signIn: (back?: string) => linkOptions({ to: '/signin', search: back && back !== '/' ? { back } : {} }),
  cluster: () => linkOptions({ to: '/' }),
  node: (node: string) => linkOptions({ to: '/nodes/$node', params: { node } }),
  /** A guest's page does not name its node, so that it stays good when the guest moves. */
  vm: (vmid: number) => linkOptions({ to: '/vms/$vmid', params: { vmid: String(vmid) } }),
  vmTab: (vmid: number, tab: VmTab) =>
    linkOptions({ to: '/vms/$vmid/$tab', params: { vmid: String(vmid), tab } }),
}

/** The console as another node serves it. */
export function otherNode(
  address: { ip: string; port?: number },
  here: { protocol: string; port: string },
): string {
  const host = address.ip.includes(':') ? `[${address.ip}]` : address.ip
  const port = address.port ?? here.port
  return `${here.protocol}//${host}${port ? `:${port}` : ''}/`
}
