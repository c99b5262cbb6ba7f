export { createKernels, type KernelOptions, Kernels, storedDim } from "./kernels.js";
export { Budget, PagedMemory } from "./memory.js";
export { type AttendedPart, mergeParts } from "./merge.js";
export { threadsAvailable } from "./threads.js";
