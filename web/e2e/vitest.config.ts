import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** By name, so that the story, which powers a node off, comes last. */
class ByName extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return [...files].sort((a, b) => a.moduleId.localeCompare(b.moduleId))
  }
}

export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ['*.e2e.ts'],
    // One after the other: each part of the story goes on from where the one before has ended.
    sequence: { concurrent: false, sequencer: ByName },
    fileParallelism: false,
    bail: 1,
    testTimeout: 120_000,
    hookTimeout: 60_000,
  },
})
