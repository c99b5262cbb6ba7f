import { hasNode } from "./source.js";

/** Names of the models that come with the package; the first that is there is the default of the command line. */
export const EMBEDDED: readonly string[] = ["nano", "tiny"];

/** Where an embedded model lies: beside the code in the package. */
export const embeddedUrl = (name: string): URL => new URL(`../../models/${name}`, import.meta.url);

/** The folder (in a browser the URL) of an embedded model; undefined for any other name, and where a folder has the name. */
export async function embeddedPlace(name: string): Promise<string | undefined> {
  if (!EMBEDDED.includes(name)) return undefined;
  if (!hasNode()) return embeddedUrl(name).href;
  const [{ existsSync }, { fileURLToPath }] = await Promise.all([import("node:fs"), import("node:url")]);
  const folder = fileURLToPath(embeddedUrl(name));
  return !existsSync(name) && existsSync(folder) ? folder : undefined;
}
