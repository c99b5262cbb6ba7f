// Methods attach to a loaded model in milliseconds; a model with methods attached is a model.
import { load } from "fovea";
import { streamingLlm } from "fovea/attention";

const model = await load(process.argv[2] ?? "models/tiny");
const text = `${"The bell rings at noon. ".repeat(20)}The bell`;
for (const attached of [
  model,
  model.with("streaming-llm(sinks=4,window=32)"),
  model.with(streamingLlm({ sinks: 4, window: 32 })),
]) {
  const { text: answer, cache_bytes } = await attached.generate(text, { maxTokens: 4 }).result;
  console.log(`${attached.info.methods.join(" + ") || "full"}:${answer} (cache ${cache_bytes} bytes)`);
}
await model.close();
