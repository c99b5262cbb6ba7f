import { stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { FoveaError } from "../../error.js";
import { type Metric, readMetrics } from "../../train/index.js";
import { command } from "../command.js";
import { writeAtomic } from "../files.js";
import { json } from "../format.js";
import { jsonOption } from "../model.js";
import { flag, text, textOr, UsageError } from "../options.js";
import { type Series, svgPlot } from "../plot.js";

export const plot = command({
  name: "plot",
  summary: "draw the metrics of a training run as SVG",
  about:
    "Draws metrics over steps: the loss, or others by name, such as accuracy, held_out_loss, norm, rate or\n" +
    "tokens_per_second. Several runs, separated by commas, share one plot.",
  positionals: [{ name: "runs", help: "folders of runs, or metrics.jsonl files, separated by commas" }],
  options: {
    out: text("the .svg file", "file", { short: "o" }),
    metrics: textOr("what to draw, separated by commas", "names", "loss"),
    logX: flag("steps on a logarithmic axis"),
    logY: flag("values on a logarithmic axis"),
    ...jsonOption,
  },
  examples: ["fovea plot runs/first -o loss.svg", "fovea plot runs/a,runs/b --metrics loss,held_out_loss -o both.svg"],
  async run({ out, metrics, logX, logY, json: asJson }, [runs], io) {
    if (out === undefined) throw new UsageError("where to? name a file with -o run.svg");
    const names = metrics.split(",").map((name) => name.trim());
    const files = runs.split(",").map((run) => run.trim());
    const series: Series[] = [];
    for (const file of files) {
      const lines = await metricsOf(file);
      for (const name of names) {
        const points = lines.flatMap((m) => (typeof m[name] === "number" ? [[m.step, m[name]] as const] : []));
        if (points.length === 0)
          throw new FoveaError("not-found", `${file} has no metric "${name}"`, {
            hint: `it has ${[...new Set(lines.flatMap((m) => Object.keys(m)))].join(", ")}`,
          });
        const label = names.length > 1 ? name : "";
        const run = files.length > 1 || label === "" ? basename(file.replace(/[/\\]metrics\.jsonl$/, "")) : "";
        series.push({ name: [run, label].filter(Boolean).join(" "), points });
      }
    }
    await writeAtomic(out, svgPlot(series, { title: names.join(", "), x: "step", y: names.join(", "), logX, logY }));
    const lines = series.map(({ name, points }) => ({ name, points: points.length, last: points.at(-1)?.[1] }));
    if (asJson) io.out(json({ file: out, series: lines }, io.outTty));
    else io.out(`wrote ${out}: ${lines.map((l) => `${l.name} (${l.points} points)`).join(", ")}\n`);
  },
});

async function metricsOf(run: string): Promise<Metric[]> {
  const folder = await stat(run).then(
    (s) => s.isDirectory(),
    () => undefined,
  );
  if (folder === undefined) throw new FoveaError("not-found", `there is no run ${run}`);
  const lines = await readMetrics(folder ? join(run, "metrics.jsonl") : run);
  if (lines.length === 0)
    throw new FoveaError("bad-file", `${run} holds no metrics`, { hint: "a run's folder has a metrics.jsonl" });
  return lines;
}
