// See what attention reads: reducers stream over the rows, so no map is stored unless it is asked for.
import { readFile } from "node:fs/promises";
import { load } from "fovea";
import { entropy, sinkRate, spanMass } from "fovea/attention";

const model = await load(process.argv[2] ?? "models/tiny");
const prompt = model.prompt(`${await readFile("examples/harbour.txt", "utf8")}\nThe code of the tool store is`);
const passage = prompt.span("The code of the tool store is 4417");

const { mass, sinks, spread } = await model.observe(prompt, {
  mass: spanMass(passage),
  sinks: sinkRate(),
  spread: entropy({ rows: "last" }),
});
const { layers, heads } = model.info.shape;
for (let layer = 0; layer < layers; layer++) {
  for (let head = 0; head < heads; head++) {
    const [onPassage, onFirst, nats] = [mass, sinks, spread].map((table) => table.at({ layer, head }).toFixed(3));
    console.log(
      `layer ${layer} head ${head}: ${onPassage} on the passage, ${onFirst} on the first token, ${nats} nats`,
    );
  }
}

const map = await model.attention(prompt, {
  layer: layers - 1,
  head: heads - 1,
  rows: [prompt.ids.length - 1, prompt.ids.length],
});
const most = map.data.indexOf(Math.max(...map.data));
console.log(`the last token reads "${map.tokens[most]}" with weight ${map.data[most].toFixed(3)}`);
await model.close();
