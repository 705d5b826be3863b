/** What the pages read, each with its key. The first part of a key is what events name (`events/event.ts`). */

import { queryOptions } from '@tanstack/react-query'
import { call, callWhole } from './client'
import { appendLines, type LogSoFar, noLines } from './taskLog'

export const queries = {
  version: () =>
    queryOptions({ queryKey: ['version'], queryFn: ({ signal }) => call('GET /version', {}, signal) }),

  realms: () =>
    queryOptions({ queryKey: ['realms'], queryFn: ({ signal }) => call('GET /access/domains', {}, signal) }),

  clusterStatus: () =>
    queryOptions({
      queryKey: ['cluster', 'status'],
      queryFn: ({ signal }) => call('GET /cluster/status', {}, signal),
    }),

  haStatus: () =>
    queryOptions({
      queryKey: ['cluster', 'ha'],
      queryFn: ({ signal }) => call('GET /cluster/ha/status/current', {}, signal),
    }),

  resources: () =>
    queryOptions({
      queryKey: ['cluster', 'resources'],
      queryFn: ({ signal }) => call('GET /cluster/resources', {}, signal),
    }),

  tasks: () =>
    queryOptions({
      queryKey: ['tasks'],
      queryFn: ({ signal }) => call('GET /cluster/tasks', {}, signal),
    }),

  nodeStatus: (node: string) =>
    queryOptions({
      queryKey: ['node', node, 'status'],
      queryFn: ({ signal }) => call('GET /nodes/{node}/status', { node }, signal),
    }),

  nodeTasks: (node: string, vmid?: number) =>
    queryOptions({
      queryKey: ['node-tasks', node, vmid ?? null],
      queryFn: ({ signal }) =>
        call(
          'GET /nodes/{node}/tasks',
          { node, source: 'all', limit: 50, ...(vmid === undefined ? {} : { vmid }) },
          signal,
        ),
    }),

  vmStatus: (node: string, vmid: number) =>
    queryOptions({
      queryKey: ['vm', vmid, 'status', node],
      queryFn: ({ signal }) => call('GET /nodes/{node}/qemu/{vmid}/status/current', { node, vmid }, signal),
    }),

  vmConfig: (node: string, vmid: number) =>
    queryOptions({
      queryKey: ['vm', vmid, 'config', node],
      queryFn: ({ signal }) => call('GET /nodes/{node}/qemu/{vmid}/pending', { node, vmid }, signal),
    }),

  migratePreconditions: (node: string, vmid: number) =>
    queryOptions({
      queryKey: ['vm', vmid, 'migrate', node],
      queryFn: ({ signal }) => call('GET /nodes/{node}/qemu/{vmid}/migrate', { node, vmid }, signal),
    }),

  taskStatus: (node: string, upid: string) =>
    queryOptions({
      queryKey: ['task-log', upid, 'status'],
      queryFn: ({ signal }) => call('GET /nodes/{node}/tasks/{upid}/status', { node, upid }, signal),
    }),

  /** The whole log; each reading asks only for what has been added since. */
  taskLog: (node: string, upid: string) =>
    queryOptions({
      queryKey: ['task-log', upid, 'lines'],
      queryFn: async ({ signal, client, queryKey }): Promise<LogSoFar> => {
        let log = client.getQueryData<LogSoFar>(queryKey) ?? noLines
        for (;;) {
          const params = { node, upid, start: log.lines.length, limit: LOG_PAGE }
          const page = await callWhole('GET /nodes/{node}/tasks/{upid}/log', params, signal)
          const next = appendLines(log, page.data, page.total)
          const grown = next.lines.length > log.lines.length
          log = next
          if (!grown || page.data.length < LOG_PAGE) return log
        }
      },
    }),
}

const LOG_PAGE = 500
