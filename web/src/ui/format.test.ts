import { expect, test } from 'vitest'
import { bytes, duration, percent, time } from './format'

test('bytes have three digits and a binary unit', () => {
  expect([0, 1023, 1024, 1536 * 1024, 15 * 2 ** 30, 2 ** 60, undefined].map(bytes)).toEqual([
    '0 B',
    '1023 B',
    '1.00 KiB',
    '1.50 MiB',
    '15.0 GiB',
    '1024 PiB',
    '–',
  ])
})

test('shares are per cent', () => {
  expect([0.034, 0.5, 1, undefined, Number.NaN].map(percent)).toEqual(['3.4 %', '50 %', '100 %', '–', '–'])
})

test('durations show their two largest units', () => {
  expect([0, 59, 60, 3661, 90_000, 86_400, -5].map(duration)).toEqual([
    '0 s',
    '59 s',
    '1 min',
    '1 h 1 min',
    '1 d 1 h',
    '1 d',
    '0 s',
  ])
})

test('a time of today has no date', () => {
  const now = new Date(2026, 10, 21, 12, 0, 0)
  expect(time(new Date(2026, 10, 21, 9, 5, 1).getTime() / 1000, now)).toMatch(/^09:05:01/)
  expect(time(new Date(2026, 10, 20, 9, 5, 1).getTime() / 1000, now)).toMatch(/2026.* 09:05:01$/)
})
