import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/webgpu/**/*.test.ts"],
    testTimeout: 600_000,
    hookTimeout: 120_000,
    pool: "forks",
    maxWorkers: 1,
  },
});
