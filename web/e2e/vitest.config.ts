import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ['*.e2e.ts'],
    // One story: each part goes on from where the one before has ended.
    sequence: { concurrent: false },
    fileParallelism: false,
    bail: 1,
    testTimeout: 90_000,
    hookTimeout: 60_000,
  },
})
