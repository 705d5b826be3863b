/** The cluster under test, as the environment tells it. */

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

function required(name: string): string {
  const value = process.env[name]
  if (!value) throw new Error(`${name} is not set: see web/README.md on what the story needs`)
  return value
}

export const settings = {
  /** Where a node serves the console. This node is never powered off. */
  url: required('STEAD_URL').replace(/\/$/, ''),
  user: required('STEAD_USER'),
  password: required('STEAD_PASSWORD'),
  vmid: Number(process.env.STEAD_VMID ?? 100),
  chromium: process.env.STEAD_CHROMIUM ?? '/usr/bin/chromium',
}

/** Powers a node off by the command that the environment names. */
export async function powerOff(node: string): Promise<void> {
  const command = required('STEAD_POWER_OFF_CMD').replaceAll('{node}', node)
  await promisify(execFile)('/bin/sh', ['-c', command], { timeout: 30_000 })
}
