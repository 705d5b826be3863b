/**
 * The connection to a guest's screen.
 *
 *   connecting ──► connected ──► waiting ──(a moment)──► connecting
 *
 * A screen ends when its guest moves, stops or its node dies: it is connected again, to wherever the guest is then.
 */

import RFB from '@novnc/novnc'
import { type RefObject, useEffect, useRef, useState } from 'react'
import { call } from '../../api/client'
import { screenUrl } from '../../api/request'

export type ScreenState = { is: 'connecting' | 'connected' } | { is: 'waiting'; why: unknown }

export interface Screen {
  state: ScreenState
  connectNow: () => void
  sendCtrlAltDel: () => void
}

const RETRY_MS = 1_500
/** The protocol takes no more of a password. */
const PASSWORD_LENGTH = 8

export function useScreen(target: RefObject<HTMLElement | null>, node: string, vmid: number): Screen {
  const [state, setState] = useState<ScreenState>({ is: 'connecting' })
  const [attempt, setAttempt] = useState(0)
  const current = useRef<RFB | null>(null)

  // biome-ignore lint/correctness/useExhaustiveDependencies: `attempt` is what asks for a new connection.
  useEffect(() => {
    const end = new AbortController()
    let retry: ReturnType<typeof setTimeout> | undefined
    const wait = (why: unknown) => {
      if (end.signal.aborted) return
      setState({ is: 'waiting', why })
      retry = setTimeout(() => setAttempt((n) => n + 1), RETRY_MS)
    }
    setState({ is: 'connecting' })
    connect(target, node, vmid, end.signal)
      .then((rfb) => {
        if (!rfb) return
        current.current = rfb
        let refused: string | undefined
        rfb.addEventListener('connect', () => setState({ is: 'connected' }))
        rfb.addEventListener('securityfailure', ({ detail }) => {
          refused = `The screen refused the connection: ${detail.reason ?? `status ${detail.status}`}.`
        })
        rfb.addEventListener('disconnect', () => wait(new Error(refused ?? 'The screen was disconnected.')))
      })
      .catch(wait)
    return () => {
      end.abort()
      clearTimeout(retry)
      current.current?.disconnect()
      current.current = null
    }
  }, [target, node, vmid, attempt])

  return {
    state,
    connectNow: () => setAttempt((n) => n + 1),
    sendCtrlAltDel: () => current.current?.sendCtrlAltDel(),
  }
}

async function connect(
  target: RefObject<HTMLElement | null>,
  node: string,
  vmid: number,
  signal: AbortSignal,
): Promise<RFB | null> {
  const proxy = await call('POST /nodes/{node}/qemu/{vmid}/vncproxy', { node, vmid, websocket: true }, signal)
  if (signal.aborted || !target.current) return null
  const rfb = new RFB(target.current, screenUrl(location.origin, { node, vmid }, proxy), {
    credentials: { password: (proxy.password ?? proxy.ticket).slice(0, PASSWORD_LENGTH) },
    wsProtocols: ['binary'],
  })
  rfb.scaleViewport = true
  rfb.background = 'transparent'
  // A guest without a pointer of its own would leave the user without one.
  rfb.showDotCursor = true
  return rfb
}
