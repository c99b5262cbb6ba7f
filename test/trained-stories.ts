import { Engine } from "../src/engine/engine.js";
import type { AttachedMethod } from "../src/engine/hooks.js";
import { openCheckpoint } from "../src/models/index.js";

/** A small model that was trained (on stories, at 512 tokens), where it lies beside the project; for tests. */
export const STORIES = new URL("../../shared/checkpoints/stories260K/", import.meta.url).pathname;

/** A story of some 370 tokens. */
export const STORY =
  "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her red ball. One " +
  "day, her mom said it was going to rain. Lily was sad, but her friend Tom had an idea. They made a big boat out of " +
  "paper and put it in the water. The boat went far away and they ran after it. Then they saw a small frog on the boat. " +
  "The frog was happy and said thank you. Lily and Tom laughed and went home to eat cake with mom. The next day, Lily " +
  "went to the park again. She saw a big dog under a tree. The dog was sad because it had lost its ball. Lily wanted to " +
  "help the dog. She looked in the grass and behind the tree. Then she saw the ball in the water. Tom took a long stick " +
  "and got the ball out. The dog was very happy. It jumped up and down and ran to Lily. Lily said, you are a good dog. " +
  "They played with the ball all day. When it was dark, mom came to take them home.";

/** An engine over the trained model with a float32 cache, and the story's tokens. */
export async function openStories({ context = 512 }: { context?: number } = {}) {
  const checkpoint = await openCheckpoint(STORIES);
  const engine = await Engine.create(checkpoint, {
    threads: 1,
    memory: 2 ** 29,
    precision: "float32",
    cache: "float32",
    context,
  });
  const { ids } = checkpoint.tokenizer.encode(STORY, { special: true });
  return {
    engine,
    ids,
    close: async () => {
      await engine.close();
      await checkpoint.close();
    },
  };
}

/** Logits of the tokens from `prompt` on, decoded one by one behind the first `prompt`: [V] each. */
export async function decodedLogits(
  engine: Engine,
  methods: readonly AttachedMethod[],
  ids: readonly number[],
  prompt: number,
): Promise<Float32Array[]> {
  const sequence = engine.sequence(engine.compose(methods));
  try {
    await engine.prefill(sequence, ids.slice(0, prompt), { wanted: "last" });
    const out: Float32Array[] = [];
    for (const id of ids.slice(prompt)) out.push((await engine.decode([{ sequence, id }]))[0].slice());
    return out;
  } finally {
    sequence.close();
  }
}

/** The story `times` times over, one copy after another, and the tokens of one. */
export function repeated(ids: readonly number[], times: number): { ids: number[]; length: number } {
  const [first, ...story] = ids;
  return { ids: [first, ...Array.from({ length: times }, () => story).flat()], length: story.length };
}

/** Mean negative log-probability of `ids` by the rows of logits that predict them. */
export function meanNats(rows: readonly Float32Array[], ids: readonly number[]): number {
  return ids.reduce((sum, id, i) => sum - logSoftmax(rows[i])[id], 0) / ids.length;
}

/** Mean Kullback-Leibler divergence of the distributions that rows of logits stand for, KL(wanted, got) in nats. */
export function meanDivergence(wanted: readonly Float32Array[], got: readonly Float32Array[]): number {
  const each = wanted.map((row, i) => {
    const [p, q] = [logSoftmax(row), logSoftmax(got[i])];
    return p.reduce((sum, x, j) => sum + Math.exp(x) * (x - q[j]), 0);
  });
  return each.reduce((a, b) => a + b, 0) / each.length;
}

function logSoftmax(row: Float32Array): number[] {
  const max = row.reduce((a, b) => Math.max(a, b));
  const sum = row.reduce((total, x) => total + Math.exp(x - max), 0);
  return Array.from(row, (x) => x - max - Math.log(sum));
}
