/** A guest's configuration in words, in the order that administrators know. Pure. */

import type { PendingEntry } from '../api/types'

export type Section = 'Hardware' | 'Options'

export interface Row {
  key: string
  label: string
  section: Section
  value: string
  /** What it will be after the next start. */
  pending?: string
}

const HARDWARE: [RegExp, (n: string) => string][] = [
  [/^memory$/, () => 'Memory'],
  [/^balloon$/, () => 'Minimum memory (balloon)'],
  [/^sockets$/, () => 'Processor sockets'],
  [/^cores$/, () => 'Cores per socket'],
  [/^cpu$/, () => 'Processor type'],
  [/^kvm$/, () => 'KVM acceleration'],
  [/^bios$/, () => 'BIOS'],
  [/^vga$/, () => 'Display'],
  [/^machine$/, () => 'Machine'],
  [/^scsihw$/, () => 'SCSI controller'],
  [/^(?:scsi|virtio|sata|ide)(\d+)$/, () => 'Disk'],
  [/^(?:efidisk|tpmstate)(\d+)$/, () => 'State disk'],
  [/^unused(\d+)$/, () => 'Unused disk'],
  [/^net(\d+)$/, () => 'Network device'],
  [/^serial(\d+)$/, () => 'Serial port'],
  [/^rng0$/, () => 'Random numbers (RNG)'],
  [/^args$/, () => 'QEMU arguments'],
]

const OPTIONS: Record<string, string> = {
  name: 'Name',
  description: 'Notes',
  tags: 'Tags',
  ostype: 'Operating system',
  boot: 'Boot order',
  onboot: 'Start at boot',
  startup: 'Start and shutdown order',
  agent: 'Guest agent',
  protection: 'Protection from removal',
  hotplug: 'Hotplug',
  template: 'Template',
}

/** Not for people. */
const HIDDEN = new Set(['digest', 'vmgenid', 'meta', 'smbios1', 'lock'])
const YES_NO = new Set(['kvm', 'onboot', 'protection', 'template'])

export function rowsOf(entries: PendingEntry[]): Row[] {
  return entries
    .filter((e) => !HIDDEN.has(e.key) && (e.value !== undefined || e.pending !== undefined))
    .map(rowOf)
    .sort((a, b) => rank(a.key) - rank(b.key) || a.key.localeCompare(b.key, 'en', { numeric: true }))
}

function rowOf(entry: PendingEntry): Row {
  const { key } = entry
  const pending = entry.delete
    ? 'removed'
    : entry.pending === undefined
      ? undefined
      : shown(key, entry.pending)
  const value = entry.value === undefined ? '–' : shown(key, entry.value)
  return {
    key,
    label: labelOf(key, String(entry.value ?? '')),
    section: rank(key) < HARDWARE.length ? 'Hardware' : 'Options',
    value,
    ...(pending !== undefined && pending !== value ? { pending } : {}),
  }
}

function rank(key: string): number {
  const hardware = HARDWARE.findIndex(([pattern]) => pattern.test(key))
  if (hardware >= 0) return hardware
  const option = Object.keys(OPTIONS).indexOf(key)
  return HARDWARE.length + (option >= 0 ? option : Object.keys(OPTIONS).length)
}

function labelOf(key: string, value: string): string {
  const found = HARDWARE.find(([pattern]) => pattern.test(key))
  if (!found) return OPTIONS[key] ?? key
  if (/^(?:scsi|virtio|sata|ide)\d+$/.test(key) && /(?:^|,)media=cdrom/.test(value))
    return `CD/DVD drive (${key})`
  return /\d$/.test(key) && key !== 'rng0' && key !== 'smbios1' ? `${found[1](key)} (${key})` : found[1](key)
}

function shown(key: string, value: string | number): string {
  const text = String(value)
  if (YES_NO.has(key)) return text === '1' ? 'Yes' : 'No'
  if (key === 'memory' || key === 'balloon') return /^\d+$/.test(text) ? `${text} MiB` : text
  return text
}
