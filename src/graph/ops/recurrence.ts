import type { Emitter } from "../emit.js";
import { rows } from "../op.js";
import type { ScanBody } from "../scan.js";
import type { Tensor } from "../tensor.js";

/** Recurrences. scan.ts builds them. */
export const recurrenceOps = rows({
  scan: {
    shape: (inputs, { body, output }) => (body as ScanBody).shape(inputs, output as number),
    onnx: (node, emitter) => {
      const values = node.inputs.map((tensor) => emitter.value(tensor));
      const results = emitter.remember(`scan ${(node.attrs.body as ScanBody).id} ${values.join(" ")}`, () =>
        emitScan(node, emitter),
      );
      return results.get(node.attrs.output as number) ?? "";
    },
  },
});

/** One Scan for all the results of a recurrence that anything reads; returns their values by number. */
function emitScan({ inputs, attrs }: Tensor, emitter: Emitter): Map<number, string> {
  const body = attrs.body as ScanBody;
  const states = body.states.length;
  const given = states + body.places.length;
  const read = [...emitter.resultsRead(body)].filter((output) => output >= states).sort((a, b) => a - b);
  const outer = body.shared.map((tensor, i) => [tensor, emitter.value(inputs[given + i])] as const);
  const outputs = [...body.next, ...read.map((output) => body.stacked[output - states])];
  const direction = (count: number): number[] => new Array<number>(count).fill(body.reverse ? 1 : 0);
  const results = emitter.nodes(
    "Scan",
    inputs.slice(0, given).map((tensor) => emitter.value(tensor)),
    {
      body: emitter.subgraph([...body.states, ...body.places], outer, outputs),
      num_scan_inputs: body.places.length,
      scan_input_axes: body.inAxes,
      scan_input_directions: direction(body.places.length),
      scan_output_axes: read.length > 0 ? read.map((output) => body.outAxes[output - states]) : undefined,
      scan_output_directions: read.length > 0 ? direction(read.length) : undefined,
    },
    { outputs: outputs.length },
  );
  return new Map([...body.states.keys(), ...read].map((output, i) => [output, results[i]]));
}
