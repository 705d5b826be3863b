import { useMutation, useQueryClient } from '@tanstack/react-query'
import { call } from '../../api/client'
import type { VmActionId } from '../../model/vmActions'
import { followTask } from '../tasks/panel'

export interface VmCommand {
  action: VmActionId
  node: string
  vmid: number
  /** Of a migration. */
  target?: string
  /** Of a migration: the guest goes on running. */
  online?: boolean
}

/** The command in words, for what tells of its success or failure. */
export function describeCommand({ action, vmid, target }: VmCommand): string {
  const verbs: Record<VmActionId, string> = {
    start: 'start',
    shutdown: 'shut down',
    reboot: 'reboot',
    stop: 'stop',
    migrate: 'migrate',
  }
  return `${verbs[action]} VM ${vmid}${target ? ` to ${target}` : ''}`
}

/** Gives a command; its task then shows in the panel. */
export function useVmAction() {
  const client = useQueryClient()
  return useMutation({
    mutationFn: send,
    onSuccess(upid, command) {
      followTask(upid, describeCommand(command))
      client.invalidateQueries({ queryKey: ['tasks'] })
      client.invalidateQueries({ queryKey: ['node-tasks'] })
    },
  })
}

function send({ action, node, vmid, target = '', online = false }: VmCommand): Promise<string> {
  const at = { node, vmid }
  switch (action) {
    case 'start':
      return call('POST /nodes/{node}/qemu/{vmid}/status/start', at)
    case 'shutdown':
      return call('POST /nodes/{node}/qemu/{vmid}/status/shutdown', at)
    case 'reboot':
      return call('POST /nodes/{node}/qemu/{vmid}/status/reboot', at)
    case 'stop':
      return call('POST /nodes/{node}/qemu/{vmid}/status/stop', at)
    case 'migrate':
      return call('POST /nodes/{node}/qemu/{vmid}/migrate', {
        ...at,
        target,
        online,
      })
  }
}
