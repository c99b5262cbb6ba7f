import { appendFile, mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { FoveaError } from "../../error.js";
import type { BenchRecord } from "../../tasks/index.js";
import { readText, writeAtomic } from "../files.js";

/** The file of records: what is in it, and how more is added. */
export async function openStore(file: string | undefined) {
  if (file === undefined) return { known: [] as BenchRecord[], count: () => 0, add: () => undefined };
  const { parseRecords } = await import("../../tasks/index.js");
  const found = await readText(file).catch((error: unknown) => {
    if (error instanceof FoveaError && error.code === "not-found") return "";
    throw error;
  });
  const known = parseRecords(found, file);
  await mkdir(dirname(file), { recursive: true });
  // a line that was cut short goes
  if (found !== "" && !found.endsWith("\n"))
    await writeAtomic(file, known.map((record) => `${JSON.stringify(record)}\n`).join(""));
  let count = known.length;
  const add = async (record: BenchRecord) => {
    await appendFile(file, `${JSON.stringify(record)}\n`);
    count++;
  };
  return { known, count: () => count, add };
}
