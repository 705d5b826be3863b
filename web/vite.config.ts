import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync } from 'node:zlib'
import react from '@vitejs/plugin-react'
import type { Plugin } from 'vite'
import { defineConfig } from 'vitest/config'

/** Where `npm run dev` finds the API: a real node, or `npm run mock`. */
const api = process.env.STEAD_URL ?? 'http://127.0.0.1:8099'

/**
 * Puts beside each file that gains by it its brotli form: the daemon embeds both, and hands out the one that a browser
 * takes. Done here, once, at the highest level, rather than at each request.
 */
function compressed(): Plugin {
  let dist = ''
  return {
    name: 'compressed',
    apply: 'build',
    configResolved(config) {
      dist = config.build.outDir
    },
    closeBundle() {
      for (const name of readdirSync(dist, { recursive: true, encoding: 'utf8' })) {
        const path = join(dist, name)
        if (!/\.(html|js|css|svg|json)$/.test(name) || statSync(path).size < 1024) continue
        writeFileSync(`${path}.br`, brotliCompressSync(readFileSync(path)))
      }
    },
  }
}

export default defineConfig({
  plugins: [react(), compressed()],
  build: {
    // noVNC uses top-level await.
    target: 'es2023',
    // The console is served from the daemon's memory: one request for each asset, nothing inlined.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 900,
  },
  server: {
    // The host's name stays as the page has it: the API refuses a console to a page of another site.
    proxy: { '/api2': { target: api, changeOrigin: false, secure: false, ws: true } },
  },
  test: { include: ['src/**/*.test.ts'] },
})
