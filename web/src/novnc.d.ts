/** The part of noVNC that the console uses; the package has no types of its own. */
declare module '@novnc/novnc' {
  interface RfbEvents {
    connect: CustomEvent
    disconnect: CustomEvent<{ clean: boolean }>
    securityfailure: CustomEvent<{ status: number; reason?: string }>
    credentialsrequired: CustomEvent<{ types: string[] }>
    desktopname: CustomEvent<{ name: string }>
  }

  export default class RFB {
    constructor(
      target: HTMLElement,
      url: string,
      options?: { shared?: boolean; credentials?: { password: string }; wsProtocols?: string[] },
    )
    scaleViewport: boolean
    showDotCursor: boolean
    background: string
    viewOnly: boolean
    addEventListener<K extends keyof RfbEvents>(type: K, listener: (event: RfbEvents[K]) => void): void
    disconnect(): void
    focus(): void
    sendCtrlAltDel(): void
  }
}
