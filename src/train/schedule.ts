import { FoveaError } from "../error.js";

/** Factor on the learning rate at a step (0 is the first). */
export type Schedule = (step: number) => number;

/** How a schedule begins and ends. */
export interface ScheduleOptions {
  /** Steps of the whole run. */
  readonly steps: number;
  /** Steps over which the rate grows linearly to its full height. Default 0. */
  readonly warmup?: number;
  /** Factor at the end. Default 0.1 (cosine), 0 (wsd). */
  readonly floor?: number;
}

/** The full rate after the warm-up. */
export function constantSchedule({ warmup = 0 }: Pick<ScheduleOptions, "warmup"> = {}): Schedule {
  return (step) => warmUp(step, warmup);
}

/** Half a cosine from the full rate to `floor` (SGDR, arXiv:1608.03983, without restarts). */
export function cosineSchedule({ steps, warmup = 0, floor = 0.1 }: ScheduleOptions): Schedule {
  check(steps, warmup);
  return (step) => {
    if (step < warmup) return warmUp(step, warmup);
    const progress = Math.min(1, (step - warmup) / Math.max(1, steps - 1 - warmup));
    return floor + ((1 - floor) * (1 + Math.cos(Math.PI * progress))) / 2;
  };
}

/** Warm-up, a stable rate, and a linear decay over the last `decay` steps (default a fifth) (arXiv:2404.06395). */
export function wsdSchedule({
  steps,
  warmup = 0,
  floor = 0,
  decay = Math.ceil(steps / 5),
}: ScheduleOptions & { readonly decay?: number }): Schedule {
  check(steps, warmup + decay);
  return (step) => {
    if (step < warmup) return warmUp(step, warmup);
    const left = (steps - step) / Math.max(1, decay);
    return left >= 1 ? 1 : floor + (1 - floor) * Math.max(0, left);
  };
}

function warmUp(step: number, warmup: number): number {
  return step < warmup ? (step + 1) / warmup : 1;
}

function check(steps: number, least: number): void {
  if (steps < least)
    throw new FoveaError("bad-input", `a schedule of ${steps} steps has no room for ${least} of warm-up and decay`);
}
