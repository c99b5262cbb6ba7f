import { constant, type Tensor } from "../graph/index.js";

/** The scalars that change from step to step: float32 []. */
export interface StepScalars {
  /** Learning rate of this step. */
  readonly rate: Tensor;
  /** 1 - beta1^t and 1 - beta2^t, t from 1. */
  readonly correction1: Tensor;
  readonly correction2: Tensor;
}

/** One parameter's update. */
export interface Update {
  /** The new value. */
  readonly value: Tensor;
  /** The new state, in the order of `slots`. */
  readonly state: readonly Tensor[];
}

/** An optimiser as a part of the graph: what it keeps for each parameter, and the formula of one step. */
export interface Optimizer {
  readonly name: string;
  /** Learning rate at full height. */
  readonly rate: number;
  /** Decay rates of the averages, for the bias corrections; [0, 0] where there are none. */
  readonly betas: readonly [number, number];
  /** Names of what is kept for each parameter, each of its shape, zero at first. */
  readonly slots: readonly string[];
  /** All gradients together are scaled down to at most this norm; undefined: as they are. */
  readonly clip?: number;
  update(parameter: Tensor, gradient: Tensor, state: readonly Tensor[], scalars: StepScalars): Update;
}

/** Which parameters decay: by name and number of axes. */
export type DecayRule = (name: string, axes: number) => boolean;

/** Matrices decay; norms, biases and embeddings do not. */
export const decayMatrices: DecayRule = (name, axes) => axes >= 2 && !name.startsWith("embed");

interface CommonOptions {
  /** Largest norm of all gradients together. Default 1; Infinity: no clipping. */
  readonly clip?: number;
  readonly weightDecay?: number;
  /** Default `decayMatrices`. */
  readonly decays?: DecayRule;
}

/**
 * AdamW (Decoupled Weight Decay Regularization, ICLR 2019): m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
 * p -= rate * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * p). Defaults: rate 1e-3, betas 0.9 and 0.95,
 * eps 1e-8, decay 0.1.
 */
export function adamW(
  options: CommonOptions & { rate?: number; betas?: readonly [number, number]; eps?: number } = {},
): Optimizer {
  const { rate = 1e-3, betas = [0.9, 0.95], eps = 1e-8, weightDecay = 0.1, decays = decayMatrices, clip = 1 } = options;
  const [b1, b2] = betas;
  return {
    name: "adamw",
    rate,
    betas,
    slots: ["m", "v"],
    ...(Number.isFinite(clip) && { clip }),
    update(p, g, [m, v], { rate: lr, correction1, correction2 }) {
      const mean = m.mul(b1).add(g.mul(1 - b1));
      const square = v.mul(b2).add(g.mul(g).mul(1 - b2));
      let step = mean.div(correction1).div(square.div(correction2).sqrt().add(eps));
      if (weightDecay > 0 && decays(nameOf(p), p.rank)) step = step.add(p.mul(weightDecay));
      return { value: p.sub(step.mul(lr)), state: [mean, square] };
    },
  };
}

/**
 * Muon (https://kellerjordan.github.io/posts/muon, in the form of arXiv:2502.16982): a matrix moves by its averaged
 * gradient made orthogonal, so that all its directions learn at one speed: m = momentum * m + g, u = g + momentum * m;
 * p -= rate * (0.2 * sqrt(max(rows, columns)) * orthogonal(u) + decay * p). The factor lets it share AdamW's rate and
 * decay; embeddings and vectors are AdamW's. Defaults: rate 1e-3, momentum 0.95, decay 0.1.
 */
export function muon(
  options: CommonOptions & { rate?: number; momentum?: number; betas?: readonly [number, number] } = {},
): Optimizer {
  const { momentum = 0.95, weightDecay = 0.1, decays = decayMatrices } = options;
  const others = adamW(options);
  return {
    ...others,
    name: "muon",
    update(p, g, [m, v], scalars) {
      if (p.rank !== 2 || nameOf(p).startsWith("embed")) return others.update(p, g, [m, v], scalars);
      const mean = m.mul(momentum).add(g);
      const size = 0.2 * Math.sqrt(Math.max(...(p.shape as number[])));
      let step = orthogonal(mean.mul(momentum).add(g)).mul(size);
      if (weightDecay > 0 && decays(nameOf(p), p.rank)) step = step.add(p.mul(weightDecay));
      return { value: p.sub(step.mul(scalars.rate)), state: [mean, v.mul(1)] };
    },
  };
}

/**
 * About the orthogonal matrix next to one [n, m]: five steps of a Newton-Schulz iteration, after which singular values lie
 * between 0.7 and 1.2.
 */
export function orthogonal(matrix: Tensor): Tensor {
  const [rows, columns] = matrix.shape as number[];
  const tall = rows > columns;
  let x = tall ? matrix.transpose() : matrix;
  x = x.div(x.mul(x).sum().sqrt().add(1e-7));
  for (let i = 0; i < 5; i++) {
    const square = x.matmul(x.transpose());
    x = x.mul(3.4445).add(square.mul(-4.775).add(square.matmul(square).mul(2.0315)).matmul(x));
  }
  return tall ? x.transpose() : x;
}

/** Stochastic gradient descent with momentum: u = momentum * u + g + decay * p; p -= rate * u. Defaults 1e-2, 0.9, 0. */
export function sgd(options: CommonOptions & { rate?: number; momentum?: number } = {}): Optimizer {
  const { rate = 1e-2, momentum = 0.9, weightDecay = 0, decays = decayMatrices, clip = 1 } = options;
  return {
    name: "sgd",
    rate,
    betas: [0, 0],
    slots: momentum > 0 ? ["u"] : [],
    ...(Number.isFinite(clip) && { clip }),
    update(p, g, [u], { rate: lr }) {
      const pull = weightDecay > 0 && decays(nameOf(p), p.rank) ? g.add(p.mul(weightDecay)) : g;
      if (momentum === 0) return { value: p.sub(pull.mul(lr)), state: [] };
      const speed = u.mul(momentum).add(pull);
      return { value: p.sub(speed.mul(lr)), state: [speed] };
    },
  };
}

/** The norm of all gradients together, []. */
export function globalNorm(gradients: readonly Tensor[]): Tensor {
  return gradients
    .map((g) => g.mul(g).sum())
    .reduce((a, b) => a.add(b))
    .sqrt();
}

/** The factor that takes a norm to at most `clip`. */
export function clipFactor(norm: Tensor, clip: number): Tensor {
  return constant(clip).div(norm.add(1e-6)).minimum(1);
}

function nameOf(parameter: Tensor): string {
  return parameter.name ?? "";
}
