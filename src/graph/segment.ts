import type * as ort from "onnxruntime-node";
import { FoveaError } from "../error.js";
import { formatShape } from "./dims.js";
import { type DType, type TensorData, toTypedArray } from "./dtype.js";
import type { Port } from "./emit.js";
import { isNode, type RealProvider, type Runtime, type RuntimeTensor } from "./runtime.js";

/** What an input is fed with: ONNX Runtime's tensor, or data with its sizes. */
export type Feed = RuntimeTensor | { data: TensorData | readonly number[]; dims: readonly number[] };

/** Where outputs are written, by name; or the names of the only outputs that are wanted. */
export type Fetches = Readonly<Record<string, Feed>> | readonly string[];

/** A compiled part of a graph: one session of ONNX Runtime. */
export class Segment {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly provider: RealProvider;
  /** Size of the model that the session was made of: its weights and graph. */
  readonly bytes: number;
  private readonly runtime: Runtime;
  private session: ort.InferenceSession | undefined;

  constructor(
    runtime: Runtime,
    session: ort.InferenceSession,
    model: { inputs: readonly Port[]; outputs: readonly Port[]; bytes: number },
    provider: RealProvider,
  ) {
    this.runtime = runtime;
    this.session = session;
    this.inputs = model.inputs;
    this.outputs = model.outputs;
    this.bytes = model.bytes;
    this.inputNames = model.inputs.map(({ name }) => name);
    this.outputNames = model.outputs.map(({ name }) => name);
    this.provider = provider;
  }

  /**
   * Runs the segment. In Node the calling thread is blocked for the whole run.
   *
   * @param feeds a value for every input
   * @param fetches tensors or arrays to write outputs into, in place, by output name (CPU only: ignored on a GPU); the other
   *   outputs are made new. Or a list of names: only these outputs are computed.
   * @returns the outputs by name
   * @throws FoveaError `bad-input` for a feed that is missing or does not fit, `closed` after `release`
   */
  async run(
    feeds: Readonly<Record<string, Feed>>,
    fetches?: Readonly<Record<string, Feed>> | readonly string[],
  ): Promise<Record<string, RuntimeTensor>> {
    const { session } = this;
    if (!session) throw new FoveaError("closed", "the segment was released");
    const fed = this.fed(feeds);
    const wanted = fetches === undefined ? undefined : this.wanted(fetches);
    if (!wanted) return session.run(fed);
    return isNode() ? session.run(fed, wanted) : this.runAndCopy(session, fed, wanted);
  }

  /**
   * Makes a run ready that is to be repeated: the arrays are read and written in place by every call of what is returned.
   * Saves checking and wrapping them again.
   *
   * @throws FoveaError as `run`
   */
  bind(feeds: Readonly<Record<string, Feed>>, fetches: Readonly<Record<string, Feed>>): () => Promise<void> {
    const fed = this.fed(feeds);
    const wanted = this.wanted(fetches);
    const node = isNode();
    return async () => {
      const { session } = this;
      if (!session) throw new FoveaError("closed", "the segment was released");
      if (node) await session.run(fed, wanted);
      else await this.runAndCopy(session, fed, wanted);
    };
  }

  /** onnxruntime-web gives a tensor that was passed for an output back as it was, so the outputs are copied here. */
  private async runAndCopy(
    session: ort.InferenceSession,
    fed: Record<string, RuntimeTensor>,
    wanted: Record<string, RuntimeTensor | null>,
  ): Promise<Record<string, RuntimeTensor>> {
    const made = await session.run(fed, Object.keys(wanted));
    for (const [name, tensor] of Object.entries(made)) {
      const target = wanted[name];
      if (!target || tensor.location !== "cpu") continue;
      (target.data as Float32Array).set(tensor.data as Float32Array);
    }
    return made;
  }

  private fed(feeds: Readonly<Record<string, Feed>>): Record<string, RuntimeTensor> {
    return Object.fromEntries(this.inputs.map((port) => [port.name, this.toTensor(port, feeds[port.name])]));
  }

