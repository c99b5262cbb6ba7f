// Continue a text with a local model, token by token.
import { load } from "fovea";

// A folder, a .gguf file, or "hf:HuggingFaceTB/SmolLM2-360M-Instruct".
const model = await load(process.argv[2] ?? "models/tiny");

const text = "At noon the tide turns and the ferry leaves. At noon the tide";
const generation = model.generate(text, { maxTokens: 8, stop: ["."] });
process.stdout.write(text);
for await (const piece of generation) process.stdout.write(piece.text);

const { finish, timings, cache_bytes } = await generation.result;
console.log(`\n${finish}; ${timings.generated_tokens} tokens; cache of ${cache_bytes} bytes`);
await model.close();
