/** A screen for `mock.mjs`: RFB 3.8 over a websocket, with password, drawing a clock-like pattern. */

import { createHash, randomBytes } from 'node:crypto'

const WIDTH = 640
const HEIGHT = 400

export function serveScreen(request, socket, guest) {
  const accept = createHash('sha1')
    .update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest('base64')
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: binary\r\n\r\n`,
  )
  const send = (data) => socket.write(frame(data))
  let step = 'version'
  let timer
  const where = guest.node
  send(Buffer.from('RFB 003.008\n'))
  socket.on('error', () => socket.destroy())
  socket.on('close', () => clearInterval(timer))
  let rest = Buffer.alloc(0)
  socket.on('data', (chunk) => {
    rest = Buffer.concat([rest, chunk])
    for (let got = unframe(rest); got; got = unframe(rest)) {
      rest = rest.subarray(got.size)
      if (got.opcode === 8) return socket.end()
      next()
    }
  })

  function next() {
    if (step === 'version') {
      send(Buffer.from([1, 2]))
      step = 'security'
    } else if (step === 'security') {
      send(randomBytes(16))
      step = 'password'
    } else if (step === 'password') {
      send(Buffer.from([0, 0, 0, 0]))
      step = 'init'
    } else if (step === 'init') {
      send(serverInit(guest.name))
      step = 'live'
      timer = setInterval(() => {
        // As with a real guest, the screen ends where it moves away.
        if (guest.status !== 'running' || guest.node !== where) return socket.end()
        send(picture())
      }, 500)
      send(picture())
    }
  }
}

function serverInit(name) {
  const format = Buffer.from([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])
  const head = Buffer.alloc(4)
  head.writeUInt16BE(WIDTH, 0)
  head.writeUInt16BE(HEIGHT, 2)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(name.length)
  return Buffer.concat([head, format, length, Buffer.from(name)])
}

function picture() {
  const pixels = Buffer.alloc(WIDTH * HEIGHT * 4)
  const at = Math.floor(Date.now() / 500)
  for (let i = 0; i < 400; i += 1) {
    const row = Math.floor(i / 25) * 24 + 8
    const column = (i % 25) * 25 + 8
    const lit = (i * 7919 + (i > 375 ? at : 0)) % 11 > 3
    if (lit) block(pixels, column, row, 16 + ((i * 31) % 7), 12)
  }
  const head = Buffer.alloc(16)
  head.writeUInt8(0, 0)
  head.writeUInt16BE(1, 2)
  head.writeUInt16BE(WIDTH, 8)
  head.writeUInt16BE(HEIGHT, 10)
  return Buffer.concat([head, pixels])
}

function block(pixels, x, y, width, height) {
  for (let row = y; row < Math.min(HEIGHT, y + height); row += 1) {
    for (let column = x; column < Math.min(WIDTH, x + width); column += 1) {
      pixels.writeUInt32LE(0xa8b8b8, (row * WIDTH + column) * 4)
    }
  }
}

function frame(data) {
  const head = data.length < 126 ? Buffer.alloc(2) : data.length < 65536 ? Buffer.alloc(4) : Buffer.alloc(10)
  head[0] = 0x82
  if (head.length === 2) head[1] = data.length
  else if (head.length === 4) {
    head[1] = 126
    head.writeUInt16BE(data.length, 2)
  } else {
    head[1] = 127
    head.writeBigUInt64BE(BigInt(data.length), 2)
  }
  return Buffer.concat([head, data])
}

/** A whole frame at the beginning of the buffer. What it says does not matter here; clients send nothing of 64 KiB. */
function unframe(buffer) {
  if (buffer.length < 6) return null
  let size = buffer[1] & 127
  let at = 2
  if (size === 126) {
    size = buffer.readUInt16BE(2)
    at = 4
  }
  if (buffer.length < at + 4 + size) return null
  return { opcode: buffer[0] & 15, size: at + 4 + size }
}
