import react from '@vitejs/plugin-react'
import { defineConfig } from 'vitest/config'

/** Where `npm run dev` finds the API: a real node, or `npm run mock`. */
const api = process.env.STEAD_URL ?? 'http://127.0.0.1:8099'

export default defineConfig({
  plugins: [react()],
  build: {
    // noVNC uses top-level await.
    target: 'es2023',
    // The console is served from the daemon's memory: one request for each asset, nothing inlined.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 900,
  },
  server: {
    proxy: { '/api2': { target: api, changeOrigin: true, secure: false, ws: true } },
  },
  test: { include: ['src/**/*.test.ts'] },
})
