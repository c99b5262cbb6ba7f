import type { Reducer } from "../../engine/api.js";
import type { HeadName } from "../string.js";
import { eachRow } from "./row-mean.js";

/**
 * How sharply each token was read: the sum of squared weights over rows and heads, [tokens] by position. Squares leave
 * what a head reads on purpose and drop what it spreads over everything. The first token, where heads rest, counts nothing.
 *
 * @param options.heads heads that count; default all
 */
export function sharpness(options: { readonly heads?: readonly HeadName[] } = {}): Reducer<Float64Array> {
  const { heads } = options;
  const chosen = heads && new Set(heads.map(({ layer, head }) => `${layer}.${head}`));
  return {
    name: "sharpness",
    ...(heads && { layers: [...new Set(heads.map(({ layer }) => layer))] }),
    start(_model, tokens) {
      const sums = new Float64Array(tokens);
      return {
        observe(step) {
          eachRow(step, (head, { weights, keys }) => {
            if (chosen && !chosen.has(`${step.layer}.${head}`)) return;
            for (let i = 0; i < keys.length; i++)
              if (keys[i] > 0 && keys[i] < tokens) sums[keys[i]] += weights[i] * weights[i];
          });
        },
        finish: () => sums,
      };
    },
  };
}