  private wanted(fetches: Readonly<Record<string, Feed>> | readonly string[]): Record<string, RuntimeTensor | null> {
    const names: Record<string, RuntimeTensor | null> = {};
    const given = isNames(fetches) ? fetches : Object.keys(fetches);
    const unknown = given.find((name) => !this.outputNames.includes(name));
    if (unknown !== undefined) {
      throw new FoveaError(
        "bad-input",
        `the segment has no output "${unknown}"; it has ${this.outputNames.join(", ")}`,
      );
    }
    if (isNames(fetches)) for (const name of fetches) names[name] = null;
    else
      for (const port of this.outputs)
        names[port.name] = fetches[port.name] ? this.toTensor(port, fetches[port.name]) : null;
    return names;
  }

  private toTensor(port: Port, feed: Feed | undefined): RuntimeTensor {
    if (feed === undefined) {
      throw new FoveaError("bad-input", `no value for "${port.name}" ${formatShape(port.shape)} ${port.dtype}`, {
        hint: `the segment's inputs are ${this.inputNames.join(", ")}`,
      });
    }
    const { dims } = feed;
    const fits =
      dims.length === port.shape.length && port.shape.every((d, i) => typeof d === "string" || d === dims[i]);
    if (!fits) {
      throw new FoveaError(
        "bad-shape",
        `"${port.name}" must be ${formatShape(port.shape)}, but ${formatShape(dims)} was given`,
      );
    }
    if (isRuntimeTensor(feed)) {
      if (feed.type !== port.dtype) {
        throw new FoveaError("bad-input", `"${port.name}" must be ${port.dtype}, but ${feed.type} was given`);
      }
      return feed;
    }
    return makeTensor(this.runtime, port.name, port.dtype, feed.data, dims);
  }

  /** Frees the session and its weights. */
  async release(): Promise<void> {
    const { session } = this;
    this.session = undefined;
    await session?.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

function isNames(fetches: Readonly<Record<string, Feed>> | readonly string[]): fetches is readonly string[] {
  return Array.isArray(fetches);
}

function isRuntimeTensor(feed: Feed): feed is RuntimeTensor {
  return "type" in feed;
}

/** A tensor of ONNX Runtime over the data (which is not copied if it is of the type's array). */
function makeTensor(
  runtime: Runtime,
  name: string,
  dtype: DType,
  data: TensorData | readonly number[],
  dims: readonly number[],
): RuntimeTensor {
  const array = isNumbers(data) ? toTypedArray(data, dtype) : data;
  const count = dims.reduce((product, size) => product * size, 1);
  if (array.length !== count) {
    throw new FoveaError("bad-shape", `"${name}": ${array.length} elements given for ${formatShape(dims)}`);
  }
  const wrong = (): FoveaError =>
    new FoveaError("bad-input", `"${name}" must be ${dtype}, but a ${array.constructor.name} was given`);
  switch (dtype) {
    case "float32":
      if (!(array instanceof Float32Array)) throw wrong();
      return new runtime.Tensor("float32", array, dims);
    case "int64":
      if (!(array instanceof BigInt64Array)) throw wrong();
      return new runtime.Tensor("int64", array, dims);
    case "int32":
      if (!(array instanceof Int32Array)) throw wrong();
      return new runtime.Tensor("int32", array, dims);
    case "int8":
      if (!(array instanceof Int8Array)) throw wrong();
      return new runtime.Tensor("int8", array, dims);
    case "float16":
      if (!(array instanceof Uint16Array)) throw wrong();
      return new runtime.Tensor("float16", array, dims);
    default:
      if (!(array instanceof Uint8Array)) throw wrong();
      return dtype === "bool" ? new runtime.Tensor("bool", array, dims) : new runtime.Tensor("uint8", array, dims);
  }
}

function isNumbers(data: TensorData | readonly number[]): data is readonly number[] {
  return Array.isArray(data);
}
