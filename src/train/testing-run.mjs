// For a test that kills it: trains a tiny model into the folder given, on the built library.
import { adamW, decoder, train } from "../../dist/train/index.js";
import { counting } from "../../dist/train/testing.js";

await train({
  model: decoder({ layers: 1, width: 32, heads: 2, vocabulary: 300 }),
  data: counting({ rows: 4, length: 16 }),
  steps: 200,
  optimizer: adamW({ rate: 1e-2 }),
  logEvery: 1,
  saveEvery: 3,
  threads: 1,
  folder: process.argv[2],
});
