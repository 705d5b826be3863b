/** What the console does when it is cut from the cluster: it says so, goes on trying, and is live again afterwards. */

import type { Browser, Page } from 'playwright-core'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { settings } from './cluster'
import { openBrowser, picture, signIn, tree } from './console'

let browser: Browser
let page: Page

const health = () => page.getByRole('status', { name: 'Cluster health' })
const live = () => health().getByText('Live', { exact: true })

beforeAll(async () => {
  browser = await openBrowser()
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    viewport: { width: 1440, height: 900 },
  })
  page = await context.newPage()
  await page.goto(settings.url)
  await signIn(page)
  await live().waitFor()
})

afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') await picture(page, `failed-${task.name.replace(/\W+/g, '-')}`)
})

afterAll(() => browser?.close())

test('without the event stream the state is read every 3 seconds, and it is said', async () => {
  await page.route('**/api2/json/cluster/events*', (route) => route.abort())
  await page.reload()
  await health().getByText('Reconnecting…').waitFor()
  await tree(page).getByRole('link').first().waitFor()
  const reads: number[] = []
  page.on('response', (r) => r.url().endsWith('/cluster/resources') && reads.push(Date.now()))
  await expect.poll(() => reads.length, { timeout: 15_000 }).toBeGreaterThanOrEqual(3)
  await page.unrouteAll()
  await live().waitFor()
})

test('when the serving node is gone the console says so and names the others, and recovers', async () => {
  await page.context().setOffline(true)
  await page.getByText(/serves this page does not answer/).waitFor()
  await page.getByText('Every other node serves the same console').waitFor()
  const addresses = page.locator('.node-down').getByRole('link')
  for (const address of await addresses.all()) {
    expect(await address.getAttribute('href')).toMatch(/^https?:\/\/[^/]+\/$/)
  }
  // What was known still shows.
  expect(await tree(page).getByRole('link').count()).toBeGreaterThan(1)
  await picture(page, 'serving-node-gone')
  await page.context().setOffline(false)
  await live().waitFor()
  await page.locator('.node-down').waitFor({ state: 'detached' })
})

test('signing out ends the session, and pages ask to sign in', async () => {
  await page.getByRole('button', { name: /^User / }).click()
  await page.getByRole('menuitem', { name: 'Sign out' }).click()
  await page.getByRole('button', { name: 'Sign in' }).waitFor()
  await page.goto(`${settings.url}/vms/${settings.vmid}/hardware`)
  await page.getByRole('button', { name: 'Sign in' }).waitFor()
  await signIn(page)
  await page.waitForURL(`**/vms/${settings.vmid}/hardware`)
})

test('a page that does not exist says so', async () => {
  await page.goto(`${settings.url}/vms/999999999`)
  await page.getByText('VM 999999999 does not exist').waitFor()
  await page.goto(`${settings.url}/nowhere`)
  await page.getByText('This page does not exist').waitFor()
})
