/** Server-sent events out of a stream of text. Pure: text in, events out. */

export interface Frame {
  id?: string
  event?: string
  data: string
}

/** Takes text as it arrives, in any pieces, and gives the frames that are complete. Comments only keep the line alive. */
export function frameParser(): (text: string) => Frame[] {
  let rest = ''
  let frame: Frame = { data: '' }
  let lines: string[] = []
  return (text) => {
    rest += text
    const done: Frame[] = []
    for (let end = lineEnd(rest); end; end = lineEnd(rest)) {
      const line = rest.slice(0, end.at)
      rest = rest.slice(end.next)
      if (line === '') {
        if (lines.length > 0) done.push({ ...frame, data: lines.join('\n') })
        frame = { data: '' }
        lines = []
        continue
      }
      const colon = line.indexOf(':')
      if (colon === 0) continue
      const field = colon < 0 ? line : line.slice(0, colon)
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (field === 'data') lines.push(value)
      else if (field === 'id') frame.id = value
      else if (field === 'event') frame.event = value
    }
    return done
  }
}

/** Where the first line ends and the next begins. A lone CR at the very end may be half of a CRLF: wait. */
function lineEnd(text: string): { at: number; next: number } | null {
  const at = text.search(/[\r\n]/)
  if (at < 0) return null
  if (text[at] === '\n') return { at, next: at + 1 }
  if (at + 1 === text.length) return null
  return { at, next: text[at + 1] === '\n' ? at + 2 : at + 1 }
}
