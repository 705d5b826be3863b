import { QueryClient, QueryObserver } from '@tanstack/react-query'
import { expect, test, vi } from 'vitest'
import { createStore } from '../api/store'
import { forgetWithUser } from './forget'

type Session = { username: string; renewedAt: number } | null

const alice: Session = { username: 'alice@pve', renewedAt: 1 }
const bob: Session = { username: 'bob@pve', renewedAt: 2 }

function setUp() {
  const client = new QueryClient()
  const session = createStore<Session>(alice)
  forgetWithUser(client, session)
  client.setQueryData(['vms'], ["alice's"])
  return { client, session }
}

test('what was read is forgotten when the session ends, however it does', () => {
  const { client, session } = setUp()
  session.set({ username: 'alice@pve', renewedAt: 3 })
  expect(client.getQueryData(['vms'])).toEqual(["alice's"])
  session.set(null)
  expect(client.getQueryData(['vms'])).toBeUndefined()
})

test('an answer that was under way for the user before is not kept', async () => {
  const { client, session } = setUp()
  let answer = (_: string) => {}
  const queryFn = () =>
    new Promise<string>((resolve) => {
      answer = resolve
    })
  const asked = client.fetchQuery({ queryKey: ['slow'], queryFn })
  const refused = expect(asked).rejects.toThrow()
  session.set(null)
  session.set(bob)
  answer("alice's")
  await refused
  expect(client.getQueryData(['slow'])).toBeUndefined()
})

test('another tab signs in somebody else: what is shown is read again for them', async () => {
  const { client, session } = setUp()
  const read = vi.fn(async () => [session.get()?.username])
  const shown = new QueryObserver(client, { queryKey: ['pools'], queryFn: read })
  const stop = shown.subscribe(() => undefined)
  await vi.waitFor(() => expect(shown.getCurrentResult().data).toEqual(['alice@pve']))
  session.set(bob)
  expect(client.getQueryData(['vms'])).toBeUndefined()
  expect(shown.getCurrentResult().data).toBeUndefined()
  await vi.waitFor(() => expect(shown.getCurrentResult().data).toEqual(['bob@pve']))
  stop()
})
