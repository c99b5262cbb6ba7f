import { appendTask, readTask } from "./append";
import { attendTask, mergeChunks } from "./attend";
import { boundsTask } from "./bounds";
import { APPEND, BOUNDS, DONE, F_KIND, F_TOTAL, GENERATION, READ, REMAINING, SLEEPERS, STOP, field } from "./layout";

export { softmaxRow, topK } from "./rows";

function runTask(task: i32, scratch: usize): void {
  const kind = <i32>field(F_KIND);
  if (kind == APPEND) appendTask(task);
  else if (kind == READ) readTask(task);
  else if (kind == BOUNDS) boundsTask(task, scratch);
  else attendTask(task, scratch);
}

function finish(): void {
  if (<i32>field(F_KIND) < APPEND) mergeChunks();
}

/** Runs the job's tasks on the calling thread alone. */
export function runAlone(scratch: usize): void {
  const total = <i32>field(F_TOTAL);
  for (let task = 0; task < total; task++) runTask(task, scratch);
  finish();
}

// A task is taken by counting REMAINING down. Between jobs it is not above 0, so a worker that comes late takes nothing;
// it is set last, when every other field of the job is written.
function takeTasks(scratch: usize): void {
  while (true) {
    const left = atomic.sub<i32>(REMAINING, 1);
    if (left <= 0) return;
    runTask(<i32>field(F_TOTAL) - left, scratch);
    atomic.add<i32>(DONE, 1);
  }
}

/** Wakes sleeping workers ahead of a job. */
export function wake(): void {
  if (atomic.load<i32>(SLEEPERS) == 0) return;
  atomic.add<i32>(GENERATION, 1);
  atomic.notify(GENERATION, -1);
}

/** Runs the job with the workers; returns when every task is done. */
export function run(scratch: usize): void {
  const total = <i32>field(F_TOTAL);
  atomic.store<i32>(DONE, 0);
  atomic.store<i32>(REMAINING, total);
  wake();
  takeTasks(scratch);
  while (atomic.load<i32>(DONE) < total) {}
  finish();
}

/** A worker's whole life: takes tasks, looks for more for a while, sleeps until the next job. */
export function serve(scratch: usize, spins: i32): void {
  while (true) {
    takeTasks(scratch);
    let spin = spins;
    while (spin > 0 && atomic.load<i32>(REMAINING) <= 0 && atomic.load<i32>(STOP) == 0) spin--;
    if (atomic.load<i32>(STOP) != 0) return;
    if (atomic.load<i32>(REMAINING) > 0) continue;
    atomic.add<i32>(SLEEPERS, 1);
    const generation = atomic.load<i32>(GENERATION);
    if (atomic.load<i32>(REMAINING) <= 0 && atomic.load<i32>(STOP) == 0) atomic.wait<i32>(GENERATION, generation, -1);
    atomic.sub<i32>(SLEEPERS, 1);
  }
}

/** Ends the workers. */
export function stop(): void {
  atomic.store<i32>(STOP, 1);
  atomic.add<i32>(GENERATION, 1);
  atomic.notify(GENERATION, -1);
}
