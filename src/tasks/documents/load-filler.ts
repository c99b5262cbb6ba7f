import { type Filler, filler } from "./filler.js";

/**
 * Reads the filler of a folder, in Node: `<genre>.txt` for training, `<genre>.heldout.txt` held out.
 * @param folder default data/filler
 */
export async function loadFiller(folder = "data/filler"): Promise<Filler[]> {
  const { readdir, readFile } = await import("node:fs/promises");
  const names = (await readdir(folder)).filter((name) => name.endsWith(".txt")).sort();
  return Promise.all(
    names.map(async (name) => {
      const genre = name.replace(/(\.heldout)?\.txt$/, "");
      return filler(
        genre,
        await readFile(`${folder}/${name}`, "utf8"),
        name.includes(".heldout.") ? "held-out" : "train",
      );
    }),
  );
}
