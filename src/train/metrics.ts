/** One line of a run's metrics: what was measured at a step. */
export interface Metric {
  readonly step: number;
  readonly loss?: number;
  readonly [name: string]: number | undefined;
}

/** Metrics of a run as JSON lines in a file. */
export class MetricsFile {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Opens (or begins) a run's file; lines after `step` are of steps that will be taken again, and are dropped. */
  static async open(path: string, step: number): Promise<MetricsFile> {
    const { rename, writeFile } = await import("node:fs/promises");
    const kept = (await readMetrics(path)).filter((m) => m.step <= step);
    const temporary = `${path}.${process.pid}.tmp`;
    await writeFile(temporary, kept.map((m) => `${JSON.stringify(m)}\n`).join(""));
    await rename(temporary, path);
    return new MetricsFile(path);
  }

  async write(metric: Metric): Promise<void> {
    const { appendFile } = await import("node:fs/promises");
    await appendFile(this.#path, `${JSON.stringify(metric)}\n`);
  }
}

/** Metrics of a file; a last line that was cut off in the middle is left out. An absent file has none. */
export async function readMetrics(path: string): Promise<Metric[]> {
  const { readFile } = await import("node:fs/promises");
  const text = await readFile(path, "utf8").catch(() => "");
  return text.split("\n").flatMap((line) => {
    try {
      const value: unknown = JSON.parse(line);
      return typeof value === "object" && value !== null && "step" in value ? [value as Metric] : [];
    } catch {
      return [];
    }
  });
}
