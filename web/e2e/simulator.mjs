/**
 * The simulator's page in Chromium: pulls a plug, sees the guests elsewhere with the reason, goes back in time and sees them
 * where they were. Run by the testbed, with STEAD_URL and STEAD_CHROMIUM.
 */

import { strict as assert } from 'node:assert'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { chromium } from 'playwright-core'

const { STEAD_URL: url, STEAD_CHROMIUM: executablePath } = process.env
assert(url, 'STEAD_URL is not set')
const out = join(import.meta.dirname, 'out')
mkdirSync(out, { recursive: true })
const browser = await chromium.launch({
  executablePath,
  args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
})
const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, colorScheme: 'light' })
page.setDefaultTimeout(20_000)
const wrong = []
page.on('pageerror', (error) => wrong.push(error.message))
page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()))
try {
  await page.goto(url)
  const node = (name) => page.getByRole('article', { name, exact: true })
  const guest = (on, sid) => node(on).getByRole('button', { name: sid, exact: true })
  const at = (time) => page.locator('#clock', { hasText: time }).waitFor()
  const seek = async (to) => {
    await page.getByLabel('Timeline').evaluate((slider, value) => {
      if (Number(slider.max) < Number(value)) slider.max = value
      slider.value = value
      slider.dispatchEvent(new Event('input'))
      slider.dispatchEvent(new Event('change'))
    }, to)
    await at(`${to}.000 s`)
  }
  await seek('20')
  await page.locator('#nodes .guest.runs').nth(5).waitFor()
  await guest('n2', 'vm:101').waitFor()
  await page.screenshot({ path: join(out, 'simulator-1-before.png') })

  await node('n2').getByRole('button', { name: 'n2', exact: true }).click()
  await page.getByRole('button', { name: 'Pull the plug' }).click()
  await node('n2').getByText('power off').waitFor()
  await seek('45')
  await guest('n2', 'vm:101').waitFor({ state: 'detached' })
  await page.locator('#nodes .guest', { hasText: 'vm:101' }).click()
  await page.locator('#why', { hasText: "node 'n2' is lost" }).waitFor()
  await node('n2').getByText('committed lost').waitFor()
  await page.screenshot({ path: join(out, 'simulator-2-recovered.png') })

  await seek('20')
  await guest('n2', 'vm:101').waitFor()
  await node('n2').getByText('has a lease').waitFor()
  await page.locator('#why', { hasText: 'added to HA' }).waitFor()
  await page.screenshot({ path: join(out, 'simulator-3-back.png') })
  assert.deepEqual(wrong, [])
} catch (error) {
  await page.screenshot({ path: join(out, 'simulator-failed.png') })
  throw error
} finally {
  await browser.close()
}
