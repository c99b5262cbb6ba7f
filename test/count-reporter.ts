import type { Reporter, SerializedError, TestModule } from "vitest/node";

/** After everything else, one plain line: `N passed, N failed, N skipped`. Nothing when no test ran. */
export default class CountReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    const count = { passed: 0, failed: errors.length, skipped: 0 };
    let ran = 0;
    for (const module of modules) {
      // A file that cannot be loaded, or a suite whose hook fails, has no failed test of its own.
      if (module.errors().length > 0) count.failed++;
      for (const suite of module.children.allSuites()) if (suite.errors().length > 0) count.failed++;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === "pending") continue;
        count[state]++;
        if (state !== "skipped") ran++;
      }
    }
    if (ran === 0 && count.failed === 0) return;
    // Written at the very end: the default reporter prints its summary in the same event.
    process.once("exit", () => {
      process.stdout.write(`\n${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped\n`);
    });
  }
}
