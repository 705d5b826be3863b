/** The console as a user works with it: by the names of what is on the page. */

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { settings } from './cluster'

export const OUT = join(import.meta.dirname, 'out')

export async function openBrowser(): Promise<Browser> {
  mkdirSync(OUT, { recursive: true })
  return chromium.launch({
    executablePath: settings.chromium,
    // Chromium's sandbox does not work for root.
    args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
  })
}

export async function signIn(page: Page, password = settings.password): Promise<void> {
  const [user = '', realm = 'pam'] = settings.user.split('@')
  await page.getByLabel('User name').fill(user)
  await page.getByLabel('Password').fill(password)
  await page.getByLabel('Realm').selectOption(realm)
  await page.getByRole('button', { name: 'Sign in' }).click()
}

export const tree = (page: Page) => page.getByRole('navigation', { name: 'Nodes and guests' })
export const nodeInTree = (page: Page, node: string) =>
  tree(page).locator('.tree-row').getByRole('link', { name: node })
export const tabs = (page: Page) => page.getByRole('navigation', { name: 'Parts of the VM' })
export const action = (page: Page, name: string) => page.getByRole('button', { name, exact: true })
export const heading = (page: Page) => page.locator('.vm-head')
export const log = (page: Page) => page.getByRole('region', { name: /^Log of/ })

/** The node that the VM's page names. */
export async function nodeOfVm(page: Page): Promise<string> {
  return ((await heading(page).getByRole('link').first().textContent()) ?? '').trim()
}

export async function waitForVm(
  page: Page,
  state: { status?: string; node?: string },
  timeout: number,
): Promise<void> {
  if (state.node)
    await heading(page).getByRole('link', { name: state.node, exact: true }).waitFor({ timeout })
  if (state.status) await heading(page).getByText(state.status, { exact: true }).waitFor({ timeout })
}

/** The task shown in the panel has ended well; otherwise its log is the message. */
export async function waitForTask(page: Page, title: string, timeout: number): Promise<void> {
  const panel = page.getByRole('region', { name: `Log of ${title}` })
  await panel.getByText(/^(?:OK|Warnings|Failed)$/).waitFor({ timeout })
  if (await panel.getByText('Failed', { exact: true }).isVisible()) {
    throw new Error(`${title} failed:\n${await panel.getByRole('log').textContent()}`)
  }
}

/** Waits until the guest's screen shows something else than it does now. */
export async function waitForScreenToChange(page: Page, timeout: number): Promise<void> {
  const canvas = page.locator('[data-connected="true"] canvas')
  const deadline = Date.now() + timeout
  await canvas.waitFor({ timeout })
  const before = await canvas.screenshot()
  for (;;) {
    // Each picture takes a rendered frame: this follows the screen, it does not wait blindly.
    const now = await canvas.screenshot({ timeout: Math.max(1, deadline - Date.now()) })
    if (!now.equals(before)) return
    if (Date.now() > deadline) throw new Error(`the screen did not change within ${timeout} ms`)
  }
}

/** Keeps a picture of the page. */
export async function picture(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: join(OUT, `${name}.png`) })
}

/** A call of the API with the session of the page, for what the console has no page for yet. */
export async function callApi(page: Page, method: string, path: string, params: Record<string, string> = {}) {
  return page.evaluate(
    async ({ method, path, params }) => {
      const session = JSON.parse(localStorage.getItem('stead.session') ?? '{}')
      const response = await fetch(`/api2/json${path}`, {
        method,
        headers: { CSRFPreventionToken: session.csrf },
        body: method === 'GET' ? null : new URLSearchParams(params),
      })
      const body = await response.json()
      return { ok: response.ok, data: body.data, message: body.message as string | undefined }
    },
    { method, path, params },
  )
}
