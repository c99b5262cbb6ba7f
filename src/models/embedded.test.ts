import { expect, test } from "vitest";
import { openCheckpoint } from "./load.js";

test("an embedded model is opened by its name, from anywhere", async () => {
  const checkpoint = await openCheckpoint("tiny");
  expect(checkpoint.name).toBe("tiny");
  expect(checkpoint.source.path).toMatch(/models.tiny/);
  await checkpoint.close();
});

test("a name that no embedded model has is a path", async () => {
  await expect(openCheckpoint("tinier")).rejects.toThrow(/no checkpoint at tinier/);
});
